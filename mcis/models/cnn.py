"""A small residual classifier, the network of the router and of the classifiers of the cascade.

Four levels of two residual blocks (He et al. 2016, basic form), global average pooling and a linear head. The stem
folds 4x4 pixels into channels, since layers at full resolution are slow on a CPU.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mcis.models.layers import BatchNorm, Conv, Pointwise, lesion_pooling
from mcis.models.network import Network, Outputs
from mcis.ops import conv
from mcis.ops.image import resize

STEM = 4
"""Side in pixels of the windows that are folded into channels."""
WIDTHS = (1, 2, 4, 6)
"""Channels of the levels, in units of `features`."""
DEPTH = 2
"""Blocks of a level."""


class ResidualBlock(nn.Module):
    """ReLU(x + y), y two 3x3 convolutions with batch normalisation and a ReLU between: (B, H, W, C) -> the same."""

    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(BatchNorm, self.dtype, self.axis_name)
        y = Conv(x.shape[-1], dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train))
        y = Conv(x.shape[-1], dtype=self.dtype, name="conv2")(y)
        # An initial scale of 0.5: the block starts near the identity, yet every parameter has a gradient.
        y = norm(scale_init=nn.initializers.constant(0.5), name="norm2")(y, train)
        return nn.relu(x + y)


class CNN(Network):
    """The classifier: Outputs with label logits, and with a coarse mask where `attention` is set.

    That mask is a sum of 1x1 convolutions of the three coarser levels; the label head then also sees the average of
    each of these levels over the lesion.
    """

    stride: ClassVar[int] = STEM * 2 ** (len(WIDTHS) - 1)
    segments: ClassVar[bool] = False

    features: int = 20
    classes: int = 2
    attention: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        self.check_size(image)
        x, levels = conv.space_to_depth(image.astype(self.dtype), STEM), []
        for level, width in enumerate(WIDTHS):
            name = f"level{level + 1}"
            if level:
                x = conv.space_to_depth(x, 2)
            x = Pointwise(self.features * width, self.dtype, name=f"{name}_down")(x)
            for i in range(DEPTH):
                x = ResidualBlock(self.dtype, self.axis_name, name=f"{name}_block{i + 1}")(x, train)
            levels.append(x.astype(jnp.float32))
        pooled, mask = levels[-1].mean((1, 2)), None
        if self.attention:
            first, *others = (Pointwise(1, name=f"mask{level}")(x) for level, x in enumerate(levels[1:], 2))
            coarse = sum((resize(logits, first.shape[1:3]) for logits in others), first)
            mask = resize(coarse, image.shape[1:3])
            pooled = jnp.concatenate([pooled, lesion_pooling(levels[1:], coarse)], -1)
        return Outputs(mask, self.label_logits(pooled, train), pooled)
