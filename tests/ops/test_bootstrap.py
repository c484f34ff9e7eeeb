"""Intervals of ratios of sums: the same as those of a function that is called for every draw."""

import numpy as np
import pytest

from mcis.ops.bootstrap import group_draws, interval, share_intervals
from mcis.ops.metrics import bootstrap_interval


def test_a_ratio_has_the_interval_of_the_slow_bootstrap():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 12, 60).astype(str)
    part, whole = rng.integers(0, 5, 60), rng.integers(5, 9, 60)
    found = share_intervals({"rate": (part, whole), "mean": (part, np.ones(60))}, group, draws=200)
    slow = bootstrap_interval(
        lambda rows, _: {"rate": part[rows].sum() / whole[rows].sum(), "mean": part[rows].mean()}, group, draws=200
    )
    for name, (low, high) in slow.items():
        assert (found[name]["low"], found[name]["high"]) == pytest.approx((low, high))
    assert found["rate"]["value"] == pytest.approx(part.sum() / whole.sum())


def test_one_group_and_scores_that_draws_lack_have_no_interval():
    one = share_intervals({"a": (np.ones(3), np.ones(3))}, np.array(["g"] * 3))
    assert one == {"a": {"value": 1.0, "low": None, "high": None}}
    there = np.array([1.0, 0.0, 0.0, 0.0])  # a third of the draws of four groups lack the first
    found = share_intervals({"a": (there, there), "b": (0 * there, 0 * there)}, np.arange(4), draws=200)
    assert found == {"a": {"value": 1.0, "low": None, "high": None}}
    assert share_intervals({}, np.arange(4)) == {}


def test_a_draw_has_as_many_groups_as_there_are():
    index, times = group_draws(np.array(["b", "a", "b"]), draws=50)
    assert index.tolist() == [1, 0, 1] and times[0].tolist() == [1, 1]
    assert times.shape == (51, 2) and (times.sum(1) == 2).all() and times.dtype == np.uint16


def test_an_interval_is_of_percentiles():
    scores = np.append(0.5, np.arange(1001))
    assert interval(scores) == {"value": 0.5, "low": 25.0, "high": 975.0}
