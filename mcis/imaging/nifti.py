"""NIfTI volumes as scans, a slice at a time. No JAX; nibabel comes with the extra `dicom`."""

import collections
import dataclasses
import gzip
import math
import os
import struct
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

import mcis
from mcis import MAX_PIXELS
from mcis.imaging.geometry import Place, along_normal, digest
from mcis.imaging.scan import MAX_FRAMES, Scan, ScanError, check_file

SUFFIXES = (".nii", ".nii.gz")
MAX_BYTES = 1 << 29
"""Of the file, and of the array that it says it holds, whose compressed form is as small as it likes."""
MAX_OFFSET = 1 << 24
"""Of the first voxel: a header and its extensions."""
MAGIC = (b"n+1\0", b"n+2\0")


def holds(name: str, head: bytes) -> bool:
    """Whether a file is a NIfTI volume, of its name and first bytes."""
    return name.lower().endswith(SUFFIXES) or head[344:348] in MAGIC or head[4:8] == MAGIC[1]


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a volume is cut into slices.

    Attributes:
      axes: of the stored array, those of a slice's rows (downward), its columns (rightward), and the slices'.
      flips: whether each of them is reversed.
      spacing: millimetres from row to row, from column to column, and from slice to slice.
      count: number of slices.
      affine: of the stored array, to millimetres towards right, front and head, float64 (4, 4).
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]
    count: int
    affine: np.ndarray


def count_frames(path: str | os.PathLike) -> int:
    """Number of slices; 1 for a file that cannot be read, and at most one beyond MAX_FRAMES."""
    try:
        return min(grid_of(_open(path), path).count, MAX_FRAMES + 1)
    except (ScanError, OSError):
        return 1


def read(path: str | os.PathLike, frame: int = 0) -> Scan:
    """Read a slice of a NIfTI volume.

    Slices go along the axis of the largest spacing, that of the acquisition, and along the body's where all are much
    the same; from the feet, the back or the left on. They are seen as radiologists see them: the patient's right or
    front at the left, front or head at the top.

    Returns:
      The Scan: uint8 RGB, the volume's values from its 0.5th to its 99.5th percentile linearly to [0, 255], the same
      for each slice.

    Raises:
      ScanError: it is no such volume, is larger than MAX_BYTES, or has more than one value a voxel.
    """
    try:
        return _read(path, frame)
    except ScanError as error:
        error.series = digest(os.fspath(path))
        raise


def _read(path: str | os.PathLike, frame: int) -> Scan:
    if frame >= MAX_FRAMES:
        raise ScanError(f"{path}: has more than {MAX_FRAMES} slices; the others are not read, split the file")
    check_file(path, MAX_BYTES)
    status = os.stat(path)
    array, grid, black, white = _volume(os.fspath(path), status.st_mtime_ns, status.st_size)
    if frame >= grid.count:
        raise ScanError(f"{path}: has no slice {frame}; it has {grid.count}, which count from 0")
    plane = laid(array, grid)[..., frame].astype(np.float32)
    if not np.isfinite(plane).all():
        raise ScanError(f"{path}: has NaN or infinite voxels; mend the file")
    grey = np.clip(np.rint((plane - black) * (255.0 / (white - black))), 0, 255).astype(np.uint8)
    image = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))
    notes = (f"shown by the volume's stored values, {black:g} to {white:g}",)
    return Scan(image, notes, grid.spacing[:2], _place(path, grid, array.shape, frame))


def laid(array: np.ndarray, grid: Grid) -> np.ndarray:
    """A stored array (X, Y, Z) as its slices are seen, (rows, columns, slices): a view, to be written through too."""
    steps = tuple(slice(None, None, -1 if flip else None) for flip in grid.flips)
    return np.transpose(array, grid.axes)[steps]


def encode(path: str | os.PathLike, masks: Mapping[int, np.ndarray]) -> bytes:
    """A NIfTI file, .nii.gz, of masks on the grid of a volume: its shape, affine matrices and units, and nothing else.

    Args:
      path: the volume.
      masks: uint8 {0,1} (H, W) by slice, as `read` has them; 0 on all others.

    Raises:
      ScanError: it is no such volume, or a mask is not of its slices' size.
    """
    import nibabel

    image = _open(path)
    grid = grid_of(image, path)
    stored = np.zeros(image.shape, np.uint8, order="F")
    seen = laid(stored.reshape((*image.shape, 1, 1)[:3], order="F"), grid)
    for frame, mask in masks.items():
        if mask.shape != seen.shape[:2] or not 0 <= frame < grid.count:
            size = f"{mask.shape[0]} x {mask.shape[1]}"
            raise ScanError(f"{path}: no slice {frame} of {size} pixels; it has {grid.count} of {seen.shape[:2]}")
        seen[..., frame] = mask
    kind = nibabel.Nifti2Image if isinstance(image, nibabel.Nifti2Image) else nibabel.Nifti1Image
    made = kind(stored, image.affine)
    made.set_qform(image.get_qform(), int(image.header["qform_code"]))
    made.set_sform(image.get_sform(), int(image.header["sform_code"]))
    made.header.set_xyzt_units(*image.header.get_xyzt_units())
    made.header["descrip"] = mcis.NOTICE
    return gzip.compress(made.to_bytes(), 6, mtime=0)


