"""Conformal thresholds: quantiles by hand, and the promised rates on synthetic groups that are exchangeable."""

import math

import numpy as np
import pytest

from mcis.ops.conformal import controlled_threshold, coverage_threshold, group_folds, group_weights


def test_scans_share_the_weight_of_their_group_and_the_new_group_has_as_much():
    weight = group_weights(np.array(["a", "b", "a", "a", "c"]))
    np.testing.assert_allclose(weight, [1 / 12, 1 / 4, 1 / 12, 1 / 12, 1 / 4])
    assert 1 - weight.sum() == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("coverage", "wanted"),
    [(0.25, 0.9), (0.26, 0.7), (0.5, 0.5), (0.51, 0.3), (0.75, 0.1), (0.76, 0.0)],  # the fourth group is the new one
)
def test_the_threshold_by_hand(coverage, wanted):
    # a: 0.9 (1/4); b: 0.7 and 0.5 (1/8 each); c: 0.3 and 0.1 (1/8 each)
    score, group = np.array([0.1, 0.5, 0.9, 0.3, 0.7]), np.array(["c", "b", "a", "c", "b"])
    assert coverage_threshold(score, group, coverage) == wanted


def test_nine_groups_are_the_fewest_for_nine_tenths():
    score = np.linspace(0.1, 0.9, 9)
    assert coverage_threshold(score, np.arange(9), 0.9) == pytest.approx(0.1)
    assert coverage_threshold(score[:8], np.arange(8), 0.9) == 0.0
    assert coverage_threshold(score[:0], np.arange(0), 0.9) == 0.0


def test_the_controlled_threshold_by_hand():
    thresholds = np.array([0.1, 0.2, 0.3])
    loss = np.array([[0.0, 0.2, 0.8], [0.0, 0.0, 0.4], [0.1, 0.1, 0.1]])
    group = np.array(["a", "a", "b"])
    # means of groups: a 0, 0.1, 0.6; b 0.1; with the new group's 1, thirds of the sums
    bounds = [(0.1 + 1) / 3, (0.2 + 1) / 3, (0.7 + 1) / 3]
    for rate, wanted in ((0.36, None), (0.37, 0), (0.41, 1), (0.6, 2)):
        threshold, bound = controlled_threshold(loss, thresholds, group, rate)
        if wanted is None:
            assert math.isnan(threshold) and math.isnan(bound)
        else:
            assert threshold == thresholds[wanted] and bound == pytest.approx(bounds[wanted])


def test_a_loss_that_falls_again_counts_as_its_largest_before():
    loss = np.array([[0.0, 0.9, 0.0]] * 19)
    assert controlled_threshold(loss, np.array([0.1, 0.2, 0.3]), np.arange(19), 0.1)[0] == 0.1


def synthetic(rng, groups):
    """Scans of groups of very different size; those of one group resemble each other."""
    size = rng.integers(1, 12, groups)
    middle = rng.normal(size=groups)
    group = np.repeat(np.arange(groups), size)
    return 1 / (1 + np.exp(-(middle[group] + 0.4 * rng.normal(size=len(group))))), group


def test_new_groups_are_covered_as_promised():
    rng, covered, scans = np.random.default_rng(0), [], []
    for _ in range(1500):
        score, group = synthetic(rng, 31)
        held_out = group == 30  # exchangeable with the others
        threshold = coverage_threshold(score[~held_out], group[~held_out], 0.9)
        covered.append((score[held_out] >= threshold).mean())
        scans.append((score[held_out] >= np.quantile(score[~held_out], 0.1)).mean())
    assert 0.9 - 0.015 < np.mean(covered) < 0.97
    assert np.mean(scans) < np.mean(covered)  # a quantile that ignores the groups promises too much


def test_the_loss_of_new_groups_is_at_most_the_rate():
    rng, found = np.random.default_rng(1), []
    thresholds = np.arange(1, 100) / 100
    for _ in range(800):
        score, group = synthetic(rng, 41)
        loss = np.clip(2 * (thresholds - score[:, None]), 0, 1)  # rises with the threshold
        held_out = group == 40
        threshold, bound = controlled_threshold(loss[~held_out], thresholds, group[~held_out], 0.2)
        assert bound <= 0.2 + 1e-9
        found.append(np.clip(2 * (threshold - score[held_out]), 0, 1).mean())
    assert 0.12 < np.mean(found) < 0.2 + 0.01


def test_a_larger_rate_never_gives_a_smaller_threshold():
    rng = np.random.default_rng(2)
    score, group = synthetic(rng, 60)
    thresholds = np.arange(1, 100) / 100
    loss = np.clip(2 * (thresholds - score[:, None]), 0, 1)
    rates = np.linspace(0.05, 0.9, 18)
    found = [controlled_threshold(loss, thresholds, group, rate)[0] for rate in rates]
    assert (np.diff(found) >= 0).all() and found[-1] > found[0]
    limits = [coverage_threshold(score, group, coverage) for coverage in 1 - rates]
    assert (np.diff(limits) >= 0).all() and limits[-1] > limits[0]


def test_folds_are_of_whole_groups_and_of_nearly_equal_numbers():
    group = np.random.default_rng(3).integers(0, 23, 200).astype(str)
    fold = group_folds(group, 5)
    of_group = {name: set(fold[group == name].tolist()) for name in np.unique(group)}
    assert all(len(folds) == 1 for folds in of_group.values())
    counts = np.bincount([folds.pop() for folds in of_group.values()])
    assert len(counts) == 5 and counts.max() - counts.min() <= 1
