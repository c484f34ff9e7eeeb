"""Linen layers over `ops.conv`: the field's usual names, parameters in float32, compute in `dtype`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError

from mcis.ops import conv
from mcis.ops.image import resize
from mcis.ops.norm import layer_norm

he_normal = nn.initializers.he_normal()


def param(module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]) -> jax.Array:
    """`module.param(name, init, shape)`, which flax answers slowly where the parameter is there already.

    It then traces `init` once more for the shape that is expected: 40 % of the time in which a network is traced, and
    so of the wait for the first finding. Here the shapes are compared.

    Raises:
      ScopeParamShapeError: the parameter has another shape.
    """
    if not module.has_variable("params", name):
        return module.param(name, init, shape)
    value: jax.Array = module.get_variable("params", name)
    if value.shape != shape:
        raise ScopeParamShapeError(name, "/".join(("", *module.path)), value.shape, shape)
    return value


class Conv(nn.Module):
    """Convolution with an odd square kernel, no bias: (B, H, W, I) -> (B, ceil(H/stride), ceil(W/stride), features).

    Attributes:
      features: channels that come out.
      size: side of the kernel.
      stride: pixels from one output to the next.
      dilation: pixels from one tap of the kernel to the next.
      dtype: of the computation.
    """

    features: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve."""
        kernel = param(self, "kernel", he_normal, (self.size, self.size, x.shape[-1], self.features))
        return conv.conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.dilation)


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last (Ioffe & Szegedy 2015): (..., C) -> (..., C).

    The batch's statistics are at least float32 whatever the input is. The running variance is the unbiased one, as the
    paper and PyTorch have it; flax keeps the biased one, which at the coarse end of a network, where a batch has few
    pixels, is another number. One value a channel, as a branch that pools the whole scan has in a batch of one, has no
    variance: there the running statistics serve in training too, and stay as they are.

    Attributes:
      dtype: of the output.
      axis_name: of the devices whose batches are normalised as one under pmap; not needed under jit.
      momentum: what a step leaves of the running statistics.
      epsilon: added to the variance.
      scale_init: the scale's first value.
    """

    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalise by the batch's statistics in training, else by the running ones."""
        channels = (x.shape[-1],)
        scale = param(self, "scale", self.scale_init, channels)
        bias = param(self, "bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        shared = self.axis_name is not None and not self.is_initializing()
        count = x.size // x.shape[-1]
        count *= jax.lax.axis_size(self.axis_name) if shared and train else 1
        if train and count > 1:
            axes = tuple(range(x.ndim - 1))
            exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            mean = exact.mean(axes)
            mean = jax.lax.pmean(mean, self.axis_name) if shared else mean
            # Two passes: E[x^2] - E[x]^2 loses every digit where the mean is large and the spread small.
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
        wide = tuple(range(x.ndim - 1))
        return (x * jnp.expand_dims(gain, wide) + jnp.expand_dims(shift, wide)).astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over channels, with scale and bias: (..., C) -> (..., C), at least float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise each pixel by its own channels."""
        channels = (x.shape[-1],)
        scale = param(self, "scale", nn.initializers.ones, channels)
        return layer_norm(x, scale, param(self, "bias", nn.initializers.zeros, channels))


class ConvNorm(nn.Module):
    """Convolution without bias, then batch normalisation; the attributes of both."""

    features: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, I) -> (B, ceil(H/stride), ceil(W/stride), features)."""
        x = Conv(self.features, self.size, self.stride, self.dilation, self.dtype, name="conv")(x)
        return BatchNorm(self.dtype, self.axis_name, scale_init=self.scale_init, name="norm")(x, train)


class Pointwise(nn.Module):
    """1x1 convolution with bias: (..., I) -> (..., features)."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        """Multiply every pixel's channels by the kernel; several inputs count as concatenated, but are not copied."""
        widths = [part.shape[-1] for part in parts]
        kernel = param(self, "kernel", he_normal, (sum(widths), self.features))
        bias = param(self, "bias", nn.initializers.zeros, (self.features,))
        rows = jnp.split(kernel.astype(self.dtype), np.cumsum(widths)[:-1])
        products = (conv.pointwise(part.astype(self.dtype), mine) for part, mine in zip(parts, rows, strict=True))
        return sum(products, jnp.expand_dims(bias.astype(self.dtype), range(parts[0].ndim - 1)))


class Depthwise(nn.Module):
    """Depthwise convolution with an odd square kernel, no bias: (B, H, W, C) -> (B, H, W, C)."""

    size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve each channel with its own kernel."""
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1), out_axis=())
        kernel = param(self, "kernel", init, (self.size, self.size, x.shape[-1]))
        return conv.depthwise(x.astype(self.dtype), kernel.astype(self.dtype))


class ConvTranspose2x2(nn.Module):
    """2x2 transposed convolution of stride 2, with bias: (B, H, W, I) -> (B, 2H, 2W, features)."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Upsample."""
        kernel = param(self, "kernel", he_normal, (2, 2, x.shape[-1], self.features))
        bias = param(self, "bias", nn.initializers.zeros, (self.features,))
        y = conv.conv_transpose2x2(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + jnp.expand_dims(bias.astype(self.dtype), range(x.ndim - 1))


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014): (B, ...) -> (B, ...).

    flax's, but that under pmap, where `axis_name` is that of the devices, the draw is the one of the whole batch.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Zeros for a share of the values in training, and the others larger for it."""
        if not train or not self.rate:
            return x
        devices = 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (devices * len(x), *x.shape[1:]))
        if self.axis_name is not None:
            kept = jax.lax.dynamic_slice_in_dim(kept, jax.lax.axis_index(self.axis_name) * len(x), len(x))
        return jnp.where(kept, x / (1 - self.rate), 0)


class LabelHead(nn.Module):
    """Dropout and a linear layer on pooled features: (B, F) -> float32 (B, classes)."""

    classes: int
    dropout: float = 0.2
    axis_name: str | None = None

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> jax.Array:
        """Logits."""
        features = Dropout(self.dropout, self.axis_name, name="dropout")(features.astype(jnp.float32), train)
        return nn.Dense(self.classes, name="dense")(features)


def lesion_pooling(levels: list[jax.Array], mask: jax.Array) -> jax.Array:
    """Averages of features over the lesion.

    Args:
      levels: features (B, H, W, C) of some levels, each of its own size.
      mask: logits (B, H, W, 1) of any size.

    Returns:
      float32 (B, sum of the C): each level's mean weighted by the mask's probability. One pixel of zeros is added to
      each mean: where no lesion is, they fade.
    """
    pooled = []
    for x in levels:
        weight = resize(jax.nn.sigmoid(mask), (x.shape[1], x.shape[2]))
        pooled.append((weight * x.astype(jnp.float32)).sum((1, 2)) / (weight.sum((1, 2)) + 1.0))
    return jnp.concatenate(pooled, -1)


def check_size(image: jax.Array, stride: int, network: str) -> None:
    """ValueError unless `image` is (B, H, W, C) with H and W divisible by the network's stride."""
    if image.ndim != 4 or image.shape[1] % stride or image.shape[2] % stride:
        raise ValueError(f"{network} takes (B, H, W, C) with H and W divisible by {stride}; got {image.shape}")
