"""What every network returns."""

import flax.struct
import jax


@flax.struct.dataclass
class Outputs:
    """Float32 logits of a batch; None where a network has no such head.

    Attributes:
      mask: (B, H, W, 1), the sigmoid's argument: positive inside a lesion.
      label: (B, K), the softmax's argument.
      features: (B, F), what the label head sees; the cascade compares it with the training scans'.
      auxiliary: further masks (B, h, w, 1) from inside the network, finest first, which help it to learn and are not
        for use: of a decoder's coarser levels (deep supervision), or of an encoder's. Empty unless asked for.
    """

    mask: jax.Array | None = None
    label: jax.Array | None = None
    features: jax.Array | None = None
    auxiliary: tuple[jax.Array, ...] = ()
