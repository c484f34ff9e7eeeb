import numpy as np
import pytest

from mcis.ops.calibration import calibrated, fit_calibration, reliability


def test_bins_by_hand_whatever_the_order():
    confidence = np.array([0.9, 0.5, 0.6, 0.8])
    correct = np.array([True, False, True, True])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        found = reliability(confidence[order], correct[order], bins=2)
        assert found.count.tolist() == [2, 2]
        assert found.confidence.tolist() == pytest.approx([0.55, 0.85])
        assert found.accuracy.tolist() == [0.5, 1.0]
        assert found.error == pytest.approx((0.05 + 0.15) / 2)


def test_what_is_calibrated_lies_in_the_band_and_what_boasts_does_not():
    rng = np.random.default_rng(1)
    honest = rng.uniform(0.4, 1.0, 2000)
    correct = rng.random(2000) < honest
    found = reliability(honest, correct)
    inside = (found.accuracy >= found.low) & (found.accuracy <= found.high)
    assert inside.mean() >= 0.8
    assert found.error < found.error_high
    boast = reliability(np.minimum(honest + 0.2, 1.0), correct)
    assert boast.error > 3 * boast.error_high
    assert (boast.accuracy < boast.low).all()


def test_the_band_narrows_with_the_scans_as_a_binomial_does():
    widths = []
    for n in (100, 10_000):
        found = reliability(np.full(n, 0.8), np.arange(n) % 5 > 0, bins=1)
        widths.append(float(found.high[0] - found.low[0]))
    assert widths[0] == pytest.approx(2 * 1.96 * np.sqrt(0.16 / 100), rel=0.15)
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.15)


def test_few_scans_make_few_bins_and_none_an_error():
    assert reliability(np.array([0.7, 0.9]), np.array([True, True])).count.tolist() == [1, 1]
    assert reliability(np.full(13, 0.7), np.ones(13, bool)).count.sum() == 13
    with pytest.raises(ValueError, match="no scans"):
        reliability(np.array([]), np.array([], bool))


def test_the_order_of_equal_confidences_means_nothing():
    found = reliability(np.full(1000, 0.8), np.arange(1000) < 800)  # all that are wrong come last
    assert found.error < found.error_high


def test_a_fit_undoes_what_made_probabilities_wrong():
    rng = np.random.default_rng(0)
    true = rng.dirichlet([1.0, 1.0, 1.0], 6000)
    label = np.array([rng.choice(3, p=p) for p in true])
    boast = true**2.5
    boast /= boast.sum(1, keepdims=True)
    found = fit_calibration(boast, label)
    assert found["slope"] == pytest.approx(1 / 2.5, abs=0.03)
    right = np.asarray(calibrated(boast, found))
    np.testing.assert_allclose(right.sum(1), 1, atol=1e-5)
    assert np.abs(right - true).max() < 0.05 < np.abs(boast - true).max()
    said = reliability(right.max(1), right.argmax(1) == label)
    assert said.error < said.error_high


def test_calibration_by_hand_and_of_certainty():
    probs = np.float32([[0.8, 0.2], [1.0, 0.0]])
    found = np.asarray(calibrated(probs, {"slope": np.float32(0.5)}))
    np.testing.assert_allclose(found[0], [2 / 3, 1 / 3], atol=1e-6)  # odds 4:1 -> 2:1
    assert np.isfinite(found).all()


@pytest.mark.parametrize("right", [True, False])
def test_scans_that_are_all_right_or_all_wrong_make_no_endless_slope(right):
    probs = np.float32([[0.6, 0.4]] * 3)
    slope = float(fit_calibration(probs, np.full(3, 0 if right else 1))["slope"])
    assert slope == pytest.approx(10.0 if right else 0.1, rel=1e-3)


def test_a_calibration_never_changes_what_is_said():
    probs = np.random.default_rng(2).dirichlet([0.5, 0.5, 0.5], 500).astype(np.float32)
    found = fit_calibration(probs, np.random.default_rng(3).integers(0, 3, 500))
    np.testing.assert_array_equal(np.asarray(calibrated(probs, found)).argmax(1), probs.argmax(1))
