"""Prepared data -> scans, their folds, and letterboxed batches of records."""

import dataclasses
import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from mcis.data import dataset, storage
from mcis.data.records import letterboxed_batches, read_records
from mcis.imaging import scan
from mcis.imaging.letterbox import INPUT_SIZE, letterbox, letterbox_mask


@pytest.fixture(scope="module")
def scans(scans):
    return scans[0]


def test_missing_data_names_the_command_that_builds_it_and_the_source_that_needs_none(tmp_path):
    with pytest.raises(dataset.MissingData, match=r"mcis build busi --from") as error:
        dataset.load(("busi",), "train", tmp_path)
    assert "--sources=phantom" in str(error.value)
    assert f"--data_dir={tmp_path}" in str(error.value)
    assert str(error.value).startswith("source 'busi' is not prepared")


def test_all_missing_sources_are_named_at_once(tmp_path):
    with pytest.raises(dataset.MissingData, match=r"'busi', 'uclm' are not prepared") as error:
        dataset.load(("busi", "uclm"), "train", tmp_path)
    assert f"mcis build busi --from <folder or zip> --data_dir={tmp_path}\n" in str(error.value)
    assert f"mcis build uclm --from <folder or zip> --data_dir={tmp_path}\n" in str(error.value)


def test_an_unknown_split_lists_the_splits(phantom_dir):
    with pytest.raises(ValueError, match="train, validation, test"):
        dataset.records("phantom", "dev", phantom_dir)


def test_the_newest_version_is_chosen_by_number_not_by_text(tmp_path):
    for version in ("1.9.0", "1.10.0"):
        folder = tmp_path / dataset.DATASET / "phantom" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").touch()
    assert dataset.prepared("phantom", tmp_path).name == "1.10.0"
    assert [p.name for p in dataset.sources_in(tmp_path)] == ["phantom"]


def test_loaded_scans_are_the_letterboxed_records(scans, phantom_dir):
    record = dataset.records("phantom", "train", phantom_dir)[3]
    image, mask = storage.decode(record)
    square, geometry = letterbox(image)
    images, masks = scans.pixels.read()
    np.testing.assert_array_equal(images[3], square)
    np.testing.assert_array_equal(masks[3], letterbox_mask(mask, geometry))
    np.testing.assert_array_equal(scans.area, masks.sum((1, 2, 3)))
    lesion = scans.area > 0
    assert len(set(scans.outline[lesion])) == lesion.sum() > 1 == len(set(scans.outline[~lesion]))
    assert scans.fingerprint[3] == scan.fingerprint(image)
    assert scans.group[3].startswith("phantom/")
    assert images.shape == (len(scans), INPUT_SIZE, INPUT_SIZE, 3)
    assert images.dtype == masks.dtype == np.uint8


def test_only_the_scans_of_the_named_organ_are_loaded(phantom_dir):
    whole, brain = (dataset.load(("phantom",), "validation", phantom_dir, organ) for organ in (None, "brain"))
    assert set(brain.organ) == {"brain"} < set(whole.organ)
    assert brain.scan_id.tolist() == whole.scan_id[whole.organ == "brain"].tolist()
    with pytest.raises(ValueError, match="split 'validation' of phantom holds no liver scans"):
        dataset.load(("phantom",), "validation", phantom_dir, "liver")


def test_splits_share_no_group(phantom_dir):
    groups = [
        {dataset.text(record["group"]) for record in dataset.records("phantom", split, phantom_dir)}
        for split in dataset.SPLITS
    ]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


