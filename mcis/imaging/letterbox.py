"""The square that networks take: a scan is cropped to its content and letterboxed into it, and masks come back. No JAX.

The same functions prepare a scan for training and for serving, so the two cannot drift apart. Coordinates follow the
half-pixel convention of OpenCV and of `jax.image`: pixel i covers [i, i + 1), its centre lies at i + 0.5.
"""

import dataclasses

import cv2
import numpy as np

INPUT_SIZE = 256
"""Side in pixels of the square that training and cascade take; each network resizes from it inside the jit."""
MIN_CONTENT = 80
"""Pixels that the longer side of a scan's content must have: with fewer it is a thumbnail, magnified more than three
times to fill the canvas. Of the public sets' scans, as they lie here, each has 128 and more."""


@dataclasses.dataclass(frozen=True)
class Letterbox:
    """How a scan was laid into a square; `letterbox_mask` and `unletterbox` obey it.

    Attributes:
      shape: (H, W) of the scan, pixels.
      box: (x, y, width, height) of the content kept, in pixels of the scan.
      inner: (x, y, width, height) where that content lies in the square, in pixels of the square.
      size: side S of the square.
    """

    shape: tuple[int, int]
    box: tuple[int, int, int, int]
    inner: tuple[int, int, int, int]
    size: int

    @property
    def thumbnail(self) -> bool:
        """Whether the content has fewer than MIN_CONTENT pixels along its longer side."""
        return max(self.box[2:]) < MIN_CONTENT


def content_box(image: np.ndarray) -> tuple[int, int, int, int]:
    """Bounding box (x, y, width, height) of what stands out from the background, for uint8 (H, W, 3).

    The brain crop in common use (blur, threshold, erode, dilate, contours, bounding box), with two differences: the
    background is the median of the frame's outermost pixels instead of black, so that white pages and grey UI borders
    count as background too; and every contour of at least 1 % of the picture is kept instead of the largest alone,
    because an ultrasound falls into several. The box is never less than half the scan along either axis, so that a
    small slice is magnified at most twice. A picture without content keeps its whole frame.
    """
    height, width = image.shape[:2]
    whole = (0, 0, width, height)
    if min(height, width) < 16:
        return whole
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (5, 5), 0)
    ring = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    difference = cv2.absdiff(grey, np.full_like(grey, int(np.median(ring))))
    mask = cv2.threshold(difference, 20, 255, cv2.THRESH_BINARY)[1]
    square = np.ones((3, 3), np.uint8)
    mask = cv2.dilate(cv2.erode(mask, square, iterations=2), square, iterations=2)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = [cv2.boundingRect(c) for c in contours]
    boxes = [b for b in boxes if b[2] * b[3] >= 0.01 * height * width]
    if not boxes:
        return whole
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    right, bottom = max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
    left, right = _at_least_half(left, right, width)
    top, bottom = _at_least_half(top, bottom, height)
    return left, top, right - left, bottom - top


def _at_least_half(low: int, high: int, length: int) -> tuple[int, int]:
    short = (length + 1) // 2 - (high - low)
    if short <= 0:
        return low, high
    low = min(max(0, low - short // 2), length - (length + 1) // 2)
    return low, low + (length + 1) // 2


def letterbox(image: np.ndarray, size: int = INPUT_SIZE, crop: bool = True) -> tuple[np.ndarray, Letterbox]:
    """Crop a scan to its content and letterbox it into a black square.

    Args:
      image: uint8 (H, W, 3).
      size: side S of the square, pixels.
      crop: False keeps the whole frame.

    Returns:
      uint8 (S, S, 3) and the Letterbox that maps masks there and back.

    A picture of 100 x 200 pixels, kept whole: bars of 32 rows above and below it, and back again.

    >>> square, geometry = letterbox(np.full((100, 200, 3), 255, np.uint8), size=128)
    >>> square.shape, geometry.box, geometry.inner
    ((128, 128, 3), (0, 0, 200, 100), (0, 32, 128, 64))
    >>> unletterbox(square[..., 0] / 255.0, geometry).shape
    (100, 200)
    """
    height, width = image.shape[:2]
    x, y, w, h = content_box(image) if crop else (0, 0, width, height)
    scale = size / max(w, h)
    inner_w, inner_h = max(1, round(w * scale)), max(1, round(h * scale))
    inner = ((size - inner_w) // 2, (size - inner_h) // 2, inner_w, inner_h)
    geometry = Letterbox((height, width), (x, y, w, h), inner, size)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return _lay(image, geometry, interpolation), geometry


def letterbox_mask(mask: np.ndarray, geometry: Letterbox) -> np.ndarray:
    """Lay a mask into the square as its scan was laid: uint8 {0,1} (H, W, 1) -> uint8 {0,1} (S, S, 1)."""
    if mask.shape[:2] != geometry.shape:
        raise ValueError(f"mask is {mask.shape[:2]}, its scan {geometry.shape} (height, width); they must be equal")
    # Area or linear average of the mask, cut at one half: no bias in position, none in area.
    interpolation = cv2.INTER_AREA if geometry.inner[2] < geometry.box[2] else cv2.INTER_LINEAR
    share = _lay(mask.reshape(*geometry.shape, 1).astype(np.float32), geometry, interpolation)
    return (share >= 0.5).astype(np.uint8)


def _lay(array: np.ndarray, geometry: Letterbox, interpolation: int) -> np.ndarray:
    x, y, w, h = geometry.box
    ix, iy, iw, ih = geometry.inner
    content = array[y : y + h, x : x + w]
    if (w, h) != (iw, ih):
        content = cv2.resize(content, (iw, ih), interpolation=interpolation)
    square = np.zeros((geometry.size, geometry.size, array.shape[2]), array.dtype)
    square[iy : iy + ih, ix : ix + iw] = content.reshape(ih, iw, array.shape[2])
    return square


def unletterbox(square: np.ndarray, geometry: Letterbox) -> np.ndarray:
    """Bring a map on the square back to the scan's own grid: float (S, S) -> float32 (H, W), 0 outside the crop.

    A probability map is interpolated linearly: threshold after, not before.
    """
    x, y, w, h = geometry.box
    ix, iy, iw, ih = geometry.inner
    content: np.ndarray = square[iy : iy + ih, ix : ix + iw].astype(np.float32)
    if (w, h) != (iw, ih):
        content = cv2.resize(content, (w, h), interpolation=cv2.INTER_AREA if w < iw else cv2.INTER_LINEAR)
    full = np.zeros(geometry.shape, np.float32)
    full[y : y + h, x : x + w] = content
    return full
