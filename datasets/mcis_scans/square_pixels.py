"""Scans of square pixels from those whose rows and columns are spaced differently, as `mcis predict` sees them too."""

import cv2
import numpy as np


def square_size(size: tuple[int, int], aspect: float) -> tuple[int, int]:
    """(height, width) of a scan with square pixels as large as the shorter side of its own.

    Args:
      size: height and width of the scan, pixels.
      aspect: height over width of a pixel, as `formats.pixel_shape` gives it.

    >>> square_size((100, 200), 1.5), square_size((100, 200), 0.8), square_size((100, 200), 1.0)
    ((150, 200), (100, 250), (100, 200))
    """
    return (round(size[0] * aspect), size[1]) if aspect > 1 else (size[0], round(size[1] / aspect))


def resize(image: np.ndarray, mask: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A scan, uint8 (H, W, 3), and its mask, uint8 {0,1} (H, W, 1), at the size that `square_size` gives."""
    if image.shape[:2] == size:
        return image, mask
    larger = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return larger, cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)[..., None]
