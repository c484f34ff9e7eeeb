"""Read NIfTI and Analyze volumes as scans, one slice at a time; write masks as NIfTI. No JAX.

nibabel comes with the extra `dicom`.
"""

import collections
import dataclasses
import gzip
import math
import os
import threading
from collections.abc import Mapping

import numpy as np

import mcis
from mcis.imaging.geometry import SliceGeometry, digest, slice_geometry
from mcis.imaging.modality import of_hounsfield_units
from mcis.imaging.nifti import header as nifti_header
from mcis.imaging.nifti.grid import Grid, as_slices, grid_of, qform_of, usable
from mcis.imaging.nifti.header import DAMAGED, MAX_BYTES, open_volume, opened
from mcis.imaging.scan import BLOCK, MAX_FRAMES, Scan, ScanError, check_file, check_frame, note_not_finite

SUFFIXES = (".nii", ".nii.gz", ".hdr")
SPARSE = 0.02
"""Largest share of voxels unlike the background for which these alone give the range. By the percentiles of all voxels,
a quarter of them and more would be white; of less than 0.5 %, all."""
HOUNSFIELD = (-1000, -1024, -2000, -2048, -3024)
"""Values of air, or of what is outside the circle that a CT scanner sees, in Hounsfield units."""
RARE = 0.001
"""The smallest value is that of a background if a larger share of the voxels has it."""
KEPT_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)
"""Header fields that place a volume. A mask of it gets the same, as they are."""


def matches(name: str, head: bytes) -> bool:
    """Whether a file is a NIfTI or Analyze volume, by its first bytes, or by its name if they say nothing."""
    if nifti_header.is_volume(head) or nifti_header.is_second_of_pair(name):
        return True
    name = name.lower()
    return name.endswith(SUFFIXES) and not (name.endswith(".hdr") and nifti_header.is_other_header(head))


def count_frames(path: str | os.PathLike) -> int:
    """Number of slices of all time points, at most MAX_FRAMES + 1; 1 for a file that cannot be read."""
    try:
        volume = open_volume(path)
        return min(grid_of(volume).count * volume.shape[3], MAX_FRAMES + 1)
    except (ScanError, OSError):
        return 1


def read(path: str | os.PathLike, frame: int = 0) -> Scan:
    """Read one slice of a volume. Those of a later time point follow those of the one before.

    Slices follow the axis with the largest spacing, that of the acquisition; if all spacings are similar, the body's
    axis. They are ordered from the feet, back or left, and oriented as radiologists view them: the patient's right or
    front is at the left, front or head at the top. Without a valid affine matrix, they follow the last stored axis.

    Returns:
      The Scan: uint8 RGB; in every slice, the volume's 0.5th and 99.5th percentiles become 0 and 255; if nearly all
      voxels have one value (SPARSE), those of the others and this value. Voxels that are NaN or infinite are black.

    Raises:
      ScanError: no volume, larger than MAX_BYTES, or with more than one value per voxel.
    """
    series = digest(os.fspath(path))
    try:
        check_file(path, MAX_BYTES)
        status = os.stat(path)
        volume = _volume(os.fspath(path), status.st_mtime_ns, status.st_size)
        grid, times = volume.grid, volume.array.shape[3]
        check_frame(path, frame, grid.count * times)
        time, number = divmod(frame, grid.count)
        name = _name(path, time, times)
        series = digest(name)
        (black, white), sparse = volume.range_of(time, path)
        with np.errstate(over="ignore"):
            plane = as_slices(volume.array[..., time], grid)[..., number].astype(np.float32)
    except ScanError as error:
        error.series = series
        raise
    notes = [*grid.notes, f"grey values by the volume's range of stored values, {black:g} to {white:g}"]
    if sparse:
        notes.append("nearly all of its voxels have one value: the range is that of the others")
    if outside := int(plane.size - np.count_nonzero(np.isfinite(plane))):
        plane[~np.isfinite(plane)] = black
        notes.append(note_not_finite(outside))
    if times > 1:
        notes.append(f"time point {time + 1} of {times}")
    grey = np.clip(np.rint((plane - black) * (255.0 / (white - black))), 0, 255).astype(np.uint8)
    image = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))
    spacing = None if grid.spacing is None else grid.spacing[:2]
    stated = (of_hounsfield_units(),) if volume.in_hounsfield_units(time) else ()
    return Scan(image, tuple(notes), spacing, _geometry(name, grid, volume.array.shape, number), stated)


