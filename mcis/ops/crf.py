"""Fully connected conditional random field: mean field in a dense CRF with Gaussian edges, Kraehenbuehl & Koltun 2011.

Every pixel is connected with every other by a smoothness kernel, a Gaussian of their distance, and an appearance
kernel, a Gaussian of distance and grey level. Both are products of Gaussians of one coordinate each. A Gaussian matrix
over n positions has about n / sigma eigenvalues that matter, so it equals F F^T with a narrow F. Filtering all pixels
with all pixels then takes a few thin matrix products, exact up to the eigenvalues left out, without the lattice and the
interpolation of the paper's section 3.2.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mcis.ops.lowering import by_platform

LEVELS = 256
"""Grey levels."""
TOLERANCE = 3e-3
"""Eigenvalues below this share of the largest are left out."""


@dataclasses.dataclass(frozen=True)
class CRF:
    """Parameters of the CRF; the names of the paper in brackets.

    Attributes:
      steps: number of mean-field updates; 0 leaves probabilities as they are.
      smooth_weight: weight of the smoothness kernel (w2).
      smooth_sigma: its width in pixels at the network's image size (theta_gamma).
      weight: weight of the appearance kernel (w1).
      sigma: its width in pixels at the network's image size (theta_alpha).
      grey_sigma: its width in grey levels of [0, 255] (theta_beta).
    """

    steps: int = 5
    smooth_weight: float = 3.0
    smooth_sigma: float = 3.0
    weight: float = 4.0
    sigma: float = 20.0
    grey_sigma: float = 13.0


@functools.cache
def gaussian_factor(positions: int, sigma: float, tolerance: float = TOLERANCE) -> np.ndarray:
    """F float32 (positions, rank) with F F^T = exp(-(i - j)^2 / 2 sigma^2) to about `tolerance`.

    >>> factor = gaussian_factor(256, sigma=20.0)  # few columns stand for the whole matrix
    >>> factor.shape[1] < 20, bool(abs(factor @ factor.T - _gaussian(256, 20.0)).max() < 0.02)
    (True, True)
    """
    values, vectors = np.linalg.eigh(_gaussian(positions, sigma))
    kept = values > tolerance * values[-1]
    return (vectors[:, kept] * np.sqrt(values[kept])).astype(np.float32)


def _gaussian(positions: int, sigma: float) -> np.ndarray:
    distance = np.arange(positions)[:, None] - np.arange(positions)
    return np.exp(-0.5 * np.square(distance / sigma))


def mean_field(probability: jax.Array, image: jax.Array, crf: CRF) -> jax.Array:
    """Foreground probabilities after `crf.steps` updates of all pixels at once (algorithm 1, Potts, two labels).

    Differentiable with respect to `probability`. As in the authors' program, kernels are normalised on both sides by
    the root of their sums, and a pixel is its own neighbour.

    Args:
      probability: float32 (B, H, W, 1) in (0, 1), as is the result.
      image: float32 (B, H, W, C) in [0, 1], not standardised; the mean of its channels is the grey level.
      crf: the parameters, constants of the compiled program.
    """
    if not crf.steps:
        return probability
    whole_batch = functools.partial(_mean_field, crf=crf)

    def scan_by_scan(probability, image):  # the arrays of one scan stay in the cache of a CPU
        return jax.lax.map(lambda scan: whole_batch(scan[0][None], scan[1][None])[0], (probability, image))

    return by_platform(probability, image, cpu=scan_by_scan, plain=whole_batch)


def _mean_field(probability: jax.Array, image: jax.Array, crf: CRF) -> jax.Array:
    height, width = probability.shape[1:3]
    near_rows, near_columns = (_gaussian(n, crf.smooth_sigma).astype(np.float32) for n in (height, width))
    rows, columns = gaussian_factor(height, crf.sigma), gaussian_factor(width, crf.sigma).T
    level = jnp.clip(jnp.round(image.mean(-1) * (LEVELS - 1)), 0, LEVELS - 1).astype(jnp.int32)
    greys = jnp.asarray(gaussian_factor(LEVELS, crf.grey_sigma))[level]  # (B, H, W, rank)
    greys_by_row = greys.swapaxes(2, 3)  # (B, H, rank, W)

    def smoothness(q: jax.Array) -> jax.Array:
        return jnp.einsum("hH,bHW,wW->bhw", near_rows, q, near_columns)

    def appearance(q: jax.Array) -> jax.Array:
        # onto the factors of column, grey level and row, and back
        by_row = jnp.einsum("bhxw,bhwi->bhxi", q[:, :, None] * columns[None, None], greys)
        by_row = jnp.einsum("hy,byxi->bhxi", rows, jnp.einsum("hy,bhxi->byxi", rows, by_row))
        parts = jnp.einsum("bhxi,bhiw->bhxw", by_row, greys_by_row)
        # a sum in Python: XLA's reduction over so few rows takes longer than all products before it
        return sum(parts[:, :, x] * columns[x][None, None] for x in range(len(columns)))

    def normalised(kernel):
        scale = jax.lax.rsqrt(jnp.maximum(kernel(jnp.ones_like(level, jnp.float32)), 1.0))  # at least the pixel itself
        return lambda q: scale * kernel(scale * q)

    weights = {smoothness: crf.smooth_weight, appearance: crf.weight}
    messages = [(weight, normalised(kernel)) for kernel, weight in weights.items() if weight]
    unary = jax.scipy.special.logit(jnp.clip(probability[..., 0], 1e-6, 1 - 1e-6))
    q = probability[..., 0]
    for _ in range(crf.steps):
        # the message of the foreground less that of the background: filtered(q) - filtered(1 - q)
        q = jax.nn.sigmoid(unary + sum(weight * filtered(2 * q - 1) for weight, filtered in messages))
    return q[..., None]
