"""Tables of a user's own scans, as people and programs write them."""

import pytest
from mcis_datasets.mcis_scans import remarks, sources

from tests.fixtures.own_folders import picture, read

pytest_plugins = ["tests.fixtures.own_folders"]


def test_a_table_of_excel_gives_the_same_scans(own):
    root = own({"a.png": picture(1), "b.png": picture(2)}, ["a.png,Malignant,p1", "b,normal,p2"])
    expected = read(root)[0]
    (root / "labels.csv").write_bytes(
        "\ufeffScan;Label;Patient;\r\na.png;Malignant;p1;\r\n;;;\r\nb;NORMAL;p2\r\n".encode("utf-16")
    )
    found, rejected, _ = read(root)
    assert not rejected
    assert {name: (i.label, i.patient) for name, i in found.items()} == {"a": (2, "p1"), "b": (0, "p2")}
    assert set(found) == set(expected)


def test_labels_may_have_blanks_and_patients_other_spellings(own):
    root = own({"a.png": picture(1), "b.png": picture(2)}, ["a,No tumor,P 01", "b,NO-TUMOR,p  01"])
    found, _, noted = read(root)
    assert [(item.label, item.patient) for item in found.values()] == [(0, "P 01"), (0, "P 01")]
    assert noted == [("P 01 = p  01", remarks.PATIENT_SPELLINGS)]


@pytest.mark.parametrize("lost", ["", "höfer,normal,P2\n"])
def test_a_table_that_is_not_utf_8_is_remarked_where_a_name_fits_no_file(own, lost):
    root = own({"müller.png": picture(1)}, [])
    (root / "labels.csv").write_bytes(f"scan,label,patient\nmüller,normal,P1\n{lost}".encode("cp1252"))
    found, _, noted = read(root)
    assert list(found) == ["müller"] and noted == ([("labels.csv", remarks.OTHER_ENCODING)] if lost else [])


@pytest.mark.parametrize("patient", ["n/a", "N/A", "-", "\u2013", "?", "none", "#N/A", "#NAME?", "#REF!", "Unknown"])
def test_signs_for_an_unknown_patient_are_no_patient(own, patient):
    rows = [f"a,benign,{patient}", f"b,normal,{patient}", "c,normal,P1"]
    found, rejected, noted = read(own({f"{name}.png": picture(seed) for seed, name in enumerate("abc")}, rows))
    assert [found[name].patient for name in "abc"] == [None, None, "P1"] and not rejected
    assert [name for name, kind in noted if kind == remarks.NO_PATIENT] == [f"a: {patient}", f"b: {patient}"]


@pytest.mark.parametrize("patient", ["#12", "0", "A-B", "Nan Lee", "P=1"])
def test_names_that_look_like_such_signs_stay(own, patient):
    found, _, noted = read(own({"a.png": picture(1)}, [f"a,normal,{patient}"]))
    assert found["a"].patient == patient and not noted


def test_a_formula_in_place_of_a_patient_is_an_error_and_a_text_formula_its_text(own):
    images = {"a.png": picture(1), "b.png": picture(2)}
    found, rejected, _ = read(own(images, ["a,normal,=A1", 'b,normal,"=""001"""']))
    assert list(found) == ["b"] and found["b"].patient == "001"
    reason = "patient '=A1' is a formula; write its result (copy the column, paste its values)"
    assert rejected == [("a", f"labels.csv line 2: {reason}")]


@pytest.mark.parametrize(
    ("names", "encoding"),
    [
        (["\u043e\u043f\u0443\u0445\u043e\u043b\u044c 1", "\u043e\u043f\u0443\u0445\u043e\u043b\u044c 2"], "cp1251"),
        (["m\u00fcller", "h\u00f6fer"], "mac_roman"),
        (["\u30b9\u30ad\u30e3\u30f31", "\u30b9\u30ad\u30e3\u30f32"], "cp932"),
    ],
)
def test_a_table_in_another_encoding_is_one_error(own, names, encoding):
    root = own({f"{name}.png": picture(seed) for seed, name in enumerate(names)}, [])
    text = "scan,label,patient\n" + "".join(f"{name},normal,\n" for name in names)
    (root / "labels.csv").write_bytes(text.encode(encoding))
    with pytest.raises(
        ValueError, match=r"labels\.csv is not in UTF-8, and 2 of its 2 .*; save it as CSV UTF-8|UTF-8 nor"
    ):
        read(root)


def test_names_of_which_none_fits_are_one_error(own):
    root = own({"scan_1.png": picture(1)}, ["1,normal,", "2,normal,"])
    with pytest.raises(
        ValueError, match=r"no name in labels\.csv fits a file, such as '1' and '2'; images/ holds such as"
    ):
        read(root)


def test_a_folder_that_lacks_its_table_or_its_scans_is_told_what_to_do(tmp_path):
    (tmp_path / "x" / "images").mkdir(parents=True)
    assert sources.expected("folder", tmp_path).startswith("images/ found, labels.csv missing beside it. The source")
    (tmp_path / "x" / "Labels.CSV").touch()
    assert sources.expected("folder", tmp_path).startswith("Labels.CSV found: call it labels.csv, in small letters. ")
    (tmp_path / "x" / "labels.xlsx").touch()
    assert sources.expected("folder", tmp_path).startswith("labels.xlsx found: save it as CSV, labels.csv (in Excel")
    (tmp_path / "x" / "images").rmdir()
    (tmp_path / "x" / "labels.csv").touch()
    text = "labels.csv found, images/ missing beside it: move the scans there. The source"
    assert sources.expected("folder", tmp_path).startswith(text)
