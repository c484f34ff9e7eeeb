"""Residual networks (He et al. 2016) as in torchvision: the stride of a bottleneck is in its 3x3 convolution.

The encoder serves the classifier here and `deeplab`, where dilated (atrous) convolutions replace the last strides
(Chen et al. 2017, section 3.2).
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.typing import DTypeLike

from mcis.models.layers import ConvNorm
from mcis.models.network import Network, Outputs
from mcis.ops import conv

EXPANSION = 4
"""Ratio of the output channels of a bottleneck to those of its 3x3 convolution."""
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Depth of the network -> blocks of the four levels."""
BOTTLENECK_DEPTH = 50
"""Smallest depth with bottlenecks."""


class Block(nn.Module):
    """A residual block: (B, H, W, I) -> (B, H/stride, W/stride, O).

    Two 3x3 convolutions of `features` channels, or in a bottleneck a 1x1, a 3x3 and a 1x1 convolution; the first 3x3
    has the stride. Where the shape changes, the shortcut is a 1x1 convolution with batch normalisation.
    """

    features: int
    stride: int
    dilation: int
    bottleneck: bool
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = functools.partial(ConvNorm, dtype=self.dtype, axis_name=self.axis_name)
        width = self.features * (EXPANSION if self.bottleneck else 1)
        if self.bottleneck:
            y = nn.relu(layer(self.features, 1, name="layer1")(x, train))
            y = nn.relu(layer(self.features, 3, self.stride, self.dilation, name="layer2")(y, train))
            y = layer(width, 1, name="layer3")(y, train)
        else:
            y = nn.relu(layer(width, 3, self.stride, self.dilation, name="layer1")(x, train))
            y = layer(width, 3, 1, self.dilation, name="layer2")(y, train)
        if self.stride > 1 or x.shape[-1] != width:
            x = layer(width, 1, self.stride, name="shortcut")(x, train)
        return nn.relu(x + y)


class Encoder(nn.Module):
    """Stem and four levels of residual blocks: float (B, H, W, C) -> the levels, finest first, the first at H/4.

    `depth` is 18, 34, 50 or 101; `output_stride`, by which H and W must be divisible, is the ratio of the image's side
    to that of the last level: 32, 16 or 8. Levels that lose their stride dilate instead, from their second block on.
    """

    depth: int
    features: int
    output_stride: int
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> list[jax.Array]:
        if self.depth not in BLOCKS or self.output_stride not in (8, 16, 32):
            raise ValueError(
                f"depth={self.depth}, output_stride={self.output_stride}: "
                f"depths are {', '.join(map(str, BLOCKS))}, output strides 8, 16 and 32"
            )
        stem = ConvNorm(self.features, 7, 2, dtype=self.dtype, axis_name=self.axis_name, name="stem")
        x = conv.max_pool3x3(nn.relu(stem(image.astype(self.dtype), train)))
        block = functools.partial(
            Block, bottleneck=self.depth >= BOTTLENECK_DEPTH, dtype=self.dtype, axis_name=self.axis_name
        )
        levels, total_stride, dilation = [], 4, 1
        for level, blocks in enumerate(BLOCKS[self.depth]):
            for i in range(blocks):
                stride = 2 if level and not i and total_stride < self.output_stride else 1
                name = f"level{level + 1}_block{i + 1}"
                x = block(self.features * 2**level, stride, dilation, name=name)(x, train)
                total_stride *= stride
                if level and not i and stride == 1:
                    dilation *= 2
            levels.append(x)
        return levels


class ResNet(Network):
    """The ResNet classifier of depth 18, 34, 50 or 101: Outputs with label logits."""

    stride: ClassVar[int] = 32
    segments: ClassVar[bool] = False
    has_encoder: ClassVar[bool] = True

    features: int = 64
    classes: int = 2
    depth: int = 18
    frozen: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        self.check_size(image)
        encoder = Encoder(self.depth, self.features, self.stride, self.dtype, self.axis_name, name="encoder")
        levels = stop_gradient(encoder(image, False)) if self.frozen else encoder(image, train)
        pooled = levels[-1].astype(jnp.float32).mean((1, 2))
        return Outputs(None, self.label_logits(pooled, train, dropout=0.0), pooled)  # as in the published network
