"""The common base of all networks, and what they return."""

from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mcis.models.layers import LabelHead


@flax.struct.dataclass
class Outputs:
    """Float32 logits of a batch; None where a network has no such head.

    Attributes:
      mask: (B, H, W, 1), the argument of the sigmoid: positive inside a lesion.
      label: (B, K), the argument of the softmax.
      features: (B, F), the input of the label head; the OOD score is computed from it.
      auxiliary: masks (B, h, w, 1) of coarser levels, finest first. They serve as further losses in training (deep
        supervision) and are not used otherwise. Empty unless the network has `supervise` set.
    """

    mask: jax.Array | None = None
    label: jax.Array | None = None
    features: jax.Array | None = None
    auxiliary: tuple[jax.Array, ...] = ()


class Network(nn.Module):
    """Base of all networks: image, float (B, H, W, C) -> Outputs. Parameters and outputs are float32.

    A network with `has_auxiliary` also has a field `supervise: bool = False`, which adds the auxiliary masks. One with
    `has_encoder` has a part "encoder", which may start from weights of another task, and a field
    `frozen: bool = False`, with which neither the encoder's parameters nor its running statistics change in training.

    Attributes:
      stride: H and W must be divisible by it.
      segments: whether the mask is fine enough to outline a lesion.
      has_auxiliary: whether there are auxiliary masks.
      has_encoder: whether there is a part "encoder".
      features: channels of the first level.
      classes: width of the label head; 0 = no label head, for networks that segment.
      dtype: of the computation.
      axis_name: pmap axis over which batch normalisation averages; not needed under jit.
    """

    stride: ClassVar[int]
    segments: ClassVar[bool]
    has_auxiliary: ClassVar[bool] = False
    has_encoder: ClassVar[bool] = False

    features: int = 32
    classes: int = 0
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    def __call__(self, image: jax.Array, train: bool = False) -> Outputs:
        raise NotImplementedError

    @nn.nowrap
    def check_size(self, image: jax.Array) -> None:
        """ValueError unless `image` is (B, H, W, C) with H and W divisible by `stride`."""
        if image.ndim != 4 or image.shape[1] % self.stride or image.shape[2] % self.stride:
            raise ValueError(
                f"{type(self).__name__} takes (B, H, W, C) with H and W divisible by {self.stride}; got {image.shape}"
            )

    @nn.nowrap
    def label_logits(self, features: jax.Array, train: bool, dropout: float = 0.2) -> jax.Array | None:
        """The label head on pooled features, float32 (B, F) -> (B, classes); None without classes."""
        if not self.classes:
            return None
        return LabelHead(self.classes, dropout, self.axis_name, name="label")(features, train)
