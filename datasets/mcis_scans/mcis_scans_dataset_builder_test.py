import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import shutil

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from mcis_datasets.mcis_scans import mcis_scans_dataset_builder as builder_module
from mcis_datasets.mcis_scans import record, sources, staging
from mcis_datasets.mcis_scans.dummy_data_generator import HEIGHT, WIDTH, make_image, marker
from mcis_datasets.mcis_scans.mcis_scans_dataset_builder import Builder, sift
from mcis_datasets.mcis_scans.record import Record, Rejection
from mcis_datasets.mcis_scans.sources import SOURCES

from mcis import organs
from mcis.imaging import image_files, scan

DUMMY = pathlib.Path(__file__).parent / "dummy_data"


@pytest.fixture(autouse=True)
def no_bars():
    tfds.disable_progress_bar()


def read(name, root=None):
    base = record.find_base(root or DUMMY / name, SOURCES[name].requires)
    items = [item for item in map(record.done, SOURCES[name].read(base)) if not isinstance(item, record.Remark)]
    records = {item.scan_id: item for item in items if isinstance(item, Record)}
    rejections = {item.scan_id: item.reason for item in items if isinstance(item, Rejection)}
    assert len(records) + len(rejections) == len(items)
    return records, rejections


@pytest.fixture
def copy(tmp_path):
    def make(name):
        shutil.copytree(DUMMY / name, tmp_path / name)
        return tmp_path / name

    return make


def grey(seed):
    return np.repeat(make_image(seed)[..., None], 3, axis=2)


def binary(*rectangles):
    return np.any([marker(0, 0, 0, 0), *(marker(*r) for r in rectangles)], axis=0).astype(np.uint8)[..., None]


def check(item, image, mask, has_mask, organ, label, patient):
    assert np.array_equal(item.image, image)
    assert item.image.dtype == item.mask.dtype == np.uint8
    assert np.array_equal(item.mask, mask)
    assert (item.has_mask, item.organ, item.label, item.patient) == (has_mask, organ, label, patient)


def test_busi_is_read_exactly():
    records, rejections = read("busi")
    assert not rejections
    assert list(records) == ["normal/normal (1)", "benign/benign (1)", "benign/benign (2)", "malignant/malignant (1)"]
    both = binary((2, 3, 5, 4), (20, 12, 6, 3))
    check(records["benign/benign (1)"], grey(1), both, True, "breast", 1, None)
    check(records["benign/benign (2)"], grey(2), binary((1, 2, 4, 9)), True, "breast", 1, None)
    check(records["malignant/malignant (1)"], grey(3), binary((9, 1, 12, 6)), True, "breast", 2, None)
    check(records["normal/normal (1)"], grey(4), binary(), True, "breast", 0, None)


def test_busbra_is_read_exactly():
    records, rejections = read("busbra")
    assert not rejections
    for k, (name, label, patient) in enumerate((("0001-l", 2, "1"), ("0001-r", 2, "1"), ("0002-l", 1, "2"))):
        check(records[f"bus_{name}"], grey(10 + k), binary((3 + k, 2, 6, 5)), True, "breast", label, patient)


def test_lgg_is_read_exactly():
    records, rejections = read("lgg")
    assert not rejections
    assert len(records) == 4
    for k, (place, patient) in enumerate(
        (("TCGA_CS_0001_19990101", "TCGA_CS_0001"), ("TCGA_DU_0002_19990202", "TCGA_DU_0002"))
    ):
        for number in (1, 2):
            channels = np.dstack([make_image(20 + 10 * k + 3 * number + c) for c in (2, 1, 0)])  # written as BGR
            mask = binary((5, 4 + k, 7, 3)) if number == 1 else binary()
            check(records[f"{place}/{place}_{number}"], channels, mask, True, "brain", int(number == 1), patient)


