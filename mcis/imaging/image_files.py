"""Read PNG, JPEG, TIFF and BMP files as scans; write PNG. No JAX."""

import contextlib
import functools
import io
import os
import pathlib
import struct
from collections.abc import Callable, Sequence
from typing import BinaryIO

import cv2
import numpy as np

from mcis import MAX_PIXELS
from mcis.imaging import headers, other_formats
from mcis.imaging.scan import (
    MAX_DECODED,
    Picture,
    Scan,
    ScanError,
    check_file,
    check_frame,
    check_passes,
    note_not_finite,
    to_8_bits,
)
from mcis.imaging.tiff import header as tiff_header
from mcis.imaging.tiff import reader as tiff_reader

MAX_BYTES = 1 << 28
REPORT_FOLDERS = ("masks", "overlays", "page", "segmentations")
"""Folders that a report of `mcis predict` writes next to its findings."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".tif", ".tiff", ".bmp")
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

    A page that is missing from a truncated file is counted, so that reading it reports an error. Thumbnails of other
    pages and transparency masks are not.
    """
    try:
        if os.path.isfile(path):  # a pipe would block
            return max(1, len(_pages(path)))
    except OSError:
        pass  # reading the file reports the error
    return 1


def _pages(path: str | os.PathLike) -> tuple[tiff_header.TiffPage, ...]:
    """The pages of a TIFF file; none of another format. Read once for all pages."""
    status = os.stat(path)
    return _pages_of(os.fspath(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=8)
def _pages_of(path: str, modified: int, size: int) -> tuple[tiff_header.TiffPage, ...]:
    with open(path, "rb") as file:
        if not file.read(4).startswith(tiff_header.SIGNATURES):
            return ()
        file.seek(0)
        return tuple(tiff_header.scan_pages(file))


def read(path: str | os.PathLike, frame: int = 0) -> Scan:
    """Read a PNG, JPEG, TIFF or BMP file of any depth; grey, RGB, RGBA, CMYK or palette.

    Args:
      path: a file.
      frame: page of a multi-page TIFF, from 0.

    Returns:
      The Scan, upright: turned as the orientation in a JPEG's or PNG's Exif data or in a TIFF says. Alpha is blended
      with black. More than 8 bits are scaled linearly from minimum and maximum to [0, 255]; pixels that are NaN or
      infinite are black.

    Raises:
      ScanError: the file is missing, empty, too large (MAX_BYTES, MAX_PIXELS, MAX_DECODED), or no image.
    """
    return _to_scan(read_picture(path, frame), os.fspath(path))


def read_picture(path: str | os.PathLike, frame: int = 0) -> Picture:
    """Read a file as `read` does, with the values that it stores."""
    check_frame(path, frame)
    check_file(path, MAX_BYTES)
    if pages := _pages(path):
        with open(path, "rb") as file:  # only the page's part of the file
            return _page(file, pages, frame, os.fspath(path))
    return _picture(pathlib.Path(path).read_bytes(), os.fspath(path), frame)


def decode(data: bytes, name: str = "image", frame: int = 0) -> Scan:
    """Decode the content of an image file as `read` does; error messages call it `name`."""
    return _to_scan(_picture(data, name, frame), name)


def _page(file: BinaryIO, pages: Sequence[tiff_header.TiffPage], frame: int, name: str) -> Picture:
    if frame >= len(pages):
        raise ScanError(f"{name}: has no readable page {frame}, numbered from 0")
    try:
        return tiff_reader.read_page(file, pages[frame], name)
    except ScanError as error:
        if frame and str(error).startswith(f"{name}: not a readable image"):
            raise ScanError(f"{name}: has no readable page {frame}, numbered from 0 ({error})") from None
        raise


def _picture(data: bytes, name: str, frame: int) -> Picture:
    if not headers.is_image(data):
        raise ScanError(f"{name}: {other_formats.explained(name, data) or UNREADABLE}")
    if data.startswith(tiff_header.SIGNATURES):
        file = io.BytesIO(data)
        return _page(file, tiff_header.scan_pages(file), frame, name)
    if frame:
        raise ScanError(f"{name}: has no readable page {frame}, numbered from 0")
    _check_size(data, name)
    if headers.has_cut_chunk(data):
        raise ScanError(f"{name}: not a readable image: {headers.why_unreadable(data)}")
    if data.startswith(b"BM"):
        if (bmp := headers.bmp_for_opencv(data)) is None:
            raise ScanError(f"{name}: a BMP with its colours in an unusual order; save it again as PNG")
        data = bmp
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        too_large = "CV_IO_MAX_IMAGE" in str(error)
        reason = TOO_LARGE if too_large else f"cannot be decoded ({error.err or 'damaged'})"
        raise ScanError(f"{name}: {reason}") from None
    if array is None or array.size == 0:
        raise ScanError(f"{name}: not a readable image: {headers.why_unreadable(data)}")
    array = _channels_reversed(array.reshape(*array.shape[:2], -1))
    if array.shape[2] == 1 and (level := headers.png_transparent_grey(data)) is not None:  # OpenCV leaves it out
        opaque = np.where(array == level, 0, 65535 if array.dtype == np.uint16 else 255).astype(array.dtype)
        array = np.concatenate([array, opaque], axis=2)
    turn = headers.exif_orientation(data)
    notes: tuple[str, ...] = ()
    if turn != 1:
        array, notes = tiff_header.upright(array, turn), (f"turned upright, as its EXIF orientation {turn} says",)
    return Picture(array, notes, data.startswith(b"\xff\xd8"))


def palette_indexes(path: str | os.PathLike) -> np.ndarray | None:
    """The indexes of the palette of a PNG or BMP, (H, W), perhaps scaled, upright; None for another file."""
    data = pathlib.Path(path).read_bytes()
    grey = headers.bmp_of_indexes(data) if data.startswith(b"BM") else headers.png_of_indexes(data)
    if grey is None:
        return None
    array = cv2.imdecode(np.frombuffer(grey, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if array is None else tiff_header.upright(array, headers.exif_orientation(data))


def _channels_reversed(array: np.ndarray) -> np.ndarray:
    """From OpenCV's order of channels to RGB, or back; alpha stays the last."""
    if array.shape[2] < 3:
        return array
    return cv2.cvtColor(array, cv2.COLOR_BGR2RGB if array.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def from_array(array: np.ndarray, name: str = "array") -> Scan:
    """The Scan of (H, W), (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4), converted as `read` converts an image."""
    if array.ndim not in (2, 3) or array.dtype.kind not in "uif" or array.size == 0:
        raise ScanError(f"{name}: shape {array.shape}, type {array.dtype}; numbers (H, W) or (H, W, 3) are needed")
    if array.shape[0] * array.shape[1] > MAX_PIXELS:
        raise ScanError(f"{name}: {TOO_LARGE}")
    return _to_scan(Picture(array), name)


def encode_png(image: np.ndarray) -> bytes:
    """PNG file of uint8 (H, W), (H, W, 1) or RGB (H, W, 3)."""
    done, data = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 and image.shape[2] == 3 else image)
    if not done:
        raise ValueError(f"cannot write an array of shape {image.shape} and type {image.dtype} as PNG")
    return data.tobytes()


def _check_size(data: bytes, name: str) -> None:
    """Raise ScanError if, by its header, an image needs too much memory or time to decode."""
    size, jpeg_pixels = 0, 0
    with contextlib.suppress(struct.error, OverflowError, ValueError):  # the decoder reports a damaged header
        if data.startswith(b"\x89PNG"):
            size = headers.png_bytes(data)
        elif data.startswith(b"\xff\xd8") and (stream := headers.codestream(data)):
            jpeg_pixels = stream.width * stream.height
    if size > MAX_DECODED:
        limit = f"{size >> 20} MiB, at most {MAX_DECODED >> 20} MiB are read"
        raise ScanError(f"{name}: too many pixels ({limit}); reduce its size")
    check_passes(data, jpeg_pixels, name)


def _to_scan(picture: Picture, name: str) -> Scan:
    """Scale a picture to 8 bits, blend its alpha with black, and give it three channels."""
    array, notes = picture.array, list(picture.notes)
    channels = 1 if array.ndim == 2 else array.shape[2]
    if channels > 4:
        raise ScanError(f"{name}: {channels} channels; grey, RGB and RGBA are supported")
    array = array.reshape(*array.shape[:2], channels)
    if array.dtype != np.uint8:
        array, more = _scaled(array, name)
        notes += more
    if channels in (2, 4):
        *colours, alpha = cv2.split(array)
        if alpha.min() < 255:
            notes.append("alpha blended with black")
            colours = [cv2.multiply(colour, alpha, scale=1 / 255) for colour in colours]
        array = cv2.merge(colours).reshape(*alpha.shape, -1)
    image = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array
    return Scan(np.ascontiguousarray(image), tuple(notes))


def _scaled(array: np.ndarray, name: str) -> tuple[np.ndarray, list[str]]:
    """Scale (H, W, C) to 8 bits, colours from their minimum and maximum, alpha from 0 and its own; also notes.

    Pixels that are NaN or infinite do not count for minimum and maximum, and become black.
    """
    has_alpha = array.shape[2] in (2, 4)
    colours = array[..., :-1] if has_alpha else array
    seen = np.isfinite(array).all(axis=2) if array.dtype.kind == "f" else np.ones(array.shape[:2], bool)
    missing = seen.size - int(np.count_nonzero(seen))
    if missing == seen.size:
        raise ScanError(f"{name}: every pixel is NaN or infinite; nothing can be shown")
    shown = colours[seen] if missing else colours
    low, high = float(shown.min()), float(shown.max())
    if not np.isfinite(high - low):
        raise ScanError(
            f"{name}: its values range from {low:g} to {high:g}, too far to be scaled; scale them to [0, 1]"
        )
    if missing:
        array = np.where(seen[..., None], array, array.dtype.type(low))
        if has_alpha:
            array[..., -1][~seen] = 0
    scaled = to_8_bits(array, low, high)
    if has_alpha:
        opaque = np.iinfo(array.dtype).max if array.dtype.kind in "ui" else 1
        scaled[..., -1] = to_8_bits(array[..., -1], 0, opaque)
    notes = [f"{array.dtype.name} scaled from [{low:g}, {high:g}] to 8 bits"]
    return scaled, [*notes, note_not_finite(missing)] if missing else notes
