"""Fully connected conditional random field: mean field in a dense CRF with Gaussian edges, Kraehenbuehl & Koltun 2011.

Every pixel is tied to every other by a smoothness kernel, a Gaussian of their distance, and an appearance kernel, a
Gaussian of distance and grey level together. Both are products of Gaussians of one coordinate each. A Gaussian matrix
over n positions has few eigenvalues that matter, about n / sigma of them, so that it equals F F^T with a narrow F:
filtering all pixels with all pixels becomes a few thin matrix products, exact to the eigenvalues left out, without the
lattice and the interpolation of the paper's section 3.2.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mcis.ops.lowering import by_platform

LEVELS = 256
"""Grey levels that are told apart."""
TOLERANCE = 3e-3
"""Eigenvalues below this share of the largest are left out."""


@dataclasses.dataclass(frozen=True)
class CRF:
    """Strengths of the field; the paper's names in brackets.

    Attributes:
      steps: mean-field updates; 0 leaves probabilities as they are.
      smooth_weight: of the smoothness kernel (w2).
      smooth_sigma: its width in pixels of the picture as the network sees it (theta_gamma).
      weight: of the appearance kernel (w1).
      sigma: its width in such pixels (theta_alpha).
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

    A few columns stand for a whole matrix:

    >>> factor = gaussian_factor(256, sigma=20.0)
    >>> factor.shape[1] < 20, bool(abs(factor @ factor.T - _gaussian(256, 20.0)).max() < 0.02)
    (True, True)
    """
    matrix = _gaussian(positions, sigma)
    values, vectors = np.linalg.eigh(matrix)
    kept = values > tolerance * values[-1]
    return (vectors[:, kept] * np.sqrt(values[kept])).astype(np.float32)


def _gaussian(positions: int, sigma: float) -> np.ndarray:
    distance = np.arange(positions)[:, None] - np.arange(positions)
    return np.exp(-0.5 * np.square(distance / sigma))


def mean_field(probability: jax.Array, image: jax.Array, crf: CRF) -> jax.Array:
    """Foreground probabilities after `crf.steps` updates of all pixels at once (algorithm 1, Potts, two labels).

    Differentiable with respect to `probability`. Kernels are normalised on both sides by the root of their sums, as
    the authors' program does; like there a pixel is its own neighbour.

    Args:
      probability: float32 (B, H, W, 1) in (0, 1), of a network.
      image: float32 (B, H, W, C) in [0, 1], not standardised; its channels' mean is the grey level.
      crf: the strengths, constants of the compiled program.

    Returns:
      float32 (B, H, W, 1).
    """
    if not crf.steps:
        return probability
    together = functools.partial(_mean_field, crf=crf)

    def one_by_one(probability, image):  # what a scan needs then stays in a CPU's cache
        return jax.lax.map(lambda one: together(one[0][None], one[1][None])[0], (probability, image))

    return by_platform(probability, image, cpu=one_by_one, plain=together)


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
        # onto the features of column, grey level and row, and back
        by_row = jnp.einsum("bhxw,bhwi->bhxi", q[:, :, None] * columns[None, None], greys)
        features = jnp.einsum("hy,bhxi->byxi", rows, by_row)
        by_row = jnp.einsum("hy,byxi->bhxi", rows, features)
        parts = jnp.einsum("bhxi,bhiw->bhxw", by_row, greys_by_row)
        # spelt out: XLA's own sum over so few takes longer than all products before it
        return sum(parts[:, :, x] * columns[x][None, None] for x in range(len(columns)))

    def normalised(kernel):
        scale = jax.lax.rsqrt(jnp.maximum(kernel(jnp.ones_like(level, jnp.float32)), 1.0))  # a pixel's own share is 1
        return lambda q: scale * kernel(scale * q)

    weights = {smoothness: crf.smooth_weight, appearance: crf.weight}
    messages = [(weight, normalised(kernel)) for kernel, weight in weights.items() if weight]
    unary = jax.scipy.special.logit(jnp.clip(probability[..., 0], 1e-6, 1 - 1e-6))
    q = probability[..., 0]
    for _ in range(crf.steps):
        # foreground's messages less the background's, filtered(q) - filtered(1 - q)
        q = jax.nn.sigmoid(unary + sum(weight * filtered(2 * q - 1) for weight, filtered in messages))
    return q[..., None]
