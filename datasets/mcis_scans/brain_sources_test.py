"""Healthy volumes and tumor-free pictures; LGG and Br35H are read in `mcis_scans_dataset_builder_test.py`."""

import pathlib
import shutil

import numpy as np
from mcis_datasets.mcis_scans import record
from mcis_datasets.mcis_scans.dummy_data_generator import make_image
from mcis_datasets.mcis_scans.record import Record, Rejection
from mcis_datasets.mcis_scans.sources import SOURCES

DUMMY = pathlib.Path(__file__).parent / "dummy_data"


def read(name, root=None):
    base = record.find_base(root or DUMMY / name, SOURCES[name].requires)
    items = [record.done(job) for job in SOURCES[name].read(base)]
    records = {item.scan_id: item for item in items if isinstance(item, Record)}
    return records, {item.scan_id: item.reason for item in items if isinstance(item, Rejection)}


def near(image, seed):
    """Whether a picture shows what `make_image` made, but for JPEG."""
    return np.abs(image.astype(int) - make_image(seed)[..., None]).mean() < 5


def test_healthy_is_read_exactly():
    records, rejections = read("healthy")
    assert not rejections
    assert [(name, item.patient) for name, item in records.items()] == [
        ("h00_t1_sag0", "h00"),
        ("h00_fl_axi0", "h00"),
        ("h01_t1_cor0", "h01"),
    ]
    for k, item in enumerate(records.values()):
        assert near(item.image, 100 + k)
        assert (item.organ, item.label, item.has_mask, item.series) == ("brain", 0, True, None)
        assert not item.mask.any() and item.mask.shape == (20, 28, 1)


def test_tumor_free_pictures_are_read_exactly():
    records, rejections = read("notumor")
    assert not rejections
    found = [(name, item.patient, item.series) for name, item in records.items()]
    assert found == [("n0001", None, "group 5"), ("n0002", None, "group 6"), ("n0003", None, "group 5")]
    for k, item in enumerate(records.values()):
        assert near(item.image, 110 + k)
        assert (item.organ, item.label, item.has_mask, item.mask.any()) == ("brain", 0, True, False)


def test_bad_rows_and_files_are_rejected(tmp_path):
    for name in ("healthy", "notumor"):
        shutil.copytree(DUMMY / name, tmp_path / name)
    table = tmp_path / "healthy" / "healthy.csv"
    table.write_text(table.read_text().replace("h01_t1_cor0.jpg,h01", "h01_t1_cor0.jpg,"))
    (tmp_path / "healthy" / "images" / "h00_fl_axi0.jpg").unlink()
    shutil.copy(DUMMY / "healthy" / "images" / "h00_fl_axi0.jpg", tmp_path / "healthy" / "images" / "more.jpg")
    records, rejections = read("healthy", tmp_path)
    assert list(records) == ["h00_t1_sag0"]
    assert "no subject" in rejections["h01_t1_cor0"]
    assert "no such file" in rejections["h00_fl_axi0"]
    assert "no row in healthy.csv" in rejections["more"]
    (tmp_path / "notumor" / "images" / "n0002.jpg").write_bytes(b"no image")
    records, rejections = read("notumor", tmp_path)
    assert list(records) == ["n0001", "n0003"] and "not a readable" in rejections["n0002"]
