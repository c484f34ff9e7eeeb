"""Scans as arrays: pictures are found, read and checked, whatever they claim to be. No JAX."""

import dataclasses
import hashlib
import io
import itertools
import os
import pathlib
import struct
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from mcis import MAX_PIXELS
from mcis.imaging import headers
from mcis.imaging.geometry import Place

MAX_BYTES = 1 << 28
MAX_DECODED = 4 * MAX_PIXELS
"""Bytes of a picture's pixels: the largest RGBA of 8 bits, half as many pixels of 16, and so on."""
MAX_PASSED = 16 * MAX_PIXELS
"""Pixels that a progressive JPEG may have gone over in all its scans; ten scans are usual."""
MAX_FRAMES = 1 << 12
"""Pages of a TIFF that are read; the size of a file alone would allow forty million."""
REPORT_FOLDERS = ("masks", "overlays", "page", "segmentations")
"""What a report of `mcis predict` keeps beside its findings."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""What a folder of scans is searched for (case does not matter). A file named outright is tried whatever its name."""


class ScanError(ValueError):
    """A file that is no readable scan; the message says what came, what is allowed and what to do.

    Attributes:
      series: as `Place.series`, where that much could be read.
    """

    series: str | None = None


@dataclasses.dataclass(frozen=True)
class Scan:
    """A picture as read.

    Attributes:
      image: uint8 (H, W, 3), RGB; grey pictures have three equal channels.
      notes: what was changed in reading, in words ("16 bits scaled to 8"), so that it can be said.
      spacing: millimetres from row to row and from column to column; None where the file does not say.
      place: where it lies in a volume; None where it is of none.
    """

    image: np.ndarray
    notes: tuple[str, ...] = ()
    spacing: tuple[float, float] | None = None
    place: Place | None = None


def is_picture(path: pathlib.Path) -> bool:
    """Whether a file is named as a picture is."""
    return path.suffix.lower() in SUFFIXES


def pictures(folder: str | os.PathLike, wanted: Callable[[pathlib.Path], bool] = is_picture) -> list[pathlib.Path]:
    """Files below a folder that are `wanted`, by default pictures, sorted by path.

    Hidden files and folders are left out, and so are the folders of a report of `mcis predict`: its masks and overlays
    are no scans. Links are followed, each folder once. A link that leads nowhere and a folder that cannot be read stay
    in the list, so that they are missed aloud.
    """
    found: list[pathlib.Path] = []
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            found.append(pathlib.Path(error.filename))

    for place, folders, files in os.walk(str(folder), followlinks=True, onerror=unreadable):
        own = REPORT_FOLDERS if {"findings.jsonl", "run.json"} <= set(files) else ()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in own)
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        named = (pathlib.Path(place, name) for name in files if not name.startswith("."))
        found += filter(wanted, named)
    return sorted(found)


def count_frames(path: str | os.PathLike) -> int:
    """Number of pictures in a file: pages of a TIFF, otherwise 1 (also for a file that cannot be read).

    Only the chain of the TIFF's directories is walked. A page whose directory the file no longer holds is counted, so
    that reading it is an error and a file that was cut short loses nothing silently; so is one page beyond MAX_FRAMES.
    """
    if pathlib.Path(path).suffix.lower() not in (".tif", ".tiff") or not os.path.isfile(path):  # a pipe would block
        return 1
    try:
        with open(path, "rb") as file:
            return max(1, sum(1 for _ in itertools.islice(headers.tiff_pages(file), MAX_FRAMES + 1)))
    except OSError:
        return 1


