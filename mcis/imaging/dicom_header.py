"""Read DICOM headers within limits. No JAX; pydicom comes with the extra `dicom`.

Only TAGS are read from a header: the name of a patient never enters this process, so it cannot reach a finding, a log
or a page. For the same reason no message quotes what pydicom says about a damaged file.
"""

import contextlib
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from mcis.imaging.geometry import SliceGeometry, digest, slice_geometry
from mcis.imaging.scan import ScanError, check_file

MAX_BYTES = 1 << 31
"""Bytes of a file; frames are read separately, so that memory holds only one."""
MAX_HEADER = 1 << 26
"""Bytes read from a header. Skipped elements do not count; a read counts as at least MIN_READ."""
MIN_READ = 256
DEFLATED = "1.2.840.10008.1.2.1.99"
"""Transfer syntax that is rejected: the whole file would be inflated at once, to any size."""
CENTIMETRES = 3
"""Physical unit of an ultrasound region (PS3.3 C.8.5.5.1.15)."""
TAGS = (
    *("SOPClassUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "BurnedInAnnotation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction"),
    *("WindowCenter", "WindowWidth", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("SequenceOfUltrasoundRegions", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("SeriesInstanceUID", "SOPInstanceUID", "ImagePositionPatient", "ImageOrientationPatient"),
    *("BodyPartExamined", "AnatomicRegionSequence", "ConversionType", "PixelAspectRatio"),
    *("PaletteColorLookupTableUID", "SegmentedRedPaletteColorLookupTableData"),
    *("SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)
"""The only elements read from a header: display, pixel size, position and organ. The UIDs group slices; `geometry_of`
keeps only their hash."""


def read_header(path: str | os.PathLike, tags: Sequence[str] = TAGS) -> Any:
    """The pydicom Dataset of some elements, without pixels. ScanError if the file is not readable as DICOM."""
    check_file(path, MAX_BYTES)
    pydicom = import_pydicom(path)
    with safe_errors(path), BoundedFile(path, MAX_HEADER) as file:
        pydicom.filereader.read_preamble(file, False)
        meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
        if meta.get("TransferSyntaxUID") == DEFLATED:
            raise ScanError(f"{path}: deflated DICOM is not supported; convert it with `dcmconv +te`")
        file.seek(0)
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))


class BoundedFile(io.BufferedReader):
    """A file of which at most `max_bytes` are read, whatever lengths it claims; then ScanError."""

    def __init__(self, path: str | os.PathLike, max_bytes: int):
        self._path, self._left = path, max_bytes
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, or all that are left."""
        data = super().read(self._left + 1 if size is None or size < 0 else min(size, self._left + 1))
        self._left -= max(len(data), MIN_READ)
        if self._left < 0:
            raise ScanError(f"{self._path}: the header or one frame is larger than the limit")
        return data


def import_pydicom(path: str | os.PathLike) -> Any:
    """The module pydicom, silenced. ScanError, about the file `path`, if it is not installed."""
    try:
        import pydicom
        import pydicom.filereader
        import pydicom.pixels
    except ImportError:
        raise ScanError(f"{path}: DICOM needs the extra `dicom`: pip install -e '.[dicom]'") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # log and warnings quote values
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    return pydicom


@contextlib.contextmanager
def safe_errors(path: str | os.PathLike) -> Iterator[None]:
    """Replace errors of decoders by a ScanError that quotes nothing of the file."""
    try:
        yield
    except (ScanError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # from the file system
            raise
        raise ScanError(f"{path}: damaged or unsupported DICOM ({type(error).__name__})") from None


def value_of(header: Any, frame: int, sequence: str, name: str) -> Any:
    """An attribute of a frame: from its own functional group, the group shared by all frames, or the file."""
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    for group in (*groups[frame : frame + 1], *(header.get("SharedFunctionalGroupsSequence") or [])[:1]):
        for item in (group.get(sequence) or [])[:1]:
            if name in item:
                return item[name].value
    return header.get(name)


def floats(value: Any) -> list[float]:
    """One or more numbers; empty if the value is missing or text."""
    if value is None or isinstance(value, str | bytes):
        return []
    return [float(part) for part in (value if hasattr(value, "__iter__") else [value])]


def spacing_of(header: Any, frame: int) -> tuple[tuple[float, float] | None, list[str]]:
    """Millimetres between rows and between columns, None if unknown; and notes."""
    regions = [
        (float(region.PhysicalDeltaY), float(region.PhysicalDeltaX))
        for region in header.get("SequenceOfUltrasoundRegions") or []
        if region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == CENTIMETRES
    ]
    if len(set(regions)) > 1:
        return None, ["several regions of different scale: no measurements in mm"]
    if regions:
        return _positive([10 * abs(delta) for delta in regions[0]]), []
    value = value_of(header, frame, "PixelMeasuresSequence", "PixelSpacing")
    if value is None and (value := header.get("NominalScannedPixelSpacing")) is None:
        if header.get("ImagerPixelSpacing") is not None:
            return None, ["pixel spacing is that of the detector: no measurements in mm"]
        return None, []
    return _positive(floats(value)), []


def _positive(spacing: list[float]) -> tuple[float, float] | None:
    if len(spacing) != 2 or not all(math.isfinite(part) and part > 0 for part in spacing):
        return None
    return spacing[0], spacing[1]


def geometry_of(header: Any, frame: int) -> SliceGeometry | None:
    """Position of a frame; None if the file states no series.

    The frames of one file are one volume, and so are the files of one series. A file without a position, such as most
    ultrasound, is a volume by itself.
    """
    series = str(header.get("SeriesInstanceUID") or "")
    if not series:
        return None
    vectors = position_of(header, frame)
    if vectors is None or int(header.get("NumberOfFrames") or 1) > 1:
        series = f"{series}/{header.get('SOPInstanceUID')}"
    if vectors is None:
        return SliceGeometry(digest(series))
    position, orientation = vectors
    return slice_geometry(series, position, orientation[:3], orientation[3:])


def position_of(header: Any, frame: int) -> tuple[list[float], list[float]] | None:
    """ImagePositionPatient and ImageOrientationPatient of a frame; None unless both are stated in finite numbers."""
    try:
        position = floats(value_of(header, frame, "PlanePositionSequence", "ImagePositionPatient"))
        orientation = floats(value_of(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient"))
    except (ValueError, TypeError, OverflowError):
        return None
    valid = len(position) == 3 and len(orientation) == 6 and all(map(math.isfinite, position + orientation))
    return (position, orientation) if valid else None


def aspect_of(header: Any) -> float | None:
    """Height over width of a pixel by elements that say nothing about its size on the patient; None if unknown."""
    for name in ("PixelAspectRatio", "ImagerPixelSpacing"):
        with contextlib.suppress(Exception):  # damaged: pydicom converts values when they are first used
            height, width = floats(header.get(name))
            if 0 < height < math.inf and 0 < width < math.inf:
                return height / width
    return None
