"""Residual networks: He et al. 2016, in the form of torchvision (the stride of a bottleneck is its 3x3 convolution's).

The encoder serves the classifier here and `deeplab`; atrous convolutions may take the place of its last strides
(Chen et al. 2017, section 3.2).
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcis.models.layers import ConvNorm, LabelHead, check_size
from mcis.models.outputs import Outputs
from mcis.ops import conv

BOTTLENECK = 4
"""A bottleneck's output is as many times as wide as its middle."""
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Depth of the network -> blocks of the four levels; bottlenecks from 50 on."""
STRIDE = 32


class Block(nn.Module):
    """A residual block; with another shape of output the shortcut is a 1x1 convolution and normalisation.

    Attributes:
      features: channels of its (middle) 3x3 convolution.
      stride: of its first 3x3 convolution.
      dilation: of its 3x3 convolutions.
      bottleneck: 1x1, 3x3, 1x1 convolutions instead of two 3x3.
      dtype: of the computation.
      axis_name: of the devices batch normalisation averages over.
    """

    features: int
    stride: int
    dilation: int
    bottleneck: bool
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, I) -> (B, H/stride, W/stride, O)."""
        layer = functools.partial(ConvNorm, dtype=self.dtype, axis_name=self.axis_name)
        if self.bottleneck:
            width = self.features * BOTTLENECK
            y = nn.relu(layer(self.features, 1, name="layer1")(x, train))
            y = nn.relu(layer(self.features, 3, self.stride, self.dilation, name="layer2")(y, train))
            y = layer(width, 1, name="layer3")(y, train)
        else:
            width = self.features
            y = nn.relu(layer(width, 3, self.stride, self.dilation, name="layer1")(x, train))
            y = layer(width, 3, 1, self.dilation, name="layer2")(y, train)
        if self.stride > 1 or x.shape[-1] != width:
            x = layer(width, 1, self.stride, name="shortcut")(x, train)
        return nn.relu(x + y)


class Encoder(nn.Module):
    """Stem and four levels. H and W must be divisible by `output_stride`.

    Attributes:
      depth: 18, 34, 50 or 101.
      features: channels of the stem.
      output_stride: pixels of the image to one of the last level: 32, 16 or 8. Levels that lose their stride dilate
        instead, from their second block on.
      dtype: of the computation.
      axis_name: of the devices batch normalisation averages over.
    """

    depth: int
    features: int
    output_stride: int
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> list[jax.Array]:
        """Float (B, H, W, C) -> the four levels' outputs, finest first, the first at H/4."""
        if self.depth not in BLOCKS or self.output_stride not in (8, 16, 32):
            raise ValueError(
                f"depth={self.depth}, output_stride={self.output_stride}: "
                f"depths are {', '.join(map(str, BLOCKS))}, output strides 8, 16 and 32"
            )
        stem = ConvNorm(self.features, 7, 2, dtype=self.dtype, axis_name=self.axis_name, name="stem")
        x = conv.max_pool3x3(nn.relu(stem(image.astype(self.dtype), train)))
        levels, reached, dilation = [], 4, 1
        for level, blocks in enumerate(BLOCKS[self.depth]):
            for i in range(blocks):
                stride = 2 if level and not i and reached < self.output_stride else 1
                x = Block(
                    self.features << level,
                    stride,
                    dilation,
                    self.depth >= 50,
                    self.dtype,
                    self.axis_name,
                    name=f"level{level + 1}_block{i + 1}",
                )(x, train)
                reached *= stride
                if level and not i and stride == 1:
                    dilation *= 2
            levels.append(x)
        return levels


class ResNet(nn.Module):
    """The classifier. H and W must be divisible by 32.

    Attributes:
      features: channels of the first level; the published networks have 64.
      classes: width of the label head, at least 1.
      dtype: of the computation; parameters and outputs stay float32.
      axis_name: of the devices batch normalisation averages over under pmap; not needed under jit.
      depth: 18, 34, 50 or 101.
    """

    stride: ClassVar[int] = STRIDE
    segments: ClassVar[bool] = False

    features: int = 64
    classes: int = 2
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    depth: int = 18

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """Float (B, H, W, C) -> Outputs with label logits."""
        check_size(image, self.stride, type(self).__name__)
        encoder = Encoder(self.depth, self.features, STRIDE, self.dtype, self.axis_name, name="encoder")
        pooled = encoder(image, train)[-1].astype(jnp.float32).mean((1, 2))
        # no dropout: the published network has none
        return Outputs(None, LabelHead(self.classes, dropout=0.0, name="label")(pooled, train), pooled)
