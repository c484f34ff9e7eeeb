"""A small residual classifier: the router and the classifiers of the cascade.

Four levels of two residual blocks (He et al. 2016, basic form) behind a space-to-depth stem, which spares a CPU the
full-resolution layers; global average pooling and a linear head.

With `attention` a coarse lesion mask, a sum of 1x1 convolutions of the coarser levels, is learned beside the label and
says where the label head looks: each of these levels is also averaged over the lesion alone.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcis.models.layers import BatchNorm, Conv, LabelHead, Pointwise, check_size, lesion_pooling
from mcis.models.outputs import Outputs
from mcis.ops import conv
from mcis.ops.image import resize

STEM = 4
WIDTHS = (1, 2, 4, 6)
"""Channels of the levels, in units of `features`."""
DEPTH = 2
STRIDE = STEM * 2 ** (len(WIDTHS) - 1)


class ResidualBlock(nn.Module):
    """Twice (3x3 convolution, batch normalisation), ReLU between; added to its input, then ReLU."""

    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, C) -> (B, H, W, C)."""
        norm = functools.partial(BatchNorm, self.dtype, self.axis_name)
        y = Conv(x.shape[-1], dtype=self.dtype, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y, train))
        y = Conv(x.shape[-1], dtype=self.dtype, name="conv2")(y)
        # The last scale starts at a half: blocks begin near the identity, yet every parameter has a gradient.
        y = norm(scale_init=nn.initializers.constant(0.5), name="norm2")(y, train)
        return nn.relu(x + y)


class CNN(nn.Module):
    """The network. H and W must be divisible by 32.

    Attributes:
      features: channels of the first level.
      classes: width of the label head, at least 1.
      dtype: of the computation; parameters and outputs stay float32.
      axis_name: of the devices batch normalisation averages over under pmap; not needed under jit.
      attention: whether there is a coarse mask and the label head looks where it is.
    """

    stride: ClassVar[int] = STRIDE
    segments: ClassVar[bool] = False

    features: int = 20
    classes: int = 2
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    attention: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """Float (B, H, W, C) -> Outputs with label logits; a mask only with `attention`."""
        check_size(image, self.stride, type(self).__name__)
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
            votes = [Pointwise(1, name=f"mask{level}")(x) for level, x in enumerate(levels[1:], 2)]
            coarse = votes[0]
            for vote in votes[1:]:
                coarse = coarse + resize(vote, (coarse.shape[1], coarse.shape[2]))
            mask = resize(coarse, (image.shape[1], image.shape[2]))
            pooled = jnp.concatenate([pooled, lesion_pooling(levels[1:], coarse)], -1)
        return Outputs(mask, LabelHead(self.classes, axis_name=self.axis_name, name="label")(pooled, train), pooled)
