"""EfficientNet-Lite0: Tan & Le 2019, in the "lite" form without squeeze-and-excitation and with ReLU6.

Sixteen inverted residual blocks (Sandler et al. 2018) behind a 3x3 stem. With 32 features and 1,000 classes it has
4,652,008 parameters, as the published network, whose ImageNet weights are bundled (`--init_from=imagenet`). The encoder
serves the classifier here and `unet_efficientnet`.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.typing import DTypeLike

from mcis.models.layers import BatchNorm, Conv, Depthwise
from mcis.models.network import Network, Outputs

FEATURES = 32
"""Channels of the published stem, which the widths below belong to."""
STAGES = (  # blocks, kernel size, stride of the first block, expansion, output channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
LEVEL_ENDS = (0, 1, 2, 4, 6)
"""The last stage at each resolution, finest first: H/2, H/4, H/8, H/16, H/32."""
HEAD = 40
"""Channels of the last 1x1 convolution, in units of `features`."""
EPSILON = 1e-3


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection: (B, H, W, I) -> (B, H/stride, W/stride, features).

    Each is followed by batch normalisation, the first two by ReLU6. The input is added where the shape stays. Without
    `expansion` (1) the first convolution is left out.
    """

    features: int
    size: int
    stride: int
    expansion: int
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        norm = functools.partial(BatchNorm, self.dtype, self.axis_name, epsilon=EPSILON)
        y = x
        if self.expansion > 1:
            y = Conv(self.expansion * x.shape[-1], 1, dtype=self.dtype, name="expand")(y)
            y = nn.relu6(norm(name="expand_norm")(y, train))
        y = Depthwise(self.size, self.stride, self.dtype, name="depthwise")(y)
        y = nn.relu6(norm(name="depthwise_norm")(y, train))
        y = norm(name="project_norm")(Conv(self.features, 1, dtype=self.dtype, name="project")(y), train)
        return x + y if y.shape == x.shape else y


class Encoder(nn.Module):
    """Stem, sixteen blocks and a last 1x1 convolution: float (B, H, W, C) -> levels at H/2, H/4, ..., H/32; features.

    The levels have 16, 24, 40, 112 and 320 channels where `features` is 32. The features, float32 (B, 40 * features),
    are the last convolution averaged over the image; without `head` that convolution is left out, and the last level is
    averaged. H and W must be divisible by 32.
    """

    features: int
    head: bool
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> tuple[list[jax.Array], jax.Array]:
        norm = functools.partial(BatchNorm, self.dtype, self.axis_name, epsilon=EPSILON)
        x = Conv(self.features, 3, 2, dtype=self.dtype, same=True, name="stem")(image.astype(self.dtype))
        x = nn.relu6(norm(name="stem_norm")(x, train))
        levels, number = [], 0
        for stage, (blocks, size, stride, expansion, width) in enumerate(STAGES):
            for i in range(blocks):
                number += 1
                block = InvertedResidual(
                    self.features * width // FEATURES,
                    size,
                    1 if i else stride,
                    expansion,
                    self.dtype,
                    self.axis_name,
                    name=f"block{number}",
                )
                x = block(x, train)
            if stage in LEVEL_ENDS:
                levels.append(x)
        if self.head:
            x = Conv(HEAD * self.features, 1, dtype=self.dtype, name="head")(x)
            x = nn.relu6(norm(name="head_norm")(x, train))
        return levels, x.astype(jnp.float32).mean((1, 2))


class EfficientNet(Network):
    """The EfficientNet-Lite0 classifier: Outputs with label logits.

    With `texture` the label head sees the mean of the level at H/16 too, beside the deepest features: finer structure,
    by which scans of other organs differ. The published network has none.
    """

    stride: ClassVar[int] = 32
    segments: ClassVar[bool] = False
    has_encoder: ClassVar[bool] = True

    features: int = FEATURES
    classes: int = 2
    frozen: bool = False
    texture: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        self.check_size(image)
        encoder = Encoder(self.features, True, self.dtype, self.axis_name, name="encoder")
        levels, pooled = stop_gradient(encoder(image, False)) if self.frozen else encoder(image, train)
        if self.texture:
            pooled = jnp.concatenate([pooled, levels[3].astype(jnp.float32).mean((1, 2))], -1)
        return Outputs(None, self.label_logits(pooled, train), pooled)
