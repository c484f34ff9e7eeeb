"""A scan with its lesions outlined. No JAX."""

import cv2
import numpy as np

SIDE = 1280
"""Longest side of an overlay, pixels: a page of fifty must fit a browser. Masks always keep the scan's size."""

_OUTLINE = np.array([255, 214, 10], np.float32)  # RGB; bright between two dark lines, so it shows on any ground


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Outline the lesions of uint8 RGB (H, W, 3) by mask uint8 {0,1} (H, W); returns uint8 (H, W, 3).

    A bright line between two dark ones, laid just outside the mask so that the lesion's own edge stays in sight, and a
    faint fill. The width grows with the picture (1 pixel up to 256, 2 at 512). An empty mask changes nothing.
    """
    inside = np.ascontiguousarray(mask, np.uint8)
    if not inside.any():
        return image.copy()
    width = max(1.0, max(image.shape[:2]) / 256)
    # Signed distance to the edge, pixels, positive outside: gives smooth lines of any width in one expression.
    outside, within = (cv2.distanceTransform(m, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for m in (1 - inside, inside))
    away = outside - within
    from_line = np.abs(away - (width + 1) / 2)  # edge pixels outside are at +1, so the line begins there
    fill = 0.10 * (away < 0)
    dark = 0.60 * np.clip(1.5 * width + 0.5 - from_line, 0, 1)
    bright = np.clip(width / 2 + 0.5 - from_line, 0, 1)
    out = image.astype(np.float32)
    out += fill[..., None] * (_OUTLINE - out)
    out *= 1 - dark[..., None]
    out += bright[..., None] * (_OUTLINE - out)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def overlay_jpeg(image: np.ndarray, mask: np.ndarray | None) -> bytes:
    """A JPEG file of the scan, uint8 RGB (H, W, 3), outlined by mask uint8 {0,1} (H, W), at most SIDE pixels long."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if mask is not None:  # any share of a pixel counts: the smallest lesion is still outlined
            mask = (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    picture = image if mask is None else overlay(image, mask)
    # Full-resolution colour: with halved chroma the outline smears.
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90, *sampling])
    if not done:
        raise ValueError(f"cannot write an array of shape {picture.shape} and type {picture.dtype} as JPEG")
    return data.tobytes()
