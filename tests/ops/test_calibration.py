"""Reliability diagrams, temperature scaling and decisions."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcis.ops import calibration
from mcis.ops.calibration import fit_calibration, reliability

calibrated = jax.jit(calibration.calibrated)
decide = jax.jit(calibration.decide)


def test_bins_by_hand_in_any_order_of_scans():
    confidence = np.array([0.9, 0.5, 0.6, 0.8])
    correct = np.array([True, False, True, True])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        found = reliability(confidence[order], correct[order], bins=2)
        assert found.count.tolist() == [2, 2]
        assert found.confidence.tolist() == pytest.approx([0.55, 0.85])
        assert found.accuracy.tolist() == [0.5, 1.0]
        assert found.error == pytest.approx((0.05 + 0.15) / 2)


def test_calibrated_confidences_lie_in_the_interval_and_overconfident_ones_do_not():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.4, 1.0, 2000)
    correct = rng.random(2000) < confidence
    found = reliability(confidence, correct)
    inside = (found.accuracy >= found.low) & (found.accuracy <= found.high)
    assert inside.mean() >= 0.8
    assert found.error < found.error_high
    overconfident = reliability(np.minimum(confidence + 0.2, 1.0), correct)
    assert overconfident.error > 3 * overconfident.error_high
    assert (overconfident.accuracy < overconfident.low).all()


def test_the_interval_has_the_width_of_a_binomial_distribution():
    widths = []
    for n in (100, 10_000):
        found = reliability(np.full(n, 0.8), np.arange(n) % 5 > 0, bins=1)
        widths.append(float(found.high[0] - found.low[0]))
    assert widths[0] == pytest.approx(2 * 1.96 * np.sqrt(0.16 / 100), rel=0.15)
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.15)


def test_few_scans_make_few_bins_and_no_scans_an_error():
    assert reliability(np.array([0.7, 0.9]), np.array([True, True])).count.tolist() == [1, 1]
    assert reliability(np.full(13, 0.7), np.ones(13, bool)).count.sum() == 13
    with pytest.raises(ValueError, match="no scans"):
        reliability(np.array([]), np.array([], bool))


def test_the_order_of_scans_with_equal_confidence_does_not_matter():
    found = reliability(np.full(1000, 0.8), np.arange(1000) < 800)  # the wrong ones come last
    assert found.error < found.error_high


def test_the_fit_inverts_a_power_of_the_probabilities():
    rng = np.random.default_rng(0)
    true = rng.dirichlet([1.0, 1.0, 1.0], 6000)
    label = np.array([rng.choice(3, p=p) for p in true])
    overconfident = true**2.5
    overconfident /= overconfident.sum(1, keepdims=True)
    found = fit_calibration(overconfident, label)
    assert found["slope"] == pytest.approx(1 / 2.5, abs=0.03)
    fitted = np.asarray(calibrated(overconfident, found))
    np.testing.assert_allclose(fitted.sum(1), 1, atol=1e-5)
    assert np.abs(fitted - true).max() < 0.05 < np.abs(overconfident - true).max()
    diagram = reliability(fitted.max(1), fitted.argmax(1) == label)
    assert diagram.error < diagram.error_high


def test_calibration_by_hand_and_of_a_probability_of_1():
    probs = np.float32([[0.8, 0.2], [1.0, 0.0]])
    found = np.asarray(calibrated(probs, {"slope": np.float32(0.5)}))
    np.testing.assert_allclose(found[0], [2 / 3, 1 / 3], atol=1e-6)  # odds 4:1 -> 2:1
    assert np.isfinite(found).all()


@pytest.mark.parametrize("right", [True, False])
def test_the_slope_of_scans_that_are_all_right_or_all_wrong_is_limited(right):
    probs = np.float32([[0.6, 0.4]] * 3)
    slope = float(fit_calibration(probs, np.full(3, 0 if right else 1))["slope"])
    assert slope == pytest.approx(10.0 if right else 0.1, rel=1e-3)


def test_calibration_never_changes_the_predicted_class():
    probs = np.random.default_rng(2).dirichlet([0.5, 0.5, 0.5], 500).astype(np.float32)
    found = fit_calibration(probs, np.random.default_rng(3).integers(0, 3, 500))
    np.testing.assert_array_equal(np.asarray(calibrated(probs, found)).argmax(1), probs.argmax(1))


@pytest.mark.parametrize(
    ("shift", "labels"),
    [
        ([0, 0, 0], [1, 0, 0]),
        ([0, 0, 1], [2, 0, 0]),  # log(0.63 / 0.27) = 0.85, log(0.5 / 0.1) = 1.61
        ([0, 0, 0.8], [1, 0, 0]),
        ([-0.3, 0, 0], [1, 1, 0]),  # log(0.5 / 0.4) = 0.22
        ([-0.2, 0, 0], [1, 0, 0]),
        ([-2, 0, 0], [1, 1, 0]),  # a class of probability 0 is never chosen
        ([700, 700, 701], [2, 0, 0]),  # only differences count, and nothing overflows
    ],
)
def test_decisions_by_hand(shift, labels):
    probs = np.float32([[0.1, 0.63, 0.27], [0.5, 0.4, 0.1], [1, 0, 0]])
    assert decide(probs, np.float32(shift)).tolist() == labels
    each = np.tile(np.float32(shift), (3, 1))
    assert decide(probs, each).tolist() == labels  # a shift for every scan


PROBS = st.lists(st.floats(2.0**-100, 1, width=32), min_size=18, max_size=18).map(lambda p: np.float32(p).reshape(6, 3))
SHIFT = st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3).map(np.float32)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(PROBS, SHIFT, st.integers(0, 2), st.floats(0, 3, width=32), st.floats(-3, 3, width=32))
def test_equal_shifts_decide_for_the_most_probable_class_and_a_raised_class_loses_no_scan(
    probs, shift, raised, by, same
):
    close = np.concatenate([probs, np.nextafter(probs[:, [1, 1, 1]], np.float32([0, 1, 2]))])  # in the last bit
    np.testing.assert_array_equal(decide(close), close.argmax(1))
    np.testing.assert_array_equal(decide(close, np.zeros(3, np.float32)), close.argmax(1))
    np.testing.assert_array_equal(decide(close, np.full(3, same, np.float32)), close.argmax(1))
    more = shift.copy()
    more[raised] += np.float32(by)
    before, after = (np.asarray(decide(probs, one)) == raised for one in (shift, more))
    assert (after | ~before).all()