def _place(path: str | os.PathLike, grid: Grid, shape: tuple[int, ...], frame: int) -> Place:
    """Where a slice lies. The volume is known by its path: the file need not be whole for that."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    steps = [lps[:3, axis] * (-1 if flip else 1) for axis, flip in zip(grid.axes, grid.flips, strict=True)]
    corner = np.zeros(3)
    for axis, flip in zip(grid.axes, grid.flips, strict=True):
        corner[axis] = shape[axis] - 1 if flip else 0
    first = lps[:3, :3] @ corner + lps[:3, 3]
    where = along_normal(first + frame * steps[2], steps[1], steps[0])
    return Place(digest(os.fspath(path)), *(where or (None, None)))


Volume = tuple[np.ndarray, Grid, float, float]
_kept: collections.OrderedDict[tuple[str, int, int], Volume] = collections.OrderedDict()
_kept_lock = threading.Lock()


def _volume(path: str, changed: int, size: int) -> Volume:
    """The stored array of a file, its grid, and the stored values that become black and white.

    What was read last is kept, up to MAX_BYTES: slices of several volumes may be asked for in turn.
    """
    key = path, changed, size
    with _kept_lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    found = _read_volume(path)
    with _kept_lock:
        _kept[key] = found
        while sum(array.nbytes for array, *_ in _kept.values()) > MAX_BYTES and len(_kept) > 1:
            _kept.popitem(last=False)
    return found


def _read_volume(path: str) -> Volume:
    image = _open(path)
    grid = grid_of(image, path)
    try:
        array = np.asarray(image.dataobj.get_unscaled()).reshape((*image.shape, 1, 1)[:3])
    except (OSError, ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScanError(f"{path}: cut short or damaged ({type(error).__name__})") from None
    step = max(1, array.size // 1_000_000)
    sample = array.reshape(-1, order="A")[::step].astype(np.float32)
    if not np.isfinite(sample).all():
        raise ScanError(f"{path}: has NaN or infinite voxels; mend the file")
    black, white = (float(value) for value in np.percentile(sample, (0.5, 99.5)))
    if (image.dataobj.slope or 1) < 0:
        black, white = white, black
    return array, grid, black, white if white != black else black + 1


def _open(path: str | os.PathLike) -> Any:
    """The file's header, as nibabel has it, checked for what it claims."""
    check_file(path, MAX_BYTES)
    try:
        import nibabel
    except ImportError:
        raise ScanError(f"{path}: NIfTI is read where its extra is installed: pip install -e '.[dicom]'") from None
    _check_offset(path)
    try:
        image: Any = nibabel.load(path)
        shape, kind = image.shape, image.get_data_dtype()
    except Exception as error:  # nibabel names few of them
        raise ScanError(f"{path}: damaged, or no NIfTI volume that can be read ({type(error).__name__})") from None
    if not isinstance(image, nibabel.Nifti1Image):  # and no other format that its name or bytes could pass for
        raise ScanError(f"{path}: no NIfTI volume")
    if len(shape) < 2 or min(shape) < 1 or math.prod(shape[3:]) != 1:
        raise ScanError(f"{path}: of shape {shape}; a volume of one value a voxel, (X, Y, Z), is read")
    if math.prod(shape) * kind.itemsize > MAX_BYTES or math.prod(sorted(shape)[-2:]) > MAX_PIXELS:
        raise ScanError(f"{path}: {math.prod(shape)} voxels; at most {MAX_BYTES >> 20} MiB are read")
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise ScanError(f"{path}: voxels of type {kind}; integers and floats are read")
    return image


def _check_offset(path: str | os.PathLike) -> None:
    """ScanError where voxels begin farther on than any header ends: a compressed file would be inflated up to there."""
    try:
        with (gzip.open if os.fspath(path).lower().endswith(".gz") else open)(path, "rb") as file:
            head = file.read(540)
        order = "<" if head[:4] in (struct.pack("<i", size) for size in (348, 540)) else ">"
        second = head[4:8] == MAGIC[1]
        offset = (
            struct.unpack_from(f"{order}q", head, 168)[0] if second else struct.unpack_from(f"{order}f", head, 108)[0]
        )
    except (OSError, EOFError, zlib.error, struct.error) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ScanError(f"{path}: damaged, or no NIfTI volume that can be read ({type(error).__name__})") from None
    if not offset <= MAX_OFFSET:
        raise ScanError(f"{path}: says that its voxels begin at byte {offset:g}; damaged, or no NIfTI volume")


def grid_of(image: Any, path: str | os.PathLike = "volume") -> Grid:
    """How to cut a nibabel image into slices."""
    import nibabel

    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ScanError(f"{path}: its affine matrix is singular; where its voxels lie cannot be told")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    body = nibabel.orientations.io_orientation(affine)  # of each stored axis: which of R, A, S it is, and its direction
    if not np.isfinite(body).all():
        raise ScanError(f"{path}: its affine matrix is singular; where its voxels lie cannot be told")
    of_body = {int(which): axis for axis, (which, _) in enumerate(body)}
    thick = int(np.argmax(spacing))
    across = thick if spacing[thick] > 1.5 * np.median(spacing) else of_body[2]
    # right, anterior, superior = 0, 1, 2: rows go down from the head or the front, columns from the patient's right,
    # or the front
    down, right = {2: (1, 0), 1: (2, 0), 0: (2, 1)}[int(body[across][0])]
    axes = (of_body[down], of_body[right], across)
    ascending = [body[axis][1] > 0 for axis in axes]
    shape = (*image.shape, 1, 1)[:3]
    flips = (ascending[0], ascending[1], not ascending[2])
    down_mm, right_mm, across_mm = (float(spacing[axis]) for axis in axes)
    return Grid(axes, flips, (down_mm, right_mm, across_mm), shape[across], affine)
