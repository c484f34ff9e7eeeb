"""Crops that hold a lesion whole or not at all, so that every source shows tissue with and without one. No JAX.

Most sources of breast ultrasound have scans of lesions alone: a network learns the few hospitals with normal scans as
the class. A crop beside a lesion is tissue without one of the same patient and machine. Lesions are cropped as often,
and scans without one too, so that a zoom indicates no class.
"""

import cv2
import numpy as np

from mcis.data.transplant import BLACK

SIDE = (0.35, 0.75)
"""Least and largest side of a crop, as a share of the shorter side of the scan's content."""
MARGIN = 0.03
"""Width around a lesion that a crop without it keeps clear of, as a share of the image's side."""
TISSUE = 0.7
"""Least share of a crop that is not black."""
TRIALS = 6
"""Sides that are tried until one fits."""


def crop_scan(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """A square crop of a scan at the scan's size, with the lesion whole or without it; None where none fits.

    A crop without the lesion keeps clear of everything below it too: an acoustic shadow is a sign of the lesion.

    Args:
      image: uint8 (S, S, 3).
      mask: uint8 {0,1} (S, S, 1), of the lesion.
      rng: which decides side, place, and whether the crop of a scan with a lesion shows it.

    Returns:
      image uint8 (S, S, 3) and mask uint8 {0,1} (S, S, 1).
    """
    tissue, lesion = (image.max(-1) > BLACK).astype(np.uint8), mask[..., 0]
    rows, columns = np.flatnonzero(tissue.any(1)), np.flatnonzero(tissue.any(0))
    if not len(rows):
        return None
    shorter = min(np.ptp(rows), np.ptp(columns)) + 1
    whole = bool(lesion.any()) and rng.random() < 0.5
    width = 2 * round(MARGIN * len(image)) + 1
    avoided = np.maximum.accumulate(cv2.dilate(lesion, np.ones((width, width), np.uint8)), 0)
    for _ in range(TRIALS):
        side = int(shorter * rng.uniform(*SIDE))
        if side < 2:
            continue
        fits = _sums(tissue, side) >= TISSUE * side**2
        fits &= _sums(lesion, side) == lesion.sum() if whole else _sums(avoided, side) == 0
        if fits.any():
            places = np.argwhere(fits)
            y, x = places[rng.integers(len(places))].tolist()
            size = image.shape[1::-1]
            part = np.s_[y : y + side, x : x + side]
            shown = cv2.resize(image[part], size, interpolation=cv2.INTER_LINEAR)
            return shown, cv2.resize(lesion[part], size, interpolation=cv2.INTER_NEAREST)[..., None]
    return None


def _sums(values: np.ndarray, side: int) -> np.ndarray:
    """Sums over all squares of this side, by their first row and column: (H, W) -> (H - side + 1, W - side + 1)."""
    total = cv2.integral(values)
    return total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
