"""Scans -> batches for training and evaluation. Pixels are one by one, and tell which scan they are."""

import dataclasses

import numpy as np
import pytest

from mcis.data import batches
from mcis.data.storage import Part, Pixels
from mcis.organs import ORGANS, UNKNOWN, UNSUPPORTED
from mcis.tasks.table import TASKS
from tests.fixtures.tasks import small_task


@pytest.fixture(scope="module")
def scans(scans):
    """The phantoms for training with images of one pixel, whose first channel is the scan's row."""
    rows = np.arange(len(scans[0]))
    image = np.repeat(rows.astype(np.uint8)[:, None, None, None], 3, axis=3)
    mask = (scans[0].area > 0).astype(np.uint8)[:, None, None, None]
    return dataclasses.replace(scans[0], pixels=Pixels((Part([], (image, mask)),), np.zeros_like(rows), rows))


def rows_of(batch):
    return batch.image[:, 0, 0, 0]


def training_batches(scans, task, seed=0):
    label = batches.targets(scans, task)
    return batches.training_batches(scans, label, *batches.balance(scans, task), 8, seed)


@pytest.mark.parametrize("name", ["classify_breast", "segment_brain"])
def test_a_batch_depends_on_the_seed_and_the_step_alone(scans, name):
    task = small_task(name)
    stream = training_batches(scans, task)
    late, again = stream[1000], training_batches(scans, task)[1000]
    assert stream[0] is not None
    for x, y in zip(late, again, strict=True):
        np.testing.assert_array_equal(x, y)
    assert (rows_of(late) != rows_of(training_batches(scans, task, seed=1)[1000])).any()
    assert late.image.shape == (8, 1, 1, 3) and late.mask.shape == (8, 1, 1, 1)
    assert late.valid.all()


@pytest.mark.parametrize("name", TASKS)
def test_batches_are_balanced(scans, name):
    task = small_task(name, lesion_share=0.6)
    stream = training_batches(scans, task)
    drawn = [stream[step] for step in range(20)]
    if task.segments:
        share = np.mean([batch.mask.mean() for batch in drawn])
        assert share == pytest.approx(task.lesion_share, abs=0.03)
    else:
        counts = np.bincount(np.concatenate([batch.label for batch in drawn]))  # no phantom is out-of-distribution
        np.testing.assert_allclose(counts / counts.sum(), 1 / len(counts), atol=0.03)


def test_each_part_of_a_batch_has_the_same_share_of_every_cell(scans):
    brain = scans.take(scans.organ == "brain")
    brain = dataclasses.replace(brain, source=np.where(np.arange(len(brain)) % 4 < 2, "a", "b"))
    task = small_task("classify_brain", even_sources=True)
    cell, weights = batches.balance(brain, task)
    assert len(weights) == 4 and len(set(weights.values())) == 1
    label, position = batches.targets(brain, task), {row: at for at, row in enumerate(brain.pixels.row.tolist())}
    found = {}
    for parts in (1, 2, 4):
        batch = batches.training_batches(brain, label, cell, weights, 16, 0, parts)[3]
        rows = [position[row] for row in rows_of(batch).tolist()]
        for part in range(parts):
            assert np.bincount(cell[rows[part::parts]], minlength=4).tolist() == [16 // parts // 4] * 4
        found[parts] = sorted(rows)
    assert found[1] == found[2] == found[4]


def test_source_balanced_sampling_makes_the_class_independent_of_the_source(scans):
    breast = scans.take(scans.organ == "breast")
    half = np.arange(len(breast)) % 2 == 0
    breast = breast.take(half | (breast.label != 0))
    source = np.where((breast.label == 0) | (np.arange(len(breast)) % 3 == 0), "a", "b")  # class 0 is in "a" alone
    breast = dataclasses.replace(breast, source=source)
    task = small_task("classify_breast", even_sources=True)
    cell, weights = batches.balance(breast, task)
    assert weights == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3, 4: 1 / 2, 5: 1 / 2})
    np.testing.assert_array_equal(cell, breast.label + 3 * (source == "b"))
    plain = batches.balance(breast, dataclasses.replace(task, even_sources=False))[1]
    assert plain == {0: 1.0, 1: 1.0, 2: 1.0}


def test_every_scan_of_a_cell_is_drawn_once_before_any_is_drawn_again(scans):
    one = scans.take(scans.label == 0)
    cell = np.zeros(len(one), int)
    stream = batches.training_batches(one, np.arange(len(one), dtype=np.int32), cell, {0: 1.0}, len(one), 0)
    for step in range(3):
        assert sorted(stream[step].label) == list(range(len(one)))
    assert (stream[0].label != stream[1].label).any()


