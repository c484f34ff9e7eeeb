"""Scans of square pixels from those whose rows and columns are spaced differently, as `mcis predict` sees them too."""

import cv2
import numpy as np

SQUARE, MAX_ASPECT = 0.02, 4.0
"""Pixels whose sides differ by less than this share count as square; sides of a higher ratio are not believed."""


def square_size(size: tuple[int, int], spacing: tuple[float, float] | None) -> tuple[int, int]:
    """(height, width) of a scan with square pixels as large as the shorter side of its own.

    Args:
      size: height and width of the scan, pixels.
      spacing: millimetres between rows and between columns; None if unknown.

    >>> square_size((100, 200), (1.5, 1.0)), square_size((100, 200), (1.0, 1.25)), square_size((100, 200), (1.0, 1.01))
    ((150, 200), (100, 250), (100, 200))
    """
    if spacing is None or not 1 / MAX_ASPECT <= spacing[0] / spacing[1] <= MAX_ASPECT:
        return size
    if abs(spacing[0] / spacing[1] - 1) <= SQUARE:
        return size
    return round(size[0] * spacing[0] / min(spacing)), round(size[1] * spacing[1] / min(spacing))


def resize(image: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A scan, uint8 (H, W, 3), and its mask, uint8 {0,1} (H, W, 1), at the size that `square_size` gives."""
    if image.shape[:2] == size:
        return image, mask
    larger = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return larger, cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)[..., None]
