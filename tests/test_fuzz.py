"""The fuzzer finds planted faults, reports how to repeat them, and makes the same inputs each time."""

import json

import pytest

from mcis.imaging.scan import ScanError
from tests.lanes.fuzz import fuzz, planted, targets
from tests.lanes.fuzz.mutations import Odd, write_tree
from tests.lanes.fuzz.target import make


def test_each_planted_fault_is_found_and_stored_and_a_sound_reader_has_none(tmp_path, capfd):
    limits = ["--module", "tests.lanes.fuzz.planted", "--seconds", "1.5", "--mebibytes", "64", "--out", str(tmp_path)]
    assert fuzz.main([*limits, "--target", "sound"]) == 0
    assert "| sound | 20 |" in (printed := capfd.readouterr().out) and "ScanError" in printed
    assert fuzz.main([*limits, "--target", *(fault.__name__ for fault in planted.FAULTS)]) == 1
    rows = capfd.readouterr().out
    for fault, kind in planted.FAULTS.items():
        stored = tmp_path / fault.__name__ / "0"
        failure = json.loads((stored / "failure.json").read_text())
        assert failure["failure"] == kind, failure
        assert (stored / "input" / "a.txt").read_bytes() == b"bad"
        assert f'FUZZ="--target {fault.__name__} --seed 0 --only 0"' in failure["again"]
        row = next(line for line in rows.splitlines() if line.startswith(f"| {fault.__name__} |"))
        assert row.startswith(f"| {fault.__name__} | 2 | 1 |") and row.endswith("| 1 |")


@pytest.mark.parametrize("name", ["pictures", "dicom", "nifti", "zips", "sources"])
def test_an_input_is_always_the_same_and_is_written_only_to_its_folder(name, tmp_path):
    target = targets.TARGETS[name]
    whole, first = target.seeds(), len(target.crafted)
    for number in range(first, first + 40):
        tree = make(target, whole, 0, number)
        assert make(target, whole, 0, number) == tree
        write_tree(tree, tmp_path / "case" / str(number))
    assert {path.name for path in tmp_path.iterdir()} == {"case"}
    assert any(make(target, whole, 1, number) != make(target, whole, 0, number) for number in range(first, first + 3))


def test_files_with_impossible_names_are_skipped(tmp_path):
    write_tree(
        {"../out": b"x", "/tmp/mcis-fuzz-out": b"x", "a\0b": b"x", "n" * 300: b"x", "pipe": Odd("pipe"), "in/a": b"y"},
        tmp_path,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "pipe"]
    assert not (tmp_path.parent / "out").exists()


NOT_READ = {"UN_sequence", "no_meta", "nested_priv_SQ", "liver_1frame", "badVR", "rtdose", "rtdose_rle", "reportsi"}
"""Test files of pydicom without images, without a beginning, or derived from scans."""


@pytest.mark.parametrize("name", ["pictures", "dicom", "nifti", "zips", "sources", "reports"])
def test_valid_inputs_are_read(name, tmp_path):
    target, rejected = targets.TARGETS[name], set()
    for number, tree in enumerate(target.seeds()):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_tree(tree, folder)
        try:
            assert target.attempt(folder) == "read"
        except ScanError:
            rejected |= {path.stem for path in folder.iterdir()}
    assert rejected == (NOT_READ if name == "dicom" else set())
