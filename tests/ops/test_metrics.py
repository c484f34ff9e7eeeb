"""Metrics by hand, against their definitions, and properties that hold for any masks and scores."""

import hypothesis
import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from mcis.ops import losses
from mcis.ops.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    bootstrap_interval,
    class_scores,
    confusion,
    dice,
    dice_loss,
    iou,
    label_scores,
    mask_counts,
    mask_scores,
    mcc,
)

properties = hypothesis.settings(max_examples=25, deadline=None, derandomize=True)


@strategies.composite
def two_masks(draw):
    """Two bool masks of one shape (B, H, W, 1); empty and full ones are frequent."""
    shape = (draw(strategies.integers(1, 3)), draw(strategies.integers(1, 6)), draw(strategies.integers(1, 6)), 1)
    pixels = arrays.arrays(bool, shape)
    mask = strategies.one_of(pixels, strategies.sampled_from([np.zeros(shape, bool), np.ones(shape, bool)]))
    return draw(mask), draw(mask)


@strategies.composite
def scores_of_two_classes(draw):
    """Scores with ties, and which of them are of the positive class: at least one is, and one is not."""
    score = np.array(draw(strategies.lists(strategies.integers(-5, 5), min_size=2, max_size=30)), float)
    positive = draw(arrays.arrays(bool, len(score)))
    positive[:2] = True, False
    return score, positive


def test_mask_counts_by_hand_for_numpy_and_jax_and_every_type():
    predicted = np.zeros((2, 2, 3, 1), bool)
    mask = np.zeros((2, 2, 3, 1), np.uint8)
    predicted[0, 0] = True  # the upper row of three
    mask[0, :, 0] = 1  # the left column of two
    mask[1] = 1
    expected = {"both": [1, 0], "predicted": [3, 0], "true": [2, 6]}
    for array in (np.asarray, jnp.asarray):
        for dtype in (bool, np.uint8, np.float32):
            found = mask_counts(array(predicted.astype(dtype)), array(mask))
            assert {name: counts.tolist() for name, counts in found.items()} == expected
    # a mask so large that its pixels do not fit a byte
    assert mask_counts(np.ones((1, 300, 300, 1), np.uint8), np.ones((1, 300, 300, 1), np.uint8))["both"] == 90000


@pytest.mark.parametrize(
    ("both", "predicted", "true", "expected_dice", "expected_iou"),
    [
        (1, 3, 2, 2 / 5, 1 / 4),
        (2, 2, 2, 1, 1),
        (0, 3, 2, 0, 0),
        (0, 0, 0, 1, 1),  # the policy: both empty
        (0, 0, 5, 0, 0),  # and one empty
        (0, 5, 0, 0, 0),
    ],
)
def test_dice_and_iou_by_hand(both, predicted, true, expected_dice, expected_iou):
    assert dice(both, predicted, true) == pytest.approx(expected_dice)
    assert iou(both, predicted, true) == pytest.approx(expected_iou)


def test_dice_and_iou_obey_their_identity_and_do_not_overflow():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 2**31 - 1, (2, 50)).astype(np.int32)
    both = (np.minimum(true, predicted) * rng.random(50)).astype(np.int32)
    d, j = dice(both, predicted, true), iou(both, predicted, true)
    np.testing.assert_allclose(d, 2 * j / (1 + j), rtol=1e-12)
    assert ((d >= 0) & (d <= 1)).all()


@properties
@hypothesis.given(two_masks())
def test_counts_add_up(masks):
    predicted, mask = masks
    counts, complement = mask_counts(predicted, mask), mask_counts(~predicted, mask)
    union = (predicted | mask).sum((1, 2, 3))
    np.testing.assert_array_equal(counts["predicted"] + counts["true"] - counts["both"], union)
    np.testing.assert_array_equal(counts["both"] + complement["both"], counts["true"])
    np.testing.assert_array_equal(counts["predicted"] + complement["predicted"], mask[0].size)


