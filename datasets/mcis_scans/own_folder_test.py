"""A user's own scans: names, files of several frames, and what headers say."""

import io
import pathlib
import unicodedata

import cv2
import numpy as np
import pytest
from mcis_datasets.mcis_scans import remarks
from mcis_datasets.mcis_scans.names import stem_of

from mcis.imaging import formats
from tests.fixtures import dicom_files
from tests.fixtures.own_folders import LESION, VOLUME, nifti, outline, picture, read, shows

pytest_plugins = ["tests.fixtures.own_folders"]


# Names


def test_two_files_of_one_stem_are_told_apart(own):
    root = own(
        {"s.png": picture(1), "s.bmp": picture(2), "t.png": picture(3)},
        ["s.bmp,malignant,P1", "t,benign,P2"],
        {"t.png": outline()},
    )
    found, rejected, _ = read(root)
    assert set(found) == {"s.bmp", "t"} and shows(found["s.bmp"], picture(2))
    assert rejected == [("s.png", "has no row in labels.csv; add one (its label may be empty)")]


def test_both_of_one_stem_may_be_labelled_and_have_their_own_masks(own):
    root = own(
        {"s.png": picture(1), "s.bmp": picture(2)},
        ["s.bmp,malignant,P1", "s.png,benign,P2"],
        {"s.bmp.png": outline(1), "s.png": outline(2)},
    )
    found, rejected, _ = read(root)
    assert not rejected
    assert np.array_equal(found["s.bmp"].mask[..., 0], outline(1) // 255)
    assert np.array_equal(found["s.png"].mask[..., 0], outline(2) // 255)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_a_mask_that_may_be_of_two_pictures_is_of_neither(own, suffix):
    root = own({"s.png": picture(1), "s.bmp": picture(2)}, ["s.bmp,malignant,P1"], {f"s.{suffix}": outline()})
    found, rejected, _ = read(root)
    assert not found
    assert (
        f"the mask s.{suffix} may be that of s.bmp or s.png; name the masks after the whole" in dict(rejected)["s.bmp"]
    )


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("s", "line 2: may be s.bmp or s.png; write the whole name, with its suffix"),
        ("S.jpg", "line 2: may be s.bmp or s.png"),
        ("x.png", "line 2: there is no file images/x.png; correct the name or remove the row"),
        ("", "line 2: names no scan"),
        ("s.png#1", "line 2: has no frame 1; it has 1, numbered from 0"),
    ],
)
def test_a_name_that_is_not_one_file_is_rejected_with_its_line(own, written, words):
    _, rejected, _ = read(own({"s.png": picture(1), "s.bmp": picture(2)}, [f"{written},benign,P1"]))
    assert words in rejected[0][1]


@pytest.mark.parametrize(
    ("file", "written", "renamed"),
    [
        ("a.b.png", "a.b.png", False),
        ("a.b.png", "a.b", False),
        ("a.b.png", "A.B.PNG", True),
        ("scan.PNG", "scan.png", True),
        ("scan.png", "scan.jpg", True),
        ("deep/c.png", "deep\\c.png", False),
        ("deep/c.png", "./deep/c", False),
        ("deep/c.png", "images/deep/c.png", False),
        ("a#1.png", "a#1", False),
        ("1.2.840.png", "1.2.840", False),
    ],
)
def test_a_name_means_the_only_file_that_it_fits(own, file, written, renamed):
    mask = str(pathlib.PurePath(file).with_suffix(".tif"))
    found, rejected, noted = read(own({file: picture(1)}, [f"{written},benign,P1"], {mask: outline()}))
    (item,) = found.values()
    assert not rejected and shows(item, picture(1)) and item.mask.any()
    assert any(kind == remarks.OTHER_NAME for _, kind in noted) == renamed


def test_a_file_that_another_row_names_exactly_is_not_taken_for_another(own):
    found, rejected, _ = read(own({"s.png": picture(1)}, ["s.jpg,malignant,P1", "s.png,benign,P2"]))
    assert found["s"].label == 1 and found["s"].patient == "P2"
    assert rejected == [
        ("s.jpg", "labels.csv line 2: there is no file images/s.jpg; s.png is there, but line 3 names it")
    ]


