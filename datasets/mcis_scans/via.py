"""Outlines drawn with the VGG Image Annotator (VIA), and the masks that they define.

VIA stores shapes in the coordinates of an HTML canvas: pixel i covers [i, i + 1). A pixel belongs to a shape if its
centre does, so that areas are unbiased.
"""

import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mcis.files import read_json
from mcis.imaging.scan import ScanError

SHAPES = ("polygon", "ellipse", "circle", "rect")


def read_outlines(path: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
    """File name -> shapes, of a VIA annotation export or a saved VIA project (version 1 or 2); else ValueError."""
    try:
        content = read_json(path)
        entries = content.get("_via_img_metadata", content).values()
        outlines: dict[str, list[dict[str, Any]]] = {}
        for entry in entries:
            regions = entry["regions"]
            if isinstance(regions, dict):  # of version 1
                regions = regions.values()
            drawn = outlines.setdefault(str(entry["filename"]), [])
            drawn.extend(dict(region["shape_attributes"]) for region in regions)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a VIA annotation file ({type(error).__name__}: {error})") from error
    return outlines


def rasterise(shapes: Iterable[Mapping[str, Any]], size: tuple[int, int]) -> np.ndarray:
    """The union of VIA shapes (their `shape_attributes`) as a mask, uint8 {0,1} (H, W, 1) for `size` = (H, W).

    Lengths are in pixels; an ellipse's `theta`, in radians, rotates x towards y. Shapes are clipped at the image.

    Raises:
      ScanError: a shape is of another kind than SHAPES or lacks a finite value, or no pixel is covered.
    """
    mask = np.zeros(size, bool)
    for shape in shapes:
        kind = shape.get("name")
        try:
            if kind == "polygon":
                mask |= _polygon(shape["all_points_x"], shape["all_points_y"], size)
            elif kind == "ellipse":
                mask |= _ellipse(shape["cx"], shape["cy"], shape["rx"], shape["ry"], shape.get("theta") or 0.0, size)
            elif kind == "circle":
                mask |= _ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"], 0.0, size)
            elif kind == "rect":
                x, y, width, height = (shape[key] for key in ("x", "y", "width", "height"))
                mask |= _polygon([x, x + width, x + width, x], [y, y, y + height, y + height], size)
            else:
                raise ScanError(f"outlined by a {kind!r}; allowed shapes: {', '.join(SHAPES)}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ScanError):
                raise
            raise ScanError(f"outlined by a damaged {kind} ({type(error).__name__}: {error})") from error
    if not mask.any():
        raise ScanError("its outline covers no pixel")
    return mask[..., None].astype(np.uint8)


def _polygon(xs: Iterable[float], ys: Iterable[float], size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre has a winding number other than 0, as an HTML canvas fills a path: bool (H, W)."""
    height, width = size
    points = np.array([list(xs), list(ys)], np.float64).T
    if len(points) < 3 or not np.isfinite(points).all():
        raise ValueError(f"{len(points)} points, at least 3 finite ones are needed")
    # Each edge adds its direction to all pixels on its right. Their sum along a row is the winding number.
    steps = np.zeros((height, width + 1), np.int32)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        low, high = sorted((y0, y1))
        rows = np.arange(max(0, math.ceil(low - 0.5)), min(height, math.ceil(high - 0.5)))
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            steps[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(int)] += 1 if y1 > y0 else -1
    return steps.cumsum(axis=1)[:, :width] != 0


def _ellipse(cx: float, cy: float, rx: float, ry: float, theta: float, size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre is in the ellipse: bool (H, W)."""
    if not all(math.isfinite(value) for value in (cx, cy, rx, ry, theta)) or min(rx, ry) <= 0:
        raise ValueError(f"centre ({cx}, {cy}), radii ({rx}, {ry}), angle {theta}")
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    along = (x - cx) * math.cos(theta) + (y - cy) * math.sin(theta)
    across = (y - cy) * math.cos(theta) - (x - cx) * math.sin(theta)
    return (along / rx) ** 2 + (across / ry) ** 2 <= 1.0
