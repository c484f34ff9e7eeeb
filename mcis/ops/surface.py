"""Distances between the outlines of two masks: Hausdorff distance, mean distance, normalised surface distance. No JAX.

One rule for empty masks: the normalised surface distance is 1 where both masks are empty and 0 where one is, like Dice;
the distances in pixels do not exist where a mask is empty.
"""

import math
from typing import NamedTuple

import numpy as np

TOLERANCE = 0.01
"""Tolerance of `SurfaceScores.nsd`, as a share of the diagonal of a scan's content. Prepared scans have no spacing, so
that a tolerance in millimetres is not possible."""


class SurfaceScores(NamedTuple):
    """How far the outlines of two masks are apart.

    Attributes:
      hd95: the larger of the 95th percentiles of both directions, in pixels (after Huttenlocher et al. 1993); NaN where
        a mask is empty.
      mean: mean distance over the pixels of both outlines, in pixels (Heimann et al. 2009, eq. 3); NaN likewise.
      nsd: share of the pixels of both outlines that are within the tolerance of the other outline, in [0, 1]: surface
        Dice (Nikolov et al. 2018), with outlines measured in pixels; 1 where both masks are empty, 0 where one is.
    """

    hd95: float
    mean: float
    nsd: float


def tolerance(width: int, height: int) -> float:
    """The tolerance of a scan whose content has that size, in pixels: TOLERANCE of its diagonal, at least one pixel.

    >>> tolerance(400, 300), tolerance(30, 40)
    (5.0, 1.0)
    """
    return max(1.0, TOLERANCE * math.hypot(width, height))


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a bool (H, W) mask with one of their four neighbours outside the mask or the image: bool (H, W)."""
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask)


def outline_distances(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance of each outline pixel of a mask to the nearest one of the other, in pixels: float (N,) and float (M,).

    Both masks are {0,1} (H, W) and not empty.
    """
    from scipy.ndimage import distance_transform_edt

    # Crop to the bounding box of both masks; a border of zeros keeps their outlines.
    either = np.logical_or(predicted, true)
    rows, columns = (np.flatnonzero(either.any(axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    a, b = (outline(np.pad(np.asarray(mask[box], bool), 1)) for mask in (predicted, true))
    return distance_transform_edt(~b)[a], distance_transform_edt(~a)[b]


def surface_scores(predicted: np.ndarray, true: np.ndarray, tolerance: float) -> SurfaceScores:
    """The scores of {0,1} (H, W) masks; all are symmetric. `tolerance` is in pixels.

    A square of 5 x 5 pixels, the same square three pixels to the right, and nothing:

    >>> a = np.zeros((16, 16), np.uint8)
    >>> a[4:9, 4:9] = 1
    >>> surface_scores(a, np.roll(a, 3, axis=1), tolerance=3.0).hd95, surface_scores(a, a, tolerance=1.0)
    (3.0, SurfaceScores(hd95=0.0, mean=0.0, nsd=1.0))
    >>> surface_scores(a, 0 * a, tolerance=1.0), surface_scores(0 * a, 0 * a, tolerance=1.0).nsd
    (SurfaceScores(hd95=nan, mean=nan, nsd=0.0), 1.0)
    """
    some = bool(np.any(predicted)), bool(np.any(true))
    if not all(some):
        return SurfaceScores(math.nan, math.nan, float(not any(some)))
    there, back = outline_distances(predicted, true)
    both = np.concatenate([there, back])
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return SurfaceScores(float(hd95), float(both.mean()), float((both <= tolerance + 1e-9).mean()))
