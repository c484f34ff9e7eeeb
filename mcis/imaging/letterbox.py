"""The square input of the networks: crop a scan to its content, letterbox it, bring masks back. No JAX.

Training and inference use these same functions. Coordinates follow the half-pixel convention of OpenCV and `jax.image`:
pixel i covers [i, i + 1), its centre is at i + 0.5.
"""

import dataclasses

import cv2
import numpy as np

from mcis.imaging.whole_scans import flaw_of

INPUT_SIZE = 256
"""Side in pixels of the square that training and the cascade take; each network resizes it inside the jit."""
MIN_CONTENT = 80
"""Fewest pixels along the longer side of a scan's content: with fewer, it is a thumbnail that is magnified more than
three times. In the public data sets every scan has at least 128."""

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels."""


@dataclasses.dataclass(frozen=True)
class Letterbox:
    """How a scan was mapped to a square, for `letterbox_mask` and `unletterbox`.

    Attributes:
      shape: (H, W) of the scan.
      box: content that was kept, in pixels of the scan.
      inner: where that content is in the square, in pixels of the square.
      size: side S of the square, pixels.
      aspect: height over width of a pixel of the scan; pixels of the square are square.
      flaw: why it is a part of a scan, or no scan (`whole_scans`); None if it seems to be a whole scan.
    """

    shape: tuple[int, int]
    box: Box
    inner: Box
    size: int
    aspect: float = 1.0
    flaw: str | None = None

    @property
    def thumbnail(self) -> bool:
        """Whether the content has fewer than MIN_CONTENT pixels along its longer side."""
        return max(self.box[2:]) < MIN_CONTENT


def content_box(image: np.ndarray) -> Box:
    """Bounding box of what differs from the background of uint8 (H, W, 3); the whole image if nothing does.

    This is the usual brain crop (blur, threshold, erode, dilate, contours, bounding box) with two differences. The
    background is the median of the outermost pixels, not black, so that white pages and grey user interfaces count as
    background. Every contour of at least 1 % of the image is kept, not only the largest, because an ultrasound has
    several. The box is at least half as long as the scan along each axis: a small slice is magnified at most twice.
    """
    height, width = image.shape[:2]
    if min(height, width) < 16:
        return 0, 0, width, height
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (5, 5), 0)
    outermost = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    difference = cv2.absdiff(grey, np.full_like(grey, int(np.median(outermost))))
    mask = cv2.threshold(difference, 20, 255, cv2.THRESH_BINARY)[1]
    kernel = np.ones((3, 3), np.uint8)
    mask = cv2.dilate(cv2.erode(mask, kernel, iterations=2), kernel, iterations=2)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    boxes = [box for box in map(cv2.boundingRect, contours) if box[2] * box[3] >= 0.01 * height * width]
    if not boxes:
        return 0, 0, width, height
    left, right = _at_least_half(min(b[0] for b in boxes), max(b[0] + b[2] for b in boxes), width)
    top, bottom = _at_least_half(min(b[1] for b in boxes), max(b[1] + b[3] for b in boxes), height)
    return left, top, right - left, bottom - top


def _at_least_half(low: int, high: int, length: int) -> tuple[int, int]:
    half = (length + 1) // 2
    missing = half - (high - low)
    if missing <= 0:
        return low, high
    low = min(max(0, low - missing // 2), length - half)
    return low, low + half


def letterbox(
    image: np.ndarray, size: int = INPUT_SIZE, crop: bool = True, aspect: float = 1.0
) -> tuple[np.ndarray, Letterbox]:
    """Crop a scan to its content and letterbox it into a black square.

    Args:
      image: uint8 (H, W, 3).
      size: side S of the square, pixels.
      crop: False keeps the whole image.
      aspect: height over width of a pixel of the image.

    Returns:
      uint8 (S, S, 3), and the Letterbox that maps masks there and back.

    >>> square, geometry = letterbox(np.full((100, 200, 3), 255, np.uint8), size=128)
    >>> square.shape, geometry.box, geometry.inner
    ((128, 128, 3), (0, 0, 200, 100), (0, 32, 128, 64))
    >>> unletterbox(square[..., 0] / 255.0, geometry).shape
    (100, 200)
    """
    height, width = image.shape[:2]
    x, y, w, h = content_box(image) if crop else (0, 0, width, height)
    scale = size / max(w, h * aspect)
    inner_w, inner_h = max(1, round(w * scale)), max(1, round(h * aspect * scale))
    inner = ((size - inner_w) // 2, (size - inner_h) // 2, inner_w, inner_h)
    geometry = Letterbox(
        (height, width), (x, y, w, h), inner, size, aspect, flaw_of(image, image[y : y + h, x : x + w])
    )
    return _to_square(image, geometry, shrink=scale < 1), geometry


def letterbox_mask(mask: np.ndarray, geometry: Letterbox) -> np.ndarray:
    """Letterbox the mask of a scan as the scan was: uint8 {0,1} (H, W, 1) -> uint8 {0,1} (S, S, 1)."""
    if mask.shape[:2] != geometry.shape:
        raise ValueError(f"mask is {mask.shape[:2]}, its scan {geometry.shape} (height, width); they must be equal")
    shrink = geometry.inner[2] < geometry.box[2]
    average = _to_square(mask.reshape(*geometry.shape, 1).astype(np.float32), geometry, shrink)
    return (average >= 0.5).astype(np.uint8)  # this threshold biases neither position nor area


def unletterbox(square: np.ndarray, geometry: Letterbox) -> np.ndarray:
    """Bring a map on the square back to the grid of the scan: float (S, S) -> float32 (H, W), 0 outside the box.

    Interpolation is linear: threshold probabilities afterwards.
    """
    x, y, w, h = geometry.box
    inner_x, inner_y, inner_w, inner_h = geometry.inner
    content = square[inner_y : inner_y + inner_h, inner_x : inner_x + inner_w].astype(np.float32)
    full = np.zeros(geometry.shape, np.float32)
    full[y : y + h, x : x + w] = _resize(content, w, h, w < inner_w, geometry.aspect != 1)
    return full


def _to_square(array: np.ndarray, geometry: Letterbox, shrink: bool) -> np.ndarray:
    x, y, w, h = geometry.box
    inner_x, inner_y, inner_w, inner_h = geometry.inner
    content = _resize(array[y : y + h, x : x + w], inner_w, inner_h, shrink, geometry.aspect != 1)
    square = np.zeros((geometry.size, geometry.size, array.shape[2]), array.dtype)
    square[inner_y : inner_y + inner_h, inner_x : inner_x + inner_w] = content.reshape(inner_h, inner_w, -1)
    return square


def _resize(array: np.ndarray, width: int, height: int, shrink: bool, by_axis: bool) -> np.ndarray:
    """Resize (H, W, ...), by averages of areas where it shrinks; `by_axis`: one axis may shrink, the other grow."""
    if array.shape[:2] == (height, width):
        return array
    if by_axis:
        rows, columns = array.shape[:2]
        shrinks_x, shrinks_y = width < columns, height < rows
        if shrinks_x != shrinks_y:  # OpenCV averages areas only if both axes shrink
            between = (width, rows) if shrinks_x else (columns, height)
            array = cv2.resize(array, between, interpolation=cv2.INTER_AREA)
        shrink = shrinks_x and shrinks_y
    return cv2.resize(array, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
