import io
import pathlib
import unicodedata
from multiprocessing.reduction import ForkingPickler

import cv2
import nibabel
import numpy as np
import pytest
from mcis_datasets.mcis_scans import record, remarks, sources
from mcis_datasets.mcis_scans.names import stem_of
from mcis_datasets.mcis_scans.record import Record, Rejection, Remark

from mcis.imaging import formats
from mcis.imaging.dicom import seg as dicom_seg
from tests.fixtures import dicom_files

SIZE = (20, 28)


def picture(seed, size=SIZE):
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7), np.uint8)
    return cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)


def outline(seed=0, size=SIZE):
    mask = np.zeros(size, np.uint8)
    mask[3 + seed : 9 + seed, 4:12] = 255
    return mask


@pytest.fixture
def own(tmp_path):
    """A function that writes a folder: name -> array or bytes, and lines of the table; returns the folder."""

    def make(images, rows, masks=(), header="scan,label,patient"):
        for place, files in (("images", images), ("masks", masks)):
            for name, content in dict(files).items():
                path = tmp_path / "own" / place / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    assert cv2.imwrite(str(path), content)
        (tmp_path / "own" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / "labels.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        return tmp_path / "own"

    return make


def read(root):
    """Records by name, rejections as (name, reason), and remarks as (name, kind)."""
    jobs = list(sources.folder(root))
    assert all(ForkingPickler.dumps(job) for job in jobs)  # as Beam sends them to its workers
    items = [record.done(job) for job in jobs]
    found = {item.scan_id: item for item in items if isinstance(item, Record)}
    rejected = [(item.scan_id, item.reason) for item in items if isinstance(item, Rejection)]
    noted = [(item.scan_id, item.kind) for item in items if isinstance(item, Remark)]
    noted += [(name, kind) for name, item in found.items() for kind in item.remarks]
    return found, rejected, noted


def shows(item, array):
    return np.array_equal(item.image[..., 0], array)


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


# Tables


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


# Files of several frames


VOLUME = np.random.default_rng(0).integers(0, 1000, (20, 28, 5)).astype(np.int16)
LESION = np.zeros(VOLUME.shape, np.uint8)
LESION[4:9, 6:14, 1:3] = 1


def nifti(array, affine=None):
    return nibabel.Nifti1Image(array, np.diag([1, 1, 4, 1]) if affine is None else affine).to_bytes()


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


def test_a_mask_on_another_grid_rejects_its_scan(own):
    root = own({"v.nii": nifti(VOLUME)}, ["v,tumor,P1"], {"v.nii": nifti(LESION, np.diag([1, 1, 5, 1]))})
    found, rejected, _ = read(root)
    assert not found and "mask v.nii has another affine matrix than its scan" in rejected[0][1]


def test_a_nifti_mask_of_a_picture_is_rejected(own):
    _, rejected, _ = read(own({"a.png": picture(1)}, ["a,benign,P1"], {"a.nii": nifti(LESION)}))
    assert "mask a.nii is a NIfTI volume, its scan is none" in rejected[0][1]


def test_one_picture_as_the_mask_of_a_volume_is_rejected(own):
    _, rejected, _ = read(own({"v.nii": nifti(VOLUME)}, ["v,tumor,P1"], {"v.png": outline()}))
    assert "mask v.png is one picture, its scan a file of several; name it v#0" in rejected[0][1]


def test_pages_of_a_tiff_are_scans_and_masks_have_one_page(own, tmp_path):
    cv2.imwritemulti(str(tmp_path / "pages.tif"), [picture(1), picture(2)])
    pages = (tmp_path / "pages.tif").read_bytes()
    found, _, _ = read(own({"p.tif": pages, "a.png": picture(3)}, ["p,normal,P1", "a,benign,P2"], {"a.tif": pages}))
    assert list(found) == ["p#0", "p#1"] and shows(found["p#1"], picture(2))
    _, rejected, _ = read(tmp_path / "own")
    assert rejected == [("a", "mask a.tif has 2 pages; a mask has one")]


def test_dicom_is_learned_from_and_masked_by_segmentations_under_any_name(own, tmp_path):
    images = list(np.random.default_rng(0).integers(0, 900, (4, 20, 28), np.uint16))
    paths = dicom_files.write_series(tmp_path / "own" / "images", images, spacing=(0.5, 0.5))
    masks = [outline(k) // 255 * (k in (1, 2)) for k in range(4)]
    (tmp_path / "own" / "masks").mkdir()
    (tmp_path / "own" / "masks" / "any.dcm").write_bytes(dicom_seg.encode(paths, masks, organ="brain"))
    rows = [f"{path.name},{'tumor' if mask.any() else 'no_tumor'}," for path, mask in zip(paths, masks, strict=True)]
    found, rejected, noted = read(own({}, rows))
    assert not rejected and not noted
    for path, mask in zip(paths, masks, strict=True):
        item = found[path.stem]
        assert np.array_equal(item.image, formats.read(path).image) and np.array_equal(item.mask[..., 0], mask)
        assert item.patient is None and item.has_mask and item.series.startswith("study ")
    assert len({item.series for item in found.values()}) == 1
    assert dicom_files.CANARY not in str(rejected) + str([item.series for item in found.values()])


def test_a_multi_frame_file_is_masked_by_its_segmentation(own, tmp_path):
    made = dicom_files.enhanced(np.random.default_rng(0).integers(0, 900, (4, 20, 28), np.uint16), (0.5, 0.5))
    (tmp_path / "own" / "images").mkdir(parents=True)
    (tmp_path / "own" / "masks").mkdir()
    made.save_as(tmp_path / "own" / "images" / "mr.dcm", enforce_file_format=True)
    masks = [outline(k) // 255 * (k in (1, 2)) for k in range(4)]
    seg = dicom_seg.encode([tmp_path / "own" / "images" / "mr.dcm"], masks, organ="brain")
    (tmp_path / "own" / "masks" / "mr.dcm").write_bytes(seg)
    found, rejected, _ = read(own({}, ["mr,tumor,P1"]))
    assert not rejected and [item.label for item in found.values()] == [0, 1, 1, 0]
    assert all(np.array_equal(item.mask[..., 0], mask) for item, mask in zip(found.values(), masks, strict=True))


def test_segmentations_of_other_scans_and_other_dicom_files_are_no_masks(own, tmp_path):
    paths = dicom_files.write_series(tmp_path / "other", list(np.full((1, 20, 28), 7, np.uint16)))
    seg = dicom_seg.encode(paths, [outline() // 255], organ="brain")
    masks = {"a.dcm": seg, "b.dcm": paths[0].read_bytes(), "readme.txt": b"text"}
    _, rejected, noted = read(own({"a.png": picture(1), "notes.txt": b"text"}, ["a,benign,P1"], masks))
    assert dict(rejected)["masks/a"].startswith("a DICOM SEG of scans that are not under images/")
    assert "no segmentation; masks are DICOM SEG, NIfTI or pictures" in dict(rejected)["masks/b.dcm"]
    assert ("images/notes.txt", remarks.PASSED_OVER) in noted and ("masks/readme.txt", remarks.PASSED_OVER) in noted


def test_pixels_that_are_not_square_are_made_square_with_their_mask(own):
    flat = np.diag([1, 1.5, 4, 1])
    root = own({"v.nii": nifti(VOLUME, flat)}, ["v,tumor,P1"], {"v.nii": nifti(LESION, flat)})
    found, rejected, _ = read(root)
    assert not rejected
    item = found["v#1"]
    assert item.image.shape == (42, 20, 3) and item.mask.shape == (42, 20, 1)
    assert item.mask.sum() == 1.5 * LESION[..., 1].sum()
    assert abs(item.image.mean() - formats.read(root / "images" / "v.nii", 1).image.mean()) < 2


# Masks


def test_several_masks_are_joined_as_in_busi(own):
    masks = {"a.png": outline(0), "a_mask.png": outline(2), "a_mask_1.png": outline(4)}
    found, rejected, noted = read(own({"a.png": picture(1)}, ["a,benign,P1"], masks))
    expected = np.maximum(np.maximum(outline(0), outline(2)), outline(4)) // 255
    assert np.array_equal(found["a"].mask[..., 0], expected)
    assert not rejected and noted == [("a", remarks.JOINED_MASKS)]


def test_two_masks_of_one_name_are_rejected(own):
    _, rejected, _ = read(own({"a.png": picture(1)}, ["a,benign,P1"], {"a.png": outline(0), "a.tif": outline(2)}))
    assert rejected == [("a", "several masks: a.png, a.tif; keep one, or name them a_mask_1 and so on")]


def test_inverted_masks_and_blank_pictures_are_rejected(own):
    images = {"a.png": picture(1), "b.png": picture(2), "c.png": np.full(SIZE, 90, np.uint8), "d.png": picture(3)}
    masks = {"a.png": 255 - outline(), "b.png": np.full(SIZE, 255, np.uint8), "d.png": outline()}
    found, rejected, _ = read(own(images, [f"{name},benign,P{name}" for name in "abcd"], masks))
    assert list(found) == ["d"]
    assert [reason for _, reason in rejected[:2]] == [
        "its mask covers the picture up to the border and looks inverted; 0 must be background; "
        "invert it (black outside, white in the lesion). The scan is left out"
    ] * 2
    assert rejected[2] == ("c", "a blank picture: all of its pixels have nearly the same value")


def test_masks_that_cover_much_or_lie_on_black_are_remarked(own):
    much, dark = np.zeros(SIZE, np.uint8), picture(2)
    much[2:18, 2:26] = 255
    dark[outline() > 0] = 0
    images, masks = {"a.png": picture(1), "b.png": dark}, {"a.png": much, "b.png": outline()}
    found, rejected, noted = read(own(images, ["a,benign,P1", "b,benign,P2"], masks))
    assert len(found) == 2 and not rejected
    assert noted == [("a", remarks.COVERS_MOST), ("b", remarks.MASK_ON_BLACK)]


def test_masks_without_a_labelled_picture_are_listed(own):
    masks = {"a.png": outline(0), "b.png": outline(1), "c.png": outline(2)}
    _, rejected, _ = read(own({"a.png": picture(1), "b.png": picture(2)}, ["a,benign,P1"], masks))
    assert dict(rejected) == {
        "b": "has no row in labels.csv; add one (its label may be empty)",
        "masks/b": "a mask of an image that has no row in labels.csv",
        "masks/c": "a mask without its image; a mask is called like its image: a.png or a_mask.png for images/a.png",
    }


def large(seed):
    return picture(seed, (120, 160))


def ellipse(thickness, end=360):
    return cv2.ellipse(np.zeros((120, 160), np.uint8), (80, 60), (30, 24), 0, 0, end, 255, thickness)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("paint", [None, (255, 255, 255), (0, 0, 255)], ids=["the scan", "white lesion", "red line"])
def test_a_mask_that_is_the_picture_itself_is_rejected(own, suffix, paint):
    mask = cv2.cvtColor(large(1), cv2.COLOR_GRAY2BGR)
    if paint is not None:
        cv2.ellipse(mask, (80, 60), (40, 30), 0, 0, 360, paint, 3 if paint[0] == 0 else cv2.FILLED)
    found, rejected, _ = read(own({"a.png": large(1)}, ["a,benign,P"], {f"a.{suffix}": mask}))
    reason = "is the picture itself; a mask is black, with the lesion in white. The scan is left out"
    assert not found and rejected == [("a", f"mask a.{suffix} {reason}")]


def test_a_volume_as_its_own_mask_is_rejected(own):
    found, rejected, _ = read(own({"v.nii": nifti(VOLUME)}, ["v,tumor,P"], {"v.nii": nifti(VOLUME)}))
    assert not found and {reason.split(";")[0] for _, reason in rejected} == {"mask v.nii is the picture itself"}


def test_masks_of_levels_soft_masks_and_other_pictures_are_not_the_picture_itself(own):
    soft = cv2.GaussianBlur(ellipse(cv2.FILLED), (31, 31), 9)
    flat = np.full((120, 160), 128, np.uint8)
    flat[:40, :40] = large(1)[:40, :40]
    masks = {"a": ellipse(cv2.FILLED) // 2, "b": soft, "c": large(9), "d": ellipse(cv2.FILLED) & large(4)}
    for name, mask in masks.items():
        image = {"a": flat, "b": large(2), "c": large(3), "d": large(4)}[name]
        assert not remarks.is_picture(np.dstack([mask] * 3), np.dstack([image] * 3)), name


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (ellipse(3), True),
        (ellipse(1), True),
        (ellipse(3, 300), True),
        (ellipse(cv2.FILLED), False),
        (ellipse(20), False),
        (cv2.line(np.zeros((120, 160), np.uint8), (10, 10), (90, 40), 255, 3), False),
        (cv2.circle(np.zeros((120, 160), np.uint8), (80, 60), 2, 255, cv2.FILLED), False),
    ],
    ids=["3 px", "1 px", "open", "area", "thick ring", "thin lesion", "small lesion"],
)
def test_outlines_in_place_of_areas_are_remarked(own, mask, expected):
    found, rejected, noted = read(own({"a.png": large(1)}, ["a,benign,P"], {"a.png": mask}))
    assert list(found) == ["a"] and not rejected
    assert (("a", remarks.OUTLINE) in noted) == expected


@pytest.mark.parametrize("name", ["a_Mask", "a_MASK", "a_Mask_2"])
def test_mask_may_be_written_in_any_case(own, name):
    found, rejected, _ = read(own({"a.png": picture(1)}, ["a,benign,P"], {f"{name}.png": outline()}))
    assert not rejected and found["a"].mask.any()


@pytest.mark.parametrize("name", ["a_seg", "a-mask", "a mask", "a_label", "a_Segmentation_1", "a.gt"])
def test_a_mask_under_another_name_is_told_how_it_must_be_called(own, name):
    _, rejected, noted = read(own({"a.png": picture(1)}, ["a,benign,P"], {f"{name}.png": outline()}))
    reason = "a mask without its image; a mask is called like its image: a.png or a_mask.png"
    assert rejected == [(f"masks/{name}", reason)] and ("a", remarks.NOT_OUTLINED) in noted


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


def test_the_rule_by_which_a_mask_was_read_is_kept(own):
    soft = np.rint(cv2.GaussianBlur(outline().astype(np.float32), (9, 9), 2) * (100 / 255)).astype(np.uint8)
    masks = {"a_mask_1.png": soft, "a_mask_2.png": outline(2), "b.jpg": outline(), "c.png": outline()}
    found, rejected, noted = read(
        own({f"{name}.png": picture(k) for k, name in enumerate("abc")}, [f"{name},benign,P" for name in "abc"], masks)
    )
    assert not rejected and noted == [("a", remarks.JOINED_MASKS)]
    limit = -(-int(soft.max()) // 4)
    assert found["a"].mask_notes == (f"mask a_mask_1.png: of many grey levels: values of {limit} and more are lesion",)
    assert np.array_equal(found["a"].mask[..., 0], (soft >= limit) | (outline(2) > 0))
    assert found["b"].mask_notes == ("mask b.jpg: compressed by JPEG: values of 64 and more are lesion",)
    assert found["c"].mask_notes == ()


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


# Tables as people write them


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


def test_a_ct_as_nifti_is_rejected(own):
    units = np.full(VOLUME.shape, -1000, np.int16)
    units[2:-2, 2:-2] = np.random.default_rng(0).integers(-20, 600, units[2:-2, 2:-2].shape)
    found, rejected, _ = read(own({"v.nii": nifti(units)}, ["v,no_tumor,P1"]))
    reason = "is to be learned as brain MRI, but its values are Hounsfield units, so it is a CT"
    assert not found and rejected and all(why == reason for _, why in rejected)
