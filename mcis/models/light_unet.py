"""A light segmentation network for CPUs: depthwise and 1x1 convolutions only, behind a stem that folds pixels.

Layers with few channels at full resolution are slow on a CPU. So 4x4 pixels are folded into channels first and unfolded
last (Shi et al. 2016). Between them is a U-shaped encoder and decoder of inverted-bottleneck blocks as in ConvNeXt (Liu
et al. 2022). Skips are fused much as in CMUNeXt (Tang et al. 2024), which helps more than a second decoder block at the
same cost. Without batch normalisation a scan's outputs never depend on its batch, not even in training.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mcis.models.layers import Depthwise, LayerNorm, Pointwise
from mcis.models.network import Network, Outputs
from mcis.ops import conv

STEM = 4
"""Side in pixels of the windows that are folded into channels."""
WIDTHS = (1, 2, 4, 5)
"""Channels of the levels, in units of `features`."""
KERNELS = (5, 5, 3, 3)
"""Sizes of the depthwise kernels of the levels: large on fine levels."""
DEPTH = 2
"""Blocks of an encoder level; a decoder level has one."""


class Block(nn.Module):
    """x + y, y: depthwise convolution, layer normalisation, 1x1 expansion by 2, GELU, 1x1 projection."""

    kernel: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        y = LayerNorm(name="norm")(Depthwise(self.kernel, name="depthwise")(x))
        y = nn.gelu(Pointwise(2 * channels, self.dtype, name="expand")(y))
        return x + Pointwise(channels, self.dtype, name="project")(y).astype(x.dtype)


class SkipFusion(nn.Module):
    """A decoder level joined with its skip: twice (B, H, W, C) -> (B, H, W, features).

    Each is normalised on its own, as their scales are unrelated, and a depthwise convolution of it is added. A 1x1
    expansion by 2, GELU and a 1x1 projection join them.
    """

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, below: jax.Array, skip: jax.Array) -> jax.Array:
        parts = []
        for name, x in (("below", below), ("skip", skip)):
            x = LayerNorm(name=f"norm_{name}")(x)
            parts.append(x + nn.gelu(Depthwise(3, name=f"depthwise_{name}")(x)))
        y = nn.gelu(Pointwise(2 * self.features, self.dtype, name="expand")(*parts))
        return Pointwise(self.features, self.dtype, name="project")(y).astype(skip.dtype)


class Light(Network):
    """The light U-Net: Outputs with a mask, and with label logits where there are classes.

    `supervise` adds an auxiliary mask to each coarser decoder level, at its resolution. Only the 1x1 products are
    computed in `dtype`, the rest in float32. `axis_name` serves dropout alone.
    """

    stride: ClassVar[int] = STEM * 2 ** (len(WIDTHS) - 1)
    segments: ClassVar[bool] = True
    has_auxiliary: ClassVar[bool] = True

    features: int = 40
    supervise: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        self.check_size(image)
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
        if self.classes:  # without a label head nothing would train this layer
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
        return Outputs(mask, self.label_logits(pooled, train), pooled, tuple(reversed(auxiliary)))