def test_names_that_differ_only_in_case_are_two(own):
    root = own(
        {"A.png": picture(1), "a.png": picture(2)},
        ["A,benign,P1", "a,benign,P2"],
        {"A.png": outline(1), "a.png": outline(2)},
    )
    found, rejected, noted = read(root)
    assert not rejected and not noted
    for name, seed in (("A", 1), ("a", 2)):
        assert shows(found[name], picture(seed)) and np.array_equal(found[name].mask[..., 0], outline(seed) // 255)


@pytest.mark.parametrize("forms", [("NFD", "NFC", "NFC"), ("NFC", "NFD", "NFD"), ("NFD", "NFD", "NFC")])
def test_names_in_nfc_and_nfd_are_one(own, forms):
    image, row, mask = (unicodedata.normalize(form, "müller") for form in forms)
    found, rejected, noted = read(
        own({f"{image}.png": picture(1)}, [f"{row},benign,{row}"], {f"{mask}.png": outline()})
    )
    assert list(found) == ["m\u00fcller"] and found["m\u00fcller"].patient == "m\u00fcller"
    assert found["m\u00fcller"].mask.any() and not rejected and not noted


def test_two_files_whose_names_differ_in_the_form_alone_are_an_error(own):
    names = [unicodedata.normalize(form, "müller.png") for form in ("NFC", "NFD")]
    _, rejected, _ = read(own(dict.fromkeys(names, picture(1)), ["müller,benign,P1"]))
    assert "two files have this name, which differ in how its accents are encoded" in rejected[0][1]


def test_stems():
    assert [stem_of(name) for name in ("a.png", "a.NII.GZ", "x/.png", "a.b", "a.dcm")] == [
        "a",
        "a",
        "x/.png",
        "a.b",
        "a",
    ]


# Files of several frames


def test_a_row_labels_every_slice_of_a_volume_and_its_mask_says_which_have_the_lesion(own):
    root = own({"v.nii": nifti(VOLUME)}, ["v,tumor,"], {"v.nii": nifti(LESION)})
    found, rejected, noted = read(root)
    assert not rejected and not noted
    assert list(found) == [f"v#{k}" for k in range(5)]
    assert [item.label for item in found.values()] == [0, 1, 1, 0, 0]
    for k, item in enumerate(found.values()):
        assert np.array_equal(item.image, formats.read(root / "images" / "v.nii", k).image)
        assert (item.series, item.patient, item.has_mask) == ("file v.nii", None, True)
        assert item.mask.sum() == LESION[..., k].sum()


@pytest.mark.parametrize("named", ["name", "column"])
def test_a_row_labels_one_slice(own, named):
    rows = {"name": ["v#2,tumor,P1", "v.nii#4,no_tumor,P1"], "column": ["v,tumor,P1,2", "v,no_tumor,P1,4"]}[named]
    root = own({"v.nii": nifti(VOLUME)}, rows, {"v#2.png": outline(0, (28, 20))}, header="scan,label,patient,Frame")
    found, rejected, noted = read(root)
    assert {name: item.label for name, item in found.items()} == {"v#2": 1, "v#4": 0}
    assert found["v#2"].mask.any() and not rejected and noted == [("v", remarks.FRAMES_WITHOUT_ROW)]


def test_a_row_of_a_slice_overrides_that_of_the_volume(own):
    found, rejected, noted = read(own({"v.nii": nifti(VOLUME)}, ["v,no_tumor,P1", "v#3,tumor,P1"]))
    assert [item.label for item in found.values()] == [0, 0, 0, 1, 0]
    assert not rejected and noted == [("v#3", remarks.NOT_OUTLINED)]


def test_wrong_frames_are_rejected(own):
    rows = ["v,tumor,P1,9", "v,tumor,P1,one", "v#1,tumor,P1,", "v#1,no_tumor,P1,"]
    found, rejected, _ = read(own({"v.nii": nifti(VOLUME)}, rows, header="scan,label,patient,frame"))
    assert not found
    reasons = " ".join(reason for _, reason in rejected)
    for words in ("line 2: has no frame 9; it has 5", "line 3: frame 'one'; a number", "line 5: labelled otherwise"):
        assert words in reasons


def test_a_volume_with_a_lesion_and_no_mask_is_remarked_and_blank_slices_are_left_out(own):
    array = VOLUME.copy()
    array[..., 0] = 0
    found, rejected, noted = read(own({"v.nii": nifti(array)}, ["v,tumor,P1"]))
    assert list(found) == ["v#1", "v#2", "v#3", "v#4"] and not rejected
    assert sorted(noted) == [("v", remarks.WHOLE_VOLUME), ("v#0", remarks.BLANK_FRAME)]


def test_pages_of_a_tiff_are_scans_and_masks_have_one_page(own, tmp_path):
    cv2.imwritemulti(str(tmp_path / "pages.tif"), [picture(1), picture(2)])
    pages = (tmp_path / "pages.tif").read_bytes()
    found, _, _ = read(own({"p.tif": pages, "a.png": picture(3)}, ["p,normal,P1", "a,benign,P2"], {"a.tif": pages}))
    assert list(found) == ["p#0", "p#1"] and shows(found["p#1"], picture(2))
    _, rejected, _ = read(tmp_path / "own")
    assert rejected == [("a", "mask a.tif has 2 pages; a mask has one")]


def test_pixels_that_are_not_square_are_made_square_with_their_mask(own):
    flat = np.diag([1, 1.5, 4, 1])
    root = own({"v.nii": nifti(VOLUME, flat)}, ["v,tumor,P1"], {"v.nii": nifti(LESION, flat)})
    found, rejected, _ = read(root)
    assert not rejected
    item = found["v#1"]
    assert item.image.shape == (42, 20, 3) and item.mask.shape == (42, 20, 1)
    assert item.mask.sum() == 1.5 * LESION[..., 1].sum()
    assert abs(item.image.mean() - formats.read(root / "images" / "v.nii", 1).image.mean()) < 2


# What a header or a rule says


def dicom(seed, **header):
    file = io.BytesIO()
    made = dicom_files.dataset(picture(seed).astype(np.uint16) * 16, **header)
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("header", "label", "says"),
    [
        ({"Modality": "CT"}, "tumor", "brain MRI, but its header says Modality CT"),
        ({"Modality": "MR"}, "benign", "breast ultrasound, but its header says Modality MR"),
        ({"Modality": "MR", "BodyPartExamined": "KNEE"}, "tumor", "its header says BodyPartExamined KNEE"),
        ({"Modality": "US", "BodyPartExamined": "THYROID"}, "benign", "its header says BodyPartExamined THYROID"),
        ({"Modality": "MR", "BodyPartExamined": "BRAIN"}, "tumor", None),
        ({"Modality": "US"}, "benign", None),
        ({"Modality": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "benign", None),
    ],
    ids=str,
)
def test_a_header_that_contradicts_the_organ_rejects_the_scan(own, header, label, says):
    found, rejected, _ = read(own({"a.dcm": dicom(1, **header), "b.png": picture(2)}, [f"a,{label},P", "b,normal,Q"]))
    if says is None:
        assert not rejected and set(found) == {"a", "b"}
    else:
        ((name, reason),) = rejected
        assert name == "a" and says in reason and set(found) == {"b"}


@pytest.mark.parametrize(
    ("header", "shape"),
    [
        ({"PixelAspectRatio": ["3", "2"]}, (30, 28)),
        ({"PixelAspectRatio": ["4", "5"]}, (20, 35)),
        ({"ImagerPixelSpacing": ["0.2", "0.25"]}, (20, 35)),
        ({"PixelSpacing": ["0.9", "0.6"]}, (30, 28)),
        ({"PixelAspectRatio": ["4", "5"], "PixelSpacing": ["0.5", "0.5"]}, (20, 28)),
        ({"PixelAspectRatio": ["9", "1"]}, (20, 28)),
        ({"PixelSpacing": ["0.5", "0.504"]}, (20, 28)),
    ],
    ids=str,
)
def test_scan_and_mask_get_square_pixels_as_in_predict(own, header, shape):
    root = own({"a.dcm": dicom(1, Modality="US", **header)}, ["a,benign,P1"], {"a.png": outline()})
    item = read(root)[0]["a"]
    assert item.image.shape[:2] == item.mask.shape[:2] == shape
    geometry = formats.load(str(root / "images" / "a.dcm"), None).geometry
    assert geometry is not None
    aspect = geometry.aspect
    assert shape == (round(20 * max(aspect, 1)), round(28 * max(1 / aspect, 1)))
    assert item.mask.mean() == pytest.approx(outline().mean() / 255, rel=0.15)


def test_files_in_formats_that_are_not_read_are_remarked_and_named_where_a_row_means_them(own):
    root = own(
        {"a.png": picture(1), "b.mha": b"ObjectType = Image\n", "c.nrrd": b"NRRD0004\n", "n.txt": b"x"},
        ["a,benign,P1", "b.mha,benign,P2", "c,benign,P3", "d,benign,P4"],
        {"a.png": outline(), "b.mgz": b"x"},
    )
    found, rejected, noted = read(root)
    assert set(found) == {"a"}
    assert sorted(noted) == [
        *[(f"images/{name}", remarks.OTHER_FORMAT) for name in ("b.mha", "c.nrrd")],
        ("images/n.txt", remarks.PASSED_OVER),
        ("masks/b.mgz", remarks.OTHER_FORMAT),
    ]
    reasons = dict(rejected)
    assert "line 3: is in a format that is not read, .mha (MetaImage); convert to NIfTI" in reasons["b.mha"]
    assert ".nrrd (NRRD)" in reasons["c"] and "line 5: there is no file images/d;" in reasons["d"]


def test_a_ct_as_nifti_is_rejected(own):
    units = np.full(VOLUME.shape, -1000, np.int16)
    units[2:-2, 2:-2] = np.random.default_rng(0).integers(-20, 600, units[2:-2, 2:-2].shape)
    found, rejected, _ = read(own({"v.nii": nifti(units)}, ["v,no_tumor,P1"]))
    reason = "is to be learned as brain MRI, but its values are Hounsfield units, so it is a CT"
    assert not found and rejected and all(why == reason for _, why in rejected)
