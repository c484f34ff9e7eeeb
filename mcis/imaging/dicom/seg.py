"""Write masks as DICOM SEG that refers to the images they outline. No JAX; highdicom comes with the extra `dicom`.

highdicom receives one single-frame image per mask, made here of only what a SEG has to state. So it cannot copy other
elements of a source's header, and one multi-frame file, a series of files, and images without a position are all
handled alike. Afterwards, references to these images are replaced by references to the sources.
"""

import datetime
import hashlib
import io
import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import mcis
from mcis.imaging.dicom.header import position_of, read_header, spacing_of, value_of
from mcis.imaging.scan import ScanError
from mcis.organs import organ_named

MAX_PIXELS = 1 << 29
"""Pixels of all masks of a file together, one byte each in memory."""
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
"""Elements on patient and study that every DICOM file must have; empty unless the caller asks for them."""
SERIES = "mcis lesions: research only, not a medical device"
"""Description of the series, at most 64 characters."""


class _Slice(NamedTuple):
    """A mask, its source's path and header, and its frame in that source."""

    path: str | os.PathLike
    header: Any
    frame: int
    mask: np.ndarray


def encode(
    sources: Sequence[str | os.PathLike],
    masks: Sequence[np.ndarray],
    *,
    frames: Sequence[int] | None = None,
    organ: str,
    named: bool = False,
    made: datetime.datetime | None = None,
) -> bytes:
    """A DICOM SEG file: binary, lossless, one segment, one frame per mask, ordered by position.

    Each frame states its own position. Readers that assume an even grid, such as ITK, misplace frames of unevenly
    spaced sources.

    The file belongs to the study of its sources and refers to them by UID, so whoever has the sources can identify the
    patient, `named` or not. Its own UIDs are derived from its content: equal masks give equal files but for the time.

    Args:
      sources: one file per mask, all of one series, in any order; or one file that all masks belong to.
      masks: uint8 {0,1} (H, W), of the size of their sources; all 0 where nothing was found.
      frames: frame of each mask in its source, from 0; None if every source has one frame, or the one source has one
        mask for each frame.
      organ: a name in `organs.ORGANS`.
      named: copy the patient's name, ID, birth date and sex, and the study's numbers, date and referring physician from
        the first source. Otherwise they are not read and stay empty.
      made: time of creation; None = now.

    Raises:
      ScanError: a source is no readable DICOM file; the sources differ in series, size or orientation; two have the
        same position; or the extra is not installed.
      ValueError: the numbers of masks, sources and frames differ, or a mask or the organ is invalid.
    """
    organ_named(organ)
    masks = [np.asarray(mask) for mask in masks]
    if not masks or any(mask.ndim != 2 or mask.dtype != np.uint8 or mask.max(initial=0) > 1 for mask in masks):
        raise ValueError("at least one mask is needed, each uint8 {0,1} of shape (H, W)")
    if sum(mask.size for mask in masks) > MAX_PIXELS:
        raise ScanError(f"{sources[0]}: {len(masks)} masks with more than {MAX_PIXELS} pixels in all")
    tags = (*SOURCE, *GEOMETRY, *LOSSY, *(PERSON if named else ()))
    headers = {os.fspath(path): read_header(path, tags) for path in dict.fromkeys(sources)}
    if frames is None:
        multi_frame = len(sources) == 1 and int(headers[os.fspath(sources[0])].get("NumberOfFrames") or 1) > 1
        frames = range(len(masks)) if multi_frame else [0] * len(masks)
    if len(sources) == 1:
        sources = [sources[0]] * len(masks)
    if not len(sources) == len(masks) == len(frames):
        raise ValueError(f"{len(masks)} masks, {len(sources)} sources, {len(frames)} frames: the numbers must be equal")
    slices = [
        _Slice(path, headers[os.fspath(path)], frame, mask)
        for path, frame, mask in zip(sources, frames, masks, strict=True)
    ]
    made = datetime.datetime.now(datetime.UTC) if made is None else made.astimezone(datetime.UTC)
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)  # its log quotes values
    try:
        _check(slices)
        return _encode(slices, organ, named, made)
    except ScanError:
        raise
    except ImportError:
        raise ScanError(f"{sources[0]}: DICOM SEG needs the extra `dicom`: pip install -e '.[dicom]'") from None
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        reason = f"no DICOM SEG can be made for it ({type(error).__name__})"
        raise ScanError(f"{sources[0]}: {reason}") from None  # the original message may quote the header


