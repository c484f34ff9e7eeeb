"""Metrics of single lesions, by hand."""

import json

import numpy as np
import pytest

from mcis.evaluation.detection import froc, lesion_metrics
from mcis.inference.rows import Rows


def detected():
    """Four scans: three lesions of which two are found; no lesion and two false ones; one found; an unknown mask."""
    found, false = [[0.9, 0.6], [], [0.8], []], [[0.7], [0.95, 0.55], [], [0.99]]
    return Rows.of_scans(
        [
            {
                "source": "a",
                "group": f"a/{i}",
                "scan_id": f"s{i}",
                "label": 1,
                "has_mask": i < 3,
                "lesions": [3, 0, 1, 0][i],
                "found_lesions": len(found[i]),
                "false_lesions": len(false[i]),
                "found_scores": found[i],
                "false_scores": false[i],
                "true": [100, 0, 100, 0][i],
            }
            for i in range(4)
        ]
    )


def test_lesions_are_counted_over_scans():
    found = lesion_metrics(detected().take(np.arange(3)))
    assert found["lesion_sensitivity"] == 3 / 4
    assert found["lesion_precision"] == 3 / 6
    assert found["lesion_f1"] == pytest.approx(2 * 0.75 * 0.5 / (0.75 + 0.5))
    assert found["false_lesions"] == 1.0
    none = lesion_metrics(detected().take(np.array([1])))
    assert none == {"false_lesions": 2.0, "lesion_precision": 0.0, "lesion_f1": 0.0}


def test_the_curve_by_hand():
    """By score: false 0.95, found 0.9, 0.8, false 0.7, found 0.6, false 0.55; three scans, four lesions."""
    curve = froc(detected(), draws=50)
    assert (curve["scans"], curve["lesions"], curve["end"]) == (3, 4, 1.0)
    values = {point["false_per_scan"]: (point["value"], point["threshold"]) for point in curve["points"]}
    assert values == {0.125: (0, None), 0.25: (0, None), 0.5: (0.5, 0.8), 1.0: (0.75, 0.55), 2.0: (0.75, 0.55)}
    assert [point["reached"] for point in curve["points"]] == [True] * 4 + [False]
    json.dumps(curve, allow_nan=False)


def test_equal_scores_count_together():
    rows = detected().take(np.array([1, 2]))
    rows.found_scores[1] = [0.95]
    first = froc(rows, draws=5)["points"][0]
    assert first["value"] == 0  # the found lesion comes only with the false one of the same score


def test_without_counted_lesions_there_is_no_curve():
    rows = detected()
    assert froc(rows.take(np.array([1, 3])), draws=5) is None
    old = Rows(
        **{name: column for name, column in rows.columns.items() if "lesions" not in name and "scores" not in name}
    )
    assert froc(old, draws=5) is None and lesion_metrics(old) == {}


def test_lists_survive_json_and_selection():
    rows = detected()
    again = Rows.from_json(json.loads(json.dumps(rows.to_json())))
    assert again.found_scores.tolist() == rows.found_scores.tolist() == [[0.9, 0.6], [], [0.8], []]
    assert again.take(np.array([2, 2, 0])).found_scores.tolist() == [[0.8], [0.8], [0.9, 0.6]]
    same = Rows.of_scans(
        [{"found_scores": [0.1, 0.2]} | dict.fromkeys(("source", "group", "scan_id", "label", "has_mask"), 0)] * 2
    )
    assert same.found_scores.shape == (2,)
    assert len(Rows.concatenate([rows, again])) == 8
