"""Operations on batches of images: standardisation, bilinear resizing, noise removal and edge maps."""

import functools
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def to_float(image: jax.Array) -> jax.Array:
    """uint8 [0, 255] -> float32 [0, 1], any shape."""
    return image.astype(jnp.float32) / 255.0


BLACK = 12.77 / 255
"""Largest value of a pixel that counts as black: beside the scan, around a sector, or between MRI tissue and frame.

No simple mean of grey levels equals it: a pixel at the limit would count or not by the rounding of a compiler.
"""


def standardise(image: jax.Array, each_channel: bool = False, inside: bool = False) -> jax.Array:
    """Zero mean and unit variance per scan, over all pixels and channels: float32 (B, H, W, C) -> the same.

    Gain and offset carry no information in MRI and little in ultrasound. With `each_channel` every channel is
    standardised on its own: the gains of MRI sequences are unrelated. With `inside`, for an image in [0, 1], mean and
    variance are those of the pixels above BLACK in any channel: they do not depend on how much black surrounds the
    tissue. A constant scan or channel becomes zeros.
    """
    axes = (1, 2) if each_channel else (1, 2, 3)
    if inside:
        counted = jnp.broadcast_to(image.max(-1, keepdims=True) > BLACK, image.shape).astype(image.dtype)
        share = counted / jnp.maximum(counted.sum(axes, keepdims=True), 1.0)
        mean = (image * share).sum(axes, keepdims=True)
        variance = (jnp.square(image - mean) * share).sum(axes, keepdims=True)
    else:
        mean = image.mean(axes, keepdims=True)
        variance = jnp.square(image - mean).mean(axes, keepdims=True)
    return (image - mean) / jnp.maximum(jnp.sqrt(variance), 1e-3)


def resize_matrix(length: int, target: int) -> np.ndarray:
    """float32 (target, length): linear interpolation at half-pixel centres, edges replicated.

    When shrinking, the triangle kernel is widened by the factor (antialiasing), as `jax.image.resize` does.

    >>> resize_matrix(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    stretch = max(1.0, length / target)
    centres = (np.arange(target) + 0.5) * length / target - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(length)) / stretch)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def resize(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Bilinear resize as two products with constant matrices: float (B, H, W, C) -> (B, *size, C).

    Equal to `jax.image.resize`, which cannot be exported with a symbolic batch size. At equal size it returns `x`.
    """
    if x.shape[1] != size[0]:
        x = jnp.einsum("Hh,bhwc->bHwc", resize_matrix(x.shape[1], size[0]).astype(x.dtype), x)
    if x.shape[2] != size[1]:
        x = jnp.einsum("Ww,bhwc->bhWc", resize_matrix(x.shape[2], size[1]).astype(x.dtype), x)
    return x


def shifted(x: jax.Array, axis: int, reach: int) -> list[jax.Array]:
    """2 reach + 1 copies of `x`, shifted along an axis, edges replicated: copy k has pixel i + k - reach at i."""
    first, last = (jax.lax.slice_in_dim(x, at, at + 1, axis=axis) for at in (0, x.shape[axis] - 1))
    # as `jnp.pad(mode="edge")`, in a form that can be exported to ONNX
    padded = jnp.concatenate([*[first] * reach, x, *[last] * reach], axis)
    return [jax.lax.slice_in_dim(padded, k, k + x.shape[axis], axis=axis) for k in range(2 * reach + 1)]


def gaussian_blur(image: jax.Array, sigma: float) -> jax.Array:
    """Blur with a Gaussian, cut off at 3 sigma, edges replicated: float (B, H, W, C) -> the same; `sigma` in pixels."""
    reach = max(1, math.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        parts = zip(weights, shifted(image, axis, reach), strict=True)
        image = functools.reduce(operator.add, (float(weight) * part for weight, part in parts))
    return image


def median3x3(image: jax.Array) -> jax.Array:
    """Median of each 3x3 window, edges replicated: float (B, H, W, C) -> the same.

    Columns of three are sorted into low, middle and high. The median of the largest low, the median middle and the
    smallest high is the median of all nine (Smith 1996): twenty comparisons per pixel and no sort.
    """

    def median(a, b, c):
        return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))

    up, here, down = shifted(image, 1, 1)
    low, high = jnp.minimum(jnp.minimum(up, here), down), jnp.maximum(jnp.maximum(up, here), down)
    middle = median(up, here, down)
    lows, middles, highs = (shifted(x, 2, 1) for x in (low, middle, high))
    largest_low, smallest_high = functools.reduce(jnp.maximum, lows), functools.reduce(jnp.minimum, highs)
    return median(largest_low, median(*middles), smallest_high)