def read(path: str | os.PathLike, frame: int = 0) -> Scan:
    """Read a PNG, JPEG, TIFF or BMP of 8 or 16 bits, or a float TIFF; grey, RGB, RGBA or palette.

    Args:
      path: a file.
      frame: which page of a multi-page TIFF, from 0.

    Returns:
      The Scan: uint8 RGB of the file's own size. EXIF orientation is not applied, so that pixels of findings are
      pixels of the file. Alpha is laid over black. More than 8 bits are scaled linearly from the picture's minimum
      and maximum to [0, 255].

    Raises:
      ScanError: the file is missing, empty, larger than MAX_BYTES, MAX_PIXELS or MAX_DECODED, no picture, or has NaN.
    """
    if frame >= MAX_FRAMES:
        raise ScanError(f"{path}: has more than {MAX_FRAMES} pages; the others are not read, split the file")
    check_file(path, MAX_BYTES)
    path = pathlib.Path(path)
    return decode(path.read_bytes(), name=str(path), frame=frame)


def check_file(path: str | os.PathLike, most: int) -> None:
    """ScanError unless there is a plain file of 1 to `most` bytes."""
    path = pathlib.Path(path)
    if not path.is_file():
        if path.is_dir():
            readable = os.access(path, os.R_OK | os.X_OK)
            raise ScanError(f"{path}: a folder{', not a picture' if readable else ' that may not be read'}")
        raise ScanError(f"{path}: {'no plain file' if path.exists() else 'no such file'}")
    size = path.stat().st_size
    if size == 0:
        raise ScanError(f"{path}: empty file; a picture is needed ({', '.join(SUFFIXES)})")
    if size > most:
        raise ScanError(f"{path}: {size >> 20} MiB; at most {most >> 20} MiB are read")


def decode(data: bytes, name: str = "picture", frame: int = 0) -> Scan:
    """`read` for bytes already in memory; `name` is what error messages call them."""
    return _normalise(_decode_array(data, name, frame), name)


def from_array(array: np.ndarray, name: str = "array") -> Scan:
    """A picture that is in memory already, as `read` would give it.

    Args:
      array: (H, W), (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4); uint8 as it is, else scaled as `read` says.
      name: what error messages call it.
    """
    if array.ndim not in (2, 3) or array.dtype.kind not in "uif" or array.size == 0:
        raise ScanError(f"{name}: of shape {array.shape} and type {array.dtype}; numbers (H, W) or (H, W, 3) are read")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ScanError(f"{name}: more pixels than the {MAX_PIXELS} that are read; make it smaller")
    if array.ndim == 3 and array.shape[2] >= 3:  # OpenCV's order, as files come
        array = np.concatenate([array[..., 2::-1], array[..., 3:]], axis=2)
    return _normalise(array, name)


def _decode_array(data: bytes, name: str, frame: int) -> np.ndarray:
    _check_claims(data, name, frame)
    buffer = np.frombuffer(data, np.uint8)
    try:
        if frame == 0:
            array = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
        else:
            done, pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED, range=(frame, frame + 1))
            array = pages[0] if done and pages else None
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise ScanError(f"{name}: more pixels than the {MAX_PIXELS} that are read; make it smaller") from None
        raise ScanError(f"{name}: cannot be decoded ({error.err or 'damaged'})") from None
    if frame and (array is None or array.size == 0):
        raise ScanError(f"{name}: has no page {frame} that can be read; they count from 0")
    if array is None or array.size == 0:
        raise ScanError(f"{name}: not a readable picture; PNG, JPEG, TIFF, BMP, DICOM and NIfTI are read")
    return array


def _check_claims(data: bytes, name: str, frame: int) -> None:
    """ScanError where bytes are no picture of a kind that is read, or one that says it takes too much to decode."""
    if not headers.is_picture(data):
        raise ScanError(f"{name}: not a readable picture; PNG, JPEG, TIFF, BMP, DICOM and NIfTI are read")
    try:
        size, pixels = _claims(data, frame)
    except (struct.error, OverflowError, ValueError):
        return  # the decoder says what is wrong with it
    if size > MAX_DECODED:
        raise ScanError(
            f"{name}: more pixels than are read: {size >> 20} MiB of them, at most {MAX_DECODED >> 20}; make it smaller"
        )
    check_passes(data, pixels, name)


