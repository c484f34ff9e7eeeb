"""Read PNG, JPEG, TIFF and BMP files as scans; write PNG. No JAX."""

import contextlib
import itertools
import os
import pathlib
import struct
from collections.abc import Callable

import cv2
import numpy as np

from mcis import MAX_PIXELS
from mcis.imaging import headers
from mcis.imaging.scan import MAX_DECODED, MAX_FRAMES, Scan, ScanError, check_file, check_frame, check_passes, to_8_bits

MAX_BYTES = 1 << 28
REPORT_FOLDERS = ("masks", "overlays", "page", "segmentations")
"""Folders that a report of `mcis predict` writes next to its findings."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""Suffixes that a search of a folder looks for, in any case. A file given by name may have any suffix."""
UNREADABLE = "not a readable image; PNG, JPEG, TIFF, BMP, DICOM and NIfTI are supported"
TOO_LARGE = f"too many pixels (at most {MAX_PIXELS} are read); reduce its size"


def is_image_file(path: pathlib.Path) -> bool:
    """Whether a file has the suffix of an image."""
    return path.suffix.lower() in SUFFIXES


def files_in(folder: str | os.PathLike, accept: Callable[[pathlib.Path], bool] = is_image_file) -> list[pathlib.Path]:
    """Files below a folder that `accept` takes, by default images, sorted by path.

    Hidden files and folders are skipped, and so are the images of a report of `mcis predict`, which are no scans. Links
    are followed, each folder is searched once. Broken links and unreadable folders are listed, so that reading them
    reports an error.
    """
    paths: list[pathlib.Path] = []
    seen: set[str] = set()

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            paths.append(pathlib.Path(error.filename))

    for place, folders, files in os.walk(str(folder), followlinks=True, onerror=unreadable):
        skipped = REPORT_FOLDERS if {"findings.jsonl", "run.json"} <= set(files) else ()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skipped)
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        paths += filter(accept, (pathlib.Path(place, name) for name in files if not name.startswith(".")))
    return sorted(paths)


def count_frames(path: str | os.PathLike) -> int:
    """Number of pages of a TIFF, at most MAX_FRAMES + 1; 1 for other formats and for a file that cannot be read.

    A page that is missing from a truncated file is counted, so that reading it reports an error.
    """
    if pathlib.Path(path).suffix.lower() not in (".tif", ".tiff") or not os.path.isfile(path):  # a pipe would block
        return 1
    try:
        with open(path, "rb") as file:
            return max(1, sum(1 for _ in itertools.islice(headers.tiff_pages(file), MAX_FRAMES + 1)))
    except OSError:
        return 1


def read(path: str | os.PathLike, frame: int = 0) -> Scan:
    """Read a PNG, JPEG, TIFF or BMP file of 8 or 16 bits, or a float TIFF; grey, RGB, RGBA or palette.

    Args:
      path: a file.
      frame: page of a multi-page TIFF, from 0.

    Returns:
      The Scan, of the file's size. EXIF orientation is ignored, so that pixels of a finding are pixels of the file.
      Alpha is blended with black. More than 8 bits are scaled linearly from minimum and maximum to [0, 255].

    Raises:
      ScanError: the file is missing, empty, too large (MAX_BYTES, MAX_PIXELS, MAX_DECODED), no image, or has NaN.
    """
    check_frame(path, frame)
    check_file(path, MAX_BYTES)
    return decode(pathlib.Path(path).read_bytes(), name=os.fspath(path), frame=frame)


def decode(data: bytes, name: str = "image", frame: int = 0) -> Scan:
    """Decode the content of an image file as `read` does; error messages call it `name`."""
    if not headers.is_image(data):
        raise ScanError(f"{name}: {UNREADABLE}")
    _check_size(data, name, frame)
    buffer = np.frombuffer(data, np.uint8)
    try:
        if frame == 0:
            array = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
        else:
            done, pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED, range=(frame, frame + 1))
            array = pages[0] if done and pages else None
    except cv2.error as error:
        too_large = "CV_IO_MAX_IMAGE" in str(error)
        reason = TOO_LARGE if too_large else f"cannot be decoded ({error.err or 'damaged'})"
        raise ScanError(f"{name}: {reason}") from None
    if array is None or array.size == 0:
        raise ScanError(f"{name}: has no readable page {frame}, numbered from 0" if frame else f"{name}: {UNREADABLE}")
    return _to_scan(array, name)


