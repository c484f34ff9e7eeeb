"""Distances between the outlines of two masks, in pixels: what overlap does not see of a mask's shape."""

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of a bool (H, W) mask with one of their four neighbours outside of it, or of the picture: bool (H, W)."""
    return mask & ~binary_erosion(mask)


def surface_distances(predicted: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """95th percentile Hausdorff distance and mean surface distance, both symmetric.

    Every outline pixel of one mask has a distance to the nearest outline pixel of the other. The first is the larger of
    the two directions' 95th percentiles (Huttenlocher et al. 1993, made robust), the second the mean over the pixels
    of both outlines (Heimann et al. 2009, eq. 3).

    Args:
      predicted: {0,1} (H, W) of any type.
      true: the same.

    Returns:
      both in pixels, at least 0; (nan, nan) where either mask is empty, for then there is no distance.

    One square and the same three pixels to the right:

    >>> a = np.zeros((16, 16), np.uint8)
    >>> a[4:9, 4:9] = 1
    >>> surface_distances(a, np.roll(a, 3, axis=1))[0], surface_distances(a, a), surface_distances(a, 0 * a)
    (3.0, (0.0, 0.0), (nan, nan))
    """
    either = np.logical_or(predicted, true)
    if not (np.any(predicted) and np.any(true)):
        return float("nan"), float("nan")
    # nothing outside the box of both is nearer than what is inside; a frame keeps the outlines as they are
    rows, columns = (np.flatnonzero(either.any(axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    a, b = (outline(np.pad(np.asarray(mask[box], bool), 1)) for mask in (predicted, true))
    there, back = distance_transform_edt(~b)[a], distance_transform_edt(~a)[b]
    farthest = max(np.percentile(there, 95), np.percentile(back, 95))
    return float(farthest), float(np.concatenate([there, back]).mean())