def _check(slices: Sequence[_Slice]) -> None:
    """Raise ScanError unless all sources are of one series and size and have their frames."""
    first = slices[0]
    for path, header, frame, mask in slices:
        if not all(header.get(name) for name in SOURCE[:4]):
            raise ScanError(f"{path}: lacks a UID that a DICOM SEG has to refer to")
        if any(header.get(name) != first.header.get(name) for name in SOURCE[2:]):
            raise ScanError(f"{path}: of another series than {first.path}; a DICOM SEG covers one series")
        if not mask.shape == (header.get("Rows"), header.get("Columns")) == first.mask.shape:
            size, first_size = (" x ".join(map(str, shape)) for shape in (mask.shape, first.mask.shape))
            raise ScanError(f"{path}: its mask is {size}; it must be as large as its image and the first, {first_size}")
        if not 0 <= frame < int(header.get("NumberOfFrames") or 1):
            raise ScanError(f"{path}: has no frame {frame}")


def _images(slices: Sequence[_Slice]) -> tuple[list, bool]:
    """A single-frame image for each mask, numbered by its SOPInstanceUID; and whether the images have positions."""
    from pydicom.dataset import Dataset
    from pydicom.uid import MRImageStorage
    from pydicom.valuerep import format_number_as_ds

    first = slices[0]
    positions = [pair for one in slices if (pair := position_of(one.header, one.frame)) is not None]
    spacings = [spacing_of(one.header, one.frame)[0] for one in slices]
    placed = bool(first.header.get("FrameOfReferenceUID")) and len(positions) == len(slices) and None not in spacings
    if not placed:  # highdicom needs a position; `_set_positions` removes it
        positions = [([0.0, 0.0, -index], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]) for index in range(len(slices))]
    spacing, orientation = spacings[0] or (1.0, 1.0), positions[0][1]
    path_at: dict[tuple, str | os.PathLike] = {}
    images = []
    for index, (one, (position, directions)) in enumerate(zip(slices, positions, strict=True)):
        other = path_at.setdefault(tuple(position), one.path)
        if len(path_at) <= index:
            raise ScanError(f"{one.path}: has the position of {other}; a DICOM SEG has one mask for each position")
        if not np.allclose(directions, orientation, atol=1e-3):
            raise ScanError(f"{one.path}: not parallel to {first.path}; a DICOM SEG has one orientation")
        if not np.allclose(spacings[index] or (1.0, 1.0), spacing, rtol=1e-3):
            raise ScanError(f"{one.path}: has another pixel spacing than {first.path}")
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID, image.Modality = MRImageStorage, f"1.{index}", "MR"
        for name in SOURCE[2:]:
            setattr(image, name, one.header.get(name) or "1.0")
        for name in PERSON:
            setattr(image, name, "")
        for name in LOSSY:
            if name in first.header:
                setattr(image, name, first.header[name].value)
        image.Rows, image.Columns = one.header.Rows, one.header.Columns
        image.ImagePositionPatient = [format_number_as_ds(float(value)) for value in position]
        image.ImageOrientationPatient = [format_number_as_ds(float(value)) for value in orientation]
        image.PixelSpacing = [format_number_as_ds(float(value)) for value in spacing]
        image.SliceThickness = _thickness(first.header) or 1.0
        images.append(image)
    return images, placed


def _thickness(header: Any) -> float | None:
    value = value_of(header, 0, "PixelMeasuresSequence", "SliceThickness")
    return float(value) if value else None