def _name(path: str | os.PathLike, time: int, times: int) -> str:
    """What identifies the volume of a time point: its path, and the time point if there are several."""
    return os.fspath(path) if times == 1 else f"{os.fspath(path)}/{time}"


def encode(path: str | os.PathLike, masks: Mapping[int, np.ndarray]) -> bytes:
    """Masks as a .nii.gz file on the grid of a volume, with only its shape, affine matrices and units.

    Args:
      path: the volume.
      masks: by frame, uint8 {0,1} (H, W), oriented as `read` does; other slices are 0. Of a volume over time, the
        frames are of one time point.

    Raises:
      ScanError: no volume, or a mask without a slice of its size.
    """
    import nibabel

    volume = open_volume(path)
    grid, header = grid_of(volume), volume.header
    stored = np.zeros(volume.shape[:3], np.uint8, order="F")
    slices = as_slices(stored, grid)
    for frame, mask in masks.items():
        if mask.shape != slices.shape[:2] or not 0 <= frame < grid.count * volume.shape[3]:
            size = " x ".join(map(str, mask.shape))
            raise ScanError(f"{path}: no slice {frame} of {size} pixels; it has {grid.count} of {slices.shape[:2]}")
        slices[..., frame % grid.count] = mask
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    made = kind(stored, np.eye(4) if grid.affine is None else grid.affine)
    if "qform_code" in header:
        kept = [name for name in KEPT_FIELDS if not name.startswith("q") or usable(qform_of(header)) is not None]
        for name in kept:
            made.header[name] = header[name]
        if "qform_code" not in kept:  # nibabel and others reject a volume with an invalid quaternion
            made.header["qform_code"] = 0
        sizes = np.asarray(header["pixdim"][:4])
        made.header["pixdim"][:4] = np.where(np.isfinite(sizes) & (sizes != 0), sizes, 1)
    made.header["descrip"] = mcis.NOTICE
    made.header["vox_offset"] = made.header.single_vox_offset
    # nibabel's own writer would correct the matrices
    return gzip.compress(made.header.binaryblock + b"\0" * 4 + stored.tobytes(order="F"), 6, mtime=0)


def _geometry(name: str, grid: Grid, shape: tuple[int, ...], number: int) -> SliceGeometry:
    """Position of a slice. `name` identifies the volume, so that a damaged file has the same series."""
    if grid.affine is None:
        return SliceGeometry(digest(name))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ grid.affine
    corner, steps = np.zeros(3), []
    for axis, flip in zip(grid.axes, grid.flips, strict=True):
        corner[axis] = shape[axis] - 1 if flip else 0
        steps.append(lps[:3, axis] * (-1 if flip else 1))
    down, right, across = steps
    first = lps[:3, :3] @ corner + lps[:3, 3]
    return slice_geometry(name, first + number * across, right, down)