def from_array(array: np.ndarray, name: str = "array") -> Scan:
    """The Scan of (H, W), (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4), converted as `read` converts an image."""
    if array.ndim not in (2, 3) or array.dtype.kind not in "uif" or array.size == 0:
        raise ScanError(f"{name}: shape {array.shape}, type {array.dtype}; numbers (H, W) or (H, W, 3) are needed")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ScanError(f"{name}: {TOO_LARGE}")
    if array.ndim == 3 and array.shape[2] >= 3:  # to the channel order of OpenCV
        array = np.concatenate([array[..., 2::-1], array[..., 3:]], axis=2)
    return _to_scan(array, name)


def encode_png(image: np.ndarray) -> bytes:
    """PNG file of uint8 (H, W), (H, W, 1) or RGB (H, W, 3)."""
    done, data = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image)
    if not done:
        raise ValueError(f"cannot write an array of shape {image.shape} and type {image.dtype} as PNG")
    return data.tobytes()


def _check_size(data: bytes, name: str, frame: int) -> None:
    """Raise ScanError if, by its header, an image needs too much memory or time to decode."""
    size, jpeg_pixels = 0, 0
    with contextlib.suppress(struct.error, OverflowError, ValueError):  # the decoder reports a damaged header
        if data.startswith(b"\x89PNG"):
            size = headers.png_bytes(data)
        elif data.startswith((b"II", b"MM")):
            size = headers.tiff_bytes(data, frame)
        elif data.startswith(b"\xff\xd8") and (stream := headers.codestream(data)):
            jpeg_pixels = stream.width * stream.height
    if size > MAX_DECODED:
        limit = f"{size >> 20} MiB, at most {MAX_DECODED >> 20} MiB are read"
        raise ScanError(f"{name}: too many pixels ({limit}); reduce its size")
    check_passes(data, jpeg_pixels, name)


def _to_scan(array: np.ndarray, name: str) -> Scan:
    """Convert an array in the channel order of OpenCV."""
    channels = 1 if array.ndim == 2 else array.shape[2]
    if channels > 4:
        raise ScanError(f"{name}: {channels} channels; grey, RGB and RGBA are supported")
    array = array.reshape(*array.shape[:2], channels)
    notes = []
    if array.dtype != np.uint8:
        array, note = _scaled(array, name)
        notes.append(note)
    if channels in (2, 4):
        if array[..., -1].min() < 255:
            notes.append("alpha blended with black")
        alpha = np.repeat(array[..., -1:], channels - 1, axis=2)
        array = cv2.multiply(array[..., :-1], alpha, scale=1 / 255).reshape(alpha.shape)
    image = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., ::-1]
    return Scan(np.ascontiguousarray(image), tuple(notes))


def _scaled(array: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    """Scale (H, W, C) to 8 bits, colours from their minimum and maximum, alpha from 0 and its own; also a note."""
    with np.errstate(over="ignore"):
        limits = [float(np.float32(value)) for part in (array, array[..., :3]) for value in (part.min(), part.max())]
    if not np.isfinite(limits).all():
        raise ScanError(f"{name}: has NaN or infinite pixels; replace them")
    *_, low, high = limits
    scaled = to_8_bits(array, low, high)
    if array.shape[2] == 4:
        scaled[..., 3] = to_8_bits(array[..., 3], 0, np.iinfo(array.dtype).max if array.dtype.kind in "ui" else 1)
    return scaled, f"{array.dtype.name} scaled from [{low:g}, {high:g}] to 8 bits"
