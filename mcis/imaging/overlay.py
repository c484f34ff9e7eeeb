"""Draw the outlines of lesions on a scan. No JAX."""

import cv2
import numpy as np

SIDE = 1280
"""Longest side of an overlay in pixels: a browser must be able to show a page of fifty. Masks keep the scan's size."""
COLOUR = np.array([255, 214, 10], np.float32)  # RGB; a bright line between two dark ones shows on any background


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Outline the lesions of a scan: uint8 RGB (H, W, 3) and mask uint8 {0,1} (H, W) -> uint8 (H, W, 3).

    A bright line between two dark ones, just outside the mask so that the lesion's edge stays visible, and a faint
    fill. The line is 1 pixel wide up to a size of 256, 2 at 512. An empty mask changes nothing.
    """
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


def overlay_jpeg(image: np.ndarray, mask: np.ndarray | None) -> bytes:
    """JPEG file, at most SIDE pixels long, of uint8 RGB (H, W, 3) with its mask, uint8 {0,1} (H, W), outlined."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if mask is not None:  # any fraction of a pixel counts, so that the smallest lesion is outlined
            mask = (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    drawn = image if mask is None else overlay(image, mask)
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]  # else the outline smears
    done, data = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90, *sampling])
    if not done:
        raise ValueError(f"cannot write an array of shape {drawn.shape} and type {drawn.dtype} as JPEG")
    return data.tobytes()
