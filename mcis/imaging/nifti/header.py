"""Find and read the headers of NIfTI and Analyze volumes, whatever their names are. No JAX.

The format follows from the content: a volume may be packed by gzip or not under any name, and a pair has its voxels in
a second file. A field that only places the volume (units, affine matrix) never costs the volume itself.
"""

import contextlib
import dataclasses
import gzip
import math
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from mcis import MAX_PIXELS
from mcis.imaging.scan import ScanError, check_file

MAX_BYTES = 1 << 29
"""Bytes of the file, and of the array that it holds: a compressed file can be far smaller than its array."""
MAX_OFFSET = 1 << 24
"""Offset of the first voxel, after the header and its extensions."""
GZIP = b"\x1f\x8b\x08"
HEADER = 540
"""Bytes of the largest header, that of NIfTI-2."""
VERSIONS = {b"n+1\0": (344, 352), b"ni1\0": (344, 0), b"n+2\0": (4, 544), b"ni2\0": (4, 0)}
"""By magic: where it is in the header, and the first byte that voxels can have in a file of one piece; 0 for a pair."""
ANALYZE = b""
"""In place of the magic that a header of Analyze 7.5 lacks."""
ANALYZE_TYPES = ((2, 8), (4, 16), (8, 32), (16, 32), (32, 64), (64, 64), (128, 24))
"""Data types and bits per voxel by which such a header is recognised."""
DAMAGED = (OSError, EOFError, ValueError, zlib.error, struct.error)
"""Errors of reading a damaged or truncated file."""
MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres of NIfTI's units of length: unknown, metre, millimetre, micron."""
UNIT_NAMES = {1: "metres", 3: "microns"}
RGB_CODES = (128, 2304)
"""Data types of colours: RGB, RGBA."""


def version_of(head: bytes) -> bytes | None:
    """The magic of a header, or ANALYZE; None if the bytes are no header."""
    for magic, (at, _) in VERSIONS.items():
        if head[at : at + 4] == magic:
            return magic
    if len(head) >= 348:
        for order in "<>":
            size, count = struct.unpack_from(f"{order}i", head)[0], struct.unpack_from(f"{order}h", head, 40)[0]
            if size == 348 and 1 <= count <= 7 and struct.unpack_from(f"{order}2h", head, 70) in ANALYZE_TYPES:
                return ANALYZE
    return None


def unpacked(head: bytes) -> bytes:
    """The first bytes of a file, unpacked if they are of a gzip file."""
    if not head.startswith(GZIP):
        return head
    with contextlib.suppress(zlib.error):
        return zlib.decompressobj(31).decompress(head, HEADER)
    return b""


def is_volume(head: bytes) -> bool:
    """Whether a file is a NIfTI or Analyze volume, or the header of one, by its first bytes."""
    return version_of(unpacked(head)) is not None


def is_other_header(head: bytes) -> bool:
    """Whether a .hdr file is not that of a pair, by its first bytes: its stated size is that of no version.

    >>> is_other_header(b"ENVI"), is_other_header(struct.pack(">i", 348)), is_other_header(b"")
    (True, False, False)
    """
    head = unpacked(head)
    return len(head) >= 4 and not any(struct.unpack_from(f"{order}i", head)[0] in (348, HEADER) for order in "<>")


def beside(path: pathlib.Path, suffix: str) -> pathlib.Path | None:
    """The other file of a pair: `suffix` is ".hdr" or ".img"; packed or not, in upper or lower case."""
    stem = path.name[: -len(".hdr.gz")] if path.name.lower().endswith(".gz") else path.stem
    for name in (stem + suffix, stem + suffix.upper(), f"{stem}{suffix}.gz", f"{stem}{suffix.upper()}.GZ"):
        if (found := path.with_name(name)).is_file():
            return found
    return None


def is_second_of_pair(path: str | os.PathLike) -> bool:
    """Whether a file has the voxels whose header is in a .hdr file beside it."""
    path = pathlib.Path(path)
    if not path.name.lower().endswith((".img", ".img.gz")) or (header := beside(path, ".hdr")) is None:
        return False
    try:
        with open(header, "rb") as file:
            return is_volume(file.read(HEADER))
    except OSError:
        return False


@dataclasses.dataclass(frozen=True)
class VolumeFile:
    """A volume on disk, without its voxels.

    Attributes:
      path: as given; for messages.
      voxels: the file with the voxels.
      offset: where they begin, bytes.
      header: nibabel's header, unchecked.
      shape: (X, Y, Z, T): T volumes, one for each time point.
      dtype: of the stored voxels.
      notes: oddities of the header.
    """

    path: str
    voxels: str
    offset: int
    header: Any
    shape: tuple[int, int, int, int]
    dtype: np.dtype
    notes: tuple[str, ...]

    @property
    def slope(self) -> float:
        """Factor from stored values to values; 1 where the header has no valid one."""
        slope = float(self.header["scl_slope"]) if "scl_slope" in self.header else 1.0
        return slope if math.isfinite(slope) and slope != 0 else 1.0

    @property
    def intercept(self) -> float:
        """Value of a stored 0; 0 where the header has no valid one, or no valid slope."""
        fields = [float(self.header[name]) if name in self.header else 0.0 for name in ("scl_slope", "scl_inter")]
        return fields[1] if all(map(math.isfinite, fields)) and fields[0] != 0 else 0.0


