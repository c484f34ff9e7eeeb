"""Where a classifier looks: how much its answer drops when a part of the scan is hidden (Zeiler & Fergus 2014, 4.2).

Unlike a map of gradients it asks the network itself, ensemble and calibration included, and works for every network.
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
"""A hidden part is shown blurred, by so many pixels: black would be a new edge, and dark is what lesions are."""


def occlusion_map(
    answer: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    label: jax.Array | int,
    cells: int = CELLS,
    reach: int = REACH,
) -> jax.Array:
    """How much the probability of a class drops where the scan is hidden.

    Args:
      answer: uint8 (B, S, S, 3) -> label probabilities float (B, K), for any B.
      image: uint8 (S, S, 3), S divisible by `cells` or not.
      label: the class.
      cells: steps of the hidden window along a side; (cells + reach - 1)**2 answers are asked for.
      reach: side of the window, in steps.

    Returns:
      float32 (S, S): for each pixel the mean drop over the windows that hide it, in [-1, 1]; what is above 0 speaks
      for the class.
    """
    side = image.shape[0]
    hidden = gaussian_blur(image[None].astype(jnp.float32), BLUR)[0].astype(image.dtype)
    # the first window shows one step of itself, so that the border is hidden as often as the middle
    start = (np.arange(cells + reach - 1) - (reach - 1)) * side / cells
    pixel = np.arange(side)[None]
    cover = (pixel >= start[:, None]) & (pixel < start[:, None] + reach * side / cells)  # (windows, S), either axis

    def drops(rows: jax.Array) -> jax.Array:
        windows = rows[None, :, None, None] & jnp.asarray(cover)[:, None, :, None]
        return whole - jnp.take(answer(jnp.where(windows, hidden[None], image[None])), label, axis=1)

    whole = jnp.take(answer(image[None]), label, axis=1)
    dropped = jax.lax.map(drops, jnp.asarray(cover))  # (windows down, windows across)
    weight = cover.astype(np.float32)
    times = weight.sum(0)
    return weight.T @ dropped @ weight / (times[:, None] * times[None, :])
