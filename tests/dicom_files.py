"""DICOM files of phantoms, for tests: every identifier in their headers is the canary."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)

CANARY = "CANARY^ZEPHYRINE"
"""Whom they are of; nothing that mcis writes may hold any part of it."""


def dataset(pixels, **changes):
    """A file's Dataset of pixels, integers (H, W), (H, W, 3), or (F, H, W) with NumberOfFrames; None leaves one out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UltrasoundImageStorage if changes.get("Modality") == "US" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    found = Dataset()
    found.file_meta = meta
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.StudyInstanceUID, found.SeriesInstanceUID, found.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    found.PatientName = found.OtherPatientNames = found.ReferringPhysicianName = CANARY
    for name in ("PatientID", "AccessionNumber", "InstitutionName", "StudyDescription", "SeriesDescription", "StudyID"):
        setattr(found, name, CANARY[:16])
    found.PatientComments, found.Modality = CANARY, "MR"
    found.PatientBirthDate, found.PatientSex, found.StudyDate, found.StudyTime = "19000101", "F", "20200101", "120000"
    found.SeriesNumber = found.InstanceNumber = 1
    block = found.private_block(0x0011, "CANARY", create=True)
    block.add_new(0x01, "LO", CANARY)
    coloured = pixels.ndim == 3 and pixels.shape[-1] == 3 and "NumberOfFrames" not in changes
    found.SamplesPerPixel = 3 if coloured else 1
    found.PhotometricInterpretation = "RGB" if coloured else "MONOCHROME2"
    if coloured:
        found.PlanarConfiguration = 0
    found.Rows, found.Columns = pixels.shape[:2] if coloured else pixels.shape[-2:]
    found.BitsAllocated = found.BitsStored = 8 * pixels.itemsize
    found.HighBit, found.PixelRepresentation = found.BitsStored - 1, int(pixels.dtype.kind == "i")
    found.PixelData = np.ascontiguousarray(pixels).tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in changes.items():
        if value is not None:
            setattr(found, name, value)
        elif name in found:
            delattr(found, name)
    return found


def write(path, pixels, **changes):
    """Such a file. Returns its Dataset."""
    found = dataset(pixels, **changes)
    found.save_as(path, enforce_file_format=True)
    return found


def items(**values):
    """A sequence of one item."""
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return [item]


OBLIQUE = np.array([[0.8, -0.48, 0.36], [0.6, 0.64, -0.48], [0.0, 0.6, 0.8]])
"""Columns: the directions of a slice's rows, of its columns, and its normal."""
ORIGIN = np.array([-50.0, 20.0, 7.0])


def write_series(folder, images, spacing=(0.5, 0.75), step=2.5, order=None, axes=OBLIQUE, **changes):
    """A series of single-frame files, oblique and anisotropic. Returns their paths, in order along the normal.

    Files are named so that their order by name is `order`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uids = {f"{name}UID": generate_uid() for name in ("SeriesInstance", "StudyInstance", "FrameOfReference")}
    names = np.argsort(range(len(images)) if order is None else order)
    paths = []
    for index, image in enumerate(images):
        paths.append(folder / f"IM{names[index]:04}.dcm")
        position = ORIGIN + axes[:, 2] * step * index
        fields = {
            "ImagePositionPatient": [f"{value:.6f}" for value in position],
            "PixelSpacing": list(map(str, spacing)),
        }
        fields |= {
            "ImageOrientationPatient": [f"{value:.6f}" for value in axes[:, :2].T.ravel()],
            "SliceThickness": "4",
        }
        write(paths[-1], image, **{**uids, **fields, **changes})
    return paths


def enhanced(images, spacing=(0.5, 0.75), step=2.5, axes=OBLIQUE, **changes):
    """A multi-frame file's Dataset of images (F, H, W), placed as `write_series` does, by functional groups."""
    orientation = items(ImageOrientationPatient=[f"{value:.6f}" for value in axes[:, :2].T.ravel()])
    measures = items(PixelSpacing=list(map(str, spacing)), SliceThickness="4")
    frames = []
    for index in range(len(images)):
        position = [f"{value:.6f}" for value in ORIGIN + axes[:, 2] * step * index]
        frames += items(PlanePositionSequence=items(ImagePositionPatient=position))
    shared = items(PlaneOrientationSequence=orientation, PixelMeasuresSequence=measures)
    fields = {"SharedFunctionalGroupsSequence": shared, "PerFrameFunctionalGroupsSequence": frames}
    fields |= {"SOPClassUID": EnhancedMRImageStorage, "NumberOfFrames": len(images)}
    found = dataset(np.stack(images), **{**fields, **changes})
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID
    return found


def ultrasound(frames, **changes):
    """A multi-frame ultrasound's Dataset of frames (F, H, W) without a place in space."""
    fields = {"Modality": "US", "SOPClassUID": UltrasoundMultiFrameImageStorage, "FrameOfReferenceUID": None}
    found = dataset(np.stack(frames), **{**fields, "NumberOfFrames": len(frames), **changes})
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID
    return found
