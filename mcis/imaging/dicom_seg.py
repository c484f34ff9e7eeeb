"""Masks as DICOM SEG, beside the pictures they were found on. No JAX; highdicom comes with the extra `dicom`.

highdicom is handed a picture of one frame for every mask, made here of no more than what a SEG has to say of it: so it
has nothing of a source's header to copy, and a file of frames, a series of files and pictures without a place in space
are all one to it. What refers to these pictures is then made to refer to the sources.
"""

import datetime
import hashlib
import io
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

import mcis
from mcis.imaging import dicom
from mcis.imaging.scan import ScanError
from mcis.organs import organ_named

MAX_PIXELS = 1 << 29
"""Of all masks of a file together; that many bytes are held."""
SOURCE = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
GEOMETRY = (
    *("Modality", "Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "SliceThickness"),
    *("SequenceOfUltrasoundRegions", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
PERSON = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
"""What every DICOM file has to have of patient and study, if empty; filled in only where it is asked for."""
SERIES = "mcis lesions: research only, not a medical device"
"""The series' description, of at most 64 characters."""


def encode(
    sources: Sequence[str | os.PathLike],
    masks: Sequence[np.ndarray],
    *,
    frames: Sequence[int] | None = None,
    organ: str,
    named: bool = False,
    made: datetime.datetime | None = None,
) -> bytes:
    """A DICOM SEG file of masks: binary, lossless, one segment, a frame a mask, in order of their positions.

    A frame says itself where it lies. Readers that take the frames for an even grid, as ITK does, misplace them where
    the sources are unevenly spaced.

    It belongs to the study of its sources and refers to them by their UIDs, without which nobody could tell what it
    outlines: who has the sources, or an archive of them, finds the patient by it, whether `named` or not. Its own UIDs
    follow from its content, so that the same masks make the same file but for the moment of its making.

    Args:
      sources: files of one series, one a mask, in any order; or one file, of which the masks are of `frames`.
      masks: uint8 {0,1} (H, W), pixel by pixel those of their sources; all zero where nothing was found.
      frames: numbers of the masks' frames in one multi-frame file, from 0; None where each source is of one frame, or
        where there is a mask for every frame.
      organ: what they are of, a name of `organs.ORGANS`.
      named: whether the patient's name, number, birth date and sex, and the study's numbers, date and referring
        physician are those of the first source. Otherwise they are empty, and are not read.
      made: the moment of its making; None = now.

    Returns:
      the bytes of a file.

    Raises:
      ScanError: a source is no DICOM file that can be read, they are not of one series, size and direction, two lie in
        one place, or the extra is not installed.
      ValueError: masks, sources and frames are not as many, a mask is not as said, or there is no such organ.
    """
    organ_named(organ)
    masks = [np.asarray(mask) for mask in masks]
    if not masks or any(mask.ndim != 2 or mask.dtype != np.uint8 or mask.max(initial=0) > 1 for mask in masks):
        raise ValueError("masks of uint8 {0,1}, (H, W), are needed, one at least")
    if sum(mask.size for mask in masks) > MAX_PIXELS:
        raise ScanError(f"{sources[0]}: {len(masks)} masks of more than {MAX_PIXELS} pixels in all")
    tags = (*SOURCE, *GEOMETRY, *LOSSY, *(PERSON if named else ()))
    read = {os.fspath(path): dicom.header(path, tags) for path in dict.fromkeys(sources)}
    headers = [read[os.fspath(path)] for path in sources]
    if frames is None:
        several = len(sources) == 1 and int(headers[0].get("NumberOfFrames") or 1) > 1
        frames = range(len(masks)) if several else [0] * len(masks)
    if len(sources) == 1 and len(masks) > 1:
        sources, headers = [sources[0]] * len(masks), headers * len(masks)
    if not len(sources) == len(masks) == len(frames):
        raise ValueError(
            f"{len(masks)} masks of {len(sources)} sources and {len(frames)} frames; one of each is needed"
        )
    made = datetime.datetime.now(datetime.UTC) if made is None else made.astimezone(datetime.UTC)
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)  # it quotes odd values
    try:
        _check(sources, headers, masks, frames)
        return _written(sources, headers, masks, frames, organ, named, made)
    except ScanError:
        raise
    except ImportError:
        raise ScanError(
            f"{sources[0]}: DICOM SEG is written where its extra is installed: pip install -e '.[dicom]'"
        ) from None
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        wrong = f"no DICOM SEG can be made for it ({type(error).__name__})"
        raise ScanError(f"{sources[0]}: {wrong}") from None  # whose words may quote the header


def _check(
    sources: Sequence[str | os.PathLike], headers: Sequence[Any], masks: Sequence[np.ndarray], frames: Sequence[int]
) -> None:
    """ScanError where sources are not of one series and size, or have no such frames."""
    for path, header, mask, frame in zip(sources, headers, masks, frames, strict=True):
        if not all(header.get(name) for name in SOURCE[:4]):
            raise ScanError(f"{path}: lacks a UID that a DICOM SEG has to refer to")
        if any(header.get(name) != headers[0].get(name) for name in SOURCE[2:]):
            raise ScanError(f"{path}: of another series than {sources[0]}; a DICOM SEG is of one")
        if not mask.shape == (header.get("Rows"), header.get("Columns")) == masks[0].shape:
            sizes = " x ".join(map(str, mask.shape)), " x ".join(map(str, masks[0].shape))
            raise ScanError(
                f"{path}: its mask is {sizes[0]}; all must be of its size and that of the first, {sizes[1]}"
            )
        if not 0 <= frame < int(header.get("NumberOfFrames") or 1):
            raise ScanError(f"{path}: has no frame {frame}")


def _planes(sources: Sequence[str | os.PathLike], headers: Sequence[Any], frames: Sequence[int]) -> tuple[list, bool]:
    """A picture of one frame for every mask, numbered by its SOPInstanceUID, and whether they have a place in space."""
    from pydicom.dataset import Dataset
    from pydicom.uid import MRImageStorage

    first = headers[0]
    each = list(zip(headers, frames, strict=True))
    lies = [where for header, frame in each if (where := dicom.position_of(header, frame)) is not None]
    spacings = [dicom.spacing_of(header, frame)[0] for header, frame in each]
    placed = bool(first.get("FrameOfReferenceUID")) and len(lies) == len(each) and None not in spacings
    if not placed:  # any place will do for highdicom; `_index` takes it away
        lies = [([0.0, 0.0, -index], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]) for index in range(len(each))]
    spacing, orientation = spacings[0] or (1.0, 1.0), lies[0][1]
    taken: dict[tuple, str | os.PathLike] = {}
    planes = []
    for index, (path, header, apart, (position, directions)) in enumerate(
        zip(sources, headers, spacings, lies, strict=True)
    ):
        other = taken.setdefault(tuple(position), path)
        if len(taken) <= index:
            raise ScanError(f"{path}: lies where {other} does; a DICOM SEG has one mask a place")
        if not np.allclose(directions, orientation, atol=1e-3):
            raise ScanError(f"{path}: not parallel to {sources[0]}; a DICOM SEG is of one direction")
        if not np.allclose(apart or (1.0, 1.0), spacing, rtol=1e-3):
            raise ScanError(f"{path}: its pixels are spaced otherwise than those of {sources[0]}")
        plane = Dataset()
        plane.SOPClassUID, plane.SOPInstanceUID = MRImageStorage, f"1.{index}"
        for name in SOURCE[2:]:
            setattr(plane, name, header.get(name) or "1.0")
        for name in PERSON:
            setattr(plane, name, "")
        for name in LOSSY:
            if name in first:
                setattr(plane, name, first[name].value)
        plane.Rows, plane.Columns, plane.Modality = header.Rows, header.Columns, "MR"
        plane.ImagePositionPatient, plane.ImageOrientationPatient = _decimals(position), _decimals(orientation)
        plane.PixelSpacing, plane.SliceThickness = _decimals(spacing), _thickness(first) or 1.0
        planes.append(plane)
    return planes, placed


def _decimals(values: Sequence[float]) -> list[str]:
    from pydicom.valuerep import format_number_as_ds

    return [format_number_as_ds(float(value)) for value in values]


def _thickness(header: Any) -> float | None:
    value = dicom.of_frame(header, 0, "PixelMeasuresSequence", "SliceThickness")
    return float(value) if value else None


def _written(
    sources: Sequence[str | os.PathLike],
    headers: Sequence[Any],
    masks: Sequence[np.ndarray],
    frames: Sequence[int],
    organ: str,
    named: bool,
    made: datetime.datetime,
) -> bytes:
    import highdicom
    from pydicom.uid import ExplicitVRLittleEndian

    planes, placed = _planes(sources, headers, frames)
    stack = np.stack(masks)
    seed = [header.SOPInstanceUID + f"/{frame}" for header, frame in zip(headers, frames, strict=True)]
    seed += [
        organ,
        str(named),
        mcis.__version__,
        str(stack.shape),
        hashlib.sha256(np.packbits(stack).tobytes()).hexdigest(),
    ]
    found = highdicom.seg.Segmentation(
        planes,
        stack,
        "BINARY",
        [_segment(organ)],
        series_instance_uid=_uid(*seed, "series"),
        series_number=900,
        sop_instance_uid=_uid(*seed),
        instance_number=1,
        manufacturer="mcis",
        manufacturer_model_name="mcis",
        software_versions=mcis.__version__,
        device_serial_number="none",
        content_label="LESIONS",
        content_description=SERIES,
        series_description=SERIES,
        specific_character_set=(headers[0].get("SpecificCharacterSet") or None) if named else None,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=False,
        content_date=made.date(),
        content_time=made.time(),
    )
    found.InstanceCreationDate, found.InstanceCreationTime = found.ContentDate, found.ContentTime
    found.ContributingEquipmentSequence[0]["ContributionDateTime"].value = made.strftime("%Y%m%d%H%M%S.%f")
    found.TimezoneOffsetFromUTC = "+0000"
    if named:
        for name in PERSON:
            setattr(found, name, headers[0].get(name) or "")
    _refer(found, headers, frames)
    _index(found, placed, _uid(*seed, "dimensions"), _thickness(headers[0]))
    data = io.BytesIO()
    found.save_as(data, enforce_file_format=True)
    return data.getvalue()


def _uid(*seed: str) -> str:
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=list(seed))


