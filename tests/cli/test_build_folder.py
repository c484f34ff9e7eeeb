"""`mcis build folder` from one's own scans to the audit. The builder's own tests cover each rule."""

import json

import cv2
import nibabel
import numpy as np
import pytest
from mcis_datasets.mcis_scans import audit, remarks

from mcis.cli.build import build
from mcis.data import dataset


def picture(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (5, 7), np.uint8)
    return cv2.resize(noise, (28, 20), interpolation=cv2.INTER_CUBIC)


def outline():
    mask = np.zeros((20, 28), np.uint8)
    mask[3:9, 4:12] = 255
    return mask


def nifti(array):
    return nibabel.Nifti1Image(array, np.diag([1, 1, 4, 1])).to_bytes()


def own(folder, images, rows, masks=()):
    """Write a folder: name -> array or bytes, and the rows of its table."""
    for place, files in (("images", images), ("masks", masks)):
        (folder / place).mkdir(parents=True)
        for name, content in dict(files).items():
            if isinstance(content, bytes):
                (folder / place / name).write_bytes(content)
            else:
                assert cv2.imwrite(str(folder / place / name), content)
    (folder / "labels.csv").write_text("\n".join(["scan,label,patient", *rows]), encoding="utf-8")
    return folder


def built(root, data):
    place = build("folder", from_=root, data_dir=data, progress=False)
    return json.loads((place / "audit.json").read_text(encoding="utf-8"))


def test_repeated_pictures_masks_and_patients_are_warnings_of_the_audit(tmp_path, capsys):
    images = {f"{name}.png": picture(seed) for name, seed in zip("abcdef", (1, 1, 2, 3, 4, 5), strict=True)}
    rows = ["a,benign,P1", "b,benign,P2", "c,benign,P3", "d,benign,P4", "e,normal,P5", "f,malignant,P6"]
    audit = built(own(tmp_path / "own", images, rows, {"c.png": outline(), "d.png": outline()}), tmp_path / "data")
    found = {entry["kind"]: (entry["count"], entry["scans"]) for entry in audit["warnings"]}
    assert found == {
        remarks.NOT_OUTLINED: (3, ["a", "b", "f"]),
        remarks.SAME_PICTURE: (1, ["a = b"]),
        remarks.SEVERAL_PATIENTS: (1, ["a = b"]),
        remarks.SAME_MASK: (1, ["c = d"]),
    }
    printed = capsys.readouterr().out
    assert "WARNING: the same mask for several pictures; at most one can be right: 1\n    c = d\n" in printed


def test_masks_that_a_rule_decides_are_counted_and_named_with_the_rule(tmp_path, capsys):
    images = {f"{name}.png": picture(seed) for seed, name in enumerate("abcd")}
    masks = {"a.jpg": outline(), "b.jpg": outline()[:, ::-1], "c.png": outline()[::-1]}
    rows = ["a,benign,P1", "b,benign,P2", "c,benign,P3", "d,normal,P4"]
    audit = built(own(tmp_path / "own", images, rows, masks), tmp_path / "data")
    (entry,) = audit["warnings"]
    rule = "compressed by JPEG: values of 64 and more are lesion"
    assert (entry["kind"], entry["count"]) == (remarks.MASK_RULE, 2)
    assert entry["scans"] == [f"a: mask a.jpg: {rule}", f"b: mask b.jpg: {rule}"]
    printed = capsys.readouterr().out
    assert f"WARNING: {remarks.REMARKS[remarks.MASK_RULE]}: 2\n    a: mask a.jpg: {rule}\n" in printed


def test_one_picture_under_two_labels_loses_its_label(tmp_path):
    images = {"a.png": picture(1), "b.png": picture(1), "c.png": picture(2)}
    audit = built(own(tmp_path / "own", images, ["a,benign,P1", "b,normal,P1", "c,normal,P2"]), tmp_path / "data")
    assert audit["contradictions"] == [{"group": "P1", "labels": ["benign", "normal"], "scans": ["a", "b"]}]


def test_slices_of_a_volume_are_in_one_split_and_keep_their_labels(tmp_path, capsys):
    names = [f"v{k}.nii.gz" for k in range(6)]
    smooth = np.cumsum(np.random.default_rng(1).integers(0, 3, (6, 40, 40, 5)), axis=-1).astype(np.int16)
    smooth += (1000 * np.random.default_rng(2).random((6, 5, 5, 1))).astype(np.int16).repeat(8, 1).repeat(8, 2)
    lesion = np.zeros((40, 40, 5), np.uint8)
    lesion[10:20, 10:20, 2:4] = 1
    images = {name: nifti(array) for name, array in zip(names, smooth, strict=True)}
    root = own(tmp_path / "own", images, [f"{name},tumor," for name in names], {name: nifti(lesion) for name in names})
    audit = built(root, tmp_path / "data")
    assert audit["scans"] == 30 and not audit["rejections"] and not audit["contradictions"]
    assert audit["proof"]["series"] == {"checked": 6, "in_two_splits": 0}
    assert sum(counts["tumor"] for counts in audit["counts"].values()) == 12
    assert "6 series" in capsys.readouterr().out
    again = json.loads(
        (build("folder", from_=root, data_dir=tmp_path / "data", overwrite=True) / "audit.json").read_text()
    )
    assert again["counts"] == audit["counts"]


def test_an_empty_split_is_a_warning_that_says_what_will_fail_and_what_to_do(tmp_path, capsys):
    report = built(own(tmp_path / "own", {"a.png": picture(1)}, ["a,normal,P1"]), tmp_path / "data")
    (split,) = (split for split, counts in report["counts"].items() if counts["normal"])
    assert split == "train"
    assert (
        "WARNING: validation and test are empty, so training and evaluation will fail: every patient or group (1 "
        "here) goes to one split by chance. Add patients (33 more make this unlikely), or train with another data "
        "set too (--sources=folder,busi)"
    ) in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"add patients, or train with another data set too \(--sources=folder,busi\)"):
        dataset.load(["folder"], "validation", tmp_path / "data", "breast")


@pytest.mark.parametrize(("empty", "number"), [(["validation"], 29), (["validation", "test"], 33), (["train"], 4)])
def test_the_number_of_patients_that_fill_a_split(empty, number):
    missing = {"train": 0.3, "validation": 0.85, "test": 0.85}
    assert sum(missing[split] ** number for split in empty) < 0.01
    assert sum(missing[split] ** (number - 1) for split in empty) >= 0.01
    assert audit.enough(empty) == number
