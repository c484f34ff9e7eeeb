import os

import pytest

from mcis.names import meant, no_such, no_such_path


def test_the_most_similar_name_is_suggested_in_any_case():
    assert meant("DICE_LESOIN", ["dice", "dice_lesion", "dice_patient"]) == " Did you mean 'dice_lesion'?"
    assert meant("../../home", ["route", "classify_brain"]) == ""
    assert meant("", ["route"]) == meant("route", []) == ""


def test_all_names_are_listed_also_where_none_is_similar():
    assert no_such("task", "x", iter(["route", "classify"])) == "There is no task 'x'. The tasks are route, classify"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("scans/pateint1/a.png", "There is no 'pateint1' in {}/scans. Did you mean 'scans/Patient1'?"),
        ("scans/patient1", "There is no 'patient1' in {}/scans. Did you mean 'scans/Patient1'?"),
        ("Scans.zip", "There is no 'Scans.zip' in {}. Did you mean 'scans'?"),
        (
            "elsewhere/a",
            "There is no 'elsewhere' in {}; check the spelling, and whether its disk or share is connected",
        ),
        ("scans/b.png/c", "There is no 'c' in {}/scans/b.png, which is a file"),
    ],
)
def test_a_missing_path_says_where_it_ends_and_what_is_called_alike(path, said, tmp_path, monkeypatch):
    (tmp_path / "scans" / "Patient1").mkdir(parents=True)
    (tmp_path / "scans" / "b.png").touch()
    monkeypatch.chdir(tmp_path)
    assert no_such_path(path) == f"{path}: no such file or folder. {said.format(tmp_path)}"
    assert str(tmp_path / "scans" / "Patient1") in no_such_path(tmp_path / "scans" / "patient_1")


def test_a_broken_link_and_a_pattern_without_a_match_are_named_as_such(tmp_path):
    os.symlink("gone", tmp_path / "link")
    assert no_such_path(tmp_path / "link") == f"{tmp_path}/link: a link to gone, which is not there; " + (
        "name the file or folder itself"
    )
    assert "no file or folder matches" in no_such_path("scans/*.dmc")