def test_br35h_is_read_exactly():
    records, rejections = read("br35h")
    assert not rejections
    assert list(records) == ["yes/y0", "yes/y1", "yes/y2", "yes/y3", "no/No12", "no/no0"]
    for k in range(3):  # the outlined copy, in its own size
        assert records[f"yes/y{k}"].image.shape == (HEIGHT, WIDTH, 3)
        assert np.abs(records[f"yes/y{k}"].image.astype(int) - grey(40 + k)).mean() < 5  # JPEG
    assert np.array_equal(records["yes/y0"].mask, binary((2, 3, 8, 5)))
    assert records["yes/y1"].mask.sum() == pytest.approx(np.pi * 24 + 24, abs=2)
    assert records["yes/y1"].mask[16, 22]  # the rectangle
    assert records["yes/y1"].mask[11, 17]  # the ellipse's lower right end
    assert records["yes/y2"].mask.sum() == pytest.approx(np.pi * 4.5**2, abs=4)
    assert all(item.has_mask for name, item in records.items() if name != "yes/y3")
    assert not records["yes/y3"].has_mask
    assert records["yes/y3"].image.shape == (10, 14, 3)
    assert not any(records[name].mask.any() for name in ("yes/y3", "no/No12", "no/no0"))
    assert [item.label for item in records.values()] == [1, 1, 1, 1, 0, 0]
    assert {item.organ for item in records.values()} == {"brain"}


def test_folder_is_read_exactly():
    records, rejections = read("folder")
    assert not rejections
    check(records["a"], grey(60), binary((3, 4, 5, 6)), True, "breast", 2, "p1")
    check(records["deep/c"], grey(62), binary((8, 2, 3, 9)), True, "brain", 1, "p2")
    check(records["d"], grey(63), binary(), False, "brain", -1, None)
    assert (records["b"].label, records["b"].has_mask) == (1, False)


def test_out_of_distribution_images_are_read_exactly():
    records, rejections = read("foreign")
    assert not rejections
    assert list(records) == ["photo/a", "photo/b", "x_ray/a"]
    check(records["x_ray/a"], grey(74), binary(), False, organs.UNSUPPORTED, -1, "x_ray")
    colour = np.dstack([make_image(70 + channel) for channel in (2, 1, 0)])  # written as BGR
    check(records["photo/a"], colour, binary(), False, organs.UNSUPPORTED, -1, "photo")


def test_phantoms_have_every_class():
    records = [record.done(job) for job in sources.phantoms(per_class=2)]
    assert sorted((r.organ, r.label) for r in records) == sorted(
        (organ.name, k) for organ in organs.ORGANS for k in range(len(organ.classes)) for _ in range(2)
    )
    assert len({r.scan_id for r in records}) == len(records)
    assert all(r.has_mask and r.mask.any() == organs.organ_named(r.organ).is_lesion(r.label) for r in records)


@pytest.mark.parametrize(
    ("name", "path", "change", "scan_id", "words"),
    [
        ("busi", "benign/benign (1)_mask.png", "resize", "benign/benign (1)", "mask benign (1)_mask.png is 9 x 7"),
        ("busi", "benign/benign (1).png", "remove", "benign/benign (1)_mask", "a mask without its image"),
        ("busi", "benign/benign (2).png", "spoil", "benign/benign (2)", "not a readable"),
        (
            "busi",
            "benign/benign (2)_mask.png",
            "spoil",
            "benign/benign (2)",
            "mask benign (2)_mask.png: not a readable",
        ),
        ("busi", "benign/benign (2)_mask.png", "remove", "benign/benign (2)", "no mask"),
        ("busi", "benign/benign (2)_mask.png", "blank", "benign/benign (2)", "labelled benign, yet its mask is empty"),
        ("busi", "normal/normal (1)_mask.png", "fill", "normal/normal (1)", "labelled normal, yet its mask outlines"),
        ("busbra", "Images/bus_0002-l.png", "remove", "bus_0002-l", "no such file"),
        ("busbra", "Masks/mask_0002-l.png", "remove", "bus_0002-l", "no mask"),
        ("busbra", "Images/bus_0009-l.png", "add", "bus_0009-l", "no row in bus_data.csv"),
        ("busbra", "Masks/mask_0009-l.png", "add", "Masks/mask_0009-l", "a mask without its image"),
        (
            "lgg",
            "TCGA_CS_0001_19990101/TCGA_CS_0001_19990101_1_mask.tif",
            "remove",
            "TCGA_CS_0001_19990101/TCGA_CS_0001_19990101_1",
            "no mask",
        ),
        (
            "lgg",
            "TCGA_CS_0001_19990101/TCGA_CS_0001_19990101_2.tif",
            "remove",
            "TCGA_CS_0001_19990101/TCGA_CS_0001_19990101_2_mask",
            "a mask without its image",
        ),
        ("br35h", "Br35H-Mask-RCNN/TEST/y2.jpg", "remove", "TEST/y2.jpg", "an outline without its image"),
        ("br35h", "no/no0.jpg", "spoil", "no/no0", "not a readable"),
        ("folder", "images/a.png", "remove", "a.png", "line 2: there is no file images/a.png;"),
        ("folder", "images/x.png", "add", "x", "no row in labels.csv"),
        ("folder", "masks/x.png", "add", "masks/x", "a mask without its image"),
        ("folder", "masks/a.png", "resize", "a", "is 9 x 7 pixels, its scan 28 x 20"),
    ],
)
def test_bad_files_are_rejected_with_a_reason(copy, name, path, change, scan_id, words):
    before, _ = read(name)
    root = copy(name)
    target = record.find_base(root, SOURCES[name].requires) / path
    mask = marker(1, 1, 4, 4)
    if change == "remove":
        target.unlink()
    elif change == "spoil":
        target.write_bytes(b"no image")
    else:
        contents = {"resize": mask[:7, :9], "blank": mask * 0, "fill": mask, "add": mask}
        assert cv2.imwrite(str(target), contents[change])
    records, rejections = read(name, root)
    (reason,) = (reason for key, reason in rejections.items() if key == scan_id)
    assert words in reason
    assert str(root) not in reason
    missing = set(before) - set(records)
    assert missing <= {scan_id, scan_id.removesuffix("_mask"), "a", "yes/y2"}


