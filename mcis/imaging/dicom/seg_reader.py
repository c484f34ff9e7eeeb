"""Read masks of scans from DICOM SEG. No JAX.

A mask belongs to a scan by the identifiers that it refers to, not by its name alone. What does not fit is an error, so
that no mask comes to lie on another picture.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcis import MAX_PIXELS
from mcis.imaging.dicom import file as dicom_file
from mcis.imaging.dicom.file import EXPLICIT, IMPLICIT, DicomFile, safe_errors
from mcis.imaging.dicom.header import position_of, read_header
from mcis.imaging.scan import MAX_FRAMES, ScanError

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of DICOM SEG: binary and fractional; label maps."""
SEG_TAGS = (
    *("SOPClassUID", "SegmentationType", "MaximumFractionalValue", "SourceImageSequence", "ReferencedSeriesSequence"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "ImagePositionPatient", "ImageOrientationPatient"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
NEAR_MM = 0.5
"""Largest distance of the first pixels of a mask and its scan."""
NEAR = 0.02
"""Largest difference of their directions."""


Place = tuple[list[float], list[float]]
"""ImagePositionPatient and ImageOrientationPatient."""


@dataclasses.dataclass(frozen=True)
class StoredFrames:
    """Where the frames of a DICOM SEG are.

    Attributes:
      path: the file.
      offset: where the first frame begins, bytes.
      bits: of a pixel: 1, 8 or 16.
      size: rows and columns.
      least: smallest value that is lesion: of a fractional segmentation, half of the largest value.
    """

    path: str
    offset: int
    bits: int
    size: tuple[int, int]
    least: int


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """What a DICOM SEG refers to.

    Attributes:
      pixels: where its frames are.
      frames: SOPInstanceUID of a scan -> its frame, from 0; None where the file names no frame -> the frames of the SEG
        that outline something in it. A scan of which nothing is outlined has no frames.
      places: position and orientation of each frame of the SEG, as far as stated.
    """

    pixels: StoredFrames
    frames: Mapping[str, Mapping[int | None, tuple[int, ...]]]
    places: tuple[Place | None, ...]

    def of(self, instance: str, frame: int) -> tuple[int, ...]:
        """The frames of the SEG that outline something in a frame of a scan."""
        found = self.frames.get(instance, {})
        return (*found.get(frame, ()), *found.get(None, ()))


def is_segmentation(path: str | os.PathLike) -> bool:
    """Whether a file is a DICOM SEG."""
    try:
        return str(read_header(path, ("SOPClassUID",)).get("SOPClassUID")) in SEGMENTATIONS
    except (ScanError, OSError):
        return False


def read_segmentation(path: str | os.PathLike) -> Segmentation:
    """What a DICOM SEG refers to, without its pixels.

    Raises:
      ScanError: it cannot be read, is compressed, or does not say what its frames outline.
    """
    file = dicom_file.read(path, SEG_TAGS)
    header = file.header
    with safe_errors(path):
        frames: dict[str, dict[int | None, tuple[int, ...]]] = {}
        for series in header.get("ReferencedSeriesSequence") or []:
            for item in series.get("ReferencedInstanceSequence") or []:
                frames.setdefault(str(item.get("ReferencedSOPInstanceUID")), {})
        for item in header.get("SourceImageSequence") or []:
            frames.setdefault(str(item.get("ReferencedSOPInstanceUID")), {})
        groups = header.get("PerFrameFunctionalGroupsSequence") or []
        if len(groups) > 16 * MAX_FRAMES:
            raise ScanError(f"{path}: a segmentation of {len(groups)} frames, which is too many; split it")
        places = []
        for number, group in enumerate(groups):
            places.append(position_of(header, number))
            for source in _sources(group):
                instance = frames.setdefault(str(source.get("ReferencedSOPInstanceUID")), {})
                named = source.get("ReferencedFrameNumber")
                numbers = [None] if named is None else [int(one) - 1 for one in _several(named)]
                for frame in numbers:
                    instance[frame] = (*instance.get(frame, ()), number)
        if not any(frames.values()) and len(frames) == 1 and groups:  # it names the one scan alone, frame by frame
            (instance,) = frames.values()
            instance.update({number: (number,) for number in range(len(groups))})
        if not frames or (groups and not any(frames.values())):
            raise ScanError(f"{path}: a DICOM SEG that does not say which scan each frame outlines")
        return Segmentation(_stored_frames(file), frames, tuple(places))


def _stored_frames(file: DicomFile) -> StoredFrames:
    header, name, bits = file.header, os.path.basename(file.path), int(file.header.BitsAllocated)
    if file.content is not None:
        raise ScanError(f"mask {name} is packed; unpack it, with `gunzip` or, where it is deflated, `dcmconv +te`")
    if file.syntax not in (IMPLICIT, EXPLICIT) or file.pixels is None:
        raise ScanError(f"mask {name} is compressed; save it uncompressed, with `gdcmconv --raw` for example")
    if bits not in (1, 8, 16) or int(header.get("SamplesPerPixel") or 1) != 1:
        raise ScanError(f"mask {name} has {bits} bits per pixel; one value of 1, 8 or 16 bits is read")
    if int(header.Rows) * int(header.Columns) > MAX_PIXELS:
        raise ScanError(f"mask {name} has {header.Columns} x {header.Rows} pixels; at most {MAX_PIXELS} are read")
    least = 1
    if header.get("SegmentationType") == "FRACTIONAL":
        least = max(1, (int(header.get("MaximumFractionalValue") or 255) + 1) // 2)
    return StoredFrames(file.path, file.pixels.offset, bits, (int(header.Rows), int(header.Columns)), least)


def _sources(group: Any) -> list[Any]:
    """The references of a frame of a SEG to frames of scans."""
    derivations = group.get("DerivationImageSequence") or []
    return [source for item in derivations for source in item.get("SourceImageSequence") or []]


def _several(value: Any) -> list[Any]:
    return list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else [value]


def is_misplaced(segmentation: Segmentation, numbers: Sequence[int], place: Place | None) -> bool:
    """Whether frames of a SEG lie elsewhere than the frame of the scan that they refer to, where both say."""
    for number in numbers:
        own = segmentation.places[number]
        if own is None or place is None:
            continue
        if (
            np.linalg.norm(np.subtract(own[0], place[0])) > NEAR_MM
            or np.abs(np.subtract(own[1], place[1])).max() > NEAR
        ):
            return True
    return False


def segmentation_mask(pixels: StoredFrames, numbers: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The union of some frames of a DICOM SEG: uint8 {0,1} (H, W, 1), of all segments; empty where there are none.

    Raises:
      ScanError: it is truncated, or of another size than the scan, `size` = (H, W).
    """
    name, union = os.path.basename(pixels.path), np.zeros((*size, 1), np.uint8)
    if pixels.size != size:
        height, width = pixels.size
        raise ScanError(f"mask {name} is {width} x {height} pixels, its scan {size[1]} x {size[0]}; they must be equal")
    count = size[0] * size[1]
    with open(pixels.path, "rb") as file:
        for number in numbers:  # pydicom cannot read a frame of single bits that begins within a byte
            first, last = number * count * pixels.bits, (number + 1) * count * pixels.bits
            file.seek(pixels.offset + first // 8)
            data = np.frombuffer(file.read(-(-last // 8) - first // 8), np.uint8)
            if data.size < -(-last // 8) - first // 8:
                raise ScanError(f"mask {name} is truncated")
            if pixels.bits == 1:
                values = np.unpackbits(data, bitorder="little")[first % 8 :][:count]
            else:
                values = data.view(f"<u{pixels.bits // 8}")
            union |= (values >= pixels.least).astype(np.uint8).reshape(*size, 1)
    return union
