"""Read mask images: which pixels are lesion. No JAX.

0 is background and everything else is lesion, whatever the depth: 0 and 255, grey levels, class numbers, colours. What
differs from this rule is in `lesion_in`, and a note says so.
"""

import dataclasses
import math
import os
from typing import NamedTuple

import numpy as np

from mcis.imaging import image_files
from mcis.imaging.scan import Picture, ScanError

MANY_LEVELS = 32
"""With more grey levels, a mask may have smooth edges or noise instead of levels or class numbers."""
QUARTER = 0.25
"""Of the largest value: less is background in a mask of smooth edges, or compressed by JPEG. Half would be where an
edge was before it was smoothed, but would take the lower of two levels, as 127 of 255, for an edge."""
BRIGHT = 128
"""Largest value from which on many levels that are not consecutive are grey levels, whatever their places."""
AREAS = 0.25
"""Share of the pixels between 0 and the largest value, of whose four neighbours three have the same value, from which
on many levels are class numbers: classes have areas, edges have none."""
NEAR_LEVELS = 0.9
"""Share of the neighbours of different values, both lesion, that differ by a sixteenth of the largest value at most,
from which on levels are a smooth map all the same: its steps may be as wide as areas."""


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
    if picture.indexes is None:
        picture = dataclasses.replace(picture, indexes=image_files.palette_indexes(path))
    return lesion_in(picture, os.fspath(path))


def lesion_in(picture: Picture, name: str = "mask") -> Mask:
    """The mask that a picture is.

    - Alpha is blended with black. If nothing is left, alpha itself is the mask.
    - In a palette without black, the first colour is background. If black is another than the first, the smaller area
      is lesion: programs that number classes and those that draw disagree on what is background.
    - In a TIFF that stores white as 0, programs disagree on what 0 means: the smaller area is lesion.
    - Of smooth edges, and of JPEG, values below a quarter of the largest are background. Edges are smooth if there are
      many grey levels that are no class numbers: those have areas. Of 32 levels and fewer, all but 0 are lesion.
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
    whole = picture.array.dtype.kind in "ui"
    if picture.lossy or (values is not picture.indexes and _has_smooth_edges(values, top, whole)):
        limit = QUARTER * (256 if picture.lossy and picture.array.dtype == np.uint8 else top)
        limit = math.ceil(limit) if whole else limit
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


def _blended(array: np.ndarray) -> np.ndarray:
    """The largest magnitude of the colours, (H, W), blended with black where there is alpha."""
    array = array.reshape(*array.shape[:2], -1)
    values = _brightest(array)
    if array.shape[2] not in (2, 4):
        return values
    alpha = array[..., -1]
    full = float(np.iinfo(alpha.dtype).max) if alpha.dtype.kind in "ui" else 1.0
    return np.where(alpha == full, values, values * (alpha / full))


def _values(picture: Picture) -> tuple[np.ndarray, list[str]]:
    """Values (H, W) of which 0 is background, and notes."""
    array = picture.array.reshape(*picture.array.shape[:2], -1)
    values, notes = _blended(array), []
    if array.shape[2] in (2, 4):
        alpha, hidden = array[..., -1], _brightest(array)
        if alpha.max() > 0 and alpha.min() != alpha.max() and not values.any():
            values, notes = alpha, ["its alpha is taken as the mask: all its colours are black"]
            if 0 < np.count_nonzero(hidden) < np.count_nonzero(alpha):
                values, notes = hidden, ["its colours are taken as the mask: alpha hides them all, and shows more"]
    if picture.indexes is None:
        return values, notes
    coloured, numbered = np.count_nonzero(values), np.count_nonzero(picture.indexes)
    if not np.count_nonzero((values != 0) != (picture.indexes != 0)) or numbered == values.size:
        return values, notes
    if coloured == values.size:
        return picture.indexes, ["a palette without black: its first colour is background"]
    if coloured == 0:
        return picture.indexes, ["a palette of black alone: its first colour is background"]
    smaller = values if coloured <= numbered or numbered == 0 else picture.indexes
    return smaller, [*notes, "colours and numbers of its palette disagree: the smaller area is taken as lesion"]


def _full(array: np.ndarray) -> float:
    """The displayed value of a stored 0 in a TIFF that stores white as 0."""
    if array.dtype.kind == "u":
        return float(np.iinfo(array.dtype).max)
    return -1.0 if array.dtype.kind == "i" else 0.0


def _has_smooth_edges(values: np.ndarray, top: float, whole: bool) -> bool:
    """Whether there are too many levels to be those of classes: smooth edges, or noise. `whole`: of whole numbers."""
    levels = len(np.unique(values.reshape(-1)[:: max(1, values.size // 1_000_000)]))
    if levels <= MANY_LEVELS or top <= 0:
        return False
    consecutive = levels == top + 1 and levels != 256
    if not consecutive and (not whole or top >= BRIGHT):
        return True
    return not _has_areas(values, top)


def _has_areas(values: np.ndarray, top: float) -> bool:
    """Whether values (H, W) of many levels are class numbers: they have areas, whose neighbours have other numbers."""
    inner = values[1:-1, 1:-1]
    between = (inner > 0) & (inner < top)
    if not between.any():
        return True
    neighbours = values[:-2, 1:-1], values[2:, 1:-1], values[1:-1, :-2], values[1:-1, 2:]
    alike = np.sum([inner == other for other in neighbours], axis=0, dtype=np.uint8)
    if (alike[between] >= 3).mean() < AREAS:  # along a straight edge, two are
        return False
    steps = np.concatenate([_steps(values), _steps(values.T)])
    return not steps.size or bool((steps <= max(1.0, top / 16)).mean() < NEAR_LEVELS)


def _steps(values: np.ndarray) -> np.ndarray:
    """How much neighbours of a row differ that differ and are both above 0."""
    left, right = values[:, :-1], values[:, 1:]
    steps = np.abs(left.astype(np.float64) - right)
    return steps[(left > 0) & (right > 0) & (steps > 0)]