def test_scans_without_label_or_mask_are_not_drawn_where_the_task_needs_it(scans):
    unknown = dataclasses.replace(scans, label=np.full(len(scans), UNKNOWN, np.int32))
    with pytest.raises(ValueError, match="no scan to learn from"):
        training_batches(unknown, small_task("classify_breast"))
    unmasked = dataclasses.replace(scans, has_mask=np.zeros(len(scans), bool))
    with pytest.raises(ValueError, match="no scan to learn from"):
        training_batches(unmasked, small_task("segment_brain", label_loss=0.0))


def test_a_segmenter_with_a_label_head_draws_lesions_without_mask(scans):
    brain = scans.take(scans.organ == "brain")
    tumor = brain.label == 1
    unmasked = dataclasses.replace(brain, has_mask=~tumor, area=brain.area * ~tumor)
    task = small_task("segment_brain")
    assert task.label_loss
    np.testing.assert_array_equal(batches.balance(unmasked, task)[0], tumor)
    cell, _ = batches.balance(unmasked, dataclasses.replace(task, label_loss=0.0))
    np.testing.assert_array_equal(cell, np.where(tumor, UNKNOWN, 0))


def test_targets_follow_the_task(scans):
    route = batches.targets(scans, small_task("route"))
    assert [ORGANS[i].name for i in route] == scans.organ.tolist()
    ood = dataclasses.replace(scans, organ=np.full(len(scans), UNSUPPORTED), label=np.full(len(scans), UNKNOWN))
    assert set(batches.targets(ood, small_task("route")).tolist()) == {len(ORGANS)}
    assert set(batches.targets(ood, small_task("segment_brain")).tolist()) == {UNKNOWN}
    breast = batches.targets(scans, small_task("classify_breast"))
    np.testing.assert_array_equal(breast, np.where(scans.organ == "breast", scans.label, UNKNOWN))


def test_evaluation_batches_hold_every_scan_once_in_order_and_mark_padding(scans):
    seen = []
    for rows, batch in batches.evaluation_batches(scans, scans.label, 7):
        assert len(batch.valid) == 7
        assert batch.valid.tolist() == [i < len(rows) for i in range(7)]
        np.testing.assert_array_equal(rows_of(batch)[: len(rows)], rows)
        seen += rows.tolist()
    assert seen == list(range(len(scans)))


def test_shares_of_a_batch_make_up_the_batch(scans):
    rows = np.arange(5)
    whole = batches.make_batch(scans, scans.label, rows, 8)
    halves = [batches.make_batch(scans, scans.label, rows, 8, share) for share in (slice(0, 4), slice(4, 8))]
    for expected, parts in zip(whole, zip(*halves, strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), expected)


def a_set(scans, *rows):
    """Scans of (source, label, whether a mask is known, number)."""
    rows = [row[:3] for row in rows for _ in range(row[3])]
    chosen = scans.take(np.zeros(len(rows), int))
    source, label, known = (np.array(values) for values in zip(*rows, strict=True))
    organ = np.full(len(rows), "breast")
    area = (known & (label > 0)).astype(np.int32) * 9
    label = label.astype(np.int32)
    return dataclasses.replace(chosen, source=source, label=label, has_mask=known, area=area, organ=organ)


def test_even_classes_are_even_within_even_sources(scans):
    """Source a has three classes, b two, c one: each source weighs 1, and its classes the same."""
    some = a_set(scans, ("a", 0, True, 5), ("a", 1, True, 3), ("a", 2, True, 1), ("b", 1, True, 8), ("b", 2, True, 2))
    some = type(some).join([some, a_set(scans, ("c", 0, True, 4))])
    expected = {0: 1 / 3, 1: 1 / 3, 2: 1 / 3, 4: 1 / 2, 5: 1 / 2, 6: 1.0}
    for name in ("segment_breast", "classify_breast"):
        task = small_task(name, even_sources=True, even_classes=True, lesion_share=0.9)
        cell, weights = batches.balance(some, task)
        assert weights == pytest.approx(expected)
        assert cell.tolist() == [0] * 5 + [1] * 3 + [2] + [4] * 8 + [5] * 2 + [6] * 4