def _segment(organ: str) -> Any:
    import highdicom
    from pydicom.sr.coding import Code

    (kind, meaning), region = organ_named(organ).outlined, organ_named(organ).region
    family = Code("123110", "DCM", "Artificial Intelligence")
    algorithm = highdicom.AlgorithmIdentificationSequence("mcis", family, mcis.__version__, source="mcis")
    segment = highdicom.seg.SegmentDescription(
        1,
        f"{organ} lesions",
        Code("49755003", "SCT", "Morphologically Abnormal Structure"),
        Code(kind, "SCT", meaning),
        "AUTOMATIC",
        algorithm,
        anatomic_regions=[Code(region[0], "SCT", region[1])],
    )
    segment.SegmentDescription = mcis.NOTICE
    return segment


def _refer(found: Any, headers: Sequence[Any], frames: Sequence[int]) -> None:
    """Make what refers to the pictures of one frame refer to the sources."""
    from pydicom.dataset import Dataset

    instances = {}
    for header in headers:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        instances[header.SOPInstanceUID] = item
    found.SourceImageSequence = list(instances.values())
    found.ReferencedSeriesSequence[0].ReferencedInstanceSequence = list(instances.values())
    for group in found.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        index = int(source.ReferencedSOPInstanceUID.split(".")[1])
        header = headers[index]
        source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        if int(header.get("NumberOfFrames") or 1) > 1:
            source.ReferencedFrameNumber = frames[index] + 1


