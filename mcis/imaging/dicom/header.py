"""Side values of DICOM headers: pixel size and position. No JAX; pydicom comes with the extra `dicom`.

A damaged value never makes the scan unreadable: it is None, and a note says so. Only the elements of TAGS are read.
"""

import contextlib
import math
import os
from collections.abc import Sequence
from typing import Any

from mcis.imaging.dicom import file as dicom_file
from mcis.imaging.geometry import SliceGeometry, digest, implausible, slice_geometry

NO_SPACING = "its pixel spacing cannot be read, or is not two positive numbers: no measurements in mm"
CENTIMETRES = 3
"""Physical unit of an ultrasound region (PS3.3 C.8.5.5.1.15)."""
SAME_SCALE = 1e-4
"""Share by which scales of regions may differ, as rounding does."""
TAGS = (
    *("SOPClassUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration", "BurnedInAnnotation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction"),
    *(f"{kind}PixelPadding{end}" for kind in ("", "Float", "DoubleFloat") for end in ("Value", "RangeLimit")),
    *("WindowCenter", "WindowWidth", "PresentationLUTShape"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
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
    return dicom_file.read(path, tags).header


class Unreadable(ValueError):
    """A value that is not of its type, such as text in place of a number."""


def value_of(header: Any, frame: int, sequence: str, name: str) -> Any:
    """An attribute of a frame: from its own functional group, the group shared by all frames, or the file.

    None if it is missing or empty.

    Raises:
      Unreadable: the header has the attribute, but not its type.
    """
    damaged = False
    for place, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        try:
            for group in (header.get(place) or [])[index : index + 1]:
                for item in (group.get(sequence) or [])[:1]:
                    if name in item:
                        return item[name].value
        except Exception:  # pydicom parses a value when it is read, and has many errors for those it cannot parse
            damaged = True
    try:
        value = header.get(name)
    except Exception:
        value, damaged = None, True
    if value is None and damaged:
        raise Unreadable(name)
    return value


def text_of(header: Any, name: str) -> str:
    """An attribute as text; "" if it is missing or cannot be read."""
    try:
        return str(header.get(name) or "")
    except Exception:
        return ""


def whole_of(header: Any, name: str) -> int | None:
    """An attribute as a whole number, the first of several; None if it is missing or cannot be read."""
    try:
        value = header.get(name)
        value = value[0] if hasattr(value, "__iter__") and not isinstance(value, str | bytes) and len(value) else value
        return None if value is None or value == "" else int(value)
    except Exception:
        return None


def frames_of(header: Any) -> int:
    """Number of frames; 1 if the header states none or no positive number."""
    return max(1, whole_of(header, "NumberOfFrames") or 1)


def floats(value: Any) -> list[float]:
    """One or more numbers; empty if the value is missing. Unreadable if it is something else."""
    if value is None or isinstance(value, str | bytes):
        if value:
            raise Unreadable("text in place of numbers")
        return []
    try:
        return [float(part) for part in (value if hasattr(value, "__iter__") else [value])]
    except (ValueError, TypeError, OverflowError):
        raise Unreadable("no numbers") from None


def spacing_of(header: Any, frame: int) -> tuple[tuple[float, float] | None, list[str]]:
    """Millimetres between rows and between columns, None if unknown; and notes."""
    try:
        regions, unstated = _region_spacings(header)
        if any(
            not math.isclose(*sides, rel_tol=SAME_SCALE)
            for one in regions
            for sides in zip(one, regions[0], strict=True)
        ):
            return None, ["several regions of different scale: no measurements in mm"]
        if regions:
            return _believed(header, [10 * delta for delta in regions[0]])
        for name in ("PixelSpacing", "NominalScannedPixelSpacing"):
            if spacing := floats(value_of(header, frame, "PixelMeasuresSequence", name)):
                return _believed(header, spacing)
        if floats(value_of(header, frame, "PixelMeasuresSequence", "ImagerPixelSpacing")):
            return None, ["pixel spacing is that of the detector: no measurements in mm"]
        return None, [NO_SPACING] if unstated else []
    except Unreadable:
        return None, [NO_SPACING]


def _region_spacings(header: Any) -> tuple[list[tuple[float, float]], bool]:
    """Centimetres between rows and between columns of the ultrasound regions that state a scale of an image.

    A region of other units, such as of a Doppler spectrum, has no such scale. Nor has one whose delta is 0 or no
    number, which some devices write where they know none: the second value says whether there is such a region.
    """
    regions = value_of(header, 0, "", "SequenceOfUltrasoundRegions") or []
    try:
        stated = [
            (abs(float(region.get("PhysicalDeltaY") or 0)), abs(float(region.get("PhysicalDeltaX") or 0)))
            for region in regions
            if region.get("PhysicalUnitsXDirection") == region.get("PhysicalUnitsYDirection") == CENTIMETRES
        ]
    except Exception:
        raise Unreadable("SequenceOfUltrasoundRegions") from None
    scales = [sides for sides in stated if all(0 < delta < math.inf for delta in sides)]
    return scales, len(scales) < len(stated)


def _believed(header: Any, spacing: list[float]) -> tuple[tuple[float, float] | None, list[str]]:
    if len(spacing) != 2 or not all(math.isfinite(part) and part > 0 for part in spacing):
        return None, [NO_SPACING]
    note = implausible(spacing, (whole_of(header, "Rows") or 0, whole_of(header, "Columns") or 0))
    return (None, [note]) if note else ((spacing[0], spacing[1]), [])


def geometry_of(header: Any, frame: int) -> SliceGeometry | None:
    """Position of a frame; None if the file states no series.

    The frames of one file are one volume, and so are the files of one series. A file without a position, such as most
    ultrasound, is a volume by itself.
    """
    series = text_of(header, "SeriesInstanceUID")
    if not series:
        return None
    vectors = position_of(header, frame)
    if vectors is None or frames_of(header) > 1:
        series = f"{series}/{text_of(header, 'SOPInstanceUID')}"
    if vectors is None:
        return SliceGeometry(digest(series))
    position, orientation = vectors
    return slice_geometry(series, position, orientation[:3], orientation[3:])


def position_of(header: Any, frame: int) -> tuple[list[float], list[float]] | None:
    """ImagePositionPatient and ImageOrientationPatient of a frame; None unless both are stated in finite numbers."""
    try:
        position = floats(value_of(header, frame, "PlanePositionSequence", "ImagePositionPatient"))
        orientation = floats(value_of(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient"))
    except Unreadable:
        return None
    valid = len(position) == 3 and len(orientation) == 6 and all(map(math.isfinite, position + orientation))
    return (position, orientation) if valid else None


def position_notes(header: Any, frame: int) -> list[str]:
    """A note if the position of a frame is stated, but cannot be read."""
    for sequence, name, count in (
        ("PlanePositionSequence", "ImagePositionPatient", 3),
        ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
    ):
        try:
            values = floats(value_of(header, frame, sequence, name))
        except Unreadable:
            values = [math.nan]
        if values and not (len(values) == count and all(map(math.isfinite, values))):
            return ["its position cannot be read: it has no place in a volume"]
    return []


def aspect_of(header: Any) -> float | None:
    """Height over width of a pixel by elements that say nothing about its size on the patient; None if unknown."""
    for name in ("PixelAspectRatio", "ImagerPixelSpacing"):
        with contextlib.suppress(Exception):  # damaged: pydicom converts values when they are first used
            height, width = floats(header.get(name))
            if 0 < height < math.inf and 0 < width < math.inf:
                return height / width
    return None
