"""OOD scores: the Mahalanobis distance, and the share of known scans within its limit."""

import jax
import numpy as np
import pytest

from mcis.ops import ood
from mcis.ops.ood import fit_novelty

distance = jax.jit(ood.distance)


def scans(count, seed, features=5):
    """Features of two classes whose covariance is neither diagonal nor equal along the axes, and their labels."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(features, features)) * np.array([1, 2, 1, 3, 1])[:features]
    label = rng.integers(0, 2, count)
    centre = np.zeros((2, features))
    centre[1] = 30
    return (rng.normal(size=(count, features)) @ mix + centre[label]).astype(np.float32), label


def test_distance_is_mahalanobis_by_definition():
    features, label = scans(4000, 0)
    novelty = fit_novelty(features, label, features)
    assert {name: np.asarray(value).dtype for name, value in novelty.items()} == dict.fromkeys(novelty, np.float32)
    means = np.stack([features[label == c].mean(0) for c in (0, 1)]).astype(np.float64)
    centred = features - means[label]
    inverse = np.linalg.inv(centred.T @ centred / len(features))
    some = scans(20, 1)[0]
    offsets = some[:, None] - means
    expected = np.sqrt(np.einsum("bkf,fg,bkg->bk", offsets, inverse, offsets)).min(1)
    np.testing.assert_allclose(distance(novelty, some), expected, rtol=0.05)  # a small term is on the diagonal


def test_distance_by_hand():
    novelty = {
        "mean": np.float32([[0, 0], [10, 0]]),
        "whiten": np.float32([[0.5, 0], [0, 2]]),
        "limit": np.float32(1),
    }
    features = np.float32([[0, 0], [4, 0], [8, 1]])
    np.testing.assert_allclose(distance(novelty, features), [0, 2, np.sqrt(1 + 4)], rtol=1e-6)


@pytest.mark.parametrize("share", [0.9, 0.99])
def test_the_limit_is_passed_by_its_share_of_known_scans_and_by_distant_ones(share):
    features, label = scans(1000, 0)
    held_out, _ = scans(1000, 1)
    novelty = fit_novelty(features, label, held_out, share)
    inside = np.asarray(distance(novelty, held_out)) <= novelty["limit"]
    assert inside.mean() == pytest.approx(share, abs=0.002)
    fresh = np.asarray(distance(novelty, scans(1000, 2)[0])) <= novelty["limit"]
    assert abs(fresh.mean() - share) < 0.03
    distant = np.repeat(np.float32([15, -40, 1e6])[:, None], 5, axis=1)
    assert (np.asarray(distance(novelty, distant)) > novelty["limit"]).all()


def test_by_default_one_known_scan_in_a_hundred_is_outside_the_limit():
    (features, label), (held_out, _) = scans(1000, 0), scans(1000, 1)
    novelty = fit_novelty(features, label, held_out)
    assert (np.asarray(distance(novelty, held_out)) > novelty["limit"]).sum() == 10


def test_constant_features_and_labels_with_gaps_give_finite_distances():
    features, label = scans(200, 0)
    features[:, 2] = 0
    novelty = fit_novelty(features, label * 3, features)
    assert novelty["mean"].shape == (2, 5)
    assert all(np.isfinite(value).all() for value in novelty.values())
    found = np.asarray(distance(novelty, features))
    assert np.isfinite(found).all()
    changed = features.copy()
    changed[:, 2] = 100  # a feature that was constant in training
    assert (np.asarray(distance(novelty, changed)) > novelty["limit"]).all()
    assert all(np.isfinite(v).all() for v in fit_novelty(features * 0, label, features * 0).values())