def sobel(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sobel derivatives along x and y, edges replicated: float (B, H, W, C) -> two (B, H, W, C); 4 for a unit step."""
    left, _, right = shifted(image, 2, 1)
    up, here, down = shifted(right - left, 1, 1)
    dx = up + 2 * here + down
    up, _, down = shifted(image, 1, 1)
    left, here, right = shifted(down - up, 2, 1)
    return dx, left + 2 * here + right


def sobel_edges(image: jax.Array) -> jax.Array:
    """Sobel gradient magnitude of the grey image, 1 for a unit step: float (B, H, W, C) -> (B, H, W, 1)."""
    dx, dy = sobel(image.mean(-1, keepdims=True))
    return jnp.sqrt(jnp.square(dx) + jnp.square(dy) + 1e-12) / 4.0


def canny_edges(image: jax.Array) -> jax.Array:
    """Canny edges of the grey image, blurred with a sigma of 1.4 pixels: float (B, H, W, C) -> {0,1} (B, H, W, 1).

    The thresholds are 0.1 and 0.2 of the largest gradient magnitude of the scan.
    """
    grey = gaussian_blur(image.mean(-1, keepdims=True), 1.4)
    steepest = 4.0 * sobel_edges(grey).max((1, 2, 3), keepdims=True)
    return canny(grey, 0.1 * steepest, 0.2 * steepest).astype(jnp.float32)


def canny(image: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
    """Edges one pixel wide (Canny 1986) of a blurred image: float (B, H, W, 1) -> bool (B, H, W, 1).

    Args:
      image: the image, already blurred.
      low: gradient magnitude (of `sobel`) above which a pixel continues an edge.
      high: gradient magnitude above which a pixel starts an edge.
    """
    dx, dy = sobel(image)
    length = jnp.sqrt(jnp.square(dx) + jnp.square(dy))
    padded = jnp.pad(length, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = length.shape[1:3]

    def neighbour(down: int, right: int) -> jax.Array:
        return padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    def crest(down: int, right: int) -> jax.Array:
        """Whether the magnitude is a maximum along a direction; the first of two equal ones in a row or column."""
        ahead = length >= neighbour(down, right) if 0 in (down, right) else length > neighbour(down, right)
        return (length > neighbour(-down, -right)) & ahead

    def where(condition: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:  # ONNX Runtime has no Where of booleans
        return (condition & x) | (~condition & y)

    tan = math.tan(math.pi / 8)
    horizontal, vertical = jnp.abs(dy) < tan * jnp.abs(dx), jnp.abs(dy) > jnp.abs(dx) / tan
    diagonal = where(dx * dy > 0, crest(1, 1), crest(1, -1))
    thin = where(horizontal, crest(0, 1), where(vertical, crest(1, 0), diagonal)) & (length > low)

    def grow(state):
        edge, _ = state
        grown = edge
        for axis in (1, 2):
            grown = functools.reduce(operator.or_, shifted(grown, axis, 1))
        grown &= thin
        return grown, jnp.any(grown != edge)

    edge, _ = jax.lax.while_loop(lambda state: state[1], grow, (thin & (length > high), jnp.bool_(True)))
    return edge


DENOISE: dict[str, Callable[[jax.Array], jax.Array] | None] = {
    "none": None,
    "gaussian": functools.partial(gaussian_blur, sigma=1.0),
    "median": median3x3,
}
"""Name -> noise removal."""
EDGES: dict[str, Callable[[jax.Array], jax.Array] | None] = {"none": None, "sobel": sobel_edges, "canny": canny_edges}
"""Name -> edge map."""
