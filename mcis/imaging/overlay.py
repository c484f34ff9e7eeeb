"""Draw the outlines of lesions on a scan. No JAX."""

import cv2
import numpy as np

SIDE = 1280
"""Longest side of an overlay in pixels: a browser must be able to show a page of fifty. Masks keep the scan's size."""
COLOUR = np.array([255, 214, 10], np.float32)  # RGB; a bright line between two dark ones shows on any background


def overlay(image: np.ndarray, mask: np.ndarray, outer: np.ndarray | None = None) -> np.ndarray:
    """Outline the lesions of a scan: uint8 RGB (H, W, 3) and mask uint8 {0,1} (H, W) -> uint8 (H, W, 3).

    A bright line between two dark ones, just outside the mask so that the lesion's edge stays visible, and a faint
    fill. The line is 1 pixel wide up to a size of 256, 2 at 512. An empty mask changes nothing. `outer`, which contains
    the mask, likewise uint8 {0,1} (H, W), gets a thin dashed line where it is not empty.
    """
    if outer is not None:
        image = _dashed(image, outer)
    mask = np.ascontiguousarray(mask, np.uint8)
    if not mask.any():
        return image.copy()
    width = max(1.0, max(image.shape[:2]) / 256)
    # The signed distance to the edge in pixels, positive outside, gives smooth lines of any width.
    outside, inside = (cv2.distanceTransform(m, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for m in (1 - mask, mask))
    distance = outside - inside
    from_line = np.abs(distance - (width + 1) / 2)  # the nearest pixels outside have distance 1: the line begins there
    fill = 0.10 * (distance < 0)
    dark = 0.60 * np.clip(1.5 * width + 0.5 - from_line, 0, 1)
    bright = np.clip(width / 2 + 0.5 - from_line, 0, 1)
    drawn = image.astype(np.float32)
    drawn += fill[..., None] * (COLOUR - drawn)
    drawn *= 1 - dark[..., None]
    drawn += bright[..., None] * (COLOUR - drawn)
    return np.clip(np.rint(drawn), 0, 255).astype(np.uint8)


def _dashed(image: np.ndarray, area: np.ndarray) -> np.ndarray:
    """The image with a dashed line along the edge of an area, uint8 {0,1} (H, W), just outside it."""
    area = np.ascontiguousarray(area, np.uint8)
    width = max(1, round(max(image.shape[:2]) / 512))
    wider = cv2.dilate(area, np.ones((3, 3), np.uint8), iterations=width)
    drawn = image.copy()
    for line in cv2.findContours(wider, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]:
        closed = np.concatenate([line, line[:1]])
        dashes = [closed[start : start + 4 * width + 1] for start in range(0, len(line), 8 * width)]
        cv2.polylines(drawn, dashes, False, COLOUR.tolist(), width)
    return drawn


def overlay_jpeg(image: np.ndarray, mask: np.ndarray | None, outer: np.ndarray | None = None) -> bytes:
    """JPEG file, at most SIDE pixels long, of uint8 RGB (H, W, 3) with its mask, uint8 {0,1} (H, W), outlined.

    `outer` is as for `overlay`.
    """
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if mask is not None:  # any fraction of a pixel counts, so that the smallest lesion is outlined
            mask = (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
        if outer is not None:
            outer = (cv2.resize(outer.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    drawn = image if mask is None else overlay(image, mask, outer)
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]  # else the outline smears
    done, data = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90, *sampling])
    if not done:
        raise ValueError(f"cannot write an array of shape {drawn.shape} and type {drawn.dtype} as JPEG")
    return data.tobytes()
