"""U-Net with batch normalisation: Ronneberger et al. 2015, in the form of Buda et al. 2019.

Four levels of two 3x3 convolutions, each followed by batch normalisation and ReLU; 2x2 max pooling down, 2x2 transposed
convolution up, skip connections at every level. With 32 features, three channels in and one out it has 7,763,041
parameters, those of the published brain-segmentation network.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcis.models.layers import ConvNorm, ConvTranspose2x2, LabelHead, Pointwise, check_size, lesion_pooling
from mcis.models.outputs import Outputs
from mcis.ops import conv

LEVELS = 4


class ConvNormReLU(nn.Module):
    """3x3 convolution, batch normalisation, ReLU."""

    features: int
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, I) -> (B, H, W, features)."""
        layer = ConvNorm(self.features, dtype=self.dtype, axis_name=self.axis_name, name="layer")
        return nn.relu(layer(x, train))


class UNet(nn.Module):
    """The network. H and W must be divisible by 16.

    Attributes:
      features: width of the first level; the published network has 32, 16 is the practical one on a CPU.
      classes: width of a label head on the pooled bottleneck; 0 = none.
      dtype: of the computation; parameters and outputs stay float32.
      axis_name: of the devices batch normalisation averages over under pmap; not needed under jit.
      supervise: whether the coarser decoder levels have masks of their own, at their resolution.
      attention: whether the label head sees the decoder's features too, averaged over the lesion: as the mask has it,
        which the label's loss cannot bend.
    """

    stride: ClassVar[int] = 2**LEVELS
    segments: ClassVar[bool] = True
    layer: ClassVar[type[nn.Module]] = ConvNormReLU
    """What each level has two of: a module of features, dtype and axis_name, called with (B, H, W, C) and `train`."""
    fold: ClassVar[int] = 1
    """Pixels of a side that are folded into channels first and unfolded last; 1 = none."""

    features: int = 32
    classes: int = 0
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    supervise: bool = False
    attention: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """Float (B, H, W, C) -> Outputs."""
        check_size(image, self.stride, type(self).__name__)

        def two_layers(x, level, name):
            for i in (1, 2):
                x = self.layer(self.features << level, self.dtype, self.axis_name, name=f"{name}_{i}")(x, train)
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
            x = ConvTranspose2x2(self.features << level, self.dtype, name=f"upconv{level + 1}")(x)
            x = jnp.concatenate([x, skips[level]], -1)
            x = two_layers(x, level, f"decoder{level + 1}")
            levels.append(x)
            if self.supervise and level:
                auxiliary.append(Pointwise(1, self.dtype, name=f"mask{level + 1}")(x).astype(jnp.float32))
        mask = Pointwise(self.fold**2, self.dtype, name="mask")(x).astype(jnp.float32)
        if self.fold > 1:
            mask = conv.depth_to_space(mask, self.fold)
        if self.classes and self.attention:
            pooled = jnp.concatenate([pooled, lesion_pooling(levels, jax.lax.stop_gradient(mask))], -1)
        label = LabelHead(self.classes, axis_name=self.axis_name, name="label")(pooled, train) if self.classes else None
        return Outputs(mask, label, pooled, tuple(reversed(auxiliary)))


class FoldedUNet(UNet):
    """The U-Net on half the side: 2x2 pixels are folded into channels first and unfolded last (Shi et al. 2016).

    What costs most on a CPU, few channels at full resolution, is left out: a step takes a third of the U-Net's time at
    the same width of what is left. H and W must be divisible by 32.
    """

    stride: ClassVar[int] = 2 ** (LEVELS + 1)
    fold: ClassVar[int] = 2
