import jax.numpy as jnp
import numpy as np
import pytest

from mcis.ops import losses
from mcis.ops.metrics import (
    accuracy,
    auc,
    balanced_accuracy,
    bootstrap_interval,
    class_scores,
    dice,
    dice_loss,
    iou,
    label_scores,
    mask_counts,
    mask_scores,
)


def test_mask_counts_by_hand_for_numpy_and_jax_and_every_type():
    predicted = np.zeros((2, 2, 3, 1), bool)
    mask = np.zeros((2, 2, 3, 1), np.uint8)
    predicted[0, 0] = True  # the upper row of three
    mask[0, :, 0] = 1  # the left column of two
    mask[1] = 1
    wanted = {"both": [1, 0], "predicted": [3, 0], "true": [2, 6]}
    for array in (np.asarray, jnp.asarray):
        for dtype in (bool, np.uint8, np.float32):
            found = mask_counts(array(predicted.astype(dtype)), array(mask))
            assert {name: counts.tolist() for name, counts in found.items()} == wanted
    # a mask so large that its pixels do not fit a byte
    assert mask_counts(np.ones((1, 300, 300, 1), np.uint8), np.ones((1, 300, 300, 1), np.uint8))["both"] == 90000


@pytest.mark.parametrize(
    ("both", "predicted", "true", "wanted_dice", "wanted_iou"),
    [
        (1, 3, 2, 2 / 5, 1 / 4),
        (2, 2, 2, 1, 1),
        (0, 3, 2, 0, 0),
        (0, 0, 0, 1, 1),  # the policy: both empty
        (0, 0, 5, 0, 0),  # and one empty
        (0, 5, 0, 0, 0),
    ],
)
def test_dice_and_iou_by_hand(both, predicted, true, wanted_dice, wanted_iou):
    assert dice(both, predicted, true) == pytest.approx(wanted_dice)
    assert iou(both, predicted, true) == pytest.approx(wanted_iou)


def test_dice_and_iou_obey_their_identity_and_do_not_overflow():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 2**31 - 1, (2, 50)).astype(np.int32)
    both = (np.minimum(true, predicted) * rng.random(50)).astype(np.int32)
    d, j = dice(both, predicted, true), iou(both, predicted, true)
    np.testing.assert_allclose(d, 2 * j / (1 + j), rtol=1e-12)
    assert ((d >= 0) & (d <= 1)).all()


def test_dice_loss_is_the_one_that_is_trained():
    rng = np.random.default_rng(0)
    logits, mask = rng.normal(size=(3, 8, 6, 1)), (rng.random((3, 8, 6, 1)) > 0.7).astype(np.uint8)
    mask[2] = 0
    wanted = losses.soft_dice(jnp.asarray(logits, jnp.float32), mask)
    probs = 1 / (1 + np.exp(-logits[..., 0]))
    found = [dice_loss(prob.astype(np.float32), m[..., 0]) for prob, m in zip(probs, mask, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
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
    # patient a: two lesion scans; patient b: one lesion scan and an empty one with a false mask; c: empty, found empty
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


def test_mask_scores_leave_out_what_does_not_occur():
    zero, one = np.array([0, 0]), np.array([3, 3])
    group = np.array([1, 2])
    empty = mask_scores(zero, zero, zero, group)
    assert empty == {"false_masks": 0.0, "dice": 1.0, "dice_balanced": 1.0}
    lesions = mask_scores(one, one, one + 6, group)
    assert "false_masks" not in lesions
    assert lesions["dice_balanced"] == lesions["dice_lesion"] == pytest.approx(0.5)


def test_balanced_dice_gives_nothing_for_one_answer_to_every_scan():
    true, group = np.array([4, 6, 0, 0]), np.arange(4)
    nowhere = mask_scores(np.zeros(4, int), np.zeros(4, int), true, group)
    everywhere = mask_scores(true, np.full(4, 10), true, group)
    assert nowhere["dice_balanced"] == everywhere["dice_balanced"] == 0
    assert everywhere["dice_lesion"] > 0.5


def test_bootstrap_is_deterministic_and_holds_its_estimate():
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


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
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


def test_a_score_that_many_draws_lack_has_no_interval():
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


def test_bootstrap_of_few_groups():
    low, high = bootstrap_interval(lambda rows, _: {"m": 1.0}, np.array(["a", "a"]))["m"]
    assert np.isnan(low)
    assert np.isnan(high)


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    for levels in (5, 1000):  # many ties, and hardly one
        score, positive = rng.integers(0, levels, 80) / levels, rng.random(80) < 0.3
        pairs = score[positive][:, None] - score[~positive][None]
        assert auc(score, positive) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert auc(np.array([0.1, 0.2, 0.9]), np.array([False, False, True])) == 1
    assert auc(np.array([0.5, 0.5]), np.array([False, True])) == 0.5


def test_class_scores_by_hand():
    probs = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6], [0.2, 0.6, 0.2]])
    found = class_scores(probs, np.array([0, 1, 1, 1]), ("a", "b", "c"))
    assert found["sensitivity_a"] == 1 and found["specificity_a"] == pytest.approx(2 / 3)
    assert found["sensitivity_b"] == pytest.approx(1 / 3) and found["specificity_b"] == 1
    assert "sensitivity_c" not in found and found["specificity_c"] == 0.75 and "auc_c" not in found
    assert found["auc_a"] == 1 and found["auc_b"] == 1 and found["auc"] == 1
    assert found["brier"] == pytest.approx(np.mean([0.14, 0.62, 0.86, 0.24]))


def test_a_specificity_is_stated_where_nine_in_ten_are_found():
    positive = np.arange(40) < 20  # twenty: two of them may be missed
    score = np.where(positive, np.linspace(0.3, 0.9, 40), 0.0)
    score[20:] = np.linspace(0, 0.5, 20)
    found = class_scores(np.stack([1 - score, score], 1), positive.astype(int), ("a", "b"))
    threshold = np.sort(score[:20])[2]
    assert (score[:20] >= threshold).sum() == 18
    assert found["specificity_at_90_b"] == pytest.approx((score[20:] < threshold).mean())
    assert 0 < found["specificity_at_90_b"] < 1


def test_one_class_alone_has_no_specificity_and_no_area():
    found = class_scores(np.array([[0.7, 0.3], [0.2, 0.8]]), np.array([0, 0]), ("a", "b"))
    assert set(found) == {"brier", "sensitivity_a", "specificity_b"}
