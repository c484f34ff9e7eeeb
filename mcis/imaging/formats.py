"""Read any supported file as scans, one frame at a time. No JAX.

FORMATS has one row for each kind of file. DICOM and NIfTI need the extra `dicom`; the error without it says so.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from mcis.imaging import image_files
from mcis.imaging.dicom import reader as dicom_reader
from mcis.imaging.geometry import SliceGeometry
from mcis.imaging.letterbox import Letterbox, letterbox
from mcis.imaging.nifti import reader as nifti_reader
from mcis.imaging.scan import Scan, ScanError, Statement
from mcis.imaging.whole_scans import empty_note

HEAD = 512
"""Bytes at the beginning of a file that decide its format."""

SQUARE, MAX_ASPECT = 0.02, 4.0
"""Pixels whose sides differ by less than this share count as square; sides of a higher ratio are not believed."""


class Format(NamedTuple):
    """A kind of file: how it is recognised (by file name and first HEAD bytes), and functions of its module."""

    name: str
    suffixes: tuple[str, ...]
    matches: Callable[[str, bytes], bool]
    count: Callable[[str | os.PathLike], int]
    read: Callable[[str | os.PathLike, int], Scan]


FORMATS = (
    Format("DICOM", dicom_reader.SUFFIXES, dicom_reader.matches, dicom_reader.count_frames, dicom_reader.read),
    Format("NIfTI", nifti_reader.SUFFIXES, nifti_reader.matches, nifti_reader.count_frames, nifti_reader.read),
    Format("image", image_files.SUFFIXES, lambda name, head: True, image_files.count_frames, image_files.read),
)
"""The first format that matches reads the file."""

SUFFIXES = tuple(suffix for one in FORMATS for suffix in one.suffixes)


def format_of(path: str | os.PathLike) -> Format:
    """The format of a file by its first bytes and its name; if it cannot be opened, by its name."""
    head = head_of(path)
    return next(one for one in FORMATS if one.matches(os.fspath(path), head))


def head_of(path: str | os.PathLike) -> bytes:
    """The first bytes of a file; none of one that cannot be opened: reading it reports the error."""
    with contextlib.suppress(OSError):
        if os.path.isfile(path):  # a pipe would block
            with open(path, "rb") as file:
                return file.read(HEAD)
    return b""


def frames(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> Iterator[tuple[str, int | None]]:
    """(path, frame) of every frame of one or more files; frame is None for a file with one, else numbered from 0."""
    for path in (os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)):
        count = format_of(path).count(path)
        yield from ((path, None if count == 1 else frame) for frame in range(count))


def is_by_content(head: bytes) -> bool:
    """Whether the first HEAD bytes of a file are those of a DICOM or NIfTI file, whatever its name."""
    return any(one.matches("", head) for one in FORMATS[:-1])


def read(path: str | os.PathLike, frame: int = 0) -> Scan:
    """Read one frame (page, slice), numbered from 0, of a PNG, JPEG, TIFF, BMP, DICOM or NIfTI file.

    Raises:
      ScanError: the file cannot be read; the message says why.
    """
    return format_of(path).read(os.fspath(path), frame)


@dataclasses.dataclass(frozen=True)
class LoadedScan:
    """A scan ready for the networks, or the reason why it could not be read.

    `square` is the model input, uint8 (S, S, 3), and `geometry` how the image was letterboxed to it. `frame` is None
    for a file with one frame. After an error, only `path`, `error` and, if known, the series are set.
    """

    path: str
    frame: int | None
    image: np.ndarray | None = None
    square: np.ndarray | None = None
    geometry: Letterbox | None = None
    spacing: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None
    slice_geometry: SliceGeometry | None = None
    stated: tuple[Statement, ...] = ()


def load(path: str, frame: int | None) -> LoadedScan:
    """Read and letterbox one scan."""
    return prepare(path, frame, lambda: read(path, frame or 0))


def prepare(path: str, frame: int | None, read: Callable[[], Scan]) -> LoadedScan:
    """Letterbox the scan that `read` returns. An error becomes the text of the result: one bad scan stops no other."""
    try:
        scan = read()
        aspect, spacing, notes = pixel_shape(scan)
        square, geometry = letterbox(scan.image, aspect=aspect)
        empty = empty_note(scan.image)
    except Exception as error:
        return failed(path, frame, error)
    return LoadedScan(
        path,
        frame,
        scan.image,
        square,
        geometry,
        spacing,
        (*scan.notes, *notes, *([] if empty is None else [empty])),
        slice_geometry=scan.slice_geometry,
        stated=scan.stated,
    )


def pixel_shape(scan: Scan) -> tuple[float, tuple[float, float] | None, list[str]]:
    """Height over width of a scan's pixels, 1 where they count as square, its spacing, and notes on both."""
    spacing = scan.spacing
    stated = scan.aspect if spacing is None else spacing[0] / spacing[1]
    if stated is None or abs(stated - 1) <= SQUARE:
        return 1.0, spacing, []
    ratio = f"1 : {1 / stated:.4g}" if 0 < stated < 1 else f"{stated:.4g} : 1"
    if not 1 / MAX_ASPECT <= stated <= MAX_ASPECT:
        unbelieved = f"its header says that the height and width of a pixel are as {ratio}, which is not believed"
        return 1.0, None, [f"{unbelieved}: pixels are taken as square, no measurements in mm"]
    seen = "the networks are given square ones, its mask keeps its own grid"
    return stated, spacing, [f"the height and width of its pixels are as {ratio}: {seen}"]


def failed(path: str, frame: int | None, error: Exception) -> LoadedScan:
    """The result for a scan that could not be read."""
    message = str(error) if isinstance(error, ScanError | OSError | MemoryError) else ""
    message = message or f"{path}: cannot be read ({type(error).__name__})"
    series = error.series if isinstance(error, ScanError) else None
    return LoadedScan(
        path,
        None,
        error=message if frame is None else f"frame {frame}: {message}",
        slice_geometry=None if series is None else SliceGeometry(series),
    )
