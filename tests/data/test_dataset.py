"""Prepared data -> scans -> batches."""

import dataclasses

import numpy as np
import pytest

from mcis.data import batches, dataset, storage
from mcis.imaging import scan
from mcis.imaging.letterbox import INPUT_SIZE, letterbox, letterbox_mask
from mcis.organs import ORGANS, UNKNOWN, UNSUPPORTED
from mcis.tasks.table import TASKS


@pytest.fixture(scope="module")
def scans(phantom_dir):
    return dataset.load(("phantom",), "train", phantom_dir)


def test_missing_data_names_the_command_and_the_way_without(tmp_path):
    with pytest.raises(dataset.MissingData, match=r"mcis build busi --from") as error:
        dataset.load(("busi",), "train", tmp_path)
    assert "--sources=phantom" in str(error.value)
    assert f"--data_dir={tmp_path}" in str(error.value)


def test_unknown_split_lists_the_splits(phantom_dir):
    with pytest.raises(ValueError, match="train, validation, test"):
        dataset.records("phantom", "dev", phantom_dir)


def test_newest_version_is_taken_by_number_not_by_text(tmp_path):
    for version in ("1.9.0", "1.10.0"):
        folder = tmp_path / dataset.DATASET / "phantom" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").touch()
    assert dataset.prepared("phantom", tmp_path).name == "1.10.0"
    assert [p.name for p in dataset.sources_in(tmp_path)] == ["phantom"]


def test_loaded_scans_are_the_records_laid_into_the_canvas(scans, phantom_dir):
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


def test_one_organ_can_be_asked_for(scans, phantom_dir):
    brain = dataset.load(("phantom",), "train", phantom_dir, "brain")
    assert set(brain.organ) == {"brain"}
    assert brain.scan_id.tolist() == scans.scan_id[scans.organ == "brain"].tolist()
    with pytest.raises(ValueError, match="holds no liver scans"):
        dataset.load(("phantom",), "train", phantom_dir, "liver")


def test_splits_share_no_group(phantom_dir):
    groups = [set(dataset.load(("phantom",), split, phantom_dir).group) for split in dataset.SPLITS]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


def test_folds_keep_groups_whole_and_share_each_class_of_each_source_evenly(scans):
    group = np.array([f"{scan_id[:-1]}" for scan_id in scans.scan_id])  # up to ten scans a group
    source = np.where(np.char.str_len(group) % 2 == 0, "a", "b")
    several = dataclasses.replace(scans, group=group, source=source)
    fold = dataset.folds_of(several, 3)
    assert all(len(set(fold[group == name])) == 1 for name in set(group))
    single = dataset.folds_of(scans, 3)
    for label in set(scans.label):  # of one source; a source has one organ, but for phantoms
        assert np.ptp(np.bincount(single[scans.label == label], minlength=3)) <= 1
    order = np.random.default_rng(0).permutation(len(scans))
    np.testing.assert_array_equal(dataset.folds_of(scans.take(order), 3), single[order])


def stream(scans, task, seed=0):
    label = batches.targets(scans, task)
    return batches.training_batches(scans, label, *batches.balance(scans, task), 8, seed)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_batch_depends_on_seed_and_step_alone(scans, task):
    batches = stream(scans, task)
    late = batches[1000]
    again = stream(scans, task)[1000]
    for mine, other in zip(late, again, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert any((a != b).any() for a, b in zip(late, stream(scans, task, seed=1)[1000], strict=True))
    assert late.image.shape == (8, INPUT_SIZE, INPUT_SIZE, 3)
    assert late.valid.all()


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_batches_are_balanced(scans, task):
    task = dataclasses.replace(task, even_sources=False)
    batches = stream(scans, task)
    drawn = [batches[i] for i in range(60)]
    if task.segments:
        share = np.mean([batch.mask.any((1, 2, 3)).mean() for batch in drawn])
        assert share == pytest.approx(task.lesion_share, abs=0.03)
    else:
        label = np.concatenate([batch.label for batch in drawn])
        counts = np.bincount(label)  # phantoms have nothing foreign
        np.testing.assert_allclose(counts / counts.sum(), 1 / len(counts), atol=0.03)


def test_each_part_of_a_batch_has_its_share_of_every_cell(scans):
    brain = scans.take(scans.organ == "brain")
    brain = dataclasses.replace(brain, source=np.where(np.arange(len(brain)) % 4 < 2, "a", "b"))
    task = dataclasses.replace(TASKS["classify_brain"], even_sources=True)
    cell, weights = batches.balance(brain, task)
    assert len(weights) == 4 and len(set(weights.values())) == 1  # the four take turns, in step with four parts
    label, images = batches.targets(brain, task), brain.pixels.read()[0]
    for parts in (1, 2, 4):
        batch = batches.training_batches(brain, label, cell, weights, 16, 0, parts)[3]
        rows = [next(i for i in range(len(brain)) if (images[i] == image).all()) for image in batch.image]
        for part in range(parts):
            assert np.bincount(cell[rows[part::parts]], minlength=4).tolist() == [16 // parts // 4] * 4
        if parts == 1:
            plain = sorted(rows)
        assert sorted(rows) == plain  # the same scans, otherwise laid out


def test_even_sources_take_the_source_away_from_the_class(scans):
    breast = scans.take(scans.organ == "breast")
    half = np.arange(len(breast)) % 2 == 0
    breast = breast.take(half | (breast.label != 0))  # class 0 from one source alone
    source = np.where((breast.label == 0) | (np.arange(len(breast)) % 3 == 0), "a", "b")
    breast = dataclasses.replace(breast, source=source)
    task = dataclasses.replace(TASKS["classify_breast"], even_sources=True)
    cell, weights = batches.balance(breast, task)
    assert weights == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3, 4: 1 / 2, 5: 1 / 2})
    for c, label, name in zip(cell, breast.label, source, strict=True):
        assert c == label + (3 if name == "b" else 0)
    plain = batches.balance(breast, dataclasses.replace(task, even_sources=False))[1]
    assert plain == {0: 1.0, 1: 1.0, 2: 1.0}


