"""Selective-kernel U-Net: Byra et al. 2020, "Breast mass segmentation in ultrasound with selective kernel U-Net".

The U-Net of this package with other layers: the outputs of a plain and a dilated convolution are mixed, channel by
channel, with attention weights computed from the image (Li et al. 2019).
"""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mcis.models.layers import BatchNorm, ConvNorm
from mcis.models.unet import UNet


class SelectiveKernel(nn.Module):
    """a x1 + (1 - a) x2 of two branches ReLU(BN(3x3 convolution)), the second dilated: (B, H, W, I) -> (B, H, W, O).

    The attention a (B, features) comes from the mean of x1 + x2 over all pixels: a linear layer of half the width,
    batch normalisation, ReLU, a second linear layer, sigmoid.
    """

    features: int
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        layer = functools.partial(ConvNorm, self.features, dtype=self.dtype, axis_name=self.axis_name)
        plain, dilated = (nn.relu(layer(dilation=i, name=f"branch{i}")(x, train)) for i in (1, 2))
        pooled = (plain.astype(jnp.float32) + dilated).mean((1, 2))
        squeezed = nn.Dense(max(1, self.features // 2), use_bias=False, name="squeeze")(pooled)
        squeezed = nn.relu(BatchNorm(axis_name=self.axis_name, name="squeeze_norm")(squeezed, train))
        attention = jax.nn.sigmoid(nn.Dense(self.features, name="excite")(squeezed))[:, None, None].astype(self.dtype)
        return attention * plain + (1 - attention) * dilated


class SKUNet(UNet):
    """The U-Net with selective kernels; attributes as in `UNet`."""

    layer: ClassVar[type[nn.Module]] = SelectiveKernel

    features: int = 16