def test_records_come_in_padded_letterboxed_batches(phantom_dir):
    records = read_records(("phantom",), ("validation", "test"), phantom_dir, "breast")
    stored = [record for split in ("validation", "test") for record in dataset.records("phantom", split, phantom_dir)]
    breast = [record for record in stored if dataset.text(record["organ"]) == "breast"]
    assert [record["scan_id"] for record in records] == [record["scan_id"] for record in breast]
    assert list(records.fingerprints) == [dataset.text(record["fingerprint"]) for record in breast]
    rows = []
    for scans, batch in letterboxed_batches(records, 3):
        assert batch.shape == (3, INPUT_SIZE, INPUT_SIZE, 3) and batch.dtype == np.uint8
        assert not batch[len(scans) :].any()
        for one, square in zip(scans, batch, strict=False):
            np.testing.assert_array_equal(one.image, storage.decode(one.record)[0])
            np.testing.assert_array_equal(one.mask, storage.decode(one.record)[1])
            expected, geometry = letterbox(one.image)
            np.testing.assert_array_equal(square, expected)
            assert one.geometry == geometry
            rows.append(one.record["scan_id"])
    assert rows == [record["scan_id"] for record in breast]
    with pytest.raises(ValueError, match="split 'test' of phantom holds no liver scans"):
        read_records(("phantom",), ("test",), phantom_dir, "liver")


# Folds

GROUPS = st.dictionaries(  # name -> source, label, number of scans
    st.text("abcdef/0123", min_size=1, max_size=6),
    st.tuples(st.sampled_from("xy"), st.integers(-1, 2), st.integers(1, 5)),
    min_size=1,
    max_size=40,
)
few = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)


def columns_of(rows):
    group, source, label = (np.array(column) for column in zip(*rows, strict=True))
    return types.SimpleNamespace(group=group, source=source, label=label)


@few
@hypothesis.given(GROUPS, st.integers(2, 6), st.randoms(use_true_random=False))
def test_folds_keep_groups_whole_and_balanced_in_any_order(groups, folds, random):
    rows = [(name, source, label) for name, (source, label, count) in groups.items() for _ in range(count)]
    random.shuffle(rows)
    fold = dataset.folds_of(columns_of(rows), folds)
    fold_of_group = dict(zip((name for name, _, _ in rows), fold.tolist(), strict=True))
    assert [fold_of_group[name] for name, _, _ in rows] == fold.tolist()
    assert np.ptp(np.bincount(list(fold_of_group.values()), minlength=folds)) <= 1
    for stratum in {(source, label) for source, label, _ in groups.values()}:  # each class of each source
        own = [fold_of_group[name] for name, (source, label, _) in groups.items() if (source, label) == stratum]
        assert np.ptp(np.bincount(own, minlength=folds)) <= 1
    order = sorted(range(len(rows)), key=lambda row: random.random())
    shuffled = dataset.folds_of(columns_of([rows[row] for row in order]), folds)
    np.testing.assert_array_equal(shuffled, fold[order])


def test_the_fold_of_a_group_with_several_labels_follows_its_first_scan():
    rows = [("g", "x", 0), ("h", "x", 1), ("g", "x", 1)]
    expected = dataset.folds_of(columns_of([("g", "x", 0), ("h", "x", 1), ("g", "x", 0)]), 2)
    np.testing.assert_array_equal(dataset.folds_of(columns_of(rows), 2), expected)


def test_folds_in_use_do_not_change(scans):
    rows = [(f"busi/cluster-{number}", "busi", number % 3) for number in range(12)]
    assert dataset.folds_of(columns_of(rows), 5).tolist() == [3, 1, 4, 1, 4, 3, 0, 2, 1, 2, 0, 0]
    several = dataclasses.replace(scans, group=np.array([scan_id[:-1] for scan_id in scans.scan_id]))
    fold = dataset.folds_of(several, 3)
    assert all(len(set(fold[several.group == name])) == 1 for name in set(several.group))


def test_a_group_that_follows_another_sources_group_is_in_its_fold():
    assert dataset.group_name("busi", "cluster-1") == "busi/cluster-1"
    assert (
        dataset.group_name("cheng", "@br35h/cluster-1") == dataset.group_name("br35h", "cluster-1") == "br35h/cluster-1"
    )
    assert dataset.group_name("folder", "@home") == "folder/@home"  # a patient of somebody's own
    own = [(dataset.group_name("br35h", f"cluster-{k}"), "br35h", k % 2) for k in range(20)]
    follow = [(dataset.group_name("cheng", f"@br35h/cluster-{k}"), "cheng", 1) for k in range(20)]
    fold = dataset.folds_of(columns_of([*own, *follow]), 5)
    np.testing.assert_array_equal(fold[:20], fold[20:])
