"""Masks of a user's own scans: by name, by grid and by reference, and those that are no masks."""

import cv2
import numpy as np
import pytest
from mcis_datasets.mcis_scans import remarks

from mcis.imaging import formats
from mcis.imaging.dicom import seg as dicom_seg
from tests.fixtures import dicom_files
from tests.fixtures.own_folders import LESION, SIZE, VOLUME, nifti, outline, picture, read

pytest_plugins = ["tests.fixtures.own_folders"]


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
