"""What rows of results add up to, and two runs' rows compared; rows made by hand, for there are no scans here."""

import json

import numpy as np
import pytest

from mcis.evaluation import metrics
from mcis.evaluation.metrics import compare, measure, report, rows_from_json, rows_to_json, take
from mcis.ops.metrics import dice
from mcis.tasks.table import TASKS

SEGMENT, CLASSIFY = TASKS["segment_breast"], TASKS["classify_breast"]


def segmented(n=24, overlap=0.8, seed=0):
    """Three of four scans have a lesion, of one percent to twelve, found but for the share that `overlap` leaves."""
    rng = np.random.default_rng(seed)
    true = np.where(np.arange(n) % 4 > 0, (np.arange(n) % 12 + 1) * 100, 0)
    both = np.floor(true * np.clip(overlap + 0.1 * rng.normal(size=n), 0, 1)).astype(int)
    distance = np.where(true > 0, rng.uniform(1, 9, n), np.nan)
    return {
        "source": np.where(np.arange(n) < n // 2, "busi", "busbra"),
        "group": np.array([f"g{i // 2}" for i in range(n)]),
        "scan_id": np.array([f"s{i}" for i in range(n)]),
        "label": np.where(true > 0, 1 + np.arange(n) % 2, 0),
        "has_mask": np.ones(n, bool),
        "both": both,
        "predicted": true,
        "true": true,
        "pixels": np.full(n, 10_000),
        "dice_loss": rng.random(n),
        "hd95": distance,
        "surface_distance": distance / 2,
    }


def classified(n=60, seed=0):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet([1, 1, 1], n)
    rows = {name: value for name, value in segmented(n).items() if name in ("source", "group", "scan_id", "has_mask")}
    return rows | {"label": np.arange(n) % 4 - 1, "probs": probs, "features": rng.normal(size=(n, 5))}


def test_lesions_are_scored_by_their_share_of_the_scan_and_scans_by_class():
    rows = segmented()
    found = metrics.subsets(SEGMENT, rows)
    share = rows["true"] / 10_000
    assert set(found) == {"lesions 1 to 5 %", "lesions above 5 %", *SEGMENT.classes}
    assert (found["lesions 1 to 5 %"] == ((share > 0.01) & (share <= 0.05))).all()
    assert (found["normal"] == (rows["true"] == 0)).all()
    assert metrics.subsets(SEGMENT, rows | {"true": rows["true"] // 4})["lesions under 1 %"].any()
    unknown = metrics.subsets(SEGMENT, rows | {"has_mask": np.zeros(24, bool)})
    assert unknown == {}
    part = report(SEGMENT, rows, "test", draws=100)["sources"]["all"]["subsets"]
    assert part["malignant"]["scans"] == found["malignant"].sum()
    assert part["malignant"]["metrics"]["dice"]["value"] == measure(SEGMENT, take(rows, found["malignant"]))["dice"]


def test_a_classifiers_report_has_its_confusions_and_its_reliability():
    rows = classified()
    part = report(CLASSIFY, rows, "test", draws=100)["sources"]["all"]
    known = rows["label"] >= 0
    assert np.sum(part["confusion"]) == known.sum() == sum(part["reliability"]["count"])
    right = np.trace(part["confusion"]) / known.sum()
    assert right == pytest.approx(part["metrics"]["accuracy"]["value"])
    for index, name in enumerate(CLASSIFY.classes):
        share = part["confusion"][index][index] / sum(part["confusion"][index])
        assert share == pytest.approx(part["metrics"][f"sensitivity_{name}"]["value"])
    assert "subsets" not in part


@pytest.mark.parametrize(("task", "rows"), [(SEGMENT, segmented()), (CLASSIFY, classified())])
def test_a_report_read_back_scores_the_same(task, rows, tmp_path):
    made = report(task, rows, "test", draws=100)
    file = tmp_path / "report.json"
    file.write_text(json.dumps(made, allow_nan=False))
    again = rows_from_json(metrics.read_report(file)["rows"])
    assert measure(task, again) == measure(task, rows)
    assert set(again) == set(rows) - {"features"}
    assert report(task, again, "test", draws=100) == made


def test_a_run_compared_with_itself_does_not_differ_whatever_the_order():
    rows = segmented()
    found = compare(SEGMENT, take(rows, np.arange(24)[::-1]), rows, draws=50)
    assert set(found) == set(measure(SEGMENT, rows))
    for cell in found.values():
        assert abs(cell["low"]) < 1e-12 and abs(cell["value"]) < 1e-12 and abs(cell["high"]) < 1e-12


def test_a_small_gain_on_every_scan_is_seen_where_two_intervals_overlap():
    worse = segmented(overlap=0.6)
    better = worse | {"both": np.minimum(worse["both"] + worse["true"] // 20, worse["true"])}
    alone = [metrics.with_intervals(SEGMENT, rows)["dice_lesion"] for rows in (worse, better)]
    assert alone[1]["low"] < alone[0]["high"]
    gain = compare(SEGMENT, better, worse)["dice_lesion"]
    assert gain["low"] > 0
    assert gain["value"] == pytest.approx(alone[1]["value"] - alone[0]["value"])
    loss = compare(SEGMENT, worse, better)["dice_lesion"]
    assert loss["value"] == pytest.approx(-gain["value"]) and loss["high"] < 0


def test_other_scans_or_another_task_are_no_comparison():
    rows = segmented()
    with pytest.raises(ValueError, match="of 24 and 23, 23 are the same"):
        compare(SEGMENT, rows, take(rows, np.arange(23)))
    with pytest.raises(ValueError, match="same truth: true differs"):
        compare(SEGMENT, rows, rows | {"true": rows["true"] // 2})
    other = report(CLASSIFY, classified(), "test", draws=100)
    with pytest.raises(ValueError, match="segment_breast and classify_breast are not"):
        metrics.compare_reports(report(SEGMENT, rows, "test", draws=100), other)


@pytest.mark.parametrize(
    "damage",
    [
        lambda made: "no json",
        lambda made: [],
        lambda made: made | {"task": "segment_knee"},
        lambda made: {name: value for name, value in made.items() if name != "rows"},
        lambda made: made | {"rows": made["rows"] | {"true": made["rows"]["true"][1:]}},
        lambda made: made | {"rows": {name: value for name, value in made["rows"].items() if name != "scan_id"}},
        lambda made: made | {"rows": made["rows"] | {"both": ["x"] * 24}},
        lambda made: made | {"rows": made["rows"] | {"has_mask": ["x"] * 24}},
        lambda made: made | {"rows": {name: [] for name in made["rows"]}},
    ],
)
def test_what_is_no_report_is_refused_by_name(damage, tmp_path):
    made = damage(report(SEGMENT, segmented(), "test", draws=100))
    file = tmp_path / "report.json"
    file.write_text(made if isinstance(made, str) else json.dumps(made))
    with pytest.raises(ValueError, match=r"report\.json is no evaluation of this version"):
        metrics.read_report(file)


def test_missing_distances_are_null_in_the_file():
    columns = rows_to_json(segmented())
    assert columns["hd95"][0] is None and columns["hd95"][1] > 0
    json.dumps(columns, allow_nan=False)


def cascaded():
    """Eight scans: three brains, of which one is taken for a breast; four lesions of the breast and a normal one."""
    rows = take(segmented(), np.array([1, 2, 3, 5, 6, 7, 9, 0]))
    brain, breast, unsupported = 0, 1, 2
    rows |= {
        "organ": np.array([brain, brain, brain, breast, breast, breast, breast, breast]),
        "label": np.array([1, 1, -1, 1, 2, 2, 1, 0]),
        "said_organ": np.array([brain, breast, brain, breast, breast, unsupported, breast, breast]),
        "said_label": np.array([1, 1, 0, 2, 0, -1, 1, 0]),
    }
    outlined = np.array([True, True, False, True, False, False, True, False])
    lost = ~outlined | (rows["said_organ"] != rows["organ"])
    lost[6] = True  # a mask beside its lesion
    predicted = np.where(outlined, rows["predicted"], 0)
    return rows | {"both": np.where(lost, 0, rows["both"]), "predicted": predicted}


def test_the_cascade_loses_a_lesion_in_one_place_only():
    rows = cascaded()
    found = measure(None, rows)
    assert (found["organ"], found["wrong_organ"], found["refused"]) == (6 / 8, 1 / 8, 1 / 8)
    assert found["accuracy"] == 3 / 7  # the label of one is unknown
    assert found["sensitivity_brain_tumor"] == 0.5 and found["sensitivity_breast_benign"] == 0.5
    assert found["sensitivity_breast_malignant"] == 0 and found["sensitivity_breast_normal"] == 1
    lost = [found[f"lost_by_{where}"] for where in ("router", "classifier", "segmenter")]
    assert lost == pytest.approx([2 / 7, 2 / 7, 1 / 7])
    assert found["missed"] == pytest.approx(sum(lost))
    kept = dice(rows["both"], rows["predicted"], rows["true"])[[0, 3]]
    assert found["dice_lesion"] == pytest.approx(kept.sum() / 7) and (kept > 0.5).all()


def test_a_set_without_a_classifier_or_a_segmenter_blames_neither_on_the_other():
    rows = cascaded()
    found = measure(None, rows | {"said_label": np.full(8, -1), "said_organ": rows["organ"]})
    assert "accuracy" not in found and found["lost_by_classifier"] == 0
    bare = {name: np.zeros(8, int) for name in ("both", "predicted")}
    found = measure(None, rows | bare | {"said_label": rows["label"], "said_organ": rows["organ"]})
    assert found["lost_by_classifier"] == 0 and found["lost_by_segmenter"] == 1


def test_a_scan_of_one_organ_may_be_called_by_a_class_that_only_another_organ_has():
    rows = cascaded()
    malignant = np.array([1, 2, 0, 2, 0, -1, 1, 0])  # the second brain is a breast to the router
    found = measure(None, rows | {"said_label": malignant})
    assert found["lost_by_router"] == 2 / 7 and found["accuracy"] == 3 / 7


def test_what_the_router_does_to_an_organ_without_classifier_is_no_accuracy():
    rows = cascaded()
    brain = rows["organ"] == 0
    found = measure(None, rows | {"said_label": np.where(brain, -1, rows["said_label"])})
    assert "sensitivity_brain_tumor" not in found
    assert found["accuracy"] == 2 / 5 and found["organ"] == 6 / 8


def test_a_cascades_report_is_read_back_and_compared(tmp_path):
    made = report(None, cascaded(), "test", draws=50)
    assert made["task"] == "cascade"
    assert set(made["sources"]["busi"]["subsets"]) == {"brain", "breast"}
    (tmp_path / "report.json").write_text(json.dumps(made, allow_nan=False))
    again = metrics.read_report(tmp_path / "report.json")
    assert metrics.compare_reports(made, again)["organ"]["value"] == 0
    with pytest.raises(ValueError, match="cascade and segment_breast are not"):
        metrics.compare_reports(made, report(SEGMENT, segmented(), "test", draws=50))


def test_a_run_that_drops_its_worst_lesions_gains_no_distance():
    rows = segmented()
    far = rows["hd95"] > 5
    fewer = rows | {name: np.where(far, np.nan, rows[name]) for name in ("hd95", "surface_distance")}
    fewer |= {name: np.where(far, 0, rows[name]) for name in ("both", "predicted")}
    found = compare(SEGMENT, fewer, rows, draws=50)
    assert found["missed"]["value"] > 0.2
    assert found["hd95"]["value"] == found["surface_distance"]["value"] == 0


def test_a_metric_that_no_draw_has_has_no_interval():
    rows = take(classified(), np.array([1, 2, 3])) | {"group": np.array(["a", "b", "c"])}
    for cell in metrics.with_intervals(CLASSIFY, rows, draws=1).values():
        assert cell["low"] is None or cell["low"] <= cell["high"]
