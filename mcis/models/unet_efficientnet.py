"""A U-Net whose encoder is EfficientNet-Lite0, so that it can start from ImageNet weights.

The decoder doubles the side, joins the skip and applies two 3x3 convolutions, level by level, up to half of the image's
side. The mask's last doubling unfolds channels (Shi et al. 2016): layers at full resolution are slow on a CPU.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from mcis.models.efficientnet import FEATURES, Encoder
from mcis.models.layers import Pointwise, lesion_pooling
from mcis.models.network import Network, Outputs
from mcis.models.unet import ConvNormReLU
from mcis.ops import conv

WIDTHS = (16, 32, 64, 96)
"""Channels of the decoder's levels, finest first, where `features` is 32."""


class EfficientUNet(Network):
    """The U-Net on EfficientNet-Lite0: Outputs with a mask, and with label logits where there are classes.

    The label depends on the encoder's deepest features over the whole image, and on the features of all its levels
    inside the mask (`lesion_pooling`): where the mask is empty, the first remain. The label's loss does not train the
    mask. `supervise` adds an auxiliary mask to each coarser decoder level, at its resolution.
    """

    stride: ClassVar[int] = 32
    segments: ClassVar[bool] = True
    has_auxiliary: ClassVar[bool] = True
    has_encoder: ClassVar[bool] = True

    features: int = FEATURES
    supervise: bool = False
    frozen: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        self.check_size(image)
        encoder = Encoder(self.features, bool(self.classes), self.dtype, self.axis_name, name="encoder")
        levels, pooled = stop_gradient(encoder(image, False)) if self.frozen else encoder(image, train)
        x, auxiliary = levels[-1], []
        for level, (width, skip) in reversed([*enumerate(zip(WIDTHS, levels[:-1], strict=True))]):
            x = jnp.concatenate([conv.upsample2x2(x), skip], -1)
            for i in (1, 2):
                name = f"decoder{level + 1}_{i}"
                x = ConvNormReLU(self.features * width // FEATURES, self.dtype, self.axis_name, name=name)(x, train)
            if self.supervise and level:
                auxiliary.append(Pointwise(1, self.dtype, name=f"mask{level + 1}")(x).astype(jnp.float32))
        mask = conv.depth_to_space(Pointwise(4, self.dtype, name="mask")(x).astype(jnp.float32), 2)
        if self.classes:
            pooled = jnp.concatenate([pooled, lesion_pooling(levels, stop_gradient(mask))], -1)
        return Outputs(mask, self.label_logits(pooled, train), pooled, tuple(reversed(auxiliary)))
