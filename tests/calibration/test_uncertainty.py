"""Label sets and outer outlines: limits by hand, and the rates that are reported for scans that a fit has not seen."""

import json

import numpy as np
import pytest

from mcis.calibration import calibrate, review, uncertainty
from mcis.evaluation.page_calibration import calibration_section
from mcis.inference.rows import Rows
from mcis.ops.metrics import MASK_THRESHOLD
from mcis.organs import ORGANS

BRAIN, BREAST = ORGANS


def rows(label, probs, group=None, source=None, **columns):
    names = np.arange(len(label)).astype(str)
    group = names if group is None else np.asarray(group, str)
    source = np.full(len(label), "one") if source is None else np.asarray(source)
    facts = {"has_mask": np.ones(len(label), bool), "fingerprint": names} | columns
    return Rows(source=source, group=group, scan_id=names, label=np.asarray(label), probs=np.float32(probs), **facts)


def test_limits_are_fitted_class_by_class():
    # nineteen malignant scans of as many patients, with probabilities 0.05 to 0.95; three normal ones are too few
    malignant = np.arange(1, 20) / 20
    probs = [[0, 1 - p, p] for p in malignant] + [[0.9, 0.1, 0]] * 3 + [[0, 0.625, 0.375]] * 9
    found = rows([2] * 19 + [0] * 3 + [1] * 9, probs)
    limits, facts = uncertainty.fit_label_set(BREAST, found, found.probs.argmax(1))
    np.testing.assert_allclose(limits, [0, 0.625, 0.1])  # 18 of 19 and the new patient are 0.9 of 20
    assert facts["limits"] == {"normal": 0.0, "benign": 0.625, "malignant": pytest.approx(0.1)}
    assert facts["wanted"] == 0.9 and facts["scans"] == facts["groups"] == 31
    assert facts["left_one_source_out"] is None and facts["in_source"]["scans"] == 31
    unknown = rows([2] * 19 + [-1] * 12, probs)
    assert uncertainty.fit_label_set(BREAST, unknown, unknown.probs.argmax(1))[1]["scans"] == 19


def test_a_set_holds_at_least_the_decided_class():
    sets = uncertainty.in_set(np.float32([[0.2, 0.3, 0.5], [0.4, 0.3, 0.3]]), np.array([2, 1]), np.float32([0.3] * 3))
    assert sets.tolist() == [[False, True, True], [True, True, True]]
    assert uncertainty.in_set(np.float32([[0.2, 0.5, 0.3]]), np.array([2]), np.ones(3)).tolist() == [
        [False, False, True]
    ]


def drawn(rng, patients, source, shift=0.0):
    """Brain scans of patients, two each; with a shift the network sees less of a tumor."""
    label = np.repeat(rng.integers(0, 2, patients), 2)
    p = 1 / (1 + np.exp(-(rng.normal(size=2 * patients) + np.where(label == 1, 1, -1) * (1 - shift))))
    return label, np.stack([1 - p, p], 1), np.repeat([f"{source}/{k}" for k in range(patients)], 2), source


def joined(*parts):
    label, probs, group = (np.concatenate([part[k] for part in parts]) for k in range(3))
    return rows(label, probs, group, np.repeat([part[3] for part in parts], [len(part[0]) for part in parts]))


def test_coverage_is_measured_on_scans_that_the_limits_have_not_seen():
    rng = np.random.default_rng(0)
    found = joined(drawn(rng, 250, "a"), drawn(rng, 250, "b"), drawn(rng, 150, "odd", shift=1.8))
    _, facts = uncertainty.fit_label_set(BRAIN, found, found.probs.argmax(1))
    inside, left = facts["in_source"], facts["left_one_source_out"]
    assert inside["coverage"]["value"] == pytest.approx(0.9, abs=0.02)
    assert inside["coverage"]["low"] < inside["coverage"]["value"] < inside["coverage"]["high"]
    assert inside["coverage_of_groups"] == pytest.approx(inside["coverage"]["value"])  # patients have two scans each
    assert set(inside["classes"]) == set(BRAIN.classes) and 1 < inside["size"] < 2
    assert inside["single"] == pytest.approx(2 - inside["size"], abs=0.01)
    assert left["sources"]["odd"]["coverage"] < inside["sources"]["odd"]["coverage"] - 0.05 < 0.9
    said = uncertainty.sentences({"label_set": facts})
    assert len(said) == 1 and f"{inside['coverage']['value']:.3f} [" in said[0]
    assert f"the fewest in odd ({left['sources']['odd']['coverage']:.3f})" in said[0]


def outlined(missed, group=None, source=None):
    """Lesions of 100 pixels, of which `missed` lie outside at the lowest threshold, and one more at each next one."""
    steps = np.arange(len(uncertainty.THRESHOLDS))
    inside = np.clip(100 - np.asarray(missed)[:, None] - steps, 0, 100)
    count = len(missed)
    return rows(
        [1] * count, np.ones((count, 3)) / 3, group, source, true=np.full(count, 100), inside=inside, area=2 * inside
    )