@properties
@hypothesis.given(two_masks())
def test_dice_and_iou_are_symmetric_shares_and_1_for_equal_masks_alone(masks):
    predicted, mask = masks
    counts = mask_counts(predicted, mask).values()
    swapped = mask_counts(mask, predicted).values()
    equal, disjoint = (predicted == mask).all((1, 2, 3)), ~(predicted & mask).any((1, 2, 3))
    for metric in (dice, iou):
        found = metric(*counts)
        np.testing.assert_array_equal(found, metric(*swapped))
        assert ((found >= 0) & (found <= 1)).all()
        np.testing.assert_array_equal(found == 1, equal)  # both empty included
        np.testing.assert_array_equal(found == 0, disjoint & ~equal)  # one empty included
    assert (iou(*counts) <= dice(*counts)).all()


@properties
@hypothesis.given(two_masks())
def test_mask_scores_are_shares_whatever_the_order_of_scans(masks):
    counts = np.stack(list(mask_counts(*masks).values()))
    group = np.arange(counts.shape[1]) // 2
    found = mask_scores(*counts, group)
    assert all(0 <= value <= 1 for value in found.values())
    assert mask_scores(*counts[:, ::-1], group[::-1]) == pytest.approx(found)


@properties
@hypothesis.given(two_masks())
def test_the_dice_loss_is_symmetric_in_masks_and_0_for_equal_ones(masks):
    a, b = (mask[0, ..., 0].astype(np.float32) for mask in masks)
    assert dice_loss(a, b) == pytest.approx(dice_loss(b, a))
    assert 0 <= dice_loss(a, b) < 1
    assert (dice_loss(a, b) == 0) == np.array_equal(a, b)


