"""DeepLabv3: Chen et al. 2017, "Rethinking Atrous Convolution for Semantic Image Segmentation", on a ResNet.

With a ResNet-50, one class, an output stride of 8 and no auxiliary mask it has 39,633,729 parameters, as torchvision's.
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jax.typing import DTypeLike

from mcis.models.layers import ConvNorm, Dropout, Pointwise
from mcis.models.network import Network, Outputs
from mcis.models.resnet import Encoder
from mcis.ops.image import resize

RATES = (6, 12, 18)
"""Dilations of atrous spatial pyramid pooling at an output stride of 16; doubled at 8 (section 4.1)."""


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: (B, H, W, I) -> (B, H, W, features).

    Branches of `features` channels, a 1x1 convolution, a 3x3 convolution with each dilation of `rates` and the mean of
    the image, are joined by a 1x1 convolution.
    """

    features: int
    rates: tuple[int, ...]
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = functools.partial(ConvNorm, self.features, dtype=self.dtype, axis_name=self.axis_name)
        branches = [layer(1, name="branch1")(x, train)]
        for i, rate in enumerate(self.rates, 2):
            branches.append(layer(3, 1, rate, name=f"branch{i}")(x, train))
        mean = x.astype(jnp.float32).mean((1, 2), keepdims=True)
        branches.append(jnp.broadcast_to(layer(1, name="pooling")(mean, train), branches[0].shape))
        x = nn.relu(layer(1, name="project")(nn.relu(jnp.concatenate(branches, -1)), train))
        return Dropout(0.5, self.axis_name, name="dropout")(x, train)


class DeepLabV3(Network):
    """DeepLabv3: Outputs with a mask, and with label logits of the pooled last level where there are classes.

    The published network has 64 features, and 256 channels in the head.

    Attributes:
      depth: of the ResNet: 18, 34, 50 or 101.
      output_stride: ratio of the image's side to that of the mask before it is upsampled: 8 or 16.
      supervise: add an auxiliary mask to the third level (torchvision's auxiliary head).
    """

    stride: ClassVar[int] = 16
    segments: ClassVar[bool] = True
    has_auxiliary: ClassVar[bool] = True
    has_encoder: ClassVar[bool] = True

    features: int = 64
    depth: int = 50
    output_stride: int = 8
    supervise: bool = False
    frozen: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        self.check_size(image)
        if self.output_stride not in (8, 16):
            raise ValueError(f"output_stride={self.output_stride}: deeplabv3 takes 8 or 16")
        layer = functools.partial(ConvNorm, dtype=self.dtype, axis_name=self.axis_name)
        encoder = Encoder(self.depth, self.features, self.output_stride, self.dtype, self.axis_name, name="encoder")
        *_, third, last = stop_gradient(encoder(image, False)) if self.frozen else encoder(image, train)
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
        return Outputs(resize(coarse, image.shape[1:3]), self.label_logits(pooled, train), pooled, tuple(auxiliary))