ROWS = [
    ("a,malignant,p1,brain", "a", "'brain' with label 'malignant'"),
    (
        "a,cyst,p1,",
        "a",
        "there is no label 'cyst'; the labels are brain: no_tumor, tumor; breast: normal, benign, malignant",
    ),
    ("a,,p1,", "a", "organ '' with label ''"),
    ("../labels,benign,,", "../labels", "there is no file images/../labels"),
]


@pytest.mark.parametrize(("row", "scan_id", "words"), ROWS)
def test_bad_rows_of_labels_csv_are_rejected(copy, row, scan_id, words):
    root = copy("folder")
    lines = (root / "labels.csv").read_text().splitlines()
    (root / "labels.csv").write_text("\n".join([lines[0], row, *lines[2:]]))
    assert words in read("folder", root)[1][scan_id]


def test_a_second_row_of_a_scan_is_rejected(copy):
    root = copy("folder")
    with (root / "labels.csv").open("a") as file:
        csv.writer(file).writerow(["a", "malignant", "p1", ""])
    records, rejections = read("folder", root)
    assert records["a"].label == 2
    assert "line 6: was named before, in line 2" in rejections["a"]


def test_a_scan_with_two_labels_is_left_out(copy):
    root = copy("folder")
    with (root / "labels.csv").open("a") as file:
        csv.writer(file).writerow(["a.png", "benign", "p9", ""])
    records, rejections = read("folder", root)
    assert "a" not in records
    assert "line 6: labelled otherwise in line 2" in rejections["a.png"]


def test_a_scan_of_a_class_without_lesion_needs_no_mask(copy):
    root = copy("folder")
    (root / "labels.csv").write_text("scan,label,patient\nb,normal,\n")
    records, _ = read("folder", root)
    assert records["b"].has_mask
    assert not records["b"].mask.any()


def test_a_table_without_its_columns_is_an_error(copy):
    root = copy("folder")
    (root / "labels.csv").write_text("name,label\na,benign\n")
    with pytest.raises(ValueError, match=r"has no column scan, patient; it has: name, label"):
        read("folder", root)


def test_a_second_outline_of_an_image_is_rejected(copy):
    root = copy("br35h")
    place = root / "Br35H" / "Br35H-Mask-RCNN"
    shutil.copy(place / "TRAIN" / "y0.jpg", place / "TEST" / "Y0.jpg")
    shutil.copy(place / "TRAIN" / "annotations_train.json", place / "TEST" / "more.json")
    records, rejections = read("br35h", root)
    assert len(records) == 6
    assert "outlined in another folder too" in rejections["TEST/Y0"]


