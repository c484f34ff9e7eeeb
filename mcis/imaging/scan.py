"""The Scan type, its error, and the limits on what is read. No JAX."""

import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from mcis import MAX_PIXELS
from mcis.imaging.geometry import SliceGeometry

MAX_DECODED = 4 * MAX_PIXELS
"""Bytes of one decoded image: those of the largest RGBA image of 8 bits."""
MAX_PASSED = 16 * MAX_PIXELS
"""Pixels that all scans of a progressive JPEG may cover together; ten scans are usual."""
MAX_FRAMES = 1 << 12
"""Frames (pages, slices) of one file; file size alone would allow a TIFF of forty million pages."""
BLOCK = 1 << 20
"""Values scaled at once: all values of a large image as floats would take too much memory."""

AGAIN = "copy or export it again"
"""What to do with a truncated file."""


class ScanError(ValueError):
    """A file that cannot be read as a scan. The message says what came, what is allowed and what to do."""

    series: str | None = None
    """`SliceGeometry.series`, if that much could be read."""


@dataclasses.dataclass(frozen=True)
class Statement:
    """What one element of a header says about the organ (see `imaging.modality`).

    Attributes:
      header: the element and a term of a table, never text of the file ("Modality CT").
      organs: names of the organs whose scans may say this.
    """

    header: str
    organs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Scan:
    """One image, frame or slice as read.

    Attributes:
      image: uint8 (H, W, 3), RGB; a grey image has three equal channels.
      notes: changes made in reading, as text ("uint16 scaled from [0, 4095] to 8 bits").
      spacing: millimetres between rows and between columns; None if unknown.
      slice_geometry: position in a volume; None if the scan belongs to none.
      stated: what the header says about the organ; empty for files that say nothing.
      aspect: height over width of a pixel, where the file states that but no `spacing`.
    """

    image: np.ndarray
    notes: tuple[str, ...] = ()
    spacing: tuple[float, float] | None = None
    slice_geometry: SliceGeometry | None = None
    stated: tuple[Statement, ...] = ()
    aspect: float | None = None


@dataclasses.dataclass(frozen=True)
class Picture:
    """A decoded file, before its values are scaled.

    Attributes:
      array: (H, W, C), grey, grey and alpha, RGB, or RGBA, as displayed; of the file's depth.
      notes: what was done.
      lossy: whether JPEG compressed it.
      indexes: (H, W), of a palette's colours; None without a palette.
      white_is_zero: whether stored values were inverted for display.
    """

    array: np.ndarray
    notes: tuple[str, ...] = ()
    lossy: bool = False
    indexes: np.ndarray | None = None
    white_is_zero: bool = False


def check_file(path: str | os.PathLike, max_bytes: int) -> None:
    """Raise ScanError unless `path` is a regular file of 1 to `max_bytes` bytes."""
    path = pathlib.Path(path)
    if path.is_dir():
        readable = os.access(path, os.R_OK | os.X_OK)
        raise ScanError(f"{path}: a folder, {'not a file' if readable else 'which may not be read'}")
    if not path.is_file():  # reading a pipe would block
        link = "a link to a file that is not there" if path.is_symlink() else "no such file"
        raise ScanError(f"{path}: {'not a regular file' if path.exists() else link}")
    size = path.stat().st_size
    if size == 0:
        raise ScanError(f"{path}: empty file (0 bytes): copy it again")
    if not os.access(path, os.R_OK):
        raise ScanError(f"{path}: cannot be read: permission denied")
    if size > max_bytes:
        raise ScanError(f"{path}: {size >> 20} MiB; at most {max_bytes >> 20} MiB are read")


def check_frame(path: str | os.PathLike, frame: int, count: int = MAX_FRAMES) -> None:
    """Raise ScanError unless `frame`, numbered from 0, is below `count` and MAX_FRAMES."""
    if frame >= MAX_FRAMES:
        raise ScanError(f"{path}: only the first {MAX_FRAMES} frames are read, not frame {frame}; split the file")
    if not 0 <= frame < count:
        raise ScanError(f"{path}: has no frame {frame}; frames are numbered from 0")


def check_passes(data: bytes, pixels: int, name: str) -> None:
    """Raise ScanError if a JPEG of that many pixels has too many progressive scans to be decoded in reasonable time."""
    if (passes := data.count(b"\xff\xda")) * pixels > MAX_PASSED:
        raise ScanError(f"{name}: a JPEG of {pixels} pixels in {passes} progressive scans; save it again with fewer")


def note_not_finite(count: int) -> str:
    """The note on pixels without a value."""
    what = "1 pixel is" if count == 1 else f"{count} pixels are"
    return f"{what} NaN or infinite: shown black, as background"


def to_8_bits(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Scale `black` to 0 and `white` to 255, round and clip: uint8 of the same shape."""
    scaled = np.empty(values.shape, np.uint8)
    step = max(1, BLOCK * len(values) // max(values.size, 1))
    exact: type[np.floating] = np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64
    for start in range(0, len(values), step):
        block = values[start : start + step].astype(exact)
        scaled[start : start + step] = np.clip(np.rint((block - black) * (255.0 / max(white - black, 1e-12))), 0, 255)
    return scaled


def fingerprint(image: np.ndarray) -> str:
    """Identifier of the content of a scan, uint8 (H, W, 3): 16 hex digits of SHA-256 over shape and pixels.

    >>> image = np.zeros((4, 4, 3), np.uint8)
    >>> fingerprint(image) == fingerprint(image.copy()), fingerprint(image) == fingerprint(image[:2])
    (True, False)
    """
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:16]
