"""The last layer fitted to convergence: against scikit-learn, and its weights by hand."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mcis.ops.last_layer import fit_last_layer, group_weights


@pytest.fixture
def scans():
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=120)
    features = rng.normal(size=(120, 5)) * [1, 5, 0.1, 2, 1] + [3, 0, 7, 0, 0]
    features[np.arange(120), label] += 1.5
    features[:, 4] = 2.5  # constant: it tells nothing
    return features.astype(np.float32), label


def test_it_is_the_regression_of_scikit_learn(scans):
    features, label = scans
    weight = np.random.default_rng(1).uniform(0.5, 1.5, len(label))
    kernel, bias = fit_last_layer(features, label, weight, 0.04, 3)
    assert kernel.shape == (5, 3) and kernel.dtype == bias.dtype == np.float32
    scaled = (features[:, :4] - features[:, :4].mean(0)) / features[:, :4].std(0)
    reference = LogisticRegression(C=1 / (0.04 * weight.sum()), tol=1e-8, max_iter=1000)
    expected = reference.fit(scaled, label, sample_weight=weight).predict_proba(scaled)
    logits = features @ kernel + bias
    found = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert (found.argmax(1) == label).mean() > 0.6


def test_classes_count_evenly_and_sources_by_the_root_of_their_scans():
    label = np.array([0] * 4 + [0] * 1 + [1] * 15)
    source = np.array(["a"] * 4 + ["b"] * 1 + ["c"] * 15)
    weight = group_weights(label, source)
    assert weight.mean() == pytest.approx(1)
    assert weight[label == 0].sum() == pytest.approx(weight[label == 1].sum())
    assert weight[source == "a"].sum() / weight[source == "b"].sum() == pytest.approx(2)
