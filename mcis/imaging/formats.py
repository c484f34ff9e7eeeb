"""Files as scans: pictures, DICOM, NIfTI; each counted and read frame by frame. No JAX.

A row of FORMATS is one kind of file. DICOM and NIfTI need the extra `dicom`; without it they are an error that says so.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from mcis.imaging import dicom, nifti, scan
from mcis.imaging.geometry import Place
from mcis.imaging.letterbox import Letterbox, letterbox

HEAD = 512
"""Bytes at a file's beginning by which its format is told."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
      name: what messages call it.
      suffixes: of its files' names, lower case: what a folder is searched for.
      holds: whether a file is one, of its name and first HEAD bytes.
      count: number of frames in the file at a path; 1 where it cannot be told, so that reading it says why.
      read: the frame of that number, from 0.
    """

    name: str
    suffixes: tuple[str, ...]
    holds: Callable[[str, bytes], bool]
    count: Callable[[str | os.PathLike], int]
    read: Callable[[str | os.PathLike, int], scan.Scan]


FORMATS = (
    Format("DICOM", dicom.SUFFIXES, dicom.holds, dicom.count_frames, dicom.read),
    Format("NIfTI", nifti.SUFFIXES, nifti.holds, nifti.count_frames, nifti.read),
    Format("picture", scan.SUFFIXES, lambda name, head: True, scan.count_frames, scan.read),
)
"""The first that holds a file reads it."""

SUFFIXES = tuple(suffix for one in FORMATS for suffix in one.suffixes)


def format_of(path: str | os.PathLike) -> Format:
    """The format of a file, by its first bytes and its name; that of pictures where it cannot be opened."""
    head = b""
    try:
        if os.path.isfile(path):  # a pipe would block
            with open(path, "rb") as file:
                head = file.read(HEAD)
    except OSError:
        pass  # reading it says why
    return next(one for one in FORMATS if one.holds(os.fspath(path), head))


def frames(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> Iterator[tuple[str, int | None]]:
    """(path, frame) of every picture: frame is None for a file that holds one, else counted from 0.

    Args:
      paths: files, or one.
    """
    for path in (os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)):
        count = format_of(path).count(path)
        yield from ((path, None if count == 1 else frame) for frame in range(count))


def files_in(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Files below a folder that may be scans, sorted: by suffix, and DICOM files that have none."""
    return scan.pictures(folder, lambda path: path.name.lower().endswith(SUFFIXES) or dicom.nameless(path))


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A scan on its way: what was read and laid into the canvas, or why not."""

    path: str
    frame: int | None
    image: np.ndarray | None = None
    square: np.ndarray | None = None
    geometry: Letterbox | None = None
    spacing: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None
    place: Place | None = None


def lay(path: str, frame: int | None, read: Callable[[], scan.Scan]) -> Loaded:
    """What `read` gives, laid into the canvas; an error becomes text."""
    try:
        found = read()
        square, geometry = letterbox(found.image)
        return Loaded(path, frame, found.image, square, geometry, found.spacing, found.notes, place=found.place)
    except Exception as error:  # whatever a decoder thinks of: one bad scan never stops the others
        known = isinstance(error, scan.ScanError | OSError | MemoryError)
        message = (known and str(error)) or f"{path}: cannot be read ({type(error).__name__})"
        series = error.series if isinstance(error, scan.ScanError) else None
        place = None if series is None else Place(series)
        return Loaded(path, None, error=message if frame is None else f"frame {frame}: {message}", place=place)


def read(path: str | os.PathLike, frame: int = 0) -> scan.Scan:
    """Read one frame of a file of any supported format.

    Args:
      path: PNG, JPEG, TIFF, BMP, DICOM or NIfTI.
      frame: page, frame or slice, from 0.

    Raises:
      ScanError: the file cannot be read; the message says why.
    """
    return format_of(path).read(os.fspath(path), frame)


def load(path: str, frame: int | None) -> Loaded:
    """Read one scan and lay it into the canvas; an error becomes text."""
    return lay(path, frame, lambda: format_of(path).read(path, frame or 0))
