"""Read masks of NIfTI volumes. No JAX.

A mask belongs to a volume by its grid, not by its name alone. What does not fit is an error, so that no mask comes to
lie on another picture.
"""

import functools
import os
from collections.abc import Sequence

import numpy as np

from mcis.imaging.nifti import reader
from mcis.imaging.nifti.grid import Grid, as_slices
from mcis.imaging.scan import ScanError, check_file

NEAR = 0.02
"""Largest distance of the corners of a mask's grid and its scan's, in voxels."""


def nifti_mask(mask: str | os.PathLike, scan: str | os.PathLike, frame: int) -> np.ndarray:
    """The mask of one frame of a NIfTI scan: uint8 {0,1} (H, W, 1), oriented as `reader.read` gives the scan.

    Every value but 0 is lesion; NaN is background. A mask without time points holds for all of the scan's.

    Raises:
      ScanError: a file cannot be read; the grids differ; or values lie between whole numbers, as probabilities do.
    """
    name, (array, grid, slope, intercept), (scanned, other, *_) = os.path.basename(mask), _volume(mask), _volume(scan)
    if array.shape[:3] != scanned.shape[:3]:
        sizes = [" x ".join(map(str, shape[:3])) for shape in (array.shape, scanned.shape)]
        raise ScanError(f"mask {name} has {sizes[0]} voxels, its scan {sizes[1]}; save it on the grid of the scan")
    if not _same_place(grid, other, array.shape):
        raise ScanError(f"mask {name} has another affine matrix than its scan; save it on the grid of the scan")
    times = array.shape[3]
    if times not in (1, scanned.shape[3]):
        raise ScanError(f"mask {name} has {times} time points, its scan {scanned.shape[3]}; save one, or as many")
    time, number = divmod(frame, other.count)
    values = as_slices(array[..., time if times > 1 else 0], grid)[..., number].astype(np.float64) * slope + intercept
    values = np.nan_to_num(values, nan=0.0)
    if (values != np.rint(values)).any():
        raise ScanError(f"mask {name} has values between whole numbers; save it as 0 and 1, not as probabilities")
    return np.ascontiguousarray((values != 0)[..., None].astype(np.uint8))


def _volume(path: str | os.PathLike) -> tuple[np.ndarray, Grid, float, float]:
    """Stored array (X, Y, Z, T), grid, and slope and intercept from stored values to values."""
    check_file(path, reader.MAX_BYTES)
    status = os.stat(path)
    volume = reader._volume(os.fspath(path), status.st_mtime_ns, status.st_size)
    slope, intercept = _scale(os.fspath(path), status.st_mtime_ns)
    return volume.array, volume.grid, slope, intercept


@functools.lru_cache(16)
def _scale(path: str, modified: int) -> tuple[float, float]:
    volume = reader.open_volume(path)
    intercept = float(volume.header["scl_inter"]) if "scl_inter" in volume.header else 0.0
    return volume.slope, intercept if np.isfinite(intercept) else 0.0


def _same_place(a: Grid, b: Grid, shape: Sequence[int]) -> bool:
    """Whether the corners of two grids of one shape lie at the same places."""
    if a.affine is None or b.affine is None:
        return a.affine is b.affine and (a.axes, a.flips) == (b.axes, b.flips)
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape[:3]], [1])).reshape(4, -1)
    voxel = np.linalg.norm(b.affine[:3, :3], axis=0).min()
    apart = np.abs((a.affine - b.affine) @ corners).max()
    return (a.axes, a.flips) == (b.axes, b.flips) and bool(apart <= NEAR * voxel + 1e-3)
