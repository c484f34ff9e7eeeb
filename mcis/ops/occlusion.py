"""Occlusion maps: how much the probability of a class drops where the scan is hidden (Zeiler & Fergus 2014, 4.2).

Unlike maps of gradients they apply to whole predictions, ensemble and calibration included, of any network.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mcis.ops.image import gaussian_blur

CELLS = 12
"""Steps of the hidden window along a side."""
REACH = 3
"""Side of the window, in steps."""
BLUR = 12.0
"""Sigma of the blur that hides, in pixels: a black window would add edges, and lesions are dark."""


def occlusion_map(
    predict: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    label: jax.Array | int,
    cells: int = CELLS,
    reach: int = REACH,
) -> jax.Array:
    """Mean drop of the probability of a class over the windows that hide a pixel.

    Args:
      predict: uint8 (B, S, S, 3) -> label probabilities float (B, K), for any B.
      image: uint8 (S, S, 3), S divisible by `cells` or not.
      label: the class.
      cells: steps of the window along a side; there are (cells + reach - 1)**2 windows.
      reach: side of the window, in steps.

    Returns:
      float32 (S, S) in [-1, 1]; above 0, hiding the pixel lowers the probability of the class.
    """
    side = image.shape[0]
    hidden = gaussian_blur(image[None].astype(jnp.float32), BLUR)[0].astype(image.dtype)
    # Only a step of the first window lies inside the image, so that the border is hidden as often as the middle.
    start = (np.arange(cells + reach - 1) - (reach - 1)) * side / cells
    pixel = np.arange(side)[None]
    cover = (pixel >= start[:, None]) & (pixel < start[:, None] + reach * side / cells)  # (windows, S), either axis

    def drops(rows: jax.Array) -> jax.Array:
        windows = rows[None, :, None, None] & jnp.asarray(cover)[:, None, :, None]
        return whole - jnp.take(predict(jnp.where(windows, hidden[None], image[None])), label, axis=1)

    whole = jnp.take(predict(image[None]), label, axis=1)
    dropped = jax.lax.map(drops, jnp.asarray(cover))  # (windows down, windows across)
    weight = cover.astype(np.float32)
    times = weight.sum(0)
    return weight.T @ dropped @ weight / (times[:, None] * times[None, :])
