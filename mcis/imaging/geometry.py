"""Where a slice lies in its volume. No JAX."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a slice lies in its volume.

    Attributes:
      series: of what belongs together, 16 hex digits: no identifier can be had from it but by guessing; None = it is of
        no volume.
      position: millimetres along `normal`, of the patient's coordinates; None where the file does not say.
      normal: unit vector across the slice, towards left, back and head (DICOM's coordinates).
    """

    series: str | None = None
    position: float | None = None
    normal: tuple[float, float, float] | None = None


def digest(*parts: str) -> str:
    """16 hex digits of SHA-256 over some text."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def along_normal(
    position: Sequence[float], right: Sequence[float], down: Sequence[float]
) -> tuple[float, tuple] | None:
    """Position along the normal, and the normal, of a slice; None where its directions are none.

    Args:
      position: of its first pixel's middle, millimetres.
      right: the direction of its rows.
      down: the direction of its columns.
    """
    normal = np.cross(np.asarray(right, np.float64), np.asarray(down, np.float64))
    length = float(np.linalg.norm(normal))
    if not (np.isfinite(normal).all() and np.isfinite(position).all() and length > 1e-6):
        return None
    normal /= length
    return float(normal @ np.asarray(position, np.float64)), tuple(map(float, normal))