def _encode(slices: Sequence[_Slice], organ: str, named: bool, made: datetime.datetime) -> bytes:
    import highdicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    images, placed = _images(slices)
    stack, first = np.stack([one.mask for one in slices]), slices[0].header
    content = hashlib.sha256(np.packbits(stack).tobytes()).hexdigest()
    seed = [f"{one.header.SOPInstanceUID}/{one.frame}" for one in slices]
    seed += [organ, str(named), mcis.__version__, str(stack.shape), content]
    seg = highdicom.seg.Segmentation(
        images,
        stack,
        "BINARY",
        [_segment(organ)],
        series_instance_uid=generate_uid(entropy_srcs=[*seed, "series"]),
        series_number=900,
        sop_instance_uid=generate_uid(entropy_srcs=seed),
        instance_number=1,
        manufacturer="mcis",
        manufacturer_model_name="mcis",
        software_versions=mcis.__version__,
        device_serial_number="none",
        content_label="LESIONS",
        content_description=SERIES,
        series_description=SERIES,
        specific_character_set=(first.get("SpecificCharacterSet") or None) if named else None,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=False,
        content_date=made.date(),
        content_time=made.time(),
    )
    seg.InstanceCreationDate, seg.InstanceCreationTime = seg.ContentDate, seg.ContentTime
    seg.ContributingEquipmentSequence[0]["ContributionDateTime"].value = made.strftime("%Y%m%d%H%M%S.%f")
    seg.TimezoneOffsetFromUTC = "+0000"
    for name in PERSON if named else ():
        setattr(seg, name, first.get(name) or "")
    _refer_to_sources(seg, slices)
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = generate_uid(entropy_srcs=[*seed, "dimensions"])
    _set_positions(seg, placed, _thickness(first))
    data = io.BytesIO()
    seg.save_as(data, enforce_file_format=True)
    return data.getvalue()


def _segment(organ: str) -> Any:
    import highdicom
    from pydicom.sr.coding import Code

    (kind, meaning), region = organ_named(organ).outlined, organ_named(organ).region
    family = Code("123110", "DCM", "Artificial Intelligence")
    segment = highdicom.seg.SegmentDescription(
        1,
        f"{organ} lesions",
        Code("49755003", "SCT", "Morphologically Abnormal Structure"),
        Code(kind, "SCT", meaning),
        "AUTOMATIC",
        highdicom.AlgorithmIdentificationSequence("mcis", family, mcis.__version__, source="mcis"),
        anatomic_regions=[Code(region[0], "SCT", region[1])],
    )
    segment.SegmentDescription = mcis.NOTICE
    return segment


def _refer_to_sources(seg: Any, slices: Sequence[_Slice]) -> None:
    """Replace references to the single-frame images by references to the sources."""
    from pydicom.dataset import Dataset

    instances = {}
    for one in slices:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = one.header.SOPClassUID, one.header.SOPInstanceUID
        instances[one.header.SOPInstanceUID] = item
    seg.SourceImageSequence = list(instances.values())
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = list(instances.values())
    for group in seg.PerFrameFunctionalGroupsSequence:
        (item,) = group.DerivationImageSequence[0].SourceImageSequence
        _, header, frame, _ = slices[int(item.ReferencedSOPInstanceUID.split(".")[1])]
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        if int(header.get("NumberOfFrames") or 1) > 1:
            item.ReferencedFrameNumber = frame + 1


def _set_positions(seg: Any, placed: bool, thickness: float | None) -> None:
    """Correct the slice thickness; without positions, number the frames in the order of the masks."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    (measures,) = shared.PixelMeasuresSequence
    if len(seg.PerFrameFunctionalGroupsSequence) == 1:
        measures.pop("SpacingBetweenSlices", None)  # invented by highdicom
    if placed:
        if thickness is None and "SpacingBetweenSlices" in measures:
            measures.SliceThickness = measures.SpacingBetweenSlices  # many readers need a thickness
        elif thickness is None:
            del measures.SliceThickness
        return
    for name in ("FrameOfReferenceUID", "PositionReferenceIndicator", "DimensionOrganizationType"):
        if name in seg:
            delattr(seg, name)
    seg.PatientOrientation = ""  # type 2C
    del shared.PlaneOrientationSequence
    del shared.PixelMeasuresSequence  # it requires a thickness, which is unknown without positions
    *_, dimension = seg.DimensionIndexSequence
    dimension.DimensionIndexPointer, dimension.FunctionalGroupPointer = 0x00209057, 0x00209111
    dimension.DimensionDescriptionLabel = "In-Stack Position Number"
    for number, group in enumerate(seg.PerFrameFunctionalGroupsSequence, 1):
        del group.PlanePositionSequence
        group.FrameContentSequence[0].StackID = "1"
        group.FrameContentSequence[0].InStackPositionNumber = number