def test_the_dice_loss_is_the_loss_of_training():
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(3, 8, 6, 1)), (rng.random((3, 8, 6, 1)) > 0.7).astype(np.uint8)
    mask[2] = 0
    expected = jax.jit(losses.soft_dice)(logits.astype(np.float32), mask)
    probs = 1 / (1 + np.exp(-logits[..., 0]))
    found = [dice_loss(prob.astype(np.float32), m[..., 0]) for prob, m in zip(probs, mask, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert dice_loss(np.zeros((300, 300), np.float32), np.zeros((300, 300), np.uint8)) == 0
    assert dice_loss(np.ones((300, 300), np.float32), np.ones((300, 300), np.uint8)) == 0


def test_accuracies_by_hand():
    label = np.array([0, 0, 0, 0, 2, 2])
    predicted = np.array([0, 0, 0, 1, 2, 0])
    assert accuracy(predicted, label) == pytest.approx(4 / 6)
    assert balanced_accuracy(predicted, label) == pytest.approx((3 / 4 + 1 / 2) / 2)  # class 1 does not occur


def test_label_scores_by_hand():
    probs = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.0, 0.0, 1.0]])
    found = label_scores(probs, np.array([0, 1, 2]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    assert found["nll"] == pytest.approx(-(np.log(0.7) + np.log(0.4) + np.log(1)) / 3)
    assert np.isfinite(label_scores(probs, np.array([0, 1, 0]))["nll"])  # a probability of 0 for what is true


def test_mask_scores_by_hand_with_patients_pooled():
    # patient a: two lesion scans; b: one lesion scan and an empty one with a false mask; c: an empty scan without mask
    both = np.array([10, 0, 4, 0, 0])
    predicted = np.array([20, 0, 4, 2, 0])
    true = np.array([10, 10, 8, 0, 0])
    group = np.array(["a", "a", "b", "b", "c"])
    found = mask_scores(both, predicted, true, group)
    lesions = [20 / 30, 0 / 10, 8 / 12]
    patient_a, patient_b = 20 / 40, 8 / 14
    assert found == pytest.approx(
        {
            "dice_lesion": np.mean(lesions),
            "iou_lesion": np.mean([10 / 20, 0, 4 / 8]),
            "false_masks": 1 / 2,
            "dice": np.mean([*lesions, 0, 1]),
            "dice_balanced": np.sqrt(np.mean(lesions) * np.mean([0, 1])),
            "dice_patient": (patient_a + patient_b) / 2,  # c has no lesion
            "dice_patient_median": (patient_a + patient_b) / 2,
        }
    )


def test_mask_scores_of_kinds_of_scans_that_do_not_occur_are_left_out():
    zero, one = np.array([0, 0]), np.array([3, 3])
    group = np.array([1, 2])
    empty = mask_scores(zero, zero, zero, group)
    assert empty == {"false_masks": 0.0, "dice": 1.0, "dice_balanced": 1.0}
    lesions = mask_scores(one, one, one + 6, group)
    assert "false_masks" not in lesions
    assert lesions["dice_balanced"] == lesions["dice_lesion"] == pytest.approx(0.5)


def test_balanced_dice_is_0_for_the_same_prediction_on_every_scan():
    true, group = np.array([4, 6, 0, 0]), np.arange(4)
    nowhere = mask_scores(np.zeros(4, int), np.zeros(4, int), true, group)
    everywhere = mask_scores(true, np.full(4, 10), true, group)
    assert nowhere["dice_balanced"] == everywhere["dice_balanced"] == 0
    assert everywhere["dice_lesion"] > 0.5


def test_bootstrap_is_deterministic_and_its_interval_contains_the_estimate():
    rng = np.random.default_rng(0)
    values, group = rng.normal(5, 1, 60), np.repeat(np.arange(20), 3)

    def score(rows, _group):
        return {"mean": float(values[rows].mean())}

    first, again, other = (bootstrap_interval(score, group, 200, seed)["mean"] for seed in (0, 0, 1))
    assert first == again != other
    assert first[0] < values.mean() < first[1]
    shuffled = rng.permutation(60)  # the order of rows does not decide which groups there are
    low, high = bootstrap_interval(lambda rows, drawn: score(shuffled[rows], drawn), group[shuffled], 200)["mean"]
    assert (low, high) == pytest.approx(first)


def test_bootstrap_intervals_contain_the_true_value_about_95_times_in_100():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(120):
        patient = rng.normal(0, 1, 25)
        values = np.repeat(patient, 4) + rng.normal(0, 0.1, 100)
        low, high = bootstrap_interval(
            lambda rows, _, v=values: {"m": v[rows].mean()}, np.repeat(range(25), 4), 150, trial
        )["m"]
        hits += low <= 0 <= high
    assert 0.85 < hits / 120 <= 1.0


def test_a_score_that_many_bootstrap_draws_lack_has_no_interval():
    def score(rows, _):  # a draw has some of the first n rows with a probability of 1 - (1 - n / 40)^40
        return {f"first {n}": 0.7 for n in (1, 8, 40) if (rows < n).any()}

    found = bootstrap_interval(score, np.arange(40), 300)
    assert found["first 40"] == found["first 8"] == (pytest.approx(0.7), pytest.approx(0.7))
    assert np.isnan(found["first 1"]).all()


def test_bootstrap_resamples_whole_groups():
    values, group = np.repeat([0.0, 1.0, 2.0, 5.0], 25), np.repeat(["d", "c", "b", "a"], 25)
    seen = []

    def score(rows, drawn):
        assert all(len(set(group[rows[drawn == d]])) == 1 for d in range(4))
        seen.append(rows)
        return {"mean": float(values[rows].mean())}

    by_group = bootstrap_interval(score, group, 100)["mean"]
    for rows in seen:
        count = np.bincount(rows, minlength=100).reshape(4, 25)
        assert (count == count[:, :1]).all()  # all of a patient's scans, equally often
        assert count[:, 0].sum() == 4
    by_scan = bootstrap_interval(lambda rows, _: {"mean": values[rows].mean()}, np.arange(100), 300)["mean"]
    assert by_group[1] - by_group[0] > 2 * (by_scan[1] - by_scan[0])


def test_bootstrap_counts_a_patient_drawn_twice_twice():
    both, four, group = np.array([0, 4, 4]), np.array([4, 4, 4]), np.array(["a", "b", "c"])
    seen = set()

    def score(rows, drawn):
        seen.add(round(mask_scores(both[rows], four, four, drawn)["dice_patient"], 3))
        return {}

    bootstrap_interval(score, group, 50)
    assert seen == {0.0, 0.333, 0.667, 1.0}  # were two of a draw one patient, a half would be among them


def test_bootstrap_of_one_group_has_no_interval():
    low, high = bootstrap_interval(lambda rows, _: {"m": 1.0}, np.array(["a", "a"]))["m"]
    assert np.isnan(low)
    assert np.isnan(high)


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    for levels in (5, 1000):  # many ties, and hardly one
        score, positive = rng.integers(0, levels, 80) / levels, rng.random(80) < 0.3
        pairs = score[positive][:, None] - score[~positive][None]
        assert auc(score, positive) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert auc(np.array([0.1, 0.2, 0.9]), np.array([False, False, True])) == 1
    assert auc(np.array([0.5, 0.5]), np.array([False, True])) == 0.5


@properties
@hypothesis.given(scores_of_two_classes())
def test_auc_depends_on_the_order_of_scores_alone(case):
    score, positive = case
    found = auc(score, positive)
    assert 0 <= found <= 1
    for increasing in (np.exp, lambda x: x**3 + x, lambda x: np.unique(x, return_inverse=True)[1]):
        assert auc(increasing(score), positive) == pytest.approx(found)
    assert auc(-score, positive) == pytest.approx(1 - found)
    assert auc(score, ~positive) == pytest.approx(1 - found)


@properties
@hypothesis.given(arrays.arrays(int, (2, 12), elements=strategies.integers(0, 3)))
def test_a_confusion_matrix_counts_every_scan_once(case):
    predicted, label = case
    found = confusion(predicted, label, 4)
    np.testing.assert_array_equal(found.sum(1), np.bincount(label, minlength=4))
    np.testing.assert_array_equal(found.sum(0), np.bincount(predicted, minlength=4))
    assert np.trace(found) / 12 == accuracy(predicted, label)
    present = found.sum(1) > 0
    assert balanced_accuracy(predicted, label) == pytest.approx(
        (np.diag(found)[present] / found.sum(1)[present]).mean()
    )


def test_class_scores_by_hand():
    probs = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6], [0.2, 0.6, 0.2]])
    found = class_scores(probs, np.array([0, 1, 1, 1]), ("a", "b", "c"))
    assert found["sensitivity_a"] == 1 and found["specificity_a"] == pytest.approx(2 / 3)
    assert found["sensitivity_b"] == pytest.approx(1 / 3) and found["specificity_b"] == 1
    assert "sensitivity_c" not in found and found["specificity_c"] == 0.75 and "auc_c" not in found
    assert found["auc_a"] == 1 and found["auc_b"] == 1 and found["auc"] == 1
    assert found["brier"] == pytest.approx(np.mean([0.14, 0.62, 0.86, 0.24]))


