"""Which DICOM objects are no scans."""

import numpy as np
import pytest
from pydicom.uid import UID_dictionary

from mcis.imaging import scan
from mcis.imaging.dicom import objects, reader
from mcis.imaging.modality import STORAGE
from tests.fixtures.dicom_files import write

RAMP = np.arange(200).reshape(10, 20).astype(np.uint16)


@pytest.mark.parametrize(
    ("sop_class", "kind", "message"),
    [
        ("66.4", "SEG", "by its SOP class a segmentation, which outlines parts of other scans; give the scans"),
        ("66.7", "SEG", "a segmentation"),
        ("11.1", "PR", "a presentation state"),
        ("88.33", "SR", "a structured report"),
        ("88.59", "KO", "a selection of other scans"),
        ("481.3", "RTSTRUCT", "structures drawn"),
        ("481.2", "RTDOSE", "a radiation dose"),
        ("104.1", "DOC", "a document"),
        ("66", "RAW", "raw data of a device"),
        ("4.2", "SPECTRA", "spectra"),
        ("9.1.1", "ECG", "an electrocardiogram"),
        ("9.5.1", "CURVE", "curves"),
    ],
)
def test_the_sop_class_of_an_object_that_is_no_scan_decides_over_its_modality(sop_class, kind, message, tmp_path):
    for modality in ("MR", "OT", None):
        path = tmp_path / f"{modality}.dcm"
        write(path, RAMP, Modality=modality, SOPClassUID=f"{STORAGE}{sop_class}")
        assert reader.survey(path) == (1, kind)
        with pytest.raises(scan.ScanError, match=message):
            reader.read(path)


@pytest.mark.parametrize("sop_class", ["4", "4.1", "6.1", "7", "30", "481.1", "77.1.4", "66123", "", "x.y"])
def test_other_sop_classes_hold_scans(sop_class, tmp_path):
    write(tmp_path / "a.dcm", RAMP, SOPClassUID=f"{STORAGE}{sop_class}" if sop_class else None)
    assert reader.survey(tmp_path / "a.dcm").other is None
    assert reader.read(tmp_path / "a.dcm").image.shape == (*RAMP.shape, 3)


def test_every_storage_class_without_images_is_known_as_no_scan():
    kinds = {*objects.NO_SCANS, *objects.OTHERS, objects.IMAGE}
    assert set(objects.CLASSES.values()) == kinds - {"PLAN"}
    for uid, (name, kind, *_) in UID_dictionary.items():
        if kind != "SOP Class" or not uid.startswith(STORAGE) or "Storage" not in name or "DICOS" in name:
            continue
        found = objects.kind_of({"SOPClassUID": uid})
        pictures = "Image" in name or name in ("Parametric Map Storage", "Enhanced US Volume Storage")
        pictures |= "Map Storage" in name or "B-scan" in name or "Eddy" in name or "Photoacoustic" in name
        assert (found is None) == pictures or "Segmentation" in name, name
