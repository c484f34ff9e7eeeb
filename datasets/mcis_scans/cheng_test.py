"""Cheng's slices, as pictures and as MATLAB files, and the runs of neighbours."""

import importlib.util
import pathlib
import shutil

import cv2
import h5py
import numpy as np
import pytest
from mcis_datasets.mcis_scans import brain_sources_test, cheng, neighbours
from mcis_datasets.mcis_scans.dummy_data_generator import make_image, marker

DUMMY = pathlib.Path(__file__).parent / "dummy_data" / "cheng"


def read(root):
    return brain_sources_test.read("cheng", root)


def test_pictures_are_read_exactly():
    records, rejections = read(DUMMY)
    assert not rejections
    assert [(name, item.series, item.patient) for name, item in records.items()] == [
        ("1", "run from 1", None),
        ("2", "run from 1", None),  # the masks overlap
        ("7", "run from 7", None),
    ]
    rectangles = ((4, 5, 8, 6), (6, 6, 8, 4), (15, 1, 5, 3))
    for item, seed, rectangle in zip(records.values(), (90, 90, 91), rectangles, strict=True):
        assert np.abs(item.image.astype(int) - make_image(seed)[..., None]).mean() < 5  # JPEG
        assert np.array_equal(item.mask[..., 0] * 255, marker(*rectangle))
        assert (item.organ, item.label, item.has_mask) == ("brain", 1, True)


def test_bad_rows_and_files_are_rejected(tmp_path):
    root = shutil.copytree(DUMMY, tmp_path / "cheng")
    (root / "masks" / "2.png").unlink()
    shutil.copy(root / "images" / "1.jpg", root / "images" / "9.jpg")
    shutil.copy(root / "masks" / "1.png", root / "masks" / "8.png")
    with (root / "cheng.csv").open("a") as table:
        table.write(f"10.jpg,cyst,0\nx.jpg,glioma,0\n11.jpg,glioma,0\n{'9' * 5000}.jpg,glioma,0\n")
    records, rejections = read(root)
    assert list(records) == ["1", "7"]
    expected = {
        "2": "no mask",
        "9": "no row in cheng.csv",
        "masks/8": "a mask without its image",
        "10": "kind 'cyst'; the kinds are meningioma, glioma, pituitary",
        "x": "its file name must be a number",
        "11": "no such file",
        "9" * 5000: "its file name must be a number",
    }
    assert set(rejections) == set(expected)
    assert all(words in rejections[name] for name, words in expected.items())


def plane(*rectangle):
    return marker(*rectangle) // 255


def test_a_run_ends_where_both_head_and_lesion_differ():
    one, other = make_image(1), make_image(2)
    left, right = plane(2, 3, 6, 5), plane(20, 12, 6, 5)
    brighter = np.clip(one * 0.8 + 30, 0, 255).astype(np.uint8)
    assert neighbours.runs_of([(one, left), (brighter, right), (one, left)]) == [0, 0, 0]  # the same head
    assert neighbours.runs_of([(one, left), (other, left), (other, right)]) == [0, 0, 0]  # the same lesion, then head
    assert neighbours.runs_of([(one, left), (other, right), (one, left), (one, left)]) == [0, 1, 2, 2]
    assert neighbours.runs_of([None, (one, left), None, (one, right), (other, left), None]) == [0, 0, 0, 0, 1, 1]
    wide = cv2.resize(other, (56, 40)), cv2.resize(left, (56, 40), interpolation=cv2.INTER_NEAREST)
    assert neighbours.runs_of([(one, left), wide, (one, right)]) == [0, 0, 1]  # of another size
    assert neighbours.runs_of([]) == []


def write(path, patient="100360", label=1.0, image=None, mask=None, leave_out=(), more=None):
    """A file as MATLAB 7.3 writes it: columns first, text as codes."""

    path.parent.mkdir(parents=True, exist_ok=True)
    image = make_image(5).astype(np.int16) * 8 - 100 if image is None else image
    mask = plane(3, 4, 6, 2) if mask is None else mask
    contents = {
        "PID": np.array([[ord(one) if isinstance(one, str) else one] for one in patient], np.uint64),
        "label": np.array([[label]]),
        "image": image.T,
        "tumorMask": mask.T,
        "tumorBorder": np.zeros((1, 4)),
    }
    with h5py.File(path, "w") as file:
        for name, values in contents.items():
            if name not in leave_out:
                file[f"cjdata/{name}"] = values
        if more:
            file[f"cjdata/{more}"] = 1


def test_published_files_are_read_upright_with_their_patient(tmp_path):
    write(tmp_path / "brainTumorDataPublic_1-766" / "2.mat", "MR0402D")
    write(tmp_path / "brainTumorDataPublic_767-1532" / "10.mat", "112649", 3.0, mask=plane(20, 1, 5, 9))
    pathlib.Path(tmp_path / "cvind.mat").write_bytes(b"not a slice")
    records, rejections = read(tmp_path)
    assert not rejections
    assert [(name, item.patient, item.series) for name, item in records.items()] == [
        ("2", "MR0402D", None),
        ("10", "112649", None),
    ]
    for item, mask in zip(records.values(), (plane(3, 4, 6, 2), plane(20, 1, 5, 9)), strict=True):
        values = make_image(5).astype(float)
        black, white = np.percentile(values, (0.5, 99.5))
        expected = np.clip(np.rint((values - black) / (white - black) * 255), 0, 255)
        assert item.image.shape == (20, 28, 3)
        assert np.abs(item.image[..., 1] - expected).max() <= 1
        assert np.array_equal(item.mask[..., 0], mask)
        assert (item.organ, item.label, item.has_mask) == ("brain", 1, True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patient": "   "}, "PID is ''"),
        ({"patient": [2**40]}, "not readable"),
        ({"leave_out": ("image",), "more": "image/deep"}, "not readable"),
        ({"label": 4.0}, "label is [4.0]; the labels are 1 to 3"),
        ({"mask": marker(0, 0, 0, 0)}, "its mask is empty"),
        ({"mask": np.ones((20, 28), np.uint8)}, "looks inverted"),
        ({"mask": np.ones((5, 6), np.uint8)}, "its mask is 6 x 5 pixels, its scan 28 x 20"),
        ({"leave_out": ("PID",)}, "PID"),
        ({"image": np.full((20, 28), np.nan)}, "no numbers"),
        ({"image": np.zeros((3, 4, 5))}, "image has the shape"),
    ],
)
def test_bad_published_files_are_rejected(tmp_path, change, words):
    write(tmp_path / "1.mat")
    write(tmp_path / "2.mat", **change)
    (tmp_path / "3.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    records, rejections = read(tmp_path)
    assert list(records) == ["1"] and list(rejections) == ["2", "3"]
    assert words in rejections["2"]
    assert "not readable as one of Cheng's MATLAB 7.3 files" in rejections["3"]


def test_without_h5py_the_error_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "1.mat").write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"need the extra `mat`: pip install -e '\.\[mat\]'"):
        read(tmp_path)


def test_zips_that_are_not_unpacked_are_named(tmp_path):
    (tmp_path / "brainTumorDataPublic_1-766.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"zips of them: brainTumorDataPublic_1-766\.zip\. Unpack"):
        read(tmp_path)


def test_too_large_a_file_is_rejected_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cheng, "MAX_PIXELS", 100)
    write(tmp_path / "1.mat")
    assert "at most 100" in read(tmp_path)[1]["1"]
