"""The fuzzer finds what it looks for, says how to repeat it, and tries the same inputs each time."""

import json

import pytest

from mcis.imaging.scan import ScanError
from tests.lanes.fuzz import fuzz, planted, targets
from tests.lanes.fuzz.mutations import Odd, lay
from tests.lanes.fuzz.target import make


def test_each_planted_fault_is_found_and_kept_and_good_readers_have_none(tmp_path, capfd):
    limits = ["--module", "tests.lanes.fuzz.planted", "--seconds", "1.5", "--mebibytes", "64", "--out", str(tmp_path)]
    assert fuzz.main([*limits, "--target", "sound"]) == 0
    assert "| sound | 20 |" in (said := capfd.readouterr().out) and "ScanError" in said
    assert fuzz.main([*limits, "--target", *(fault.__name__ for fault in planted.FAULTS)]) == 1
    rows = capfd.readouterr().out
    for fault, kind in planted.FAULTS.items():
        kept = tmp_path / fault.__name__ / "0"
        failure = json.loads((kept / "failure.json").read_text())
        assert failure["failure"] == kind, failure
        assert (kept / "input" / "a.txt").read_bytes() == b"bad"
        assert f'FUZZ="--target {fault.__name__} --seed 0 --only 0"' in failure["again"]
        row = next(line for line in rows.splitlines() if line.startswith(f"| {fault.__name__} |"))
        assert row.startswith(f"| {fault.__name__} | 2 | 1 |") and row.endswith("| 1 |")


@pytest.mark.parametrize("name", ["pictures", "dicom", "nifti", "zips", "sources"])
def test_an_input_is_the_same_each_time_and_stays_in_its_folder(name, tmp_path):
    target = targets.TARGETS[name]
    whole, first = target.seeds(), len(target.crafted)
    for number in range(first, first + 40):
        tree = make(target, whole, 0, number)
        assert make(target, whole, 0, number) == tree
        lay(tree, tmp_path / "case" / str(number))
    assert {path.name for path in tmp_path.iterdir()} == {"case"}
    assert any(make(target, whole, 1, number) != make(target, whole, 0, number) for number in range(first, first + 3))


def test_what_cannot_be_laid_is_left_out(tmp_path):
    lay(
        {"../out": b"x", "/tmp/mcis-fuzz-out": b"x", "a\0b": b"x", "n" * 300: b"x", "pipe": Odd("pipe"), "in/a": b"y"},
        tmp_path,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "pipe"]
    assert not (tmp_path.parent / "out").exists()


NOT_READ = {"JPEG-lossy", "JPGExtended", "GDCMJ2K_TextGBR", "UN_sequence", "image_dfl", "no_meta", "nested_priv_SQ"}
NOT_READ |= {"liver_1frame", "MR_truncated", "badVR", "rtdose", "rtdose_rle", "reportsi"}
"""Of pydicom's test files: of 12 bits, cut short, deflated, without pictures, made from scans."""


@pytest.mark.parametrize("name", ["pictures", "dicom", "nifti", "zips", "sources", "reports"])
def test_good_inputs_are_read(name, tmp_path):
    target, refused = targets.TARGETS[name], set()
    for number, tree in enumerate(target.seeds()):
        folder = tmp_path / str(number)
        folder.mkdir()
        lay(tree, folder)
        try:
            assert target.attempt(folder) == "read"
        except ScanError:
            refused |= {path.stem for path in folder.iterdir()}
    assert refused == (NOT_READ if name == "dicom" else set())
