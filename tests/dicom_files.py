"""DICOM files of phantoms, for tests: every identifier in their headers is the canary."""

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, UltrasoundImageStorage, generate_uid

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
        if value is None:
            delattr(found, name)
        else:
            setattr(found, name, value)
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