def _index(found: Any, placed: bool, uid: str, thickness: float | None) -> None:
    """Order the frames, under a UID of their content; without a place in space as they came."""
    for item in (*found.DimensionOrganizationSequence, *found.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
    shared = found.SharedFunctionalGroupsSequence[0]
    (measures,) = shared.PixelMeasuresSequence
    if len(found.PerFrameFunctionalGroupsSequence) == 1:
        measures.pop("SpacingBetweenSlices", None)  # highdicom's own
    if placed:
        if thickness is None and "SpacingBetweenSlices" in measures:
            measures.SliceThickness = measures.SpacingBetweenSlices  # readers, highdicom among them, want one
        elif thickness is None:
            del measures.SliceThickness
        return
    for name in ("FrameOfReferenceUID", "PositionReferenceIndicator", "DimensionOrganizationType"):
        if name in found:
            delattr(found, name)
    found.PatientOrientation = ""  # type 2C
    del shared.PlaneOrientationSequence
    del shared.PixelMeasuresSequence  # not without a thickness, and of what has no place that is nobody's to tell
    *_, position = found.DimensionIndexSequence
    position.DimensionIndexPointer, position.FunctionalGroupPointer = 0x00209057, 0x00209111  # number in its stack
    position.DimensionDescriptionLabel = "In-Stack Position Number"
    for number, group in enumerate(found.PerFrameFunctionalGroupsSequence, 1):
        del group.PlanePositionSequence
        group.FrameContentSequence[0].StackID = "1"
        group.FrameContentSequence[0].InStackPositionNumber = number