def open_volume(path: str | os.PathLike) -> VolumeFile:
    """Read the header of a volume and check what it claims.

    Raises:
      ScanError: no volume of NIfTI or Analyze, too large, or with voxels that are not numbers.
    """
    check_file(path, MAX_BYTES)
    try:
        import nibabel
    except ImportError:
        raise ScanError(f"{path}: NIfTI needs the extra `dicom`: pip install -e '.[dicom]'") from None
    place = pathlib.Path(path)
    if is_second_of_pair(place):
        place = beside(place, ".hdr") or place
    head = _head(place, path)
    kind = version_of(head)
    if kind is None:
        raise ScanError(f"{path}: damaged or unsupported NIfTI (no header of NIfTI or Analyze)")
    classes = {b"n+1\0": nibabel.Nifti1Header, b"ni1\0": nibabel.Nifti1Header, ANALYZE: nibabel.AnalyzeHeader}
    header_class = classes.get(kind, nibabel.Nifti2Header)
    size = header_class.template_dtype.itemsize
    if len(head) < size:
        raise ScanError(f"{path}: truncated or damaged (its header ends too soon)")
    header = header_class(head[:size], endianness=_order(head, size), check=False)
    first = VERSIONS.get(kind, (0, 0))[1]
    voxels = place if first else beside(place, ".img")
    if voxels is None:
        raise ScanError(
            f"{path}: the header of a pair, but no .img file of the same name is beside it, with the voxels"
        )
    try:
        check_file(voxels, MAX_BYTES)
    except ScanError as error:
        raise ScanError(f"{path}: its {voxels.suffix} file: {str(error).removeprefix(f'{voxels}: ')}") from None
    shape, notes = _shape(header, path)
    dtype = _dtype(header, path)
    if math.prod(shape) * dtype.itemsize > MAX_BYTES:
        raise ScanError(
            f"{path}: {math.prod(shape)} voxels; at most {MAX_BYTES >> 20} MiB are read: split or crop the volume"
        )
    offset = _offset(header, first, path)
    return VolumeFile(os.fspath(path), os.fspath(voxels), offset, header, shape, dtype, notes)


def _order(head: bytes, size: int) -> str:
    """The byte order of a header: by its stated size; if that is damaged, by its number of dimensions."""
    for order in "<>":
        if struct.unpack_from(f"{order}i", head)[0] == size:
            return order
    count = struct.unpack_from("<q", head, 16)[0] if size == HEADER else struct.unpack_from("<h", head, 40)[0]
    return "<" if 0 <= count <= 7 else ">"


def _head(place: pathlib.Path, path: str | os.PathLike) -> bytes:
    try:
        with opened(place) as file:
            return file.read(HEADER)
    except DAMAGED as error:
        if isinstance(error, OSError) and error.filename is not None:  # from the file system
            raise
        raise ScanError(f"{path}: damaged or unsupported NIfTI ({type(error).__name__})") from None


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file, unpacked by its content: names say ".gz" of files that are not packed, and the reverse."""
    with open(path, "rb") as file:
        packed = file.read(len(GZIP)) == GZIP
        file.seek(0)
        if not packed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as inside:
            yield inside  # type: ignore[misc]


def _shape(header: Any, path: str | os.PathLike) -> tuple[tuple[int, int, int, int], tuple[str, ...]]:
    """(X, Y, Z, T), and notes."""
    sizes = [int(size) for size in header["dim"]]
    count = sizes[0]
    notes: tuple[str, ...] = ()
    if not 1 <= count <= 7:
        count = max((axis for axis in range(1, 8) if sizes[axis] > 1), default=0)
        notes = ("its number of dimensions is invalid and was taken from their sizes",)
    sizes = [*sizes[1 : count + 1], *[1] * 7][:7]
    sizes[2:] = [size if size != 0 else 1 for size in sizes[2:]]
    stated = " x ".join(map(str, sizes[: max(count, 3)]))
    if min(sizes) < 1:
        raise ScanError(f"{path}: damaged header: it states {stated} voxels")
    if math.prod(sizes[4:]) != 1:
        raise ScanError(
            f"{path}: {stated} voxels, several values per voxel; one value per voxel is supported: (X, Y, Z), or "
            "(X, Y, Z, T) over time"
        )
    x, y, z, t = sizes[:4]
    if max(x * y, y * z, x * z) > MAX_PIXELS:
        raise ScanError(f"{path}: slices of up to {max(x * y, y * z, x * z)} pixels; at most {MAX_PIXELS} are read")
    return (x, y, z, t), notes


def _dtype(header: Any, path: str | os.PathLike) -> np.dtype:
    """Type of the stored voxels; ScanError if it is no number of at most 8 bytes."""
    code = int(header["datatype"])
    if code in RGB_CODES:
        raise ScanError(f"{path}: voxels of type RGB; integers and floats are supported: save it as a grey volume")
    try:
        kind = header.get_data_dtype()
    except Exception:  # nibabel's own error
        kind = np.dtype("V1")
    if kind.kind not in "iuf" or kind.itemsize > 8:
        named = f"{kind}" if kind.kind != "V" else f"number {code}"
        raise ScanError(f"{path}: voxels of type {named}; integers and floats of up to 64 bits are supported")
    return kind


def _offset(header: Any, first: int, path: str | os.PathLike) -> int:
    """Where voxels begin. ScanError if implausibly late: a compressed file would be inflated up to there."""
    offset = float(header["vox_offset"])
    if offset > MAX_OFFSET:
        raise ScanError(f"{path}: its voxels begin at byte {offset:g}, which is too far; damaged or unsupported NIfTI")
    return first if math.isnan(offset) or offset < first else int(offset)