@pytest.mark.parametrize("name", [name for name in SOURCES if SOURCES[name].requires])
def test_a_source_is_found_up_to_three_folders_down(tmp_path, copy, name):
    base = record.find_base(DUMMY / name, SOURCES[name].requires)
    assert record.find_base(base, SOURCES[name].requires) == base
    if name != "foreign":  # any folder of folders of images matches it
        assert record.find_base(DUMMY, SOURCES[name].requires) == base
    shutil.copytree(base, tmp_path / "1" / "2" / "3")
    assert record.find_base(tmp_path, SOURCES[name].requires) == tmp_path / "1" / "2" / "3"
    shutil.rmtree(tmp_path / "1" / "2" / "3")
    shutil.copytree(base, tmp_path / "1" / "2" / "3" / "4")
    assert record.find_base(tmp_path, SOURCES[name].requires) is None


def stage(folder, jobs):
    staging.stage_all(jobs, folder)
    return staging.read_all(folder, len(jobs))


def test_more_rejected_than_read_is_an_error(tmp_path):
    (item,) = stage(tmp_path, [next(iter(sources.phantoms(per_class=1)))])
    bad = [Rejection("x", "unreadable"), Rejection("y", "unreadable")]
    with pytest.raises(ValueError, match=r"(?s)read: 1, files rejected: 2.* x: unreadable"):
        sift("busi", [item, *bad])
    with pytest.raises(ValueError, match="read: 0"):
        sift("busi", [])
    assert sift("busi", [item, bad[0]])[1] == bad[:1]


def test_a_second_scan_of_one_name_is_rejected(tmp_path):
    (item,) = stage(tmp_path, [next(iter(sources.phantoms(per_class=1)))])
    scans, rejections, _ = sift("phantom", [item, dataclasses.replace(item, label=0)])
    assert len(scans) == 1
    assert rejections[0].scan_id == item.scan_id


@pytest.mark.parametrize(("name", "zipped"), [("busi", False), ("br35h", True)])
def test_a_prepared_set_has_the_scans_that_were_read(tmp_path, capsys, name, zipped):
    manual = DUMMY / name
    if zipped:
        manual = tmp_path / "manual"
        manual.mkdir()
        shutil.make_archive(str(manual / name), "zip", DUMMY / name)
    built = Builder(config=name, data_dir=tmp_path / "data")
    built.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
    again = tfds.builder_from_directory(built.data_path)  # as training reads it, without the builder
    assert again.info.file_format.value == "array_record"
    records, _ = read(name)
    rows = {row["scan_id"].decode(): (split, row) for split in again.info.splits for row in again.as_data_source(split)}
    assert set(rows) == set(records)
    for scan_id, (split, row) in rows.items():
        original = records[scan_id]
        assert np.array_equal(row["image"], original.image)
        assert np.array_equal(row["mask"], original.mask)
        assert row["mask"].shape == (*original.image.shape[:2], 1)
        assert (row["has_mask"], row["label"]) == (original.has_mask, original.label)
        assert (row["organ"].decode(), row["source"].decode()) == (original.organ, name)
        assert row["fingerprint"].decode() == scan.fingerprint(original.image)
        assert row["group"].decode().startswith("cluster-")
        history = json.loads((pathlib.Path(built.data_path).parent / "splits.json").read_text())
        assert history["fingerprints"][row["fingerprint"].decode()] == split
    audit = json.loads((pathlib.Path(built.data_path) / "audit.json").read_text())
    assert audit["scans"] == len(records)
    assert f"{name}: {len(records)} scans" in capsys.readouterr().out


def test_contradicting_near_duplicates_lose_their_label_in_the_prepared_set(tmp_path, copy, capsys):
    root = copy("busi")
    base = root / "Dataset_BUSI_with_GT"
    for kind in ("", "_mask"):
        shutil.copy(base / "benign" / f"benign (2){kind}.png", base / "malignant" / f"malignant (9){kind}.png")
    built = Builder(config="busi", data_dir=tmp_path / "data")
    built.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=root))
    rows = {row["scan_id"].decode(): row for row in built.as_data_source("train")}
    assert rows["benign/benign (2)"]["label"] == rows["malignant/malignant (9)"]["label"] == -1
    assert "benign, malignant: benign/benign (2), malignant/malignant (9)" in capsys.readouterr().out


