"""DeepLabv3: Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation", on a ResNet.

With a ResNet-50, one class, an output stride of 8 and no auxiliary mask it has 39,633,729 parameters, torchvision's.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcis.models.layers import ConvNorm, Dropout, LabelHead, Pointwise, check_size
from mcis.models.outputs import Outputs
from mcis.models.resnet import Encoder
from mcis.ops.image import resize

RATES = (6, 12, 18)
"""Dilations of atrous spatial pyramid pooling at an output stride of 16; doubled at 8 (section 4.1)."""


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, three dilated 3x3 convolutions and the image's mean, joined by a 1x1.

    Attributes:
      features: channels of each branch and of the result.
      rates: dilations of the 3x3 convolutions.
      dtype: of the computation.
      axis_name: of the devices batch normalisation averages over.
    """

    features: int
    rates: tuple[int, ...]
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, I) -> (B, H, W, features)."""
        layer = functools.partial(ConvNorm, self.features, dtype=self.dtype, axis_name=self.axis_name)
        branches = [layer(1, name="branch1")(x, train)]
        for i, rate in enumerate(self.rates, 2):
            branches.append(layer(3, 1, rate, name=f"branch{i}")(x, train))
        mean = x.astype(jnp.float32).mean((1, 2), keepdims=True)
        pooled = layer(1, name="pooling")(mean, train)
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        x = nn.relu(layer(1, name="project")(nn.relu(jnp.concatenate(branches, -1)), train))
        return Dropout(0.5, self.axis_name, name="dropout")(x, train)


class DeepLabV3(nn.Module):
    """The network. H and W must be divisible by 16.

    Attributes:
      features: channels of the ResNet's first level; the published network has 64, and 256 in the head.
      classes: width of a label head on the pooled last level; 0 = none.
      dtype: of the computation; parameters and outputs stay float32.
      axis_name: of the devices batch normalisation averages over under pmap; not needed under jit.
      depth: of the ResNet: 18, 34, 50 or 101.
      output_stride: pixels of the image to one of the mask before it is upsampled: 8 or 16.
      supervise: whether the third level has a mask of its own (torchvision's auxiliary head).
    """

    stride: ClassVar[int] = 16
    segments: ClassVar[bool] = True

    features: int = 64
    classes: int = 0
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    depth: int = 50
    output_stride: int = 8
    supervise: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        """Float (B, H, W, C) -> Outputs."""
        check_size(image, self.stride, type(self).__name__)
        if self.output_stride not in (8, 16):
            raise ValueError(f"output_stride={self.output_stride}: deeplabv3 takes 8 or 16")
        layer = functools.partial(ConvNorm, dtype=self.dtype, axis_name=self.axis_name)
        encoder = Encoder(self.depth, self.features, self.output_stride, self.dtype, self.axis_name, name="encoder")
        *_, third, last = encoder(image, train)
        pooled = last.astype(jnp.float32).mean((1, 2))
        rates = tuple(rate * 16 // self.output_stride for rate in RATES)
        x = ASPP(4 * self.features, rates, self.dtype, self.axis_name, name="aspp")(last, train)
        x = nn.relu(layer(4 * self.features, name="head")(x, train))
        coarse = Pointwise(1, self.dtype, name="mask")(x).astype(jnp.float32)
        auxiliary = []
        if self.supervise:
            y = nn.relu(layer(third.shape[-1] // 4, name="auxiliary_head")(third, train))
            y = Dropout(0.1, self.axis_name, name="auxiliary_dropout")(y, train)
            auxiliary.append(Pointwise(1, self.dtype, name="auxiliary")(y).astype(jnp.float32))
        label = LabelHead(self.classes, axis_name=self.axis_name, name="label")(pooled, train) if self.classes else None
        return Outputs(resize(coarse, (image.shape[1], image.shape[2])), label, pooled, tuple(auxiliary))
