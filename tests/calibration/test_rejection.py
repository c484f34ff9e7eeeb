"""Rejection: the limits' shares, intervals over kinds, near and far."""

import dataclasses

import numpy as np
import pytest

from mcis.calibration import rejection
from mcis.inference.rows import Rows
from mcis.organs import ORGANS

pytestmark = pytest.mark.usefixtures("few_draws")

COUNT = 2000


@pytest.fixture
def rows():
    """Known scans of two sources; far pictures all unsure, and near ones of which one kind is taken for known."""
    rng = np.random.default_rng(0)
    known = np.arange(2 * COUNT) < COUNT
    kind = np.array(["foreign/xray", "foreign/photo", "foreign/mri_knee", "foreign/us_lung"])[np.arange(2 * COUNT) % 4]
    prob = np.where(known, rng.uniform(0.9, 1.0, 2 * COUNT), rng.uniform(0.0, 0.8, 2 * COUNT))
    prob = np.where(~known & (kind == "foreign/us_lung"), 0.999, prob)
    return Rows(
        label=np.where(known, 0, len(ORGANS)),
        probs=np.stack([prob, np.zeros(2 * COUNT), 1 - prob], 1),
        novelty=np.where(known, rng.uniform(0, 1, 2 * COUNT), 0.5),
        source=np.where(known, np.where(np.arange(2 * COUNT) % 2 == 0, "a", "b"), "foreign"),
        group=np.where(known, [f"a/{i // 10}" for i in range(2 * COUNT)], kind),
        scan_id=np.arange(2 * COUNT).astype(str),
        has_mask=known,
        thumbnail=np.zeros(2 * COUNT, bool),
    )


def test_a_hundredth_of_the_known_scans_is_rejected(rows):
    limits, facts = rejection.fit_router(rows)
    refused = facts["refused"]
    assert 0.008 <= refused["known"]["value"] <= 0.0101
    assert all(part["value"] <= 0.0101 for part in facts["sources"].values())
    assert refused["known"]["low"] < refused["known"]["value"] < refused["known"]["high"] < 0.02
    assert limits["threshold"] == pytest.approx(0.9, abs=0.005) and limits["reach"] == pytest.approx(1.0, abs=0.01)
    assert facts["to_the_wrong_organ"] == 0
    assert set(facts["sources"]) == {"a", "b"} and facts["sources"]["a"]["scans"] == COUNT // 2
    known = [point["known"]["value"] for point in facts["trade_off"]]
    assert known == sorted(known) and known[-1] == pytest.approx(0.2, abs=0.02)


def test_uncertain_scans_lie_between_the_limits(rows):
    limits, facts = rejection.fit_router(rows)
    assert limits["threshold"] < limits["certain"] == pytest.approx(0.902, abs=0.002)
    prob, known = rows.probs[:, 0], rows.label == 0
    held = (prob < limits["certain"]) | (rows.novelty > limits["reach"])
    assert facts["or_uncertain"]["known"]["value"] == pytest.approx(held[known].mean())
    assert all(rejection.REJECTED < one["value"] <= 0.0201 for one in facts["or_uncertain_sources"].values())
    assert facts["or_uncertain"]["far"]["value"] >= facts["refused"]["far"]["value"]


def test_the_worst_source_sets_the_limits(rows):
    """The scans of a small source are unsure: a limit on all scans together would reject most of them."""
    small = np.arange(2 * COUNT) < 20
    probs = np.where(small[:, None], [0.5, 0.0, 0.5], rows.probs)
    harder = dataclasses.replace(rows, probs=probs, source=np.where(small, "c", rows.source))
    limits, facts = rejection.fit_router(harder)
    assert limits["threshold"] == pytest.approx(0.5) and facts["sources"]["c"]["value"] == 0.0


def test_intervals_of_ood_scans_are_over_kinds(rows):
    facts = rejection.fit_router(rows)[1]
    assert facts["groups"] == {"known": COUNT // 10, "far": 2, "near": 2}
    assert facts["refused"]["far"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    # half of the near kinds' pictures; a draw of kinds has none, one or both of the kind that is taken for known
    assert facts["refused"]["near"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert facts["kinds"]["foreign/us_lung"] == {"scans": COUNT // 4, "value": 0.0, "low": None, "high": None}


def test_thumbnails_are_reported_apart_from_the_router(rows):
    thumbnails = rows.group == "foreign/us_lung"
    limits, facts = rejection.fit_router(dataclasses.replace(rows, thumbnail=thumbnails))
    plain_limits, plain = rejection.fit_router(rows)
    assert limits == plain_limits
    assert facts["with_thumbnails"]["near"]["value"] == 1.0 and plain["with_thumbnails"] == plain["refused"]
    assert facts | {"with_thumbnails": None} == plain | {"with_thumbnails": None}


def test_limits_are_fitted_without_ood_scans_too(rows):
    known = rows.label < len(ORGANS)
    limits, facts = rejection.fit_router(rows.take(known))
    assert limits == rejection.fit_router(rows)[0]
    assert set(facts["refused"]) == {"known"} and "trade_off" not in facts and facts["kinds"] == {}


@pytest.mark.parametrize("kind", ["foreign/us_lung", "mri_spine", "ct_head", "MRI-knee", "foreign/mr_knee"])
def test_near_kinds(kind):
    assert rejection.is_near(kind)


@pytest.mark.parametrize("kind", ["foreign/xray_chest", "mammogram", "natural_photo", "ct_abdomen", "focus_chart"])
def test_far_kinds(kind):
    assert not rejection.is_near(kind)