def test_staged_scans_are_those_that_were_read_in_their_order(tmp_path):
    jobs = [*sources.phantoms(per_class=1), Rejection("x", "unreadable"), lambda: Rejection("y", "unreadable too")]
    items = stage(tmp_path, jobs)
    assert items[-2:] == [Rejection("x", "unreadable"), Rejection("y", "unreadable too")]
    for job, staged in zip(jobs[:-2], items[:-2], strict=True):
        original = record.done(job)
        image, mask = (image_files.decode(png).image for png in staging.images_of(staged, tmp_path))
        np.testing.assert_array_equal(image, original.image)
        np.testing.assert_array_equal(mask[..., :1], original.mask)
        assert staged.fingerprint == scan.fingerprint(original.image)
        for name in ("scan_id", "has_mask", "organ", "label", "patient"):
            assert vars(staged)[name] == vars(original)[name]


def test_staging_in_bundles_in_any_order_and_twice_gives_the_same(tmp_path):
    jobs = list(enumerate(sources.phantoms(per_class=1)))
    packed = [staging.pack(job) for _, job in jobs]
    for bundle in (range(2, 5), range(3), range(1, 3)):
        with staging.writer(tmp_path) as add:
            for number in reversed(bundle):
                add(number, packed[number])
    with contextlib.suppress(KeyboardInterrupt), staging.writer(tmp_path) as add:
        add(99, packed[0])
        raise KeyboardInterrupt
    with staging.writer(tmp_path) as add:  # one worker could not read what the others could
        add(3, staging.pack(Rejection("3", "stale file handle")))
    with staging.writer(tmp_path):
        pass  # an empty bundle
    items = staging.read_all(tmp_path, len(jobs))
    with pytest.raises(OSError, match="1 of 6 scans are missing"):
        staging.read_all(tmp_path, len(jobs) + 1)
    assert [item.scan_id for item in items] == [record.done(job).scan_id for _, job in jobs]
    assert [staging.images_of(item, tmp_path) for item in items] == [images for _, images in packed]


def test_more_scans_than_fit_in_memory_are_an_error_before_they_are_compared(tmp_path, monkeypatch):
    (item,) = stage(tmp_path, [next(iter(sources.phantoms(per_class=1)))])
    many = [dataclasses.replace(item, scan_id=str(i), patient=None) for i in range(100)]
    monkeypatch.setattr(builder_module, "free_memory", lambda: 10_000_000)
    with pytest.raises(ValueError, match=r"100 scans, not all of a known patient.*Name the patient"):
        builder_module.find_members(many, tmp_path)
    known = [dataclasses.replace(row, patient=row.scan_id) for row in many]
    assert len(builder_module.find_members(known, tmp_path)) == 100


@pytest.mark.parametrize("fails", [False, True])
def test_the_staging_folder_is_removed(tmp_path, monkeypatch, fails):
    if fails:
        monkeypatch.setattr(builder_module.audit, "make_audit", lambda *a: pytest.fail("a bug"))
    with pytest.raises(pytest.fail.Exception) if fails else contextlib.nullcontext():
        Builder(config="phantom", data_dir=tmp_path, per_class=1).download_and_prepare()
    assert not list((tmp_path / "mcis_scans" / "phantom").glob(f"{staging.PREFIX}*"))
    assert staging._reader.cache_info().currsize == 0  # an open file would stay on the disk


def test_the_description_is_complete():
    metadata = Builder.get_metadata()
    assert set(metadata.tags) <= set(tfds.core.dataset_metadata.valid_tags())
    for name, source in SOURCES.items():
        assert f"| `{name}` |" in metadata.description
        assert name in Builder.builder_configs
        assert not source.requires or source.origin in Builder.MANUAL_DOWNLOAD_INSTRUCTIONS
    assert metadata.citation.count("@") == 11


def test_the_builder_imports_neither_tensorflow_nor_jax():
    import subprocess
    import sys

    code = f"import sys, {builder_module.__name__}; sys.exit('tensorflow' in sys.modules or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_table_that_is_a_pipe_is_an_error_and_rows_that_name_no_file_are_rejected(tmp_path):
    shutil.copytree(DUMMY / "folder", tmp_path / "scans")
    table = tmp_path / "scans" / "labels.csv"
    table.write_text(table.read_text() + ".,,,\n/,,,\n..,,,\n")
    items = [record.done(job) for job in SOURCES["folder"].read(tmp_path / "scans")]
    assert [item.scan_id for item in items if isinstance(item, Rejection)] == [".", "/", ".."]
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(ValueError, match="not a regular file"):
        list(SOURCES["folder"].read(tmp_path / "scans"))
