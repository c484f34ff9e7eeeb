"""Read mask images: which pixels are lesion. No JAX.

0 is background and everything else is lesion, whatever the depth: 0 and 255, grey levels, class numbers, colours. What
differs from this rule is in `lesion_in`, and a note says so.
"""

import dataclasses
import os
from typing import NamedTuple

import numpy as np

from mcis.imaging import image_files
from mcis.imaging.scan import Picture, ScanError

MANY_LEVELS = 32
"""With more grey levels, a mask has smooth edges or noise instead of levels or class numbers."""
QUARTER = 0.25
"""Of the largest value: less is background in a mask of many levels, or compressed by JPEG."""
BRIGHT = 128
"""Largest value from which on 8 bits are grey levels; below, they may be class numbers."""


class Mask(NamedTuple):
    """lesion: uint8 {0,1} (H, W, 1), 1 = lesion. notes: how it was found, where 0 is not simply background."""

    lesion: np.ndarray
    notes: tuple[str, ...]


def read(path: str | os.PathLike) -> Mask:
    """Read a mask of any kind that `image_files.read` reads; upright, as that function gives its scan.

    Raises:
      ScanError: unreadable, or compressed by JPEG without bright values.
    """
    picture = image_files.read_picture(path)
    if picture.indexes is None and _brightest(picture.array).min() > 0:
        picture = dataclasses.replace(picture, indexes=image_files.palette_indexes(path))
    return lesion_in(picture, os.fspath(path))


def lesion_in(picture: Picture, name: str = "mask") -> Mask:
    """The mask that a picture is.

    - Alpha is blended with black. If nothing is left, alpha itself is the mask.
    - In a palette without black, the first colour is background.
    - In a TIFF that stores white as 0, programs disagree on what 0 means: the smaller area is lesion.
    - Of many grey levels, and of JPEG, values below a quarter of the largest are background.
    """
    values, notes = _values(picture)
    top = float(values.max())
    if picture.white_is_zero:
        stored = np.abs(_full(picture.array) - values)
        if np.count_nonzero(stored) <= np.count_nonzero(values):
            values = stored
        notes.append("stored with 0 as white: the smaller area is taken as lesion")
        top = float(values.max())
    if picture.lossy and 0 < top < BRIGHT / 2:
        raise ScanError(f"{name}: a mask compressed by JPEG, with no value above {top:g}; save it as PNG")
    if picture.lossy or _has_many_levels(values, top):
        limit = QUARTER * (256 if picture.array.dtype == np.uint8 else top)
        kind = "compressed by JPEG" if picture.lossy else "of many grey levels"
        if top > 0:
            notes.append(f"{kind}: values of {limit:g} and more are lesion")
        return Mask((values >= max(limit, np.finfo(np.float32).tiny)).astype(np.uint8)[..., None], tuple(notes))
    return Mask((values != 0).astype(np.uint8)[..., None], tuple(notes))


def _brightest(array: np.ndarray) -> np.ndarray:
    """The largest magnitude of the channels, without alpha: (H, W). NaN and infinity are 0."""
    channels = array.reshape(*array.shape[:2], -1)
    channels = channels[..., :-1] if channels.shape[2] in (2, 4) else channels
    if channels.dtype.kind == "f":
        channels = np.nan_to_num(channels, nan=0.0, posinf=0.0, neginf=0.0)
    return np.abs(channels.astype(np.float64) if channels.dtype.kind == "i" else channels).max(axis=2)


def _values(picture: Picture) -> tuple[np.ndarray, list[str]]:
    """Values (H, W) of which 0 is background, and notes."""
    array = picture.array.reshape(*picture.array.shape[:2], -1)
    values = _brightest(array)
    if array.shape[2] in (2, 4):
        alpha = array[..., -1]
        full = float(np.iinfo(alpha.dtype).max) if alpha.dtype.kind in "ui" else 1.0
        blended = np.where(alpha == full, values, values * (alpha / full))
        if alpha.max() > 0 and alpha.min() != alpha.max() and not blended.any():
            return alpha, ["its alpha is taken as the mask: all its colours are black"]
        return blended, []
    if picture.indexes is not None and values.min() > 0:
        return picture.indexes, ["a palette without black: its first colour is background"]
    return values, []


def _full(array: np.ndarray) -> float:
    """The displayed value of a stored 0 in a TIFF that stores white as 0."""
    if array.dtype.kind == "u":
        return float(np.iinfo(array.dtype).max)
    return -1.0 if array.dtype.kind == "i" else 0.0


def _has_many_levels(values: np.ndarray, top: float) -> bool:
    """Whether there are too many levels to be those of classes; consecutive numbers are classes."""
    if values.dtype.kind != "f" and top < BRIGHT:
        return False
    levels = len(np.unique(values.reshape(-1)[:: max(1, values.size // 1_000_000)]))
    return levels > MANY_LEVELS and (levels == 256 or levels != top + 1)
