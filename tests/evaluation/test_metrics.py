"""Metrics of rows, and the comparison of two runs' rows; all rows are made by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mcis.evaluation import gallery, metrics
from mcis.evaluation.comparison import compare, compare_reports
from mcis.evaluation.metrics import measure, report
from mcis.inference.rows import Rows
from mcis.ops.metrics import dice
from mcis.tasks.table import TASKS

SEGMENT, CLASSIFY = TASKS["segment_breast"], TASKS["classify_breast"]


def segmented(n=24, overlap=0.8, seed=0):
    """Three of four scans have a lesion, of one to twelve percent, of which the share `overlap` is found."""
    rng = np.random.default_rng(seed)
    true = np.where(np.arange(n) % 4 > 0, (np.arange(n) % 12 + 1) * 100, 0)
    both = np.floor(true * np.clip(overlap + 0.1 * rng.normal(size=n), 0, 1)).astype(int)
    distance = np.where(true > 0, rng.uniform(1, 9, n), np.nan)
    return Rows(
        source=np.where(np.arange(n) < n // 2, "busi", "busbra"),
        group=np.array([f"g{i // 2}" for i in range(n)]),
        scan_id=np.array([f"s{i}" for i in range(n)]),
        label=np.where(true > 0, 1 + np.arange(n) % 2, 0),
        has_mask=np.ones(n, bool),
        both=both,
        predicted=true,
        true=true,
        pixels=np.full(n, 10_000),
        dice_loss=rng.random(n),
        hd95=distance,
        surface_distance=distance / 2,
    )


def classified(n=60, seed=0):
    rng = np.random.default_rng(seed)
    facts = {name: getattr(segmented(n), name) for name in ("source", "group", "scan_id", "has_mask")}
    probs, features = rng.dirichlet([1, 1, 1], n), rng.normal(size=(n, 5))
    return Rows(**facts, label=np.arange(n) % 4 - 1, probs=probs, features=features)


def test_lesions_are_scored_by_their_share_of_the_scan_and_scans_by_class():
    rows = segmented()
    found = metrics.subsets(SEGMENT, rows)
    share = rows.true / 10_000
    assert set(found) == {"lesions 1 to 5 %", "lesions above 5 %", *SEGMENT.classes}
    assert (found["lesions 1 to 5 %"] == ((share > 0.01) & (share <= 0.05))).all()
    assert (found["normal"] == (rows.true == 0)).all()
    assert metrics.subsets(SEGMENT, replace(rows, true=rows.true // 4))["lesions under 1 %"].any()
    unknown = metrics.subsets(SEGMENT, replace(rows, has_mask=np.zeros(24, bool)))
    assert unknown == {}
    part = report(SEGMENT, rows, "test", draws=20)["sources"]["all"]["subsets"]
    assert part["malignant"]["scans"] == found["malignant"].sum()
    assert part["malignant"]["metrics"]["dice"]["value"] == measure(SEGMENT, rows.take(found["malignant"]))["dice"]


def test_a_classifiers_report_has_its_confusions_and_its_reliability():
    rows = classified()
    part = report(CLASSIFY, rows, "test", draws=20)["sources"]["all"]
    known = rows.label >= 0
    assert np.sum(part["confusion"]) == known.sum() == sum(part["reliability"]["count"])
    right = np.trace(part["confusion"]) / known.sum()
    assert right == pytest.approx(part["metrics"]["accuracy"]["value"])
    for index, name in enumerate(CLASSIFY.classes):
        share = part["confusion"][index][index] / sum(part["confusion"][index])
        assert share == pytest.approx(part["metrics"][f"sensitivity_{name}"]["value"])
    assert "subsets" not in part


@pytest.mark.parametrize(("task", "rows"), [(SEGMENT, segmented()), (CLASSIFY, classified())])
def test_a_report_read_back_scores_the_same(task, rows, tmp_path):
    made = report(task, rows, "test", draws=20)
    file = tmp_path / "report.json"
    file.write_text(json.dumps(made, allow_nan=False))
    again = Rows.from_json(metrics.read_report(file)["rows"])
    assert measure(task, again) == measure(task, rows)
    assert set(again.columns) == set(rows.columns) - {"features"}
    assert report(task, again, "test", draws=20) == made


def test_a_run_compared_with_itself_does_not_differ_whatever_the_order():
    rows = segmented()
    found = compare(SEGMENT, rows.take(np.arange(24)[::-1]), rows, draws=20)
    assert set(found) == set(measure(SEGMENT, rows))
    for cell in found.values():
        assert abs(cell["low"]) < 1e-12 and abs(cell["value"]) < 1e-12 and abs(cell["high"]) < 1e-12


def test_an_older_report_is_compared_in_what_both_have():
    old = segmented()
    new = replace(old, nsd=np.ones(24), tolerance=np.ones(24))
    new = replace(new, lesions=np.ones(24), found_lesions=np.ones(24), false_lesions=np.zeros(24))
    more = set(measure(SEGMENT, new)) - set(measure(SEGMENT, old))
    assert {"nsd", "nsd_lesion", "hd95_relative", "lesion_sensitivity", "false_lesions"} <= more
    for pair in ((new, old), (old, new)):
        found = compare(SEGMENT, *pair, draws=5)
        assert set(found) == set(measure(SEGMENT, old)) and found["dice"]["value"] == 0


def test_a_small_gain_on_every_scan_is_seen_where_two_intervals_overlap():
    worse = segmented(overlap=0.6)
    better = replace(worse, both=np.minimum(worse.both + worse.true // 20, worse.true))
    alone = [metrics.with_intervals(SEGMENT, rows, draws=200)["dice_lesion"] for rows in (worse, better)]
    assert alone[1]["low"] < alone[0]["high"]
    gain = compare(SEGMENT, better, worse, draws=200)["dice_lesion"]
    assert gain["low"] > 0
    assert gain["value"] == pytest.approx(alone[1]["value"] - alone[0]["value"])
    loss = compare(SEGMENT, worse, better, draws=200)["dice_lesion"]
    assert loss["value"] == pytest.approx(-gain["value"]) and loss["high"] < 0


def test_other_scans_or_another_task_are_no_comparison():
    rows = segmented()
    with pytest.raises(ValueError, match="of 24 and 23, 23 are the same"):
        compare(SEGMENT, rows, rows.take(np.arange(23)))
    with pytest.raises(ValueError, match="same truth: true differs"):
        compare(SEGMENT, rows, replace(rows, true=rows.true // 2))
    other = report(CLASSIFY, classified(), "test", draws=20)
    with pytest.raises(ValueError, match="segment_breast and classify_breast differ"):
        compare_reports(report(SEGMENT, rows, "test", draws=20), other)


@pytest.fixture(scope="module")
def made():
    return report(SEGMENT, segmented(), "test", draws=5)


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
def test_a_damaged_report_is_an_error(damage, made, tmp_path):
    damaged = damage(made)
    file = tmp_path / "report.json"
    file.write_text(damaged if isinstance(damaged, str) else json.dumps(damaged))
    with pytest.raises(ValueError, match=r"report\.json is no report of this version"):
        metrics.read_report(file)


def test_missing_distances_are_null_in_the_file():
    columns = segmented().to_json()
    assert columns["hd95"][0] is None and columns["hd95"][1] > 0
    json.dumps(columns, allow_nan=False)


def cascaded():
    """Eight scans: three brains, of which one is predicted as a breast; four lesions of the breast and a normal one."""
    rows = segmented().take(np.array([1, 2, 3, 5, 6, 7, 9, 0]))
    brain, breast, unsupported = 0, 1, 2
    rows = replace(
        rows,
        organ=np.array([brain, brain, brain, breast, breast, breast, breast, breast]),
        label=np.array([1, 1, -1, 1, 2, 2, 1, 0]),
        said_organ=np.array([brain, breast, brain, breast, breast, unsupported, breast, breast]),
        said_label=np.array([1, 1, 0, 2, 0, -1, 1, 0]),
    )
    outlined = np.array([True, True, False, True, False, False, True, False])
    missed = ~outlined | (rows.said_organ != rows.organ)
    missed[6] = True  # a mask that does not touch its lesion
    predicted = np.where(outlined, rows.predicted, 0)
    return replace(rows, both=np.where(missed, 0, rows.both), predicted=predicted)


def test_uncertain_organs_are_counted_apart_for_known_and_ood_scans():
    assert "uncertain" not in measure(None, cascaded())  # weights without the limit
    rows = replace(cascaded(), uncertain=np.arange(8) < 3)
    found = measure(None, replace(rows, organ=np.where(np.arange(8) < 2, 2, rows.organ)))
    assert found["uncertain"] == 1 / 6 and found["foreign_uncertain"] == 1.0


def test_the_cascade_misses_a_lesion_at_one_stage_only():
    rows = cascaded()
    found = measure(None, rows)
    assert (found["organ"], found["wrong_organ"], found["refused"]) == (6 / 8, 1 / 8, 1 / 8)
    assert found["accuracy"] == 3 / 7  # the label of one is unknown
    assert found["sensitivity_brain_tumor"] == 0.5 and found["sensitivity_breast_benign"] == 0.5
    assert found["sensitivity_breast_malignant"] == 0 and found["sensitivity_breast_normal"] == 1
    assert found["balanced_accuracy_breast"] == pytest.approx(1 / 2) and found["balanced_accuracy_brain"] == 0.5
    # true: 1 normal, 2 benign, 2 malignant; predicted: 2 normal, 1 benign, 1 malignant, 1 rejected; 2 right of 5
    agree, spread = 2 * 5 - (1 * 2 + 2 * 1 + 2 * 1), (25 - (4 + 1 + 1 + 1)) * (25 - (1 + 4 + 4))
    assert found["mcc_breast"] == pytest.approx(agree / spread**0.5)
    lost = [found[f"lost_by_{where}"] for where in ("router", "classifier", "segmenter")]
    assert lost == pytest.approx([2 / 7, 2 / 7, 1 / 7])
    assert found["missed"] == pytest.approx(sum(lost))
    kept = dice(*rows.counts)[[0, 3]]
    assert found["dice_lesion"] == pytest.approx(kept.sum() / 7) and (kept > 0.5).all()


def test_without_a_classifier_or_a_segmenter_the_other_is_not_blamed():
    rows = cascaded()
    found = measure(None, replace(rows, said_label=np.full(8, -1), said_organ=rows.organ))
    assert "accuracy" not in found and found["lost_by_classifier"] == 0
    empty = np.zeros(8, int)
    found = measure(None, replace(rows, both=empty, predicted=empty, said_label=rows.label, said_organ=rows.organ))
    assert found["lost_by_classifier"] == 0 and found["lost_by_segmenter"] == 1


def test_a_wrongly_routed_scan_may_get_a_class_that_its_own_organ_does_not_have():
    rows = cascaded()
    malignant = np.array([1, 2, 0, 2, 0, -1, 1, 0])  # the second brain is routed to the breast
    found = measure(None, replace(rows, said_label=malignant))
    assert found["lost_by_router"] == 2 / 7 and found["accuracy"] == 3 / 7


def test_scans_of_an_organ_without_a_classifier_do_not_count_for_accuracy():
    rows = cascaded()
    brain = rows.organ == 0
    found = measure(None, replace(rows, said_label=np.where(brain, -1, rows.said_label)))
    assert "sensitivity_brain_tumor" not in found
    assert found["accuracy"] == 2 / 5 and found["organ"] == 6 / 8


def test_a_cascades_confusion_and_calibration_are_of_the_decided_label():
    """Three breasts whose operating point decides against the most probable class, twice rightly."""
    rows = segmented().take(np.arange(3))
    probs = np.array([[0.1, 0.6, 0.3], [0.2, 0.5, 0.3], [0.7, 0.2, 0.1]])
    breast, truth = np.full(3, 1), np.array([2, 2, 1])
    rows = replace(
        rows, organ=breast, said_organ=breast, label=truth, said_label=np.array([2, 2, 0]), label_probs=probs
    )
    found = report(None, rows, "test", draws=5)["sources"]["busi"]["routed"]["breast"]
    assert found["confusion"] == [[0, 0, 0], [1, 0, 0], [0, 0, 2]]
    assert sorted(found["reliability"]["confidence"]) == pytest.approx([0.3, 0.3, 0.7])
    assert sum(found["reliability"]["accuracy"]) == 2
    assert gallery.choose(rows, "cascade")[gallery.WRONG] == [2]  # by the most probable class all three were wrong


def test_a_cascades_report_is_read_back_and_compared(tmp_path):
    made = report(None, cascaded(), "test", draws=20)
    assert made["task"] == "cascade"
    assert set(made["sources"]["busi"]["subsets"]) == {"brain", "breast"}
    (tmp_path / "report.json").write_text(json.dumps(made, allow_nan=False))
    again = metrics.read_report(tmp_path / "report.json")
    assert compare_reports(made, again)["organ"]["value"] == 0
    with pytest.raises(ValueError, match="cascade and segment_breast differ"):
        compare_reports(made, report(SEGMENT, segmented(), "test", draws=20))


def test_a_run_that_misses_its_worst_lesions_gains_no_distance():
    rows = segmented()
    far = rows.hd95 > 5
    distances = {name: np.where(far, np.nan, getattr(rows, name)) for name in ("hd95", "surface_distance")}
    fewer = replace(rows, **distances, both=np.where(far, 0, rows.both), predicted=np.where(far, 0, rows.predicted))
    found = compare(SEGMENT, fewer, rows, draws=20)
    assert found["missed"]["value"] > 0.2
    assert found["hd95"]["value"] == found["surface_distance"]["value"] == 0


def test_a_metric_that_no_draw_has_has_no_interval():
    rows = replace(classified().take(np.array([1, 2, 3])), group=np.array(["a", "b", "c"]))
    for cell in metrics.with_intervals(CLASSIFY, rows, draws=1).values():
        assert cell["low"] is None or cell["low"] <= cell["high"]


def test_rows_are_taken_together_and_concatenated():
    rows = classified()
    chosen = rows.take(np.array([2, 2, 0]))
    assert chosen.scan_id.tolist() == ["s2", "s2", "s0"]
    assert {name: len(column) for name, column in chosen.columns.items()} == dict.fromkeys(rows.columns, 3)
    parts = [rows.take(np.arange(n, 60, 2)) for n in (0, 1)]
    joined = Rows.concatenate(parts).take(np.argsort([*range(0, 60, 2), *range(1, 60, 2)]))
    for name, column in rows.columns.items():
        np.testing.assert_array_equal(getattr(joined, name), column)


def test_rows_of_other_versions_are_read_if_the_required_columns_are_there():
    columns = segmented().to_json()
    assert len(Rows.from_json(columns | {"from_the_future": [1] * 24})) == 24
    with pytest.raises(TypeError, match="group"):
        Rows.from_json({name: column for name, column in columns.items() if name != "group"})
