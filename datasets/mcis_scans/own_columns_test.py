"""Columns of one's own table beyond those it is read by: attributes, and the column split."""

import pytest
from mcis_datasets.mcis_scans import own_columns, remarks, splits
from mcis_datasets.mcis_scans.splits import History, Member

from mcis.data import attributes
from tests.fixtures.own_folders import picture, read

pytest_plugins = ["tests.fixtures.own_folders"]


def images(count):
    return {f"{k}.png": picture(k) for k in range(count)}


def table_of(own, header, cells, patients=None):
    """A folder with a scan for each line of cells; `header` names their columns."""
    rows = [f"{k},normal,{patients[k] if patients else f'P{k}'},{line}" for k, line in enumerate(cells)]
    return own(images(len(cells)), rows, header=f"scan,label,patient,{header}")


def test_other_columns_become_attributes_with_names_and_values_of_the_vocabulary(own):
    header = "Hospital,BI-RADS,Scan plane,Field strength (T),age,organ"
    cells = ("North,BI-RADS 4A,ax,1.5,57,breast", "north,n/a,oblique,3,8,breast", '"  South ",2,,"=""3""",93,breast')
    found, rejected, noted = read(table_of(own, header, cells))
    assert not rejected and not noted
    assert [dict(found[name].attributes) for name in "012"] == [
        {"site": "North", "birads": "4a", "plane": "axial", "field_strength_t": "1.5", "age": "50-59"},
        {"site": "North", "plane": "oblique", "field_strength_t": "3", "age": "0-9"},
        {"site": "South", "birads": "2", "field_strength_t": "3", "age": "90+"},
    ]
    for item in found.values():
        assert attributes.to_text(item.attributes)


@pytest.mark.parametrize(
    ("column", "cells", "reason"),
    [
        ("MRN", "12", "may tell who somebody is; patients belong into the column patient"),
        ("Patient name", "ab", "may tell who somebody is; patients belong into the column patient"),
        ("Geburtsdatum", "ab", "may tell who somebody is; patients belong into the column patient"),
        ("group", "ab", "may tell who somebody is; patients belong into the column patient"),
        ("StudyInstanceUID", "ab", "may tell who somebody is; patients belong into the column patient"),
        ("seen", ["2024-01-02", "x"], "its values look like dates"),
        ("seen", ["3.4.2024", "x"], "its values look like dates"),
        ("site", [f"S{k}" for k in range(21)], "has 21 different values, more than 20"),
        ("code", "abcde", "has another value in each row, as a name would"),
        ("notes", ["x" * 41, "y"], "a value is longer than 40 characters"),
        ("notes", ["a\x07", "b"], "a value has characters that cannot be shown"),
        ("notes", ["", "n/a"], "has no values"),
        ("notes", ["=A1", "b"], "has formulas; write their results"),
        ("age", ["57", "old"], "an age is a number of years, or a decade such as 50-59"),
        ("x" * 41, "ab", "its name must have letters or digits, at most 40"),
        ("%", "ab", "its name must have letters or digits, at most 40"),
    ],
)
def test_a_column_that_is_not_kept_is_named_with_the_reason_and_no_value(own, column, cells, reason):
    found, rejected, noted = read(table_of(own, f"{column},site_b", [f"{cell},N" for cell in cells]))
    assert not rejected and len(found) == len(cells)
    assert all(dict(item.attributes) == {"site_b": "N"} for item in found.values())
    assert noted == [(f"not kept: column {column.lower()[:40]} ({reason})", remarks.COLUMN)]


def test_twenty_values_are_kept_and_so_is_a_known_column_with_another_value_in_each_row(own):
    found, _, noted = read(table_of(own, "site,birads", [f"S{k % 20},{k % 5}" for k in range(40)]))
    assert not noted and len({item.attributes["site"] for item in found.values()}) == 20
    found, _, noted = read(table_of(own, "birads", "12345"))
    assert not noted and found["4"].attributes == {"birads": "5"}


def test_columns_of_one_attribute_and_too_many_columns_are_not_kept(own):
    header = ",".join(["site", "hospital", *(f"c{k}" for k in range(32))])
    found, _, noted = read(table_of(own, header, [",".join(["A", "B", *["1"] * 32])] * 2))
    assert [name for name, _ in noted] == [
        "not kept: column hospital (the column site gives the same attribute)",
        "not kept: column c31 (more than 32 columns)",
    ]
    assert len(found["0"].attributes) == 32 and found["0"].attributes["site"] == "A"


def test_frames_have_the_attributes_of_their_row(own):
    import cv2

    coded = cv2.imencodemulti(".tif", [picture(1), picture(2), picture(3)])[1].tobytes()
    rows = ["v.tif,normal,P1,,axial", "v.tif,normal,P1,1,sagittal"]
    found, _, _ = read(own({"v.tif": coded}, rows, header="scan,label,patient,frame,plane"))
    assert [found[f"v#{k}"].attributes["plane"] for k in range(3)] == ["axial", "sagittal", "axial"]


# The column split


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (("train", "", "test", ""), r"column split is empty in 2 of 4 rows \(lines 3, 5\); write train, validation or"),
        (("train", "train", "test", "dev"), r"column split has 'dev' \(line 5\); write train, validation or test"),
        (
            ("train", "train", "validation", "test"),
            r"divides 2 of 2 patients, .*: P1 in train and validation; P2 in train and test\. Give each patient one",
        ),
    ],
)
def test_a_column_split_that_cannot_be_obeyed_is_an_error(own, cells, words):
    with pytest.raises(ValueError, match=words):
        read(table_of(own, "split", cells, patients=("P1", "P2", " p1", "P2")))


def test_an_empty_column_split_asks_for_nothing(own):
    found, rejected, noted = read(table_of(own, "split", ("", "")))
    assert not rejected and not noted and [item.split for item in found.values()] == [None, None]


def test_the_split_that_is_asked_for_precedes_that_of_earlier_builds_and_of_contradictions():
    members = [Member("a", "0" * 16, "breast", 1, "P1", 0), Member("b", "1" * 16, "breast", 2, None, 0)]
    wanted = splits.asked(members, ["test", "test"])
    assert wanted == {"P1": "test"}
    plan = splits.assign(members, History({"0" * 16: "train"}), wanted, "the column split")
    assert plan.splits == ("test", "test") and plan.labels == (-1, -1)
    assert splits.asked(members, [None, None]) == {}


@pytest.mark.parametrize("column", ["SubjectID", "CaseID", "StudyNo", "PatNr", "Initialen", "Fallnr", "CaseNumber"])
def test_a_name_without_spaces_tells_identity_too(column):
    assert own_columns.tells_identity(own_columns.snake_case(column.lower()))


def test_numbers_of_patients_are_not_kept_under_another_name(own):
    found, _, noted = read(table_of(own, "local key", ("12345678", "12345679", "12345678", "12345679")))
    assert all("local_key" not in item.attributes for item in found.values())
    assert any("look like numbers of patients" in str(one) for one in noted)


@pytest.mark.parametrize("column", ["age (years)", "age_at_scan", "Alter"])
def test_every_age_is_a_decade(column):
    assert own_columns.snake_case(column) == "age"


def test_a_name_may_be_a_word_of_another():
    for name in ("side", "surgical_site", "residence", "grade", "contrast", "candidate", "updated"):
        assert not own_columns.tells_identity(name)
