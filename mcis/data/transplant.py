"""Lesions transplanted into scans without one, so that neither plane, sequence nor hospital indicates a class. No JAX.

A source that has scans of one class alone teaches its appearance as that class: trained without the tumours of Cheng,
a network called sagittal and coronal brains free of tumours, because all others in these planes were. A lesion of
another scan, pasted with its contrast to the tissue around it, removes this correlation (Zhang et al. 2021, CarveMix;
Yang et al. 2021, TumorCP).
"""

from typing import NamedTuple

import cv2
import numpy as np

BLACK = 12
"""Largest grey value that is no tissue, 0 to 255: `ops.image.BLACK`."""
LARGEST, SMALLEST = 0.15, 0.001
"""Areas of lesions that are transplanted, as shares of the scan's."""
ROTATION, SCALE = 180.0, 0.5
"""Largest rotation in degrees, and largest absolute log2 of the zoom."""
RING = 4
"""Width in pixels of the surroundings, to which a lesion's brightness is relative."""
GAIN = 2.0
"""Largest factor by which its contrast is changed."""
KEPT = 0.7
"""Least share of the lesion that must lie on tissue."""


class Donors(NamedTuple):
    """Rows of scans with a lesion to transplant, by source, int (M,) each."""

    by_source: tuple[np.ndarray, ...]

    def draw(self, rng: np.random.Generator) -> int:
        """A row: sources are drawn evenly."""
        return int(rng.choice(self.by_source[rng.integers(len(self.by_source))]))


def donors(area: np.ndarray, source: np.ndarray, chosen: np.ndarray, pixels: int) -> Donors:
    """The scans whose lesions can be transplanted.

    Args:
      area: int (N,) pixels of the masks.
      source: str (N,).
      chosen: bool (N,), scans of a class with lesions and of known mask.
      pixels: number of pixels of a scan.
    """
    usable = chosen & (area >= SMALLEST * pixels) & (area <= LARGEST * pixels)
    return Donors(tuple(np.flatnonzero(usable & (source == name)) for name in np.unique(source[usable])))


def transplant_lesion(
    image: np.ndarray, donor: np.ndarray, lesion: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray] | None:
    """A scan with another scan's lesion, and the lesion's mask; None where it does not fit.

    The lesion is rotated, scaled and moved into tissue, preferably far from its edge. Its grey values are shifted and
    scaled so that its contrast to the new surroundings is that to its own, and its edge is feathered.

    Args:
      image: uint8 (H, W, 3), the scan without a lesion.
      donor: uint8 (H, W, 3).
      lesion: uint8 {0,1} (H, W, 1), of the donor.
      rng: source of all random numbers.

    Returns:
      image uint8 (H, W, 3) and mask uint8 {0,1} (H, W, 1).
    """
    tissue = _tissue(image)
    depth = np.cumsum(cv2.distanceTransform(tissue, cv2.DIST_L2, 3).ravel(), dtype=np.float64)
    angle, zoom, place = rng.uniform(-ROTATION, ROTATION), 2.0 ** rng.uniform(-SCALE, SCALE), rng.random()
    if not depth[-1]:
        return None
    y, x = divmod(int(np.searchsorted(depth, place * depth[-1], side="right")), image.shape[1])
    rows, columns = np.nonzero(lesion[..., 0])
    centre = (float(columns.mean()), float(rows.mean()))
    move = cv2.getRotationMatrix2D(centre, angle, zoom)
    move[:, 2] += (x - centre[0], y - centre[1])
    size = image.shape[1::-1]
    moved = cv2.warpAffine(lesion[..., 0], move, size, flags=cv2.INTER_NEAREST)
    mask = moved & tissue
    if mask.sum() < KEPT * lesion.sum() * zoom**2:
        return None
    if not np.ptp(image.astype(np.int16), axis=-1).any():  # a grey scan gets one of the donor's channels
        donor = np.repeat(donor[..., rng.integers(3), None], 3, -1)
    shown = cv2.warpAffine(donor, move, size, flags=cv2.INTER_LINEAR)
    ring = cv2.dilate(mask, np.ones((2 * RING + 1, 2 * RING + 1), np.uint8)) & ~mask & tissue & _tissue(shown)
    if not ring.any():
        return None
    around, here = shown[ring > 0].astype(np.float32), image[ring > 0].astype(np.float32)
    healthy = (donor.max(-1) > BLACK) & (lesion[..., 0] == 0)
    if not healthy.any():
        return None
    spread = image[image.max(-1) > BLACK].std(0), donor[healthy].std(0)
    gain = np.clip(spread[0] / np.maximum(spread[1], 1.0), 1 / GAIN, GAIN)
    matched = (shown - around.mean(0)) * gain + here.mean(0)
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.5)[..., None]
    return np.clip(image + alpha * (matched - image), 0, 255).round().astype(np.uint8), mask[..., None]


def _tissue(image: np.ndarray) -> np.ndarray:
    """Pixels that are not black, uint8 {0,1} (H, W), small holes closed."""
    return cv2.morphologyEx((image.max(-1) > BLACK).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
