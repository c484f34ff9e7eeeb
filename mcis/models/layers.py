"""Linen layers over `ops.conv`: parameters in float32, computation in `dtype`."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from mcis.ops import conv
from mcis.ops.image import resize
from mcis.ops.norm import layer_norm

he_normal = nn.initializers.he_normal()


class Layer(nn.Module):
    """A Linen module whose `param` does not trace the initializer of a parameter that exists.

    At every `apply` flax traces each initializer again, with `jax.eval_shape`, to check the shape of the parameter
    (https://github.com/google/flax/issues/3499). That takes 40 % of the time of tracing a network, and the first
    finding waits for it. This `param` compares the shapes directly.
    """

    @nn.nowrap
    def param(self, name: str, init: Initializer, shape: tuple[int, ...]) -> jax.Array:  # type: ignore[override]
        """The float32 parameter; ScopeParamShapeError if it exists with another shape."""
        if not self.has_variable("params", name):
            return super().param(name, init, shape)
        value: jax.Array = self.get_variable("params", name)
        if value.shape != shape:
            raise ScopeParamShapeError(name, "/".join(("", *self.path)), value.shape, shape)
        return value


class Conv(Layer):
    """Convolution with an odd square kernel, no bias: (B, H, W, I) -> (B, ceil(H/stride), ceil(W/stride), features).

    `size` is the side of the kernel, `dilation` the step between its taps in pixels. `same` pads as TensorFlow does,
    which differs at a stride of 2; it is for images, and has no dilation.
    """

    features: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    dtype: DTypeLike = jnp.float32
    same: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", he_normal, (self.size, self.size, x.shape[-1], self.features))
        if self.same:
            return conv.conv_same(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        return conv.conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.dilation)


class BatchNorm(Layer):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015): (..., C) -> (..., C) in `dtype`.

    Batch statistics are at least float32 for any input. The running variance is the unbiased one, as in the paper and
    in PyTorch; flax keeps the biased one, which differs much on coarse levels with few pixels. With a single value per
    channel (global pooling in a batch of one) the batch has no variance: the running statistics are then used in
    training too, and are not updated. `axis_name` is the pmap axis whose devices share batch statistics, not needed
    under jit; `momentum` the share of the running statistics that a step keeps.
    """

    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels, axes = (x.shape[-1],), tuple(range(x.ndim - 1))
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        shared = self.axis_name is not None and not self.is_initializing()
        count = x.size // x.shape[-1]
        count *= jax.lax.axis_size(self.axis_name) if shared and train else 1
        if train and count > 1:
            exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            mean = exact.mean(axes)
            mean = jax.lax.pmean(mean, self.axis_name) if shared else mean
            # Two passes: E[x^2] - E[x]^2 loses every digit where the mean is large and the variance small.
            var = jnp.square(exact - jnp.expand_dims(mean, axes)).mean(axes)
            var = jax.lax.pmean(var, self.axis_name) if shared else var
            if not self.is_initializing():
                keep, unbiased = self.momentum, var * (count / (count - 1))
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        gain = scale * jax.lax.rsqrt(var + self.epsilon)
        shift = bias - mean * gain
        return (x * jnp.expand_dims(gain, axes) + jnp.expand_dims(shift, axes)).astype(self.dtype)


class LayerNorm(Layer):
    """Layer normalisation over channels, with scale and bias: (..., C) -> (..., C), at least float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels)
        return layer_norm(x, scale, self.param("bias", nn.initializers.zeros, channels))


class ConvNorm(nn.Module):
    """`Conv`, then `BatchNorm`: (B, H, W, I) -> (B, ceil(H/stride), ceil(W/stride), features)."""

    features: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(self.features, self.size, self.stride, self.dilation, self.dtype, name="conv")(x)
        return BatchNorm(self.dtype, self.axis_name, name="norm")(x, train)


class Pointwise(Layer):
    """1x1 convolution with bias: (..., I) -> (..., features). Several inputs count as concatenated, without a copy."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        widths = [part.shape[-1] for part in parts]
        kernel = self.param("kernel", he_normal, (sum(widths), self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernels = jnp.split(kernel.astype(self.dtype), np.cumsum(widths)[:-1])
        products = (conv.pointwise(part.astype(self.dtype), rows) for part, rows in zip(parts, kernels, strict=True))
        return sum(products, jnp.expand_dims(bias.astype(self.dtype), range(parts[0].ndim - 1)))


class Depthwise(Layer):
    """Depthwise convolution with an odd square kernel, no bias: (B, H, W, C) -> (B, ceil(H/s), ceil(W/s), C)."""

    size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1), out_axis=())
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1]))
        return conv.depthwise(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


class ConvTranspose2x2(Layer):
    """2x2 transposed convolution of stride 2, with bias: (B, H, W, I) -> (B, 2H, 2W, features)."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", he_normal, (2, 2, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = conv.conv_transpose2x2(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + jnp.expand_dims(bias.astype(self.dtype), range(x.ndim - 1))


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014): (B, ...) -> (B, ...).

    Unlike flax's layer, each device under pmap takes its part of one draw for the whole batch: `axis_name` is the pmap
    axis.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or not self.rate:
            return x
        devices = 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (devices * len(x), *x.shape[1:]))
        if self.axis_name is not None:
            kept = jax.lax.dynamic_slice_in_dim(kept, jax.lax.axis_index(self.axis_name) * len(x), len(x))
        return jnp.where(kept, x / (1 - self.rate), 0)


class LabelHead(nn.Module):
    """Dropout and a linear layer on pooled features: (B, F) -> float32 logits (B, classes)."""

    classes: int
    dropout: float = 0.2
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> jax.Array:
        features = Dropout(self.dropout, self.axis_name, name="dropout")(features.astype(jnp.float32), train)
        return nn.Dense(self.classes, name="dense")(features)


def lesion_pooling(levels: Sequence[jax.Array], mask: jax.Array) -> jax.Array:
    """Means of levels (B, H, W, C) of any sizes, weighted by the probability of a mask: float32 (B, sum of the C).

    `mask` holds logits (B, H, W, 1) of any size. Each mean counts one more pixel of zeros, and so tends to 0 where
    there is no lesion.
    """
    pooled = []
    for x in levels:
        weight = resize(jax.nn.sigmoid(mask), x.shape[1:3])
        pooled.append((weight * x.astype(jnp.float32)).sum((1, 2)) / (weight.sum((1, 2)) + 1.0))
    return jnp.concatenate(pooled, -1)
