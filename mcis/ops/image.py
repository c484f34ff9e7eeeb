"""Images inside the jit: from uint8 to standardised float32, bilinear resizing, noise removal and edges."""

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


def standardise(image: jax.Array, each_channel: bool = False) -> jax.Array:
    """Zero mean and unit variance per scan, over all pixels and channels: float32 (B, H, W, C) -> the same.

    A scan's gain and offset mean nothing in MRI and little in ultrasound, so they are taken out; with `each_channel`
    those of every channel, as where channels are MRI sequences, whose gains have nothing to do with each other. A
    constant scan, or channel, becomes zeros.
    """
    over = (1, 2) if each_channel else (1, 2, 3)
    mean = image.mean(over, keepdims=True)
    deviation = jnp.sqrt(jnp.square(image - mean).mean(over, keepdims=True))
    return (image - mean) / jnp.maximum(deviation, 1e-3)


def resize_matrix(length: int, target: int) -> np.ndarray:
    """float32 (target, length): linear interpolation at half-pixel centres, edges held.

    When shrinking, the triangle is widened by the factor, so that every source pixel counts (antialiasing), as
    `jax.image.resize(..., "linear")` does.

    >>> resize_matrix(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    stretch = max(1.0, length / target)
    centres = (np.arange(target) + 0.5) * length / target - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(length)) / stretch)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def resize(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Bilinear resize as two products with constant matrices: float (B, H, W, C) -> (B, size[0], size[1], C).

    Equal to `jax.image.resize` and, unlike it, exported with a symbolic batch size. Nothing happens at equal size.
    """
    if x.shape[1] != size[0]:
        x = jnp.einsum("Hh,bhwc->bHwc", resize_matrix(x.shape[1], size[0]).astype(x.dtype), x)
    if x.shape[2] != size[1]:
        x = jnp.einsum("Ww,bhwc->bhWc", resize_matrix(x.shape[2], size[1]).astype(x.dtype), x)
    return x


def _shifted(x: jax.Array, axis: int, reach: int) -> list[jax.Array]:
    """`x` moved along an axis by -reach ... reach pixels, edges held: position i of the k-th is pixel i + k - reach."""
    first, last = (jax.lax.slice_in_dim(x, at, at + 1, axis=axis) for at in (0, x.shape[axis] - 1))
    # what jnp.pad does in its mode "edge", in a form that is exported to ONNX as well
    padded = jnp.concatenate([*[first] * reach, x, *[last] * reach], axis)
    return [jax.lax.slice_in_dim(padded, k, k + x.shape[axis], axis=axis) for k in range(2 * reach + 1)]


def gaussian_blur(image: jax.Array, sigma: float) -> jax.Array:
    """Blur with a Gaussian of `sigma` pixels, cut off at three of them, edges held: float (B, H, W, C) -> the same."""
    reach = max(1, math.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        parts = _shifted(image, axis, reach)
        image = functools.reduce(operator.add, (float(w) * part for w, part in zip(weights, parts, strict=True)))
    return image


def median3x3(image: jax.Array) -> jax.Array:
    """Median of each 3x3 window, edges held: float (B, H, W, C) -> the same.

    Sorted columns of three; then the median of the largest low, the median middle and the smallest high is that of all
    nine (Smith 1996): twenty comparisons a pixel and no sort.
    """

    def median(a, b, c):
        return jnp.maximum(jnp.minimum(a, b), jnp.minimum(jnp.maximum(a, b), c))

    up, here, down = _shifted(image, 1, 1)
    low, high = jnp.minimum(jnp.minimum(up, here), down), jnp.maximum(jnp.maximum(up, here), down)
    middle = median(up, here, down)
    lows, middles, highs = (_shifted(x, 2, 1) for x in (low, middle, high))
    return median(
        jnp.maximum(jnp.maximum(lows[0], lows[1]), lows[2]),
        median(*middles),
        jnp.minimum(jnp.minimum(highs[0], highs[1]), highs[2]),
    )


def sobel(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sobel's derivatives along x and y, edges held: float (B, H, W, C) -> two (B, H, W, C).

    A step of height 1 between two pixels gives 4.
    """
    left, _, right = _shifted(image, 2, 1)
    up, here, down = _shifted(right - left, 1, 1)
    dx = up + 2 * here + down
    up, _, down = _shifted(image, 1, 1)
    left, here, right = _shifted(down - up, 2, 1)
    return dx, left + 2 * here + right


def sobel_edges(image: jax.Array) -> jax.Array:
    """Length of `sobel`'s gradient of the grey picture, a unit step as 1: float (B, H, W, C) -> (B, H, W, 1)."""
    dx, dy = sobel(image.mean(-1, keepdims=True))
    return jnp.sqrt(jnp.square(dx) + jnp.square(dy) + 1e-12) / 4.0


def canny_edges(image: jax.Array) -> jax.Array:
    """`canny` of the grey picture, blurred by 1.4 pixels, thresholds 0.1 and 0.2 of the scan's steepest gradient.

    Float (B, H, W, C) -> float32 {0,1} (B, H, W, 1).
    """
    grey = gaussian_blur(image.mean(-1, keepdims=True), 1.4)
    steepest = 4.0 * sobel_edges(grey).max((1, 2, 3), keepdims=True)
    return canny(grey, 0.1 * steepest, 0.2 * steepest).astype(jnp.float32)


def canny(image: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
    """Edges one pixel wide: Canny 1986, without the blur. Float (B, H, W, 1) -> bool (B, H, W, 1).

    Args:
      image: blurred before, as `gaussian_blur` does.
      low: smallest length of `sobel`'s gradient for a pixel that goes on an edge.
      high: smallest length for one that begins it.
    """
    dx, dy = sobel(image)
    length = jnp.sqrt(jnp.square(dx) + jnp.square(dy))
    padded = jnp.pad(length, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def neighbour(down: int, right: int) -> jax.Array:
        height, width = length.shape[1:3]
        return padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    def crest(down: int, right: int) -> jax.Array:
        """Whether the gradient is longest along a direction; of two equal ones in a row or column the first."""
        ahead = length >= neighbour(down, right) if 0 in (down, right) else length > neighbour(down, right)
        return (length > neighbour(-down, -right)) & ahead

    def choose(which: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:  # ONNX Runtime knows no where of bools
        return (which & one) | (~which & other)

    tan = math.tan(math.pi / 8)
    level, steep = jnp.abs(dy) < tan * jnp.abs(dx), jnp.abs(dy) > jnp.abs(dx) / tan
    slant = choose(dx * dy > 0, crest(1, 1), crest(1, -1))
    thin = choose(level, crest(0, 1), choose(steep, crest(1, 0), slant)) & (length > low)

    def grow(state):
        edge, _ = state
        wide = edge
        for axis in (1, 2):
            parts = _shifted(wide, axis, 1)
            wide = parts[0] | parts[1] | parts[2]
        grown = wide & thin
        return grown, jnp.any(grown != edge)

    edge, _ = jax.lax.while_loop(lambda state: state[1], grow, (thin & (length > high), jnp.bool_(True)))
    return edge


DENOISE: dict[str, Callable[[jax.Array], jax.Array] | None] = {
    "none": None,
    "gaussian": functools.partial(gaussian_blur, sigma=1.0),
    "median": median3x3,
}
"""Noise removal by its name."""
EDGES: dict[str, Callable[[jax.Array], jax.Array] | None] = {"none": None, "sobel": sobel_edges, "canny": canny_edges}
"""Edge maps by their names."""
