"""A light segmentation network made for CPUs: depthwise and 1x1 convolutions only, on a space-to-depth stem.

What costs on a CPU is few channels at full resolution, so that is left out: 4x4 pixels are folded into channels first
and unfolded last (Shi et al. 2016). Between them a U-shaped encoder and decoder of inverted-bottleneck blocks as in
ConvNeXt (Liu et al. 2022): depthwise convolution, layer normalisation, 1x1 expansion, GELU, 1x1 projection, residual.
Skips are fused much as in CMUNeXt (Tang et al. 2024), which is worth more than a second decoder block at the same cost.
There is no batch normalisation: a scan's answer never depends on its batch, in training either.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcis.models.layers import Depthwise, LabelHead, LayerNorm, Pointwise, check_size
from mcis.models.outputs import Outputs
from mcis.ops import conv

STEM = 4
WIDTHS = (1, 2, 4, 5)
"""Channels of the levels, in units of `features`."""
KERNELS = (5, 5, 3, 3)
"""Depthwise kernel sizes of the levels: large where pixels are small."""
DEPTH = 2
"""Blocks of an encoder level; a decoder level has one."""
STRIDE = STEM * 2 ** (len(WIDTHS) - 1)


class Block(nn.Module):
    """Depthwise convolution, layer normalisation, expansion by 2, GELU, projection; added to its input."""

    kernel: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        channels = x.shape[-1]
        y = Depthwise(self.kernel, name="depthwise")(x)
        y = LayerNorm(name="norm")(y)
        y = nn.gelu(Pointwise(2 * channels, self.dtype, name="expand")(y))
        return x + Pointwise(channels, self.dtype, name="project")(y).astype(x.dtype)


class SkipFusion(nn.Module):
    """What comes from below and a skip as one: both normalised, a depthwise convolution added, expansion, projection.

    Each is normalised by itself, for their scales have nothing to do with each other.
    """

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, below: jax.Array, skip: jax.Array) -> jax.Array:
        """(B, H, W, C), (B, H, W, C) -> (B, H, W, features)."""
        parts = []
        for name, x in (("below", below), ("skip", skip)):
            x = LayerNorm(name=f"norm_{name}")(x)
            parts.append(x + nn.gelu(Depthwise(3, name=f"depthwise_{name}")(x)))
        y = nn.gelu(Pointwise(2 * self.features, self.dtype, name="expand")(*parts))
        return Pointwise(self.features, self.dtype, name="project")(y).astype(skip.dtype)


class Light(nn.Module):
    """The network. H and W must be divisible by 32.

    Attributes:
      features: channels of the finest level.
      classes: width of a label head on the pooled deepest level; 0 = none.
      dtype: of the 1x1 products; the rest stays float32.
      axis_name: taken as every network takes it; not needed here.
      supervise: whether the coarser decoder levels have masks of their own, at their resolution.
    """

    stride: ClassVar[int] = STRIDE
    segments: ClassVar[bool] = True

    features: int = 40
    classes: int = 0
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    supervise: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """Float (B, H, W, C) -> Outputs."""
        check_size(image, self.stride, type(self).__name__)
        widths = [self.features * width for width in WIDTHS]
        x = conv.space_to_depth(image.astype(jnp.float32), STEM)
        skips = []
        for level, (width, kernel) in enumerate(zip(widths, KERNELS, strict=True)):
            name = f"encoder{level + 1}"
            x = Pointwise(width, name=f"{name}_down")(x if level == 0 else conv.space_to_depth(x, 2))
            for i in range(DEPTH):
                x = Block(kernel, self.dtype, name=f"{name}_block{i + 1}")(x)
            skips.append(x)
        pooled = x.mean((1, 2))
        if self.classes:  # without a label head nothing would train it
            pooled = LayerNorm(name="pooled_norm")(pooled)
        auxiliary = []
        for level in reversed(range(len(widths) - 1)):
            name, width = f"decoder{level + 1}", widths[level]
            up = conv.depth_to_space(Pointwise(4 * width, self.dtype, name=f"{name}_up")(x), 2)
            x = SkipFusion(width, self.dtype, name=f"{name}_fuse")(up.astype(jnp.float32), skips[level])
            x = Block(KERNELS[level], self.dtype, name=f"{name}_block")(x)
            if self.supervise and level:
                y = LayerNorm(name=f"mask{level + 1}_norm")(x)
                auxiliary.append(Pointwise(1, name=f"mask{level + 1}")(y))
        x = LayerNorm(name="mask_norm")(x)
        mask = conv.depth_to_space(Pointwise(STEM**2, name="mask")(x), STEM)
        label = LabelHead(self.classes, axis_name=self.axis_name, name="label")(pooled, train) if self.classes else None
        return Outputs(mask, label, pooled, tuple(reversed(auxiliary)))
