"""Position of a slice in its volume. No JAX."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

SPACINGS = 0.01, 100.0
"""Millimetres between neighbouring pixels that scans can have; others come from a wrong header."""


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
