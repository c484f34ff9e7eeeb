"""`mcis predict` on study folders, archives and DICOMDIR files, with a predictor without networks."""

import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from mcis.cli import inputs, predict
from mcis.imaging import phantom
from tests.fixtures.bundles import findings
from tests.fixtures.dicom_files import write, write_series
from tests.imaging.test_pool import encrypted
from tests.imaging.test_search import write_object

pytestmark = pytest.mark.usefixtures("no_networks")


@pytest.fixture
def study(tmp_path):
    """Three slices of a series, and objects that are no scans."""
    images = [phantom.make_phantom("brain", 1, seed, size=(96, 96)).image[..., 0].copy() for seed in range(3)]
    write_series(tmp_path / "study", images)
    for modality in ("SR", "PR", "KO"):
        write_object(tmp_path / "study" / f"{modality}.dcm", modality)
    write(tmp_path / "study" / "seg.dcm", np.stack(images), NumberOfFrames=3, Modality="SEG")
    (tmp_path / "study" / "notes.txt").write_text("x")
    return tmp_path / "study"


def passed(out):
    return json.loads((out / "run.json").read_text())["passed_over"]


def test_a_study_folder_ends_well_and_says_what_was_passed_over(study, tmp_path, capsys):
    assert predict.main([str(study), "--out", str(tmp_path / "out")]) == 0
    errors = capsys.readouterr().err
    line = "Passed over 5 files that hold no scan: 1 .txt, 4 DICOM objects that are no scans (KO, PR, SEG, SR)"
    assert errors.count(line) == 1
    lines = findings(tmp_path / "out")
    assert len(lines) == 3 and all(one["error"] is None for one in lines)
    kinds = {"DICOM KO": 1, "DICOM PR": 1, "DICOM SEG": 1, "DICOM SR": 1, ".txt": 1}
    assert passed(tmp_path / "out") == {"files": 5, "kinds": kinds}
    assert predict.main([f"{study}/*.dcm", "--out", str(tmp_path / "glob")]) == 0
    assert len(findings(tmp_path / "glob")) == 3


@pytest.mark.parametrize(
    ("name", "message"), [("seg", "of modality SEG: a segmentation"), ("SR", "a structured report")]
)
def test_an_object_that_is_no_scan_named_explicitly_is_one_error_that_says_what_it_is(
    name, message, study, tmp_path, capsys
):
    assert predict.main([str(study / f"{name}.dcm"), "--out", str(tmp_path / "out")]) == 1
    (line,) = findings(tmp_path / "out")
    assert message in line["error"] and message in capsys.readouterr().err


def test_objects_that_are_no_scans_are_passed_over_beside_scans(study, tmp_path):
    """As the shell writes a glob."""
    assert predict.main([*map(str, sorted(study.glob("*.dcm"))), "--out", str(tmp_path / "out")]) == 0
    assert len(findings(tmp_path / "out")) == 3
    kinds = {"DICOM KO": 1, "DICOM PR": 1, "DICOM SEG": 1, "DICOM SR": 1}
    assert passed(tmp_path / "out") == {"files": 4, "kinds": kinds}
    assert predict.main([str(study / "SR.dcm"), str(study / "KO.dcm"), "--out", str(tmp_path / "alone")]) == 1
    lines = findings(tmp_path / "alone")
    assert [line["error"] is None for line in lines] == [False, False]
    assert passed(tmp_path / "alone") == {"files": 0, "kinds": {}}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pw", "protected by a password; unpack it with the password and give the folder"),
        ("nest", "holds another zip archive, inner.zip; unpack that one and give the folder"),
        ("two", "inner.zip: a zip archive in another; unpack that one and give the folder"),
    ],
)
def test_an_archive_that_cannot_be_read_says_why(name, words, tmp_path, capsys):
    path = tmp_path / f"{name}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png" if name == "pw" else "inner.zip", b"PK")
        if name == "two":
            archive.writestr("notes.txt", "x")
    if name == "pw":
        encrypted(path, 1)
    assert predict.main([str(path), "--out", str(tmp_path / "out")]) == 2
    separator = "/" if name == "two" else ": "
    assert capsys.readouterr().err.strip().endswith(f"mcis predict: {path}{separator}{words}")
    assert not (tmp_path / "out").exists()


