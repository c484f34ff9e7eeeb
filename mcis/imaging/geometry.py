"""Position of a slice in its volume. No JAX."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

SPACINGS = 0.01, 100.0
"""Millimetres between neighbouring pixels that scans can have; others come from a wrong header."""
FIELD = 1000.0
"""Millimetres that a scan can cover along one side; more come from a wrong header."""


@dataclasses.dataclass(frozen=True)
class SliceGeometry:
    """Position of a slice in its volume.

    Attributes:
      series: the volume, as a `digest` that does not reveal its identifier; None if the slice belongs to none.
      position: millimetres along `normal`; None, like `normal`, if the file does not say.
      normal: unit vector across the slice, in DICOM's patient coordinates (towards left, back and head).
    """

    series: str | None = None
    position: float | None = None
    normal: tuple[float, float, float] | None = None


def implausible(spacing: Sequence[float], shape: Sequence[int]) -> str | None:
    """A note if a scan cannot have a spacing, by its millimetres between rows and columns or by its field of view.

    Args:
      spacing: between rows and between columns, mm.
      shape: number of rows and of columns.

    >>> implausible((0.5, 0.5), (512, 512)), implausible((80, 80), (600, 800))
    (None, 'a spacing of 80 x 80 mm, for a field of view of 48000 x 64000 mm, is implausible: no measurements in mm')
    """
    down, right = spacing
    seen = f"a spacing of {down:g} x {right:g} mm"
    if not all(SPACINGS[0] <= part <= SPACINGS[1] for part in spacing):
        return f"{seen} is implausible: no measurements in mm"
    height, width = (part * count for part, count in zip(spacing, shape, strict=True))
    if max(height, width) > FIELD:
        return f"{seen}, for a field of view of {height:g} x {width:g} mm, is implausible: no measurements in mm"
    return None


def digest(*parts: str) -> str:
    """First 16 hex digits of the SHA-256 of some texts."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def slice_geometry(
    series: str, first_pixel: Sequence[float], right: Sequence[float], down: Sequence[float]
) -> SliceGeometry:
    """The geometry of a slice by the centre of its first pixel (mm) and the directions of its rows and columns.

    Without position and normal if these are not finite or parallel. Only the digest of `series` is kept.
    """
    normal = np.cross(np.asarray(right, np.float64), np.asarray(down, np.float64))
    length = float(np.linalg.norm(normal))
    if not (np.isfinite(normal).all() and np.isfinite(first_pixel).all() and length > 1e-6):
        return SliceGeometry(digest(series))
    normal /= length
    x, y, z = map(float, normal)
    return SliceGeometry(digest(series), float(normal @ np.asarray(first_pixel, np.float64)), (x, y, z))
