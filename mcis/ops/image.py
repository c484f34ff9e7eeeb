"""Images inside the jit: from uint8 to standardised float32, and bilinear resizing as matrix products."""

import jax
import jax.numpy as jnp
import numpy as np


def to_float(image: jax.Array) -> jax.Array:
    """uint8 [0, 255] -> float32 [0, 1], any shape."""
    return image.astype(jnp.float32) / 255.0


def standardise(image: jax.Array) -> jax.Array:
    """Zero mean and unit variance per scan, over all pixels and channels: float32 (B, H, W, C) -> the same.

    A scan's gain and offset mean nothing in MRI and little in ultrasound, so they are taken out. A constant scan
    becomes zeros.
    """
    mean = image.mean((1, 2, 3), keepdims=True)
    deviation = jnp.sqrt(jnp.square(image - mean).mean((1, 2, 3), keepdims=True))
    return (image - mean) / jnp.maximum(deviation, 1e-3)


def resize_matrix(length: int, target: int) -> np.ndarray:
    """float32 (target, length): linear interpolation at half-pixel centres, edges held.

    When shrinking, the triangle is widened by the factor, so that every source pixel counts (antialiasing), as
    `jax.image.resize(..., "linear")` does.
    """
    stretch = max(1.0, length / target)
    centres = (np.arange(target) + 0.5) * length / target - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(length)) / stretch)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear resize as two products with constant matrices: float (B, H, W, C) -> (B, size[0], size[1], C).

    Equal to `jax.image.resize` and, unlike it, exported with a symbolic batch size. Nothing happens at equal size.
    """
    if x.shape[1] != size[0]:
        x = jnp.einsum("Hh,bhwc->bHwc", resize_matrix(x.shape[1], size[0]).astype(x.dtype), x)
    if x.shape[2] != size[1]:
        x = jnp.einsum("Ww,bhwc->bhWc", resize_matrix(x.shape[2], size[1]).astype(x.dtype), x)
    return x
