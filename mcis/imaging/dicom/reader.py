"""Read DICOM files as scans, one frame at a time. No JAX."""

import functools
import os
from typing import Any, NamedTuple

import numpy as np

from mcis.imaging.dicom import compressed, objects, pixels, surplus, syntaxes
from mcis.imaging.dicom import file as dicom_file
from mcis.imaging.dicom.display import to_rgb
from mcis.imaging.dicom.file import looks_like_dicom, safe_errors
from mcis.imaging.dicom.header import (
    TAGS,
    aspect_of,
    frames_of,
    geometry_of,
    position_notes,
    spacing_of,
    text_of,
    whole_of,
)
from mcis.imaging.headers import is_image
from mcis.imaging.modality import stated_content
from mcis.imaging.scan import MAX_FRAMES, Scan, ScanError, Statement, check_frame

SUFFIXES = (".dcm", ".dicom", ".ima", ".dcm.gz")
SURVEYED = ("SOPClassUID", "Modality", "NumberOfFrames", "Rows", "Columns")
COLUMNS = 0x00280011
"""Tag of the last of SURVEYED."""


def matches(name: str, head: bytes) -> bool:
    """Whether a file is DICOM, by its first bytes, or by its name if these are not an image's."""
    return looks_like_dicom(head) or (name.lower().endswith(SUFFIXES) and not is_image(head))


class Survey(NamedTuple):
    """What the beginning of a header says.

    Attributes:
      frames: number of frames, at most MAX_FRAMES + 1; 1 if it cannot be read.
      other: what a file is that holds no scan, "SR" or "DICOMDIR"; None for scans and for files that cannot be read.
    """

    frames: int
    other: str | None


def survey(path: str | os.PathLike) -> Survey:
    """The frames of a file, or what else it holds; reads the header up to the number of columns."""
    try:
        status = os.stat(path)
    except OSError:
        return Survey(1, None)
    return _survey(os.fspath(path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(1 << 16)  # the search of a folder surveys its files, and counting their frames does again
def _survey(path: str, modified: int, size: int) -> Survey:
    try:
        file = dicom_file.parse(path, SURVEYED, COLUMNS)
    except (ScanError, OSError, MemoryError):
        return Survey(1, None)
    header = file.header
    if (kind := objects.kind_of(header)) is not None:
        return Survey(1, kind)
    sop_class = text_of(header, "SOPClassUID")
    if not (whole_of(header, "Rows") and whole_of(header, "Columns")) and not dicom_file.is_image_class(
        path, sop_class
    ):
        return Survey(1, pixels.modality_of(header) or "no modality")
    decodable = syntaxes.is_decodable(file.syntax)
    return Survey(min(frames_of(header), MAX_FRAMES + 1) if decodable else 1, None)


def count_frames(path: str | os.PathLike) -> int:
    """Number of frames, at most MAX_FRAMES + 1; 1 for a file that cannot be read or whose pixels cannot be decoded."""
    return survey(path).frames


def read(path: str | os.PathLike, frame: int = 0) -> Scan:
    """Read one frame: MONOCHROME1 and 2, RGB, YBR, palette; uncompressed, RLE, JPEG, JPEG-LS, JPEG 2000.

    Returns:
      The Scan, of the frame's size. Grey values pass through the modality rescaling and the file's first window or VOI
      table; without one, the frame's minimum and maximum become 0 and 255. MONOCHROME1 is inverted; padding is black
      and takes no part in minimum and maximum. `spacing` is the pixel spacing; for an ultrasound, that of its only
      region. What is missing or wrong in the header beside the pixels is left out, with a note.

    Raises:
      ScanError: no DICOM file, no pixels or too many, or no decoder is installed for them.
    """
    file = dicom_file.read(path, TAGS)
    header = file.header
    series: str | None = None
    try:
        with safe_errors(path):
            if (kind := objects.kind_of(header)) is not None:
                reason = objects.described(kind, pixels.modality_of(header))
                raise ScanError(f"{path}: {reason}; give the scans themselves")
            geometry = geometry_of(header, frame)
            series = None if geometry is None else geometry.series
            compressed.check_syntax(file)
            layout = pixels.layout_of(file)
            check_frame(path, frame, frames_of(header))
            array, notes, bits = pixels.decode(file, layout, frame)
            image, display_notes = to_rgb(array, file, layout, frame)
            spacing, spacing_notes = spacing_of(header, frame)
            stated, stated_notes = stated_content(header, frame)
            if bits:
                text = f"Bits Stored {layout.stored}, but the pixels use {bits} bits: the picture is scrambled"
                stated = (*stated, Statement(text, ()))
            notes = [
                *layout.notes,
                *surplus.notes(file, layout),
                *notes,
                *display_notes,
                *spacing_notes,
                *position_notes(header, frame),
            ]
            notes += [*stated_notes, *_burnt_in(header)]
            return Scan(np.ascontiguousarray(image), tuple(notes), spacing, geometry, stated, aspect_of(header))
    except ScanError as error:
        error.series = series
        raise


def _burnt_in(header: Any) -> list[str]:
    """A warning if the pixels may name the patient."""
    annotated = text_of(header, "BurnedInAnnotation")
    if annotated == "YES":
        return ["text is burnt into its pixels, says the file: check before you share images of it"]
    if annotated != "NO" and text_of(header, "Modality") == "US":
        return ["ultrasound: names and dates may be burnt into its pixels; check before you share images of it"]
    return []
