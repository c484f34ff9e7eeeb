"""Read NIfTI volumes as scans, one slice at a time; write masks as NIfTI. No JAX; nibabel comes with extra `dicom`."""

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
from mcis.imaging.geometry import SliceGeometry, digest, slice_geometry
from mcis.imaging.scan import MAX_FRAMES, Scan, ScanError, check_file, check_frame

SUFFIXES = (".nii", ".nii.gz")
MAX_BYTES = 1 << 29
"""Bytes of the file, and of the array that it holds: a compressed file can be far smaller than its array."""
MAX_OFFSET = 1 << 24
"""Offset of the first voxel, after the header and its extensions."""
MAGIC = (b"n+1\0", b"n+2\0")
DAMAGED = (OSError, EOFError, ValueError, zlib.error, struct.error)
"""Errors of reading a damaged or truncated file."""


def matches(name: str, head: bytes) -> bool:
    """Whether a file is a NIfTI volume, by its name and first bytes."""
    return name.lower().endswith(SUFFIXES) or head[344:348] in MAGIC or head[4:8] == MAGIC[1]


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a volume is cut into slices.

    Attributes:
      axes: of the stored array: along the rows' order (down), along the columns' (right), across slices.
      flips: whether each of these axes is reversed.
      spacing: millimetres between rows, between columns and between slices.
      count: number of slices.
      affine: float64 (4, 4), from indices of the stored array to millimetres towards right, front and head.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]
    count: int
    affine: np.ndarray


def count_frames(path: str | os.PathLike) -> int:
    """Number of slices, at most MAX_FRAMES + 1; 1 for a file that cannot be read."""
    try:
        return min(grid_of(_open(path), path).count, MAX_FRAMES + 1)
    except (ScanError, OSError):
        return 1


def read(path: str | os.PathLike, frame: int = 0) -> Scan:
    """Read one slice of a NIfTI volume.

    Slices follow the axis with the largest spacing, that of the acquisition; if all spacings are similar, the body's
    axis. They are ordered from the feet, back or left, and oriented as radiologists view them: the patient's right or
    front is at the left, front or head at the top.

    Returns:
      The Scan: uint8 RGB; in every slice, the volume's 0.5th and 99.5th percentiles become 0 and 255.

    Raises:
      ScanError: no NIfTI volume, larger than MAX_BYTES, or with more than one value per voxel.
    """
    try:
        check_file(path, MAX_BYTES)
        status = os.stat(path)
        array, grid, black, white = _volume(os.fspath(path), status.st_mtime_ns, status.st_size)
        check_frame(path, frame, grid.count)
        plane = as_slices(array, grid)[..., frame].astype(np.float32)
        if not np.isfinite(plane).all():
            raise ScanError(f"{path}: has NaN or infinite voxels; replace them")
    except ScanError as error:
        error.series = digest(os.fspath(path))
        raise
    grey = np.clip(np.rint((plane - black) * (255.0 / (white - black))), 0, 255).astype(np.uint8)
    image = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))
    notes = (f"grey values by the volume's range of stored values, {black:g} to {white:g}",)
    return Scan(image, notes, grid.spacing[:2], _geometry(path, grid, array.shape, frame))


def as_slices(array: np.ndarray, grid: Grid) -> np.ndarray:
    """A writable view of a stored array (X, Y, Z) as displayed: (rows, columns, slices)."""
    return np.transpose(array, grid.axes)[tuple(slice(None, None, -1 if flip else None) for flip in grid.flips)]


def encode(path: str | os.PathLike, masks: Mapping[int, np.ndarray]) -> bytes:
    """Masks as a .nii.gz file on the grid of a volume, with only its shape, affine matrices and units.

    Args:
      path: the volume.
      masks: by slice, uint8 {0,1} (H, W), oriented as `read` does; other slices are 0.

    Raises:
      ScanError: no NIfTI volume, or a mask without a slice of its size.
    """
    import nibabel

    image = _open(path)
    grid = grid_of(image, path)
    stored = np.zeros(image.shape, np.uint8, order="F")
    slices = as_slices(stored.reshape((*image.shape, 1, 1)[:3], order="F"), grid)
    for frame, mask in masks.items():
        if mask.shape != slices.shape[:2] or not 0 <= frame < grid.count:
            size = " x ".join(map(str, mask.shape))
            raise ScanError(f"{path}: no slice {frame} of {size} pixels; it has {grid.count} of {slices.shape[:2]}")
        slices[..., frame] = mask
    kind = nibabel.Nifti2Image if isinstance(image, nibabel.Nifti2Image) else nibabel.Nifti1Image
    made = kind(stored, image.affine)
    made.set_qform(image.get_qform(), int(image.header["qform_code"]))
    made.set_sform(image.get_sform(), int(image.header["sform_code"]))
    made.header.set_xyzt_units(*image.header.get_xyzt_units())
    made.header["descrip"] = mcis.NOTICE
    return gzip.compress(made.to_bytes(), 6, mtime=0)