def test_even_classes_without_even_sources_are_even_over_all(scans):
    """Class 0 is in a and c, 1 and 2 are in a and b: each class weighs 1, and its sources the same."""
    some = a_set(scans, ("a", 0, True, 5), ("a", 1, True, 3), ("a", 2, True, 1), ("b", 1, True, 8), ("c", 0, True, 4))
    task = small_task("segment_breast", even_classes=True)
    weights = batches.balance(some, task)[1]
    assert weights == pytest.approx({0: 1 / 2, 1: 1 / 2, 2: 1.0, 4: 1 / 2, 6: 1 / 2})
    organ = np.where(some.source == "a", "brain", np.where(some.source == "b", "breast", UNSUPPORTED))
    mixed = dataclasses.replace(some, organ=organ, label=np.where(organ == UNSUPPORTED, UNKNOWN, 0))
    more = dataclasses.replace(mixed, source=np.where(some.source == "b", "d", some.source))
    both = type(mixed).join([mixed, more.take(more.source == "d")])
    weights = batches.balance(both, small_task("route", even_classes=True))[1]
    assert sorted(weights.values()) == pytest.approx([1 / 2, 1 / 2, 1.0, 1.0])  # two sources of the breast


def test_even_classes_count_a_scan_of_unknown_class_as_its_mask_says(scans):
    some = a_set(scans, ("a", 0, True, 1), ("a", 1, True, 1), ("a", 2, False, 1), ("a", 2, True, 1))
    some = dataclasses.replace(some, label=np.array([-1, -1, -1, 2], np.int32))
    task = small_task("segment_breast", even_classes=True, even_sources=True)
    assert batches.balance(some, task)[0].tolist() == [0, 1, UNKNOWN, 2]
    unmasked = dataclasses.replace(some, label=np.array([0, 1, 2, 2], np.int32))
    assert batches.balance(unmasked, task)[0].tolist() == [0, 1, 2, 2]
    assert batches.balance(unmasked, dataclasses.replace(task, label_loss=0.0))[0].tolist() == [0, 1, UNKNOWN, 2]
    assert batches.balance(some, dataclasses.replace(task, name="classify_breast"))[0].tolist() == [-1, -1, -1, 2]


def test_few_scans_are_drawn_at_most_so_often(scans):
    """Of 20 scans a class of b has one, which may have the share 4 / 20; the two other cells have the rest, 2 to 1."""
    some = a_set(scans, ("a", 0, True, 6), ("b", 1, True, 13), ("b", 2, True, 1))
    task = small_task("classify_breast", even_sources=True, even_classes=True)
    assert batches.balance(some, task)[1] == pytest.approx({0: 1.0, 4: 1 / 2, 5: 1 / 2})
    plain = batches.balance(some, dataclasses.replace(task, max_repeats=9.0))[1]
    assert plain == pytest.approx({0: 1 / 2, 4: 1 / 4, 5: 1 / 4})  # 1 / 4 is below 9 / 20
    four = batches.balance(some, dataclasses.replace(task, max_repeats=4.0))[1]
    assert four == pytest.approx({0: 0.8 * 2 / 3, 4: 0.8 / 3, 5: 4 / 20})
    # 1.5 * 1 / 20 and, of the 0.925 that are left, two thirds are more than 1.5 * 6 / 20
    assert batches.balance(some, dataclasses.replace(task, max_repeats=1.5))[1] == pytest.approx(
        {0: 0.45, 4: 0.475, 5: 0.075}
    )
    least = batches.balance(some, dataclasses.replace(task, max_repeats=0.5))[1]
    assert least == pytest.approx({0: 0.15, 4: 0.325, 5: 0.025})  # in proportion to the numbers
    old = dataclasses.replace(task, even_classes=False, max_repeats=4.0)
    assert sum(batches.balance(some, old)[1].values()) == pytest.approx(1.0)


def test_batches_have_the_shares_of_even_classes(scans):
    breast = scans.take(scans.organ == "breast")
    breast = dataclasses.replace(
        breast, source=np.where((breast.label == 2) | (np.arange(len(breast)) % 2 == 0), "a", "b")
    )
    task = small_task("segment_breast", even_sources=True, even_classes=True)
    cell, weights = batches.balance(breast, task)
    position = {row: at for at, row in enumerate(breast.pixels.row.tolist())}
    stream = batches.training_batches(breast, batches.targets(breast, task), cell, weights, 12, 0)
    drawn = [cell[position[row]] for step in range(20) for row in rows_of(stream[step]).tolist()]
    shares = np.bincount(drawn, minlength=6) / len(drawn)
    np.testing.assert_allclose(shares, [1 / 6, 1 / 6, 1 / 6, 1 / 4, 1 / 4, 0], atol=0.02)
