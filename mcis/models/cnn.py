"""A small residual classifier: the router and the classifiers of the cascade.

Four levels of two residual blocks (He et al. 2016, basic form) behind a space-to-depth stem, which spares a CPU the
full-resolution layers; global average pooling and a linear head.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcis.models.layers import Conv3x3, LabelHead, Pointwise, check_size
from mcis.models.outputs import Outputs
from mcis.ops import conv

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
        norm = functools.partial(nn.BatchNorm, not train, momentum=0.9, dtype=self.dtype, axis_name=self.axis_name)
        y = Conv3x3(x.shape[-1], self.dtype, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = Conv3x3(x.shape[-1], self.dtype, name="conv2")(y)
        # The last scale starts at a half: blocks begin near the identity, yet every parameter has a gradient.
        y = norm(scale_init=nn.initializers.constant(0.5), name="norm2")(y)
        return nn.relu(x + y)


class CNN(nn.Module):
    """The network. H and W must be divisible by 32.

    Attributes:
      features: channels of the first level.
      classes: width of the label head, at least 1.
      dtype: of the computation; parameters and outputs stay float32.
      axis_name: of the devices batch normalisation averages over under pmap; not needed under jit.
    """

    features: int = 32
    classes: int = 2
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """Float (B, H, W, C) -> Outputs with label logits, no mask."""
        check_size(image, STRIDE, "cnn")
        x = conv.space_to_depth(image.astype(self.dtype), STEM)
        for level, width in enumerate(WIDTHS):
            name = f"level{level + 1}"
            if level:
                x = conv.space_to_depth(x, 2)
            x = Pointwise(self.features * width, self.dtype, name=f"{name}_down")(x)
            for i in range(DEPTH):
                x = ResidualBlock(self.dtype, self.axis_name, name=f"{name}_block{i + 1}")(x, train)
        pooled = x.astype(jnp.float32).mean((1, 2))
        return Outputs(label=LabelHead(self.classes, name="label")(pooled, train), features=pooled)