def _geometry(path: str | os.PathLike, grid: Grid, shape: tuple[int, ...], frame: int) -> SliceGeometry:
    """Position of a slice. The path identifies the volume, so that a damaged file has the same series."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    corner, steps = np.zeros(3), []
    for axis, flip in zip(grid.axes, grid.flips, strict=True):
        corner[axis] = shape[axis] - 1 if flip else 0
        steps.append(lps[:3, axis] * (-1 if flip else 1))
    down, right, across = steps
    first = lps[:3, :3] @ corner + lps[:3, 3]
    return slice_geometry(os.fspath(path), first + frame * across, right, down)


Volume = tuple[np.ndarray, Grid, float, float]
"""Stored array, its grid, and the stored values shown black and white."""
_cache: collections.OrderedDict[tuple[str, int, int], Volume] = collections.OrderedDict()
_cache_lock = threading.Lock()


def _volume(path: str, modified: int, size: int) -> Volume:
    """A volume, from a cache of the most recent ones, up to MAX_BYTES: slices of several may be read in turn."""
    key = path, modified, size
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    volume = _read_volume(path)
    with _cache_lock:
        _cache[key] = volume
        while sum(array.nbytes for array, *_ in _cache.values()) > MAX_BYTES and len(_cache) > 1:
            _cache.popitem(last=False)
    return volume


def _read_volume(path: str) -> Volume:
    image = _open(path)
    grid = grid_of(image, path)
    try:
        array = np.asarray(image.dataobj.get_unscaled()).reshape((*image.shape, 1, 1)[:3])
    except DAMAGED as error:
        raise ScanError(f"{path}: truncated or damaged ({type(error).__name__})") from None
    step = max(1, array.size // 1_000_000)
    sample = array.reshape(-1, order="A")[::step].astype(np.float32)
    if not np.isfinite(sample).all():
        raise ScanError(f"{path}: has NaN or infinite voxels; replace them")
    black, white = (float(value) for value in np.percentile(sample, (0.5, 99.5)))
    if (image.dataobj.slope or 1) < 0:
        black, white = white, black
    return array, grid, black, white if white != black else black + 1


def _open(path: str | os.PathLike) -> Any:
    """The nibabel image of a file, without its voxels, after checking what its header claims."""
    check_file(path, MAX_BYTES)
    try:
        import nibabel
    except ImportError:
        raise ScanError(f"{path}: NIfTI needs the extra `dicom`: pip install -e '.[dicom]'") from None
    _check_offset(path)
    try:
        image: Any = nibabel.load(path)
        shape, kind = image.shape, image.get_data_dtype()
    except Exception as error:  # of many types
        raise ScanError(f"{path}: damaged or unsupported NIfTI ({type(error).__name__})") from None
    if not isinstance(image, nibabel.Nifti1Image):  # nibabel reads other formats, too
        raise ScanError(f"{path}: not a NIfTI volume")
    if len(shape) < 2 or min(shape) < 1 or math.prod(shape[3:]) != 1:
        raise ScanError(f"{path}: shape {shape}; (X, Y, Z) with one value per voxel is supported")
    if math.prod(shape) * kind.itemsize > MAX_BYTES or math.prod(sorted(shape)[-2:]) > MAX_PIXELS:
        raise ScanError(f"{path}: {math.prod(shape)} voxels; at most {MAX_BYTES >> 20} MiB are read")
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise ScanError(f"{path}: voxels of type {kind}; integers and floats are supported")
    return image


def _check_offset(path: str | os.PathLike) -> None:
    """Raise ScanError if voxels begin implausibly late: a compressed file would be inflated up to there."""
    try:
        with (gzip.open if os.fspath(path).lower().endswith(".gz") else open)(path, "rb") as file:
            head = file.read(540)
        order = "<" if head[:4] in (struct.pack("<i", size) for size in (348, 540)) else ">"
        form, at = ("q", 168) if head[4:8] == MAGIC[1] else ("f", 108)
        (offset,) = struct.unpack_from(order + form, head, at)
    except DAMAGED as error:
        if isinstance(error, OSError) and error.filename is not None:  # from the file system
            raise
        raise ScanError(f"{path}: damaged or unsupported NIfTI ({type(error).__name__})") from None
    if not offset <= MAX_OFFSET:
        raise ScanError(f"{path}: its voxels begin at byte {offset:g}, which is too far; damaged or unsupported NIfTI")


def grid_of(image: Any, path: str | os.PathLike = "volume") -> Grid:
    """How to cut a nibabel image into slices."""
    import nibabel

    affine = np.asarray(image.affine, np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    singular = ScanError(f"{path}: its affine matrix is singular, so the positions of its voxels are unknown")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise singular
    orientation = nibabel.orientations.io_orientation(affine)  # of each stored axis: which of R, A, S, and its sign
    if not np.isfinite(orientation).all():
        raise singular
    axis_of = {int(which): axis for axis, (which, _) in enumerate(orientation)}
    thickest = int(np.argmax(spacing))
    across = thickest if spacing[thickest] > 1.5 * np.median(spacing) else axis_of[2]
    # With R, A, S = 0, 1, 2: rows go down from the front or head, columns from the patient's right or front.
    down, right = {2: (1, 0), 1: (2, 0), 0: (2, 1)}[int(orientation[across][0])]
    axes = (axis_of[down], axis_of[right], across)
    ascending = [bool(orientation[axis][1] > 0) for axis in axes]
    shape = (*image.shape, 1, 1)[:3]
    down_mm, right_mm, across_mm = (float(spacing[axis]) for axis in axes)
    flips = (ascending[0], ascending[1], not ascending[2])
    return Grid(axes, flips, (down_mm, right_mm, across_mm), shape[across], affine)