def test_the_outer_outline_by_hand():
    # 49 patients miss 0, 0.01, 0.02 ...; with the new one, who misses all, (49 x k / 100 + 1) / 50 <= 0.1 for k <= 8
    threshold, facts = uncertainty.fit_outer(outlined([0] * 49))
    assert threshold == uncertainty.THRESHOLDS[8] == facts["threshold"]
    assert facts["bound"] == pytest.approx((49 * 0.08 + 1) / 50) and facts["wanted"] == 0.1
    assert facts["in_source"]["missed"]["value"] == pytest.approx(0.07, abs=0.01)  # fitted to 44 patients at a time
    last = len(uncertainty.THRESHOLDS) - 1
    assert facts["in_source"]["missed_by_mask"] == pytest.approx(last / 100)
    # a patient with forty scans counts once
    group = ["many"] * 40 + [str(k) for k in range(48)]
    many, _ = uncertainty.fit_outer(outlined([50] * 40 + [0] * 48, group))
    assert many == uncertainty.THRESHOLDS[7]  # (0.50 + 49 k / 100 + 1) / 50 <= 0.1
    threshold, facts = uncertainty.fit_outer(outlined([0] * 8))  # the new patient alone is more than a tenth
    assert np.isnan(threshold) and facts["threshold"] is facts["bound"] is None
    assert uncertainty.sentences({"outer": facts}) == [
        "no threshold keeps the outer outline from missing more than 0.10 of a lesion"
    ]


def test_a_source_that_is_left_out_may_miss_more():
    source = ["a"] * 60 + ["b"] * 60 + ["odd"] * 20
    _, facts = uncertainty.fit_outer(outlined([0] * 120 + [12] * 20, source=source))
    left = facts["left_one_source_out"]
    assert left["sources"]["odd"]["missed"] == pytest.approx(0.12 + 0.09, abs=0.011)
    assert left["sources"]["a"]["missed"] < 0.1 and left["sources"]["odd"]["scans"] == 20
    assert f"the most in odd ({left['sources']['odd']['missed']:.3f})" in uncertainty.sentences({"outer": facts})[0]


def test_a_cluster_of_two_sources_is_never_on_both_sides():
    found = rows([1] * 4, np.ones((4, 3)) / 3, ["a/1", "a/1", "a/2", "b/1"], ["a", "b", "a", "b"])
    seen = []

    def apply(fit, others):
        seen.append((fit.tolist(), others.tolist()))
        return np.flatnonzero(others)

    out = uncertainty.held_out(found, apply)
    assert out["left_one_source_out"].tolist() == [0, 1, 2, 3]
    assert ([False, False, False, True], [True, False, True, False]) in seen
    for fit, others in seen:
        assert not set(found.group[fit]) & set(found.group[others])


def test_thresholds_rise_to_that_of_the_mask():
    assert (np.diff(uncertainty.THRESHOLDS) > 0).all() and uncertainty.THRESHOLDS[-1] == np.float32(MASK_THRESHOLD)


def test_pixels_are_counted_at_each_threshold():
    mask = np.float32([[0.0005, 0.0015], [0.3, 0.6]]).reshape(1, 2, 2, 1)
    true = np.array([[0, 1], [0, 1]], np.uint8).reshape(1, 2, 2, 1)
    found = {name: np.asarray(value)[0] for name, value in calibrate.at_thresholds(mask, true).items()}
    at = {
        float(t): (int(i), int(a))
        for t, i, a in zip(uncertainty.THRESHOLDS, found["inside"], found["area"], strict=True)
    }
    picked = {round(threshold, 3): counts for threshold, counts in at.items()}
    assert picked[0.001] == (2, 3) and picked[0.002] == (1, 2) and picked[0.29] == (1, 2) and picked[0.5] == (1, 1)


def test_the_review_flag_is_measured_on_groups_and_sources_that_its_limit_has_not_seen():
    rng = np.random.default_rng(1)
    found = joined(drawn(rng, 200, "a"), drawn(rng, 100, "odd", shift=0.9))
    _, facts = review.fit_review(0, found, None)
    inside, left = facts["in_source"], facts["left_one_source_out"]
    assert inside["flagged"] == pytest.approx(0.2, abs=0.02)
    assert inside["errors_flagged"]["value"] == pytest.approx(facts["errors_flagged"], abs=0.05)
    assert inside["errors_flagged"]["low"] < inside["errors_flagged"]["value"] < inside["errors_flagged"]["high"]
    assert left["sources"]["odd"]["errors"] + left["sources"]["a"]["errors"] == facts["errors"]
    assert left["sources"]["odd"]["flagged"] > 0.2 > left["sources"]["a"]["flagged"]  # odd is less certain


def test_a_page_of_an_evaluation_shows_what_was_measured():
    rng = np.random.default_rng(2)
    found = joined(drawn(rng, 60, "a"), drawn(rng, 40, "<b>"))
    facts = {"label_set": uncertainty.fit_label_set(BRAIN, found, found.probs.argmax(1))[1]}
    facts["outer"] = uncertainty.fit_outer(outlined([0] * 60, source=["a"] * 30 + ["b"] * 30))[1]
    facts = json.loads(json.dumps(facts))
    page = calibration_section({"weights": {"segment_breast": {"calibration": facts}}})
    coverage = facts["label_set"]["in_source"]["coverage"]
    for text in ("200 scans of 100 groups", f"{coverage['value']:.3f} <small>[{coverage['low']:.3f}", "other sources"):
        assert text in page, text
    assert f"threshold {facts['outer']['threshold']:.3g}" in page and "60 lesion scans of 60 groups" in page
    assert "<b>" not in page and "not of this version" not in page
