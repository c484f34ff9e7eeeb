"""How volumes of NIfTI and Analyze are cut into slices: orientation, spacing and units. No JAX."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mcis.imaging.geometry import SPACINGS
from mcis.imaging.nifti.header import MILLIMETRES, UNIT_NAMES, VolumeFile

NO_POSITION = "its affine matrix is singular or missing: axes as stored, no measurements in mm"


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a volume is cut into slices.

    Attributes:
      axes: of the stored array: along the rows' order (down), along the columns' (right), across slices.
      flips: whether each of these axes is reversed.
      spacing: millimetres between rows, between columns and between slices; None if unknown.
      count: number of slices of one time point.
      affine: float64 (4, 4), from indices of the stored array to millimetres towards right, front and head; None if
        unknown.
      notes: oddities of the header's position and units.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float] | None
    count: int
    affine: np.ndarray | None
    notes: tuple[str, ...] = ()


def as_slices(array: np.ndarray, grid: Grid) -> np.ndarray:
    """A writable view of a stored array (X, Y, Z) as displayed: (rows, columns, slices)."""
    return np.transpose(array, grid.axes)[tuple(slice(None, None, -1 if flip else None) for flip in grid.flips)]


FEW = 8
"""An axis with so many times fewer voxels than the others is the one across slices."""


def grid_of(volume: VolumeFile) -> Grid:
    """How to cut a volume into slices."""
    import nibabel

    shape = volume.shape
    affine, notes = _affine(volume)
    if affine is None:
        return Grid((1, 0, 2), (True, False, False), None, shape[2], None, (*volume.notes, *notes))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    orientation = nibabel.orientations.io_orientation(affine)  # of each stored axis: which of R, A, S, and its sign
    axis_of = {int(which): axis for axis, (which, _) in enumerate(orientation)}
    thickest = int(np.argmax(spacing))
    fewest = int(np.argmin(shape[:3]))
    if FEW * shape[fewest] <= sorted(shape[:3])[1]:  # one slice, or a few: their spacing may be anything
        across = fewest
    else:
        across = thickest if spacing[thickest] > 1.5 * np.median(spacing) else axis_of[2]
    # With R, A, S = 0, 1, 2: rows go down from the front or head, columns from the patient's right or front.
    down, right = {2: (1, 0), 1: (2, 0), 0: (2, 1)}[int(orientation[across][0])]
    axes = (axis_of[down], axis_of[right], across)
    ascending = [bool(orientation[axis][1] > 0) for axis in axes]
    down_mm, right_mm, across_mm = (float(spacing[axis]) for axis in axes)
    flips = (ascending[0], ascending[1], not ascending[2])
    low, high = SPACINGS
    millimetres: tuple[float, float, float] | None = down_mm, right_mm, across_mm
    if not all(low <= step <= high for step in (down_mm, right_mm)):
        notes.append(f"a spacing of {down_mm:g} x {right_mm:g} mm is implausible: no measurements in mm")
        millimetres = None
    kept = affine if millimetres else None
    return Grid(axes, flips, millimetres, shape[across], kept, (*volume.notes, *notes))


def _affine(volume: VolumeFile) -> tuple[np.ndarray | None, list[str]]:
    """From indices of the stored array to millimetres, None if no header field gives it; and notes."""
    header = volume.header
    if "qform_code" not in header:
        affine, notes = (
            usable(header.get_base_affine),
            ["Analyze states no orientation: left and right may be swapped"],
        )
        return affine, notes if affine is not None else [*notes, NO_POSITION]
    notes = []
    for name, get in (("sform", header.get_sform), ("qform", qform_of(header))):
        if int(header[f"{name}_code"]) > 0:
            if (affine := usable(get)) is not None:
                break
            notes.append(f"its {name} matrix is singular or invalid")
    else:
        affine = None if notes else usable(_by_pixdim(header))
        notes.append(NO_POSITION if affine is None else "no orientation is stated: left and right may be swapped")
    if affine is None:
        return None, notes
    code = int(header["xyzt_units"]) & 7
    if code in UNIT_NAMES:
        notes.append(f"spacing converted from {UNIT_NAMES[code]} to millimetres")
    elif code != 2:
        notes.append("its unit of length is not stated: taken as millimetres")
    affine = affine.copy()
    affine[:3] *= MILLIMETRES.get(code, 1.0)
    return affine, notes


def qform_of(header: Any) -> Callable[[], np.ndarray]:
    """A function for the matrix by the quaternion; signs of the voxel sizes that say nothing are left out."""

    def get() -> np.ndarray:
        mended = header.copy()
        mended["pixdim"][1:4] = np.abs(mended["pixdim"][1:4])
        if mended["pixdim"][0] not in (1, -1):  # 0 in many files
            mended["pixdim"][0] = 1
        return mended.get_qform()

    return get


def _by_pixdim(header: Any) -> Callable[[], np.ndarray]:
    """A function for the matrix by the voxel sizes alone, their signs left out."""

    def get() -> np.ndarray:
        sizes = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
        return np.diag([-sizes[0], sizes[1], sizes[2], 1.0])

    return get


def usable(get: Callable[[], np.ndarray]) -> np.ndarray | None:
    """The matrix that a function returns; None if it raises, or the matrix is not invertible."""
    import nibabel

    try:
        affine = np.asarray(get(), np.float64)
    except Exception:  # of many types: an invalid quaternion, text
        return None
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not np.isfinite(steps).all() or not steps.min() > 0:
        return None
    if abs(np.linalg.det(affine[:3, :3] / steps)) < 1e-6:
        return None
    return affine if np.isfinite(nibabel.orientations.io_orientation(affine)).all() else None
