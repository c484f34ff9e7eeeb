"""NIfTI volumes as scans, a slice at a time. No JAX; nibabel comes with the extra `dicom`."""

import dataclasses
import functools
import gzip
import math
import os
import struct
import zlib
from typing import Any

import numpy as np

from mcis import MAX_PIXELS
from mcis.scan import MAX_FRAMES, Scan, ScanError, check_file

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
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]
    count: int


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
    if frame >= MAX_FRAMES:
        raise ScanError(f"{path}: has more than {MAX_FRAMES} slices; the others are not read, split the file")
    check_file(path, MAX_BYTES)
    status = os.stat(path)
    array, grid, black, white = _volume(os.fspath(path), status.st_mtime_ns, status.st_size)
    if frame >= grid.count:
        raise ScanError(f"{path}: has no slice {frame}")
    turned = np.transpose(array, grid.axes)
    plane = turned[:, :, grid.count - 1 - frame if grid.flips[2] else frame].astype(np.float32)
    plane = plane[:: -1 if grid.flips[0] else 1, :: -1 if grid.flips[1] else 1]
    if not np.isfinite(plane).all():
        raise ScanError(f"{path}: has NaN or infinite voxels; mend the file")
    grey = np.clip(np.rint((plane - black) * (255.0 / (white - black))), 0, 255).astype(np.uint8)
    image = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))
    return Scan(image, (f"shown by the volume's stored values, {black:g} to {white:g}",), grid.spacing[:2])


@functools.lru_cache(maxsize=1)
def _volume(path: str, changed: int, size: int) -> tuple[np.ndarray, Grid, float, float]:
    """The stored array of a file, its grid, and the stored values that become black and white. The last one is kept."""
    image = _open(path)
    grid = grid_of(image, path)
    try:
        array = np.asarray(image.dataobj.get_unscaled()).reshape(image.shape[:3])
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
    return Grid(axes, flips, (down_mm, right_mm, across_mm), shape[across])
