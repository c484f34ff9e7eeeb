"""The suspicious class against the rest: tables, predictive values and net benefit, all by hand."""

from dataclasses import replace

import numpy as np
import pytest

from mcis.evaluation.clinical import calls_by_organ, clinical, net_benefit
from mcis.evaluation.metrics import measure
from mcis.inference.rows import Rows
from mcis.tasks.table import TASKS

CLASSIFY = TASKS["classify_breast"]
MALIGNANT, BENIGN = [0.1, 0.2, 0.7], [0.1, 0.6, 0.3]


def classified(counts=((8, 2), (9, 81))):
    """Scans of ((true positives, false negatives), (false positives, true negatives)), each a group of its own."""
    (true, missed), (false, cleared) = counts
    n = true + missed + false + cleared
    called = np.repeat([True, False, True, False], [true, missed, false, cleared])
    return Rows(
        source=np.array(["a"] * n),
        group=np.array([f"a/{i}" for i in range(n)]),
        scan_id=np.array([f"s{i}" for i in range(n)]),
        label=np.where(np.arange(n) < true + missed, 2, 1),
        has_mask=np.zeros(n, bool),
        probs=np.where(called[:, None], MALIGNANT, BENIGN),
    )


def cascaded(rows, rejected=()):
    """The rows of a network as a cascade that gives the same classes, but for scans that it rejects."""
    n = len(rows)
    out = np.isin(np.arange(n), rejected)
    zero = np.zeros(n, int)
    return replace(
        rows,
        probs=None,
        organ=zero + 1,
        said_organ=np.where(out, 2, 1),
        said_label=np.where(out, -1, rows.probs.argmax(1)),
        label_probs=np.where(out[:, None], 0.0, rows.probs),
    )


def test_the_table_by_hand():
    found = clinical(CLASSIFY, classified(), draws=100)["breast"]
    assert (found["class"], found["scans"], found["groups"]) == ("malignant", 100, 100)
    assert (found["positives"], found["positive_groups"]) == (10, 10)
    assert found["counts"]["positives"] == {"called": 8, "not_called": 2, "not_analysed": 0}
    assert found["counts"]["others"] == {"called": 9, "not_called": 81, "not_analysed": 0}
    values = {name: one["value"] for name, one in found["metrics"].items()}
    assert values == pytest.approx({"sensitivity": 0.8, "specificity": 0.9, "ppv": 8 / 17, "npv": 81 / 83})
    for one in found["metrics"].values():
        assert one["low"] < one["value"] < one["high"]


def test_predictive_values_at_other_prevalences_by_counting():
    """Of 10,000 scans with 1 % malignant ones: 80 of 100 and 990 of 9,900 are called."""
    found = clinical(CLASSIFY, classified(), draws=100)["breast"]
    first, *_, own = found["prevalences"]
    assert first["prevalence"] == 0.01 and not first["own"]
    assert first["ppv"]["value"] == pytest.approx(80 / (80 + 990))
    assert first["npv"]["value"] == pytest.approx(8910 / (8910 + 20))
    assert own["own"] and own["prevalence"] == pytest.approx(0.1)
    assert own["ppv"]["value"] == pytest.approx(8 / 17) and own["npv"]["value"] == pytest.approx(81 / 83)
    assert [one["prevalence"] for one in found["prevalences"][:-1]] == [0.01, 0.05, 0.2]
    assert first["ppv"]["low"] < first["ppv"]["value"] < first["ppv"]["high"]


def test_a_cascade_is_scored_like_its_classifier():
    rows = classified()
    one, other = clinical(CLASSIFY, rows, draws=50), clinical(None, cascaded(rows), draws=50)
    assert one == other


def test_a_scan_that_is_not_analysed_is_an_error_of_either_kind():
    rows = cascaded(classified(), rejected=(0, 99))  # a malignant one that was called, a benign one that was not
    found = clinical(None, rows, draws=50)["breast"]
    assert found["counts"]["positives"] == {"called": 7, "not_called": 2, "not_analysed": 1}
    assert found["counts"]["others"] == {"called": 9, "not_called": 80, "not_analysed": 1}
    values = {name: one["value"] for name, one in found["metrics"].items()}
    assert values == pytest.approx({"sensitivity": 0.7, "specificity": 80 / 90, "ppv": 7 / 17, "npv": 80 / 83})
    rows = replace(rows, **dict.fromkeys(("both", "true", "predicted"), np.zeros(100, int)))
    rows = replace(rows, pixels=np.ones(100), dice_loss=np.zeros(100), hd95=np.full(100, np.nan))
    assert values["sensitivity"] == measure(None, rows)["sensitivity_breast_malignant"]


def test_the_net_benefit_by_hand():
    """8 true and 9 false positives of 100 at 0.5; at 0.25 all are called; at 0.75 none is."""
    calls = calls_by_organ(CLASSIFY, classified())["breast"]
    curve = net_benefit(calls, draws=50)
    at = {round(threshold, 2): k for k, threshold in enumerate(curve["threshold"])}
    assert len(at) == 99
    assert curve["model"][at[0.5]] == pytest.approx((8 - 9) / 100)
    assert curve["model"][at[0.4]] == pytest.approx((8 - 9 * 2 / 3) / 100)
    assert curve["model"][at[0.25]] == curve["all"][at[0.25]] == pytest.approx((10 - 90 / 3) / 100)
    assert curve["model"][at[0.75]] == curve["low"][at[0.75]] == 0
    assert curve["low"][at[0.4]] < curve["model"][at[0.4]] < curve["high"][at[0.4]]


def test_the_net_benefit_pays_for_scans_that_are_not_analysed():
    calls = calls_by_organ(None, cascaded(classified(), rejected=(0, 99)))["breast"]
    curve = net_benefit(calls, draws=0)
    assert curve["model"][49] == pytest.approx((7 - 10) / 100)
    assert curve["low"][49] is None


def test_one_class_alone_or_no_classifier_has_no_such_table():
    assert clinical(CLASSIFY, classified(((3, 2), (0, 0))), draws=5) == {}
    assert clinical(TASKS["route"], classified(), draws=5) == {}
    rows = cascaded(classified())
    assert clinical(None, replace(rows, said_label=np.full(100, -1)), draws=5) == {}
    kept = clinical(None, replace(rows, label_probs=None), draws=5)["breast"]
    assert "decision_curve" not in kept and kept["metrics"]["sensitivity"]["value"] == 0.8


def test_nothing_is_called_suspicious():
    found = clinical(CLASSIFY, classified(((0, 5), (0, 5))), draws=5)["breast"]
    assert "ppv" not in found["metrics"] and found["metrics"]["npv"]["value"] == 0.5
    assert "ppv" not in found["prevalences"][0] and found["prevalences"][0]["npv"]["value"] == pytest.approx(0.99)