def test_an_epoch_shows_every_scan_of_a_cell_once_before_any_twice(scans):
    one = scans.take(scans.label == 0)
    cell = np.zeros(len(one), int)
    stream = batches.training_batches(one, np.arange(len(one), dtype=np.int32), cell, {0: 1.0}, len(one), 0)
    for step in range(3):
        assert sorted(stream[step].label) == list(range(len(one)))
    assert (stream[0].label != stream[1].label).any()


def test_scans_of_unknown_label_teach_no_classifier_and_a_mask_that_is_missing_no_segmenter(scans):
    unknown = dataclasses.replace(scans, label=np.full(len(scans), UNKNOWN, np.int32))
    with pytest.raises(ValueError, match="no scan to learn from"):
        stream(unknown, TASKS["classify_breast"])
    maskless = dataclasses.replace(scans, has_mask=np.zeros(len(scans), bool))
    with pytest.raises(ValueError, match="no scan to learn from"):
        stream(maskless, dataclasses.replace(TASKS["segment_brain"], label_loss=0.0))


def test_a_lesion_that_nobody_outlined_is_drawn_for_its_label(scans):
    brain = scans.take(scans.organ == "brain")
    tumor = brain.label == 1
    maskless = dataclasses.replace(brain, has_mask=~tumor, area=brain.area * ~tumor)
    task = TASKS["segment_brain"]
    assert task.label_loss
    cell, _ = batches.balance(maskless, dataclasses.replace(task, even_sources=False))
    np.testing.assert_array_equal(cell, tumor)
    alone, _ = batches.balance(maskless, dataclasses.replace(task, even_sources=False, label_loss=0.0))
    np.testing.assert_array_equal(alone, np.where(tumor, UNKNOWN, 0))


def test_targets_follow_the_task(scans):
    route = batches.targets(scans, TASKS["route"])
    assert [ORGANS[i].name for i in route] == scans.organ.tolist()
    foreign = dataclasses.replace(scans, organ=np.full(len(scans), UNSUPPORTED), label=np.full(len(scans), UNKNOWN))
    assert set(batches.targets(foreign, TASKS["route"]).tolist()) == {len(ORGANS)}
    assert set(batches.targets(foreign, TASKS["segment_brain"]).tolist()) == {UNKNOWN}
    breast = batches.targets(scans, TASKS["classify_breast"])
    np.testing.assert_array_equal(breast == UNKNOWN, scans.organ != "breast")
    np.testing.assert_array_equal(breast[scans.organ == "breast"], scans.label[scans.organ == "breast"])


def test_evaluation_sees_every_scan_once_and_marks_what_fills_up(scans):
    seen = []
    for rows, batch in batches.evaluation_batches(scans, scans.label, 7):
        assert len(batch.valid) == 7 and batch.valid.sum() == len(rows)
        np.testing.assert_array_equal(batch.image[: len(rows)], scans.pixels.read(rows)[0])
        seen += rows.tolist()
    assert seen == list(range(len(scans)))
