"""Selective-kernel U-Net: Byra et al. 2020, "Breast mass segmentation in ultrasound with selective kernel U-Net".

The U-Net of this package with another layer: what a plain and a dilated convolution see is mixed, channel by channel,
by an attention that each scan sets for itself (Li et al. 2019).
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcis.models.layers import BatchNorm, ConvNorm
from mcis.models.unet import UNet


class SelectiveKernel(nn.Module):
    """Two branches x1, x2 = ReLU(BN(3x3 convolution)), the second with dilation 2; a x1 + (1 - a) x2.

    The attention a (B, features) is the sigmoid of two linear layers, the first half as wide and followed by batch
    normalisation and ReLU, on the mean of x1 + x2 over all pixels.
    """

    features: int
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, I) -> (B, H, W, features)."""
        plain, dilated = (
            nn.relu(
                ConvNorm(self.features, dilation=i, dtype=self.dtype, axis_name=self.axis_name, name=f"branch{i}")(
                    x, train
                )
            )
            for i in (1, 2)
        )
        pooled = (plain.astype(jnp.float32) + dilated).mean((1, 2))
        squeezed = nn.Dense(max(1, self.features // 2), use_bias=False, name="squeeze")(pooled)
        squeezed = nn.relu(BatchNorm(axis_name=self.axis_name, name="squeeze_norm")(squeezed, train))
        a = jax.nn.sigmoid(nn.Dense(self.features, name="excite")(squeezed))
        a = a[:, None, None].astype(self.dtype)
        return a * plain + (1 - a) * dilated


class SKUNet(UNet):
    """The network; attributes as in `UNet`. H and W must be divisible by 16."""

    layer: ClassVar[type[nn.Module]] = SelectiveKernel

    features: int = 16
