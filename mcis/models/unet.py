"""U-Net with batch normalisation: Ronneberger et al. 2015, in the form of Buda et al. 2019.

Four levels of two 3x3 convolutions, each followed by batch normalisation and ReLU; 2x2 max pooling down, 2x2 transposed
convolution up, skip connections at every level. With 32 features, three channels in and one out it has 7,763,041
parameters, as the published brain-segmentation network.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mcis.models.layers import ConvNorm, ConvTranspose2x2, Pointwise, lesion_pooling
from mcis.models.network import Network, Outputs
from mcis.ops import conv

LEVELS = 4


class ConvNormReLU(nn.Module):
    """3x3 convolution, batch normalisation, ReLU: (B, H, W, I) -> (B, H, W, features)."""

    features: int
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = ConvNorm(self.features, dtype=self.dtype, axis_name=self.axis_name, name="layer")
        return nn.relu(layer(x, train))


class UNet(Network):
    """The U-Net: Outputs with a mask, and with label logits of the pooled bottleneck where there are classes.

    The published network has 32 features; 16 are practical on a CPU.

    Attributes:
      layer: type of the two layers of each level: a module with features, dtype and axis_name, called with
        (B, H, W, C) and `train`.
      fold: side of the pixel windows that are folded into channels first and unfolded last; 1 = none.
      supervise: add an auxiliary mask to each coarser decoder level, at its resolution.
      attention: let the label head also see the decoder's features averaged over the predicted mask. The label loss
        has no gradient with respect to that mask.
    """

    stride: ClassVar[int] = 2**LEVELS
    segments: ClassVar[bool] = True
    has_auxiliary: ClassVar[bool] = True
    layer: ClassVar[type[nn.Module]] = ConvNormReLU
    fold: ClassVar[int] = 1

    supervise: bool = False
    attention: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        self.check_size(image)

        def two_layers(x: jax.Array, level: int, name: str) -> jax.Array:
            for i in (1, 2):
                x = self.layer(self.features * 2**level, self.dtype, self.axis_name, name=f"{name}_{i}")(x, train)
            return x

        x, skips, levels, auxiliary = image.astype(self.dtype), [], [], []
        if self.fold > 1:
            x = conv.space_to_depth(x, self.fold)
        for level in range(LEVELS):
            x = two_layers(x, level, f"encoder{level + 1}")
            skips.append(x)
            x = conv.max_pool2x2(x)
        x = two_layers(x, LEVELS, "bottleneck")
        pooled = x.astype(jnp.float32).mean((1, 2))
        for level in reversed(range(LEVELS)):
            x = ConvTranspose2x2(self.features * 2**level, self.dtype, name=f"upconv{level + 1}")(x)
            x = two_layers(jnp.concatenate([x, skips[level]], -1), level, f"decoder{level + 1}")
            levels.append(x)
            if self.supervise and level:
                auxiliary.append(Pointwise(1, self.dtype, name=f"mask{level + 1}")(x).astype(jnp.float32))
        mask = Pointwise(self.fold**2, self.dtype, name="mask")(x).astype(jnp.float32)
        if self.fold > 1:
            mask = conv.depth_to_space(mask, self.fold)
        if self.classes and self.attention:
            pooled = jnp.concatenate([pooled, lesion_pooling(levels, jax.lax.stop_gradient(mask))], -1)
        return Outputs(mask, self.label_logits(pooled, train), pooled, tuple(reversed(auxiliary)))


class FoldedUNet(UNet):
    """The U-Net at half resolution: 2x2 pixels are folded into channels first and unfolded last (Shi et al. 2016).

    Layers with few channels at full resolution, the slowest on a CPU, are left out: a step takes a third of the time of
    the U-Net with the same width at half resolution.
    """

    stride: ClassVar[int] = 2 ** (LEVELS + 1)
    fold: ClassVar[int] = 2
