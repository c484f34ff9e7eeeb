"""The page's section on the calibration shows the facts of the fit."""

import json
import re

import numpy as np

from mcis.calibration.rejection import fit_router
from mcis.evaluation.page_calibration import calibration_section
from mcis.inference.rows import Rows
from mcis.organs import ORGANS

LABELS = {
    "scans": 1468,
    "groups": 909,
    "before": {
        "accuracy": 0.8,
        "balanced_accuracy": 0.81,
        "nll": 0.5,
        "calibration_error": 0.09,
        "by_chance_up_to": 0.03,
    },
    "after": {
        "accuracy": 0.801,
        "balanced_accuracy": 0.811,
        "nll": 0.4,
        "calibration_error": 0.02,
        "by_chance_up_to": 0.03,
    },
}
REVIEW = {
    "scans": 1468,
    "errors": 400,
    "flagged": 0.2,
    "errors_flagged": 0.45,
    "error_rate_flagged": 0.61,
    "error_rate_others": 0.19,
}


MEASURED = {"scans": 9, "sensitivity": 0.871, "specificity": None, "accuracy": 0.8, "balanced_accuracy": 0.7}
POINTS = {
    "scans": 1400,
    "groups": 900,
    "last_class": "malignant",
    "most_probable": MEASURED | {"sensitivity": 0.777},
    "points": {
        "balanced": {"shift": {"normal": -0.3, "benign": 0.0, "malignant": 0.4}}
        | MEASURED
        | {"sources": {"<i>": MEASURED}},
        "sensitive": {"shift": {"malignant": 1.5}, "wanted": 0.9, "reached": False} | MEASURED | {"sources": {}},
    },
}


def router_facts(kinds):
    rng = np.random.default_rng(0)
    known = np.arange(400) < 300
    prob = np.where(known, rng.uniform(0.9, 1.0, 400), rng.uniform(0.5, 1.0, 400))
    kind = [kinds[i % len(kinds)] for i in range(400)]
    rows = Rows(
        label=np.where(known, 0, len(ORGANS)),
        probs=np.stack([prob, np.zeros(400), 1 - prob], 1),
        novelty=rng.uniform(0, 1, 400),
        thumbnail=~known & (np.arange(400) % 2 == 0),
        source=np.where(known, "lgg", "foreign"),
        group=np.where(known, [f"lgg/{i // 3}" for i in range(400)], kind),
        scan_id=np.arange(400).astype(str),
        has_mask=known,
    )
    return fit_router(rows)[1]


def test_every_part_that_was_fitted_is_there():
    refusal = router_facts(["foreign/xray", "foreign/<b>", "foreign/us_lung"])
    found = {
        "weights": {
            "segment_breast": {"calibration": {"labels": LABELS, "operating_points": POINTS, "review": REVIEW}},
            "segment_brain": {},
            "route": {"calibration": json.loads(json.dumps({"refusal": refusal}))},
        }
    }
    page = calibration_section(found)
    assert "segment_brain" not in page
    for text in ("1468 scans of 909 groups", "0.090", "0.020", "20% of 1468 scans", "45% of 400 errors"):
        assert text in page, text
    shifts = ("normal -0.3, benign +0.0, malignant +0.4", "malignant +1.5; 0.90 wanted, not reached")
    for text in ("1400 scans of 900 groups", "0.777", "0.871", "&lt;i&gt;", *shifts):
        assert text in page, text
    far = refusal["refused"]["far"]
    assert f"{far['value']:.3f} <small>[{far['low']:.3f}, {far['high']:.3f}]" in page
    drawn = re.findall(r'<svg class="plot"[^>]*aria-label="([^"]*)"', page)
    assert drawn == ["Rejection of OOD scans against known scans", "Rejected, by kind"]
    assert "xray, 34" in page or "xray, 33" in page  # a bar names its kind and the number of its scans
    assert "<b>" not in page
    assert (
        "rejected or uncertain" in page
        and "thumbnails included" in page
        and refusal["with_thumbnails"]["far"] != refusal["refused"]["far"]
    )


def test_facts_that_cannot_be_read_are_not_shown():
    page = calibration_section({"weights": {"a": {"calibration": {"operating_points": {"points": "<script>"}}}}})
    assert "not of this version" in page and "<script>" not in page
    odd = [{"known": 5691, "known_refused": 0.009}, {"scans": {"known": "<script>"}}, None, 3]
    for facts in odd:
        page = calibration_section({"weights": {"route": {"calibration": {"refusal": facts}}}})
        assert "not of this version" in page and "<script>" not in page
    review = REVIEW | {"scans": "<script>alert(1)</script>"}
    page = calibration_section({"weights": {"a": {"calibration": {"review": review, "labels": LABELS}}}})
    assert "not of this version" in page and "<script>" not in page and "1468 scans of 909 groups" in page


def test_a_router_without_ood_scans_has_no_curve_and_without_a_fit_there_is_no_section():
    refusal = router_facts(["foreign/xray", "foreign/us_lung"])
    known = {name: {"known": refusal[name]["known"]} for name in ("scans", "groups", "refused")}
    page = calibration_section({"weights": {"route": {"calibration": {"refusal": known}}}})
    assert "known" in page and "<svg" not in page and "thumbnails" not in page  # calibrated before these were reported
    assert calibration_section({"weights": {"route": {}, "segment_breast": {}}}) == ""
