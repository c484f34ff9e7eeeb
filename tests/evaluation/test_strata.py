"""Metrics by what the true masks show."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mcis.evaluation.strata import FEW, strata
from mcis.inference.rows import Rows
from mcis.tasks.table import TASKS

SEGMENT = TASKS["segment_breast"]


def segmented(n=40):
    """Every fourth scan is empty; others have lesions of 50 to 900 of 10,000 pixels, half of which are found."""
    at = np.arange(n)
    true = np.where(at % 4 > 0, np.array([0, 50, 300, 900])[at % 4], 0)
    return Rows(
        source=np.array(["a"] * n),
        group=np.array([f"a/{i}" for i in range(n)]),
        scan_id=np.array([f"s{i}" for i in range(n)]),
        label=np.where(true > 0, 1, 0),
        has_mask=np.ones(n, bool),
        probs=np.tile([0.1, 0.8, 0.1], (n, 1)),
        both=true // 2,
        predicted=true // 2,
        true=true,
        pixels=np.full(n, 10_000),
        nsd=np.where(true > 400, 0.25, 0.75),
        lesions=np.where(true > 0, 1 + (at % 8 == 1), 0),
        found_lesions=(true > 0).astype(int),
        at_border=(true > 0) & (at < 12),
        sector=at == 1,
    )


def by_name(found):
    return {(one["by"], one["stratum"]): one for one in found}


def test_sizes_numbers_and_borders_by_hand():
    found = by_name(strata(SEGMENT, segmented(), draws=50))
    assert {name: one["scans"] for name, one in found.items()} == {
        ("size", "under 1 %"): 10,
        ("size", "1 to 5 %"): 10,
        ("size", "above 5 %"): 10,
        ("lesions", "single"): 25,
        ("lesions", "several"): 5,
        ("border", "inside"): 21,
        ("border", "at the border"): 9,
        ("frame", "rectangular"): 29,
        ("frame", "sector"): 1,
    }
    large = found["size", "above 5 %"]["metrics"]
    assert {name: one["value"] for name, one in large.items()} == pytest.approx(
        {"dice_lesion": 2 / 3, "missed": 0, "nsd_lesion": 0.25, "lesion_sensitivity": 1, "accuracy": 1}
    )
    assert found["lesions", "several"]["metrics"]["lesion_sensitivity"]["value"] == 0.5
    json.dumps(strata(SEGMENT, segmented(), draws=5), allow_nan=False)


def test_a_part_of_few_groups_has_no_interval():
    rows = segmented()
    found = by_name(strata(SEGMENT, rows, draws=50))
    few, enough = found["border", "at the border"], found["size", "under 1 %"]
    assert few["few"] and few["groups"] == 9 < FEW
    assert all(one["low"] is None for one in few["metrics"].values())
    assert not enough["few"] and enough["metrics"]["dice_lesion"]["low"] is not None
    grouped = replace(rows, group=(np.arange(40) // 8).astype(str))
    assert all(one["few"] for one in strata(SEGMENT, grouped, draws=5))


def test_a_cascade_is_split_by_organ():
    rows = segmented()
    brain = np.arange(40) < 20
    label = np.where(rows.true > 0, 1, 0)
    rows = replace(rows, probs=None, organ=np.where(brain, 0, 1), said_organ=np.ones(40, int), said_label=label)
    found = strata(None, rows, draws=5)
    assert {one["organ"] for one in found} == {"brain", "breast"}
    assert {one["organ"] for one in found if one["by"] == "frame"} == {"breast"}  # the other is no ultrasound
    small = {one["organ"]: one["metrics"]["accuracy"]["value"] for one in found if one["stratum"] == "under 1 %"}
    assert small == {"brain": 0, "breast": 1}  # every brain was taken for a breast


def test_rows_without_the_new_columns_have_sizes_alone():
    old = replace(segmented(), nsd=None, lesions=None, found_lesions=None, at_border=None, sector=None)
    found = strata(SEGMENT, old, draws=5)
    assert {one["by"] for one in found} == {"size"}
    assert set(found[0]["metrics"]) == {"dice_lesion", "missed", "accuracy"}
    assert strata(TASKS["classify_breast"], old, draws=5) == []
