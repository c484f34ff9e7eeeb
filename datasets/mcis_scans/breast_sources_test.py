"""BUS-UCLM and BrEaST; BUSI and BUS-BRA are read in `mcis_scans_dataset_builder_test.py`."""

import shutil

import cv2
import numpy as np
import pytest
from mcis_datasets.mcis_scans.brain_sources_test import DUMMY, read
from mcis_datasets.mcis_scans.dummy_data_generator import make_image, marker
from mcis_datasets.mcis_scans.remarks import OTHER_MASK


@pytest.fixture
def copy(tmp_path):
    def make(name):
        shutil.copytree(DUMMY / name, tmp_path / name)
        return tmp_path / name

    return make


def facts(item):
    return item.label, item.patient, item.has_mask, item.organ


def test_uclm_is_read_exactly():
    records, rejections = read("uclm")
    assert not rejections
    assert {name: facts(item) for name, item in records.items()} == {
        "ALWI_000": (1, "ALWI", True, "breast"),
        "ALWI_001": (0, "ALWI", True, "breast"),
        "CHVI_000": (2, "CHCO", True, "breast"),  # the same patient as the next
        "CHCO_003": (0, "CHCO", True, "breast"),
    }
    masks = (marker(2, 3, 9, 5), None, marker(4, 3, 9, 5), None)
    for k, (item, mask) in enumerate(zip(records.values(), masks, strict=True)):
        assert np.array_equal(item.image, np.repeat(make_image(120 + k)[..., None], 3, axis=2))
        assert np.array_equal(item.mask[..., 0] * 255, np.zeros((20, 28)) if mask is None else mask)


def test_a_mask_of_uclm_in_the_colour_of_another_class_is_rejected(copy):
    root = copy("uclm")
    masks = root / "BUS-UCLM" / "masks"
    shutil.copy(masks / "CHVI_000.png", masks / "ALWI_000.png")
    shutil.copy(masks / "CHVI_000.png", masks / "ALWI_001.png")
    records, rejections = read("uclm", root)
    assert list(records) == ["CHVI_000", "CHCO_003"]
    assert "labelled benign, yet its mask has the colour of malignant" in rejections["ALWI_000"]
    assert "labelled normal, yet its mask outlines a lesion" in rejections["ALWI_001"]


def test_bad_rows_and_files_of_uclm_are_rejected(copy):
    root = copy("uclm")
    base = root / "BUS-UCLM"
    info = (base / "INFO.csv").read_text(encoding="utf-8")
    (base / "INFO.csv").write_text(
        info.replace("Malignant", "Cyst") + "x1.png;28x20;Normal;No;No;No\n", encoding="utf-8"
    )
    for folder, name in (("images", "ZZZZ_000"), ("masks", "YYYY_000")):
        assert cv2.imwrite(str(base / folder / f"{name}.png"), make_image(1))
    (base / "masks" / "ALWI_000.png").unlink()
    records, rejections = read("uclm", root)
    assert list(records) == ["ALWI_001", "CHCO_003"]
    assert "Label 'Cyst'; the labels are normal, benign, malignant" in rejections["CHVI_000"]
    assert "four letters of a patient" in rejections["x1"]
    assert "no row in INFO.csv" in rejections["ZZZZ_000"]
    assert "a mask without its image" in rejections["masks/YYYY_000"]
    assert "no mask" in rejections["ALWI_000"]


def test_brest_is_read_exactly():
    records, rejections = read("brest")
    assert not rejections
    assert {name: facts(item) for name, item in records.items()} == {
        "case001": (1, "case001", True, "breast"),
        "case002": (2, "case002", True, "breast"),
        "case003": (0, "case003", True, "breast"),
    }
    masks = (marker(3, 2, 8, 5), marker(5, 6, 4, 9), np.zeros((20, 28)))  # without the outline of something else
    for k, (item, mask) in enumerate(zip(records.values(), masks, strict=True)):
        assert np.array_equal(item.image, np.repeat(make_image(130 + k)[..., None], 3, axis=2))
        assert np.array_equal(item.mask[..., 0] * 255, mask)
    assert [OTHER_MASK in item.remarks for item in records.values()] == [True, False, False]


def test_the_publishers_sheet_of_brest_saved_as_csv_is_read(copy):
    root = copy("brest")
    rows = ("CaseID;Image_filename;Age;Classification", "1;case001.png;57;benign", "2;case002.png;61;malignant")
    (root / "BrEaST" / "image_labels.csv").write_text("\n".join([*rows, "3;case003.png;;normal"]))
    assert {name: item.label for name, item in read("brest", root)[0].items()} == {
        "case001": 1,
        "case002": 2,
        "case003": 0,
    }


def test_brest_without_a_csv_says_what_to_do_with_the_workbook(copy):
    root = copy("brest")
    table = root / "BrEaST" / "image_labels.csv"
    table.write_text("Name,Class\n")
    with pytest.raises(ValueError, match="no column Image_filename, Classification; it has: Name, Class"):
        read("brest", root)
    table.unlink()
    with pytest.raises(ValueError, match=r"xlsx.*CSV UTF-8.*columns Image_filename and Classification"):
        read("brest", root)


def test_bad_rows_and_files_of_brest_are_rejected(copy):
    root = copy("brest")
    base = root / "BrEaST" / "BrEaST-Lesions_USG-images_and_masks"
    (base / "case001_tumor.png").unlink()
    assert cv2.imwrite(str(base / "case003_tumor.png"), marker(1, 1, 4, 4))
    assert cv2.imwrite(str(base / "case009.png"), make_image(1))
    assert cv2.imwrite(str(base / "case008_tumor.png"), marker(1, 1, 4, 4))
    records, rejections = read("brest", root)
    assert list(records) == ["case002"]
    assert "no mask" in rejections["case001"]
    assert "labelled normal, yet its mask outlines a lesion" in rejections["case003"]
    assert "no row in image_labels.csv" in rejections["case009"]
    assert any("a mask without its image" in reason for name, reason in rejections.items() if "case008" in name)