@dataclasses.dataclass
class _Volume:
    """A volume in memory.

    Attributes:
      array: as stored, (X, Y, Z, T).
      grid: how it is cut into slices.
      slope, intercept: from stored values to values. With a slope below 0, large stored values are small values.
      ranges: by time point, the stored values shown black and white, and whether few voxels gave them, as far as they
        were computed.
      hounsfield: by time point, `in_hounsfield_units`, likewise.
    """

    array: np.ndarray
    grid: Grid
    slope: float
    intercept: float
    ranges: dict[int, tuple[tuple[float, float], bool]] = dataclasses.field(default_factory=dict)
    hounsfield: dict[int, bool] = dataclasses.field(default_factory=dict)

    def in_hounsfield_units(self, time: int) -> bool:
        """Whether values at a time point seem to be those of a CT: air, or what is outside its circle, is as there."""
        if time not in self.hounsfield:
            values = np.rint(self._sample(time) * self.slope + self.intercept)
            levels, counts = np.unique(values, return_counts=True)
            frequent = int(counts.argmax())
            smallest = 0 if counts[0] > RARE * values.size else frequent
            backgrounds = levels[[smallest, frequent]]
            air = np.abs(backgrounds[:, None] - HOUNSFIELD) <= 1
            self.hounsfield[time] = bool(air.any() and levels[-1] > 0)
        return self.hounsfield[time]

    def _sample(self, time: int) -> np.ndarray:
        """The finite ones among a million of the stored values, or all."""
        values = self.array[..., time].reshape(-1, order="A")
        return _finite(values[:: max(1, values.size // 1_000_000)])

    def range_of(self, time: int, path: str | os.PathLike) -> tuple[tuple[float, float], bool]:
        """The stored values shown black and white at a time point, and whether few voxels gave them (SPARSE)."""
        if time not in self.ranges:
            values = self.array[..., time].reshape(-1, order="A")
            finite = self._sample(time)
            if finite.size == 0:
                raise ScanError(f"{path}: every voxel is NaN or infinite; nothing can be shown")
            black, white = (float(value) for value in np.percentile(finite, (0.5, 99.5)))
            background = float(np.median(finite))
            sparse = bool(np.count_nonzero(finite != background) <= SPARSE * finite.size)
            if sparse:
                blocks = (_finite(values[at : at + BLOCK]) for at in range(0, values.size, BLOCK))
                others = np.concatenate([block[block != background] for block in blocks])  # a sample may miss them all
                sparse = others.size > 0
                ends = np.percentile(others, (0.5, 99.5)) if sparse else (background, background)
                black, white = min(background, float(ends[0])), max(background, float(ends[1]))
            black, white = (white, black) if self.slope < 0 else (black, white)
            self.ranges[time] = (black, white if white != black else black + 1), sparse
        return self.ranges[time]


def _finite(values: np.ndarray) -> np.ndarray:
    """The finite ones among values, as float32."""
    with np.errstate(over="ignore"):
        floats = values.astype(np.float32)
    return floats[np.isfinite(floats)]


_cache: collections.OrderedDict[tuple[str, int, int], _Volume] = collections.OrderedDict()
_cache_lock = threading.Lock()


def _volume(path: str, modified: int, size: int) -> _Volume:
    """A volume, from a cache of the most recent ones, up to MAX_BYTES: slices of several may be read in turn."""
    key = path, modified, size
    with _cache_lock:
        if key in _cache:
            _cache.move_to_end(key)
            return _cache[key]
    volume = _read_volume(path)
    with _cache_lock:
        _cache[key] = volume
        while sum(one.array.nbytes for one in _cache.values()) > MAX_BYTES and len(_cache) > 1:
            _cache.popitem(last=False)
    return volume


def _read_volume(path: str) -> _Volume:
    volume = open_volume(path)
    grid = grid_of(volume)
    size = math.prod(volume.shape) * volume.dtype.itemsize
    try:
        with opened(volume.voxels) as file:
            file.seek(volume.offset)
            data = file.read(size)
            file.read(1)  # the end of a packed file has its checksum
    except DAMAGED as error:
        raise ScanError(f"{path}: truncated or damaged ({type(error).__name__})") from None
    if len(data) < size:
        raise ScanError(f"{path}: truncated or damaged: {len(data)} of {size} bytes of voxels are there")
    array = np.frombuffer(data, volume.dtype).reshape(volume.shape, order="F")
    return _Volume(array, grid, volume.slope, volume.intercept)
