"""Linen layers over `ops.conv`: the field's usual names, parameters in float32, compute in `dtype`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcis.ops import conv

he_normal = nn.initializers.he_normal()


class Conv3x3(nn.Module):
    """3x3 convolution without bias, stride 1: (B, H, W, I) -> (B, H, W, features)."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve."""
        kernel = self.param("kernel", he_normal, (3, 3, x.shape[-1], self.features))
        return conv.conv(x.astype(self.dtype), kernel.astype(self.dtype))


class Pointwise(nn.Module):
    """1x1 convolution with bias: (..., I) -> (..., features)."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Multiply every pixel's channels by the kernel."""
        kernel = self.param("kernel", he_normal, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = conv.pointwise(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + jnp.expand_dims(bias.astype(self.dtype), range(x.ndim - 1))


class Depthwise(nn.Module):
    """Depthwise convolution with an odd square kernel, no bias: (B, H, W, C) -> (B, H, W, C)."""

    size: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve each channel with its own kernel."""
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1), out_axis=())
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1]))
        return conv.depthwise(x.astype(self.dtype), kernel.astype(self.dtype))


class ConvTranspose2x2(nn.Module):
    """2x2 transposed convolution of stride 2, with bias: (B, H, W, I) -> (B, 2H, 2W, features)."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Upsample."""
        kernel = self.param("kernel", he_normal, (2, 2, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = conv.conv_transpose2x2(x.astype(self.dtype), kernel.astype(self.dtype))
        return y + jnp.expand_dims(bias.astype(self.dtype), range(x.ndim - 1))


class LabelHead(nn.Module):
    """Dropout and a linear layer on pooled features: (B, F) -> float32 (B, classes)."""

    classes: int
    dropout: float = 0.2

    @nn.compact
    def __call__(self, features: jax.Array, train: bool) -> jax.Array:
        """Logits."""
        features = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(features.astype(jnp.float32))
        return nn.Dense(self.classes, name="dense")(features)


def check_size(image: jax.Array, stride: int, network: str) -> None:
    """ValueError unless `image` is (B, H, W, C) with H and W divisible by the network's stride."""
    if image.ndim != 4 or image.shape[1] % stride or image.shape[2] % stride:
        raise ValueError(f"{network} takes (B, H, W, C) with H and W divisible by {stride}; got {image.shape}")