def _claims(data: bytes, frame: int) -> tuple[int, int]:
    """Bytes that a picture's pixels take, and how many pixels a JPEG has; 0 where that is bounded otherwise."""
    if data.startswith(b"\xff\xd8"):
        said = headers.codestream(data)
        return 0, 0 if said is None else said.width * said.height
    if data.startswith(b"\x89PNG"):
        return headers.png_bytes(data), 0
    if data.startswith(b"BM"):
        return 0, 0
    file = io.BytesIO(data)
    page = next(itertools.islice(headers.tiff_pages(file), frame, None), None)
    return 0 if page is None else headers.tiff_bytes(file, page), 0


def check_passes(data: bytes, pixels: int, name: str) -> None:
    """ScanError where a JPEG of so many pixels has them gone over more often than any that was made to be seen."""
    if (passes := headers.jpeg_passes(data)) * pixels > MAX_PASSED:
        raise ScanError(f"{name}: a JPEG of {pixels} pixels in {passes} scans; save it anew, with fewer")


def bands(array: np.ndarray) -> Iterator[slice]:
    """Rows of an array that are worked on at once, about a million values: floats of all would take too much."""
    rows = max(1, (1 << 20) * len(array) // max(array.size, 1))
    return (slice(start, start + rows) for start in range(0, len(array), rows))


def _normalise(array: np.ndarray, name: str) -> Scan:
    notes = []
    if array.dtype != np.uint8:
        array, note = _to_8_bits(array, name)
        notes.append(note)
    if array.ndim == 2:
        array = array[..., None]
    channels = array.shape[2]
    if channels == 2 or channels == 4:
        if array[..., -1].min() < 255:
            notes.append("alpha laid over black")
        laid = np.empty((*array.shape[:2], channels - 1), np.uint8)
        for rows in bands(array):
            laid[rows] = np.rint(array[rows, :, :-1] * (array[rows, :, -1:].astype(np.float32) / 255.0))
        array = laid
    elif channels not in (1, 3):
        raise ScanError(f"{name}: {channels} channels; grey, RGB and RGBA are read")
    image = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., ::-1]
    return Scan(np.ascontiguousarray(image), tuple(notes))


def _to_8_bits(array: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    """A picture of another type, scaled from its least and largest value, alpha from 0 on; and what was done."""
    coloured = array.ndim == 3 and array.shape[2] == 4
    opaque = array[..., :3] if array.ndim == 3 else array
    with np.errstate(over="ignore"):
        ends = [float(np.float32(value)) for of in (array, opaque) for value in (of.min(), of.max())]
    if not np.isfinite(ends).all():
        raise ScanError(f"{name}: has NaN or infinite pixels; mend the file")
    low, high = ends[2:]
    full = np.iinfo(array.dtype).max if array.dtype.kind in "ui" else 1.0  # alpha has a scale of its own
    scaled = np.empty(array.shape, np.uint8)
    for rows in bands(array):
        values = array[rows].astype(np.float32)
        scaled[rows] = np.clip(np.rint((values - low) * (255.0 / max(high - low, 1e-12))), 0, 255)
        if coloured:
            scaled[rows, :, 3] = np.clip(np.rint(values[..., 3] * (255.0 / full)), 0, 255)
    return scaled, f"{array.dtype.name} scaled from [{low:g}, {high:g}] to 8 bits"


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of uint8 (H, W), (H, W, 1) or RGB (H, W, 3)."""
    done, data = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image)
    if not done:
        raise ValueError(f"cannot write an array of shape {image.shape} and type {image.dtype} as PNG")
    return data.tobytes()


def fingerprint(image: np.ndarray) -> str:
    """Content fingerprint of a scan: 16 hex digits of SHA-256 over shape and pixels, uint8 (H, W, 3).

    Independent of file name and file format, so that a scan is known again wherever it turns up.

    >>> picture = np.zeros((4, 4, 3), np.uint8)
    >>> fingerprint(picture) == fingerprint(picture.copy()), fingerprint(picture) == fingerprint(picture[:2])
    (True, False)
    """
    return hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:16]