def test_without_arguments_both_what_to_read_and_where_to_write_are_asked_for(capsys):
    assert predict.main([]) == 2
    assert "give scans and a folder for the report: mcis predict SCANS --out FOLDER" in capsys.readouterr().err


def test_a_scrambled_picture_is_unsupported_unless_an_organ_is_given(tmp_path):
    values = phantom.make_phantom("brain", 1, 3, size=(96, 96)).image[..., 0].astype(np.uint16) * 8
    write(tmp_path / "a.dcm", values, BitsStored=8, HighBit=7)
    assert predict.main([str(tmp_path / "a.dcm"), "--out", str(tmp_path / "out")]) == 0
    (line,) = findings(tmp_path / "out")
    words = "Bits Stored 8, but the pixels use 11 bits: the picture is scrambled"
    assert line["organ"] == "unsupported" and line["header"] == words and words in line["reason"]
    assert predict.main([str(tmp_path / "a.dcm"), "--out", str(tmp_path / "brain"), "--organ=brain"]) == 0
    (line,) = findings(tmp_path / "brain")
    assert line["organ"] == "brain" and any(words in note for note in line["notes"])


def test_a_folder_without_scans_says_what_it_holds(tmp_path, capsys):
    write_object(tmp_path / "SR.dcm", "SR")
    assert predict.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert "mcis reads DICOM, NIfTI, PNG, JPEG, TIFF and BMP. Passed over" in text
    assert "1 DICOM object that is no scan (SR)" in text


def test_an_archive_is_read_like_a_folder_and_its_scans_are_named_in_it(study, tmp_path, capsys):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(study.iterdir()):
            archive.write(file, f"s/{file.name}")
        archive.writestr("s/broken.dcm", b"junk")
    arguments = [str(path), "--out", str(tmp_path / "out"), "--organ=brain", "--dicom_seg=unnamed"]
    assert predict.main(arguments) == 1
    lines = findings(tmp_path / "out")
    assert [line["scan"].removeprefix(f"{path}/s/") for line in lines] == [
        *(f"IM{index:04}.dcm" for index in range(3)),
        "broken.dcm",
    ]
    assert lines[-1]["error"].startswith(f"{path}/s/broken.dcm: called .dcm, but holds no DICOM")
    assert len({line["series"] for line in lines[:3]}) == 1
    assert passed(tmp_path / "out")["files"] == 5
    folder = findings_of_folder(study, tmp_path)
    assert [line["label"] for line in lines[:3]] == folder
    assert predict.main([*arguments, "--resume"]) == 1
    assert len(findings(tmp_path / "out")) == 4


def findings_of_folder(study, tmp_path):
    predict.main([str(study), "--out", str(tmp_path / "folder"), "--organ=brain"])
    return [line["label"] for line in findings(tmp_path / "folder")]


def test_a_damaged_archive_is_an_error_of_its_own(study, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(study / "IM0000.dcm", "IM0000.dcm")
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data[:200] + bytes(100) + data[300:])
    assert predict.main([str(study), str(tmp_path / "a.zip"), "--out", str(tmp_path / "out")]) == 1
    *good, bad = findings(tmp_path / "out")
    assert len(good) == 3 and "cannot be unpacked" in bad["error"] and bad["scan"].endswith("a.zip/IM0000.dcm")


def test_a_dicomdir_is_replaced_by_the_images_that_it_lists(tmp_path):
    source = get_testdata_file("DICOMDIR")
    with inputs.expanded([source]) as found:
        assert len(found.files) == 31 and all(map(os.path.isfile, found.files))
    shutil.copyfile(source, tmp_path / "DICOMDIR")
    with inputs.expanded([str(tmp_path / "DICOMDIR")]) as found:
        assert len(found.files) == 31 and not any(map(os.path.isfile, found.files))


def test_nothing_of_an_archive_stays_behind(study, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(study / "IM0000.dcm", "../../IM0000.dcm")
    with inputs.expanded([str(tmp_path / "a.zip")]) as found:
        (path,) = found.paths.values()
        assert path.startswith(str(tmp_path / "temporary"))
    assert not os.listdir(tmp_path / "temporary")