def test_specificity_at_90_is_at_the_threshold_that_finds_nine_in_ten():
    positive = np.arange(40) < 20  # twenty: two of them may be missed
    score = np.where(positive, np.linspace(0.3, 0.9, 40), 0.0)
    score[20:] = np.linspace(0, 0.5, 20)
    found = class_scores(np.stack([1 - score, score], 1), positive.astype(int), ("a", "b"))
    threshold = np.sort(score[:20])[2]
    assert (score[:20] >= threshold).sum() == 18
    assert found["specificity_at_90_b"] == pytest.approx((score[20:] < threshold).mean())
    assert 0 < found["specificity_at_90_b"] < 1


def test_scores_of_one_class_alone_have_no_auc():
    found = class_scores(np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([0, 0]), ("a", "b"))
    assert set(found) == {"brier", "sensitivity_a", "specificity_b"}


def test_the_correlation_of_three_classes_by_hand():
    """R_K of a published confusion matrix would be no check of a typing error: by the covariances of indicators."""
    counts = np.array([[5, 1, 0], [2, 3, 1], [0, 2, 6]])
    label, predicted = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    x, y = np.eye(3)[predicted], np.eye(3)[label]
    x, y = x - x.mean(0), y - y.mean(0)
    assert mcc(counts) == pytest.approx((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum()))
    assert mcc(counts.T) == pytest.approx(mcc(counts))
    assert mcc(np.diag([3, 4, 5])) == pytest.approx(1) and mcc(np.array([[0, 2], [2, 0]])) == pytest.approx(-1)
    assert mcc(np.array([[7, 0], [0, 0]])) == 0  # one class: no correlation
