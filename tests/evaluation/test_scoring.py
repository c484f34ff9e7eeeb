"""Scores on the scans' own grid, from records and a network whose predictions are known."""

import dataclasses
import json

import numpy as np
import pytest

from mcis.cli import evaluate
from mcis.data import dataset, storage
from mcis.data.records import BATCH
from mcis.evaluation import metrics, scoring
from mcis.evaluation.evaluator import CascadeEvaluator, NetworkEvaluator
from mcis.evaluation.metrics import measure, report, with_intervals
from mcis.imaging import image_files
from mcis.imaging.letterbox import letterbox
from mcis.inference.cascade import Prediction
from mcis.inference.options import InferenceOptions
from mcis.inference.predictor import Predictor
from mcis.models import Outputs
from mcis.tasks.config import LAST
from mcis.tasks.table import TASKS

SEGMENT, CLASSIFY, ROUTE = TASKS["segment_breast"], TASKS["classify_breast"], TASKS["route"]


def make_record(number, source="busi", group=None, label=1, lesion=True, has_mask=True, size=(150, 330)):
    """A dark oblong scan with a bright lesion at a place of its own; the mask is the lesion."""
    rng = np.random.default_rng(number)
    image = rng.integers(20, 60, (*size, 3), dtype=np.uint8)
    mask = np.zeros((*size, 1), np.uint8)
    if lesion:
        top, left = 20 + 5 * number % 60, 10 + 40 * number % 120
        mask[top : top + 41, left : left + 57] = 1
        image[mask[..., 0] > 0] = 250
    return {
        "image": image_files.encode_png(image),
        "mask": image_files.encode_png(mask * 255),
        "has_mask": has_mask,
        "organ": b"breast",
        "label": label,
        "group": (group or f"p{number}").encode(),
        "source": source.encode(),
        "scan_id": f"s{number}".encode(),
        "fingerprint": f"f{number}".encode(),
    }


def bright(squares):
    """A network whose mask is what is bright, and whose label is malignant where anything is bright."""
    mask = (squares.mean(-1, keepdims=True) > 150).astype(np.float32)
    found = mask.any((1, 2, 3))
    label = np.where(found[:, None], [[0.1, 0.2, 0.7]], [[0.8, 0.1, 0.1]]).astype(np.float32)
    return Outputs(mask, label, squares.mean((1, 2)))


def score_scans(task, network, records, rejected=None):
    return scoring.score(NetworkEvaluator(task, {}, {}, lambda images: (network(images), rejected)), records)


def test_every_record_is_scored_once_in_order_on_its_own_grid():
    records = [make_record(i, size=(120 + i, 300 - 3 * i)) for i in range(2 * BATCH + 3)]
    rows = score_scans(SEGMENT, bright, records)
    assert rows.scan_id.tolist() == [f"s{i}" for i in range(len(records))]
    assert rows.group.tolist() == [f"busi/p{i}" for i in range(len(records))]
    assert rows.true.tolist() == [41 * 57] * len(records)  # pixels of the scan, not of the model input
    assert np.abs(rows.both / rows.true - 1).max() < 0.05
    assert measure(SEGMENT, rows)["dice_lesion"] > 0.96
    assert measure(SEGMENT, rows)["dice_patient"] == pytest.approx(measure(SEGMENT, rows)["dice_lesion"])


def test_distances_are_over_found_lesions_and_the_others_are_missed():
    records = [make_record(i) for i in range(4)] + [make_record(4, lesion=False)]

    def half_blind(squares):
        mask = np.roll(bright(squares).mask, 4, axis=2)  # to the right
        mask[1] = 0  # this lesion is not seen
        return Outputs(mask)

    rows = score_scans(SEGMENT, half_blind, records)
    assert np.isnan(rows.hd95).tolist() == [False, True, False, False, True]
    assert rows.pixels.tolist() == [150 * 330] * 5
    found = measure(SEGMENT, rows)
    assert found["missed"] == 0.25
    _, geometry = letterbox(storage.decode(records[0])[0])
    shift = 4 * geometry.box[2] / geometry.inner[2]  # in pixels of the scan, whose content is a part of it
    assert found["hd95"] == pytest.approx(shift, abs=1)
    assert 1 < found["surface_distance"] < found["hd95"]
    assert "hd95" not in measure(SEGMENT, rows.take(np.array([1, 4])))


def test_surfaces_and_single_lesions_are_scored_on_the_scans_own_grid():
    records = [make_record(0), make_record(1), make_record(2, lesion=False), make_record(3, lesion=False)]

    def speckled(squares):
        mask = bright(squares).mask * 0.8
        mask[1] = 0  # this lesion is not seen
        mask[3, 100:120, 100:120] = 0.9  # and this one is imagined
        return Outputs(mask)

    rows = score_scans(SEGMENT, speckled, records)
    _, geometry = letterbox(storage.decode(records[0])[0])
    assert rows.tolerance[0] == pytest.approx(max(1, 0.01 * np.hypot(*geometry.box[2:])))
    assert rows.nsd[0] > 0.95 and rows.nsd[1:].tolist() == [0, 1, 0]
    assert rows.lesions.tolist() == [1, 1, 0, 0] and rows.found_lesions.tolist() == [1, 0, 0, 0]
    assert rows.false_lesions.tolist() == [0, 0, 0, 1]
    assert rows.found_scores[0] == [pytest.approx(0.8, abs=0.05)] and rows.false_scores[3] == [
        pytest.approx(0.9, abs=0.1)
    ]
    found = measure(SEGMENT, rows)
    assert found["nsd_lesion"] == rows.nsd[0] / 2 and found["nsd"] == (rows.nsd[0] + 1) / 4
    assert (found["lesion_sensitivity"], found["lesion_precision"], found["false_lesions"]) == (0.5, 0.5, 0.25)
    assert found["hd95_relative"] == pytest.approx(rows.hd95[0] / np.hypot(*geometry.box[2:]))


def test_a_lesion_at_the_border_of_the_content_is_marked():
    edge = make_record(0)
    mask = np.zeros((150, 330, 1), np.uint8)
    mask[50:90, :30] = 1
    edge["mask"] = image_files.encode_png(mask * 255)
    rows = score_scans(SEGMENT, bright, [edge, make_record(1), make_record(2, lesion=False)])
    assert rows.at_border.tolist() == [True, False, False]


def test_masks_of_another_organ_and_thumbnails_do_not_count():
    records = [make_record(i, label=1 + i % 2) for i in range(BATCH + 3)]

    def predict(_, squares):
        n = len(squares)
        organ = np.where(np.arange(n) == 1, 0, np.where(np.arange(n) == 2, 2, 1))
        segmented = organ < 2
        nothing = np.full(n, np.nan)
        return Prediction(
            organ=organ,
            choice=organ,
            organ_prob=nothing,
            novelty=nothing,
            needed=nothing,
            label=np.full(n, 1),
            label_probs=np.full((n, 3), 0.3),
            segmented=segmented,
            mask=bright(squares).mask * segmented[:, None, None, None],
            confidence=nothing,
            review=organ,
            label_set=np.tile([False, True, False], (n, 1)) & segmented[:, None],
            outer=np.where(segmented, 0.3, np.nan),
            certain=nothing,
        )

    def score(records):
        predictor = Predictor(InferenceOptions(), {}, predict, {}, (), {})
        return scoring.score(CascadeEvaluator({}, {}, predictor), records)

    rows = score(records)
    assert rows.scan_id.tolist() == [f"s{i}" for i in range(len(records))]
    odd = {1, 2, BATCH + 1, BATCH + 2}  # another organ, and none
    wrong = np.isin(np.arange(len(records)), list(odd))
    assert (rows.said_organ != rows.organ).tolist() == wrong.tolist()
    assert (rows.both == 0).tolist() == np.isnan(rows.hd95).tolist() == wrong.tolist()
    assert (rows.predicted == 0).tolist() == wrong.tolist()
    assert (rows.dice_loss > 0.99).tolist() == wrong.tolist()
    found = measure(None, rows)
    assert found["lost_by_router"] == pytest.approx(4 / len(records))
    assert found["dice_lesion"] == pytest.approx(measure(SEGMENT, rows.take(~wrong))["dice_lesion"] * (~wrong).mean())
    assert rows.outer_both.tolist() == np.where(wrong, -1, rows.outer_both).tolist()
    assert (rows.outer_both[~wrong] >= rows.both[~wrong]).all() and found["outer_missed"] < 0.05
    assert found["set_size_breast"] == 1
    assert found["set_coverage_breast"] == pytest.approx((rows.label[~wrong] == 1).mean())  # all are called benign
    older = measure(None, dataclasses.replace(rows, label_set=None, outer_both=None))
    assert older == {name: value for name, value in found.items() if not name.startswith(("set_", "outer_"))}
    small = score([make_record(i, size=(61, 79)) for i in range(3)])  # thumbnails
    assert measure(None, small)["lost_by_router"] == 1 and not small.label_probs.any() and small.thumbnail.all()
    assert not small.predicted.any() and (small.said_label == -1).all()


def test_scans_whose_mask_is_unknown_do_not_count():
    records = [make_record(0), make_record(1, lesion=False), make_record(2, has_mask=False, lesion=False)]
    rows = score_scans(SEGMENT, lambda squares: Outputs(np.ones((*squares.shape[:3], 1), np.float32)), records)
    found = measure(SEGMENT, rows)
    assert found["false_masks"] == 1.0
    assert found["dice"] == pytest.approx(found["dice_lesion"] / 2)
    only_unknown = rows.take(~rows.has_mask)
    assert measure(SEGMENT, only_unknown) == {}


def test_label_metrics_by_hand_and_without_unknown_labels():
    records = [
        make_record(0, label=2),  # predicted malignant, is
        make_record(1, label=1),  # predicted malignant, is benign
        make_record(2, label=0, lesion=False),  # predicted normal, is
        make_record(3, label=-1),
    ]
    found = measure(CLASSIFY, score_scans(CLASSIFY, bright, records))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3)
    sensitivities = {name: found[f"sensitivity_{name}"] for name in CLASSIFY.classes}
    assert sensitivities == {"normal": 1, "benign": 0, "malignant": 1}
    assert found["nll"] == pytest.approx(-np.log([0.7, 0.2, 0.8]).mean(), rel=1e-6)
    assert found["specificity_malignant"] == 0.5 and found["auc_normal"] == 1
    assert "dice" not in found


def test_a_router_reports_the_share_that_it_rejects():
    rejected = np.arange(BATCH) == 0
    rows = score_scans(ROUTE, bright, [make_record(i, label=-1) for i in range(4)], rejected)
    assert measure(ROUTE, rows)["refused"] == 0.25


def test_a_report_has_every_source_and_all_together_with_intervals_by_group():
    records = [make_record(i, source="busi", group=f"p{i // 2}") for i in range(6)]
    records += [make_record(i, source="busbra", lesion=bool(i % 2)) for i in range(6, 10)]
    rows = score_scans(SEGMENT, bright, records)
    rows.both[0] = 0
    found = report(SEGMENT, rows, "test", draws=100)
    assert found["task"] == "segment_breast"
    assert found["split"] == "test"
    counts = {name: (part["scans"], part["groups"]) for name, part in found["sources"].items()}
    assert counts == {"busi": (6, 3), "busbra": (4, 4), "all": (10, 7)}
    for part in found["sources"].values():
        for name, cell in part["metrics"].items():
            assert cell["low"] is None or cell["low"] <= cell["value"] <= cell["high"], name
    few = found["sources"]["busbra"]["metrics"]  # of its four groups two have a lesion: a draw in sixteen has none
    assert few["dice_lesion"]["low"] is None and few["dice"]["low"] is not None
    busi = found["sources"]["busi"]["metrics"]["dice_lesion"]
    assert busi["low"] < busi["value"] < busi["high"]
    assert json.loads(json.dumps(found)) == found
    assert "all" not in report(SEGMENT, rows.take(rows.source == "busi"), "test", draws=50)["sources"]


def test_one_group_has_no_interval():
    found = report(SEGMENT, score_scans(SEGMENT, bright, [make_record(0)]), "test", draws=50)
    cell = found["sources"]["busi"]["metrics"]["dice_lesion"]
    assert cell["low"] is None and cell["high"] is None
    json.dumps(found, allow_nan=False)
    evaluate.print_report(found)


def test_a_report_is_printed_whole_into_a_pipe(capsys):
    records = [make_record(i, source=f"source{i % 5}") for i in range(15)]
    evaluate.print_report(report(SEGMENT, score_scans(SEGMENT, bright, records), "test", draws=50))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " hd95 " in line]
    assert line.count("[") == line.count("]") == 6  # five sources and all


def test_a_printed_report_says_so_if_scans_were_used_in_training(capsys):
    found = report(SEGMENT, score_scans(SEGMENT, bright, [make_record(0), make_record(1)]), "train", draws=10)
    used = {"train": {"used": 9, "scored": 0}, "validation": {"used": 5, "scored": 0}}
    evaluate.print_report(found | {"audit": {"networks": {"a": used}}})
    assert "some of these scans" not in capsys.readouterr().out
    evaluate.print_report(found | {"audit": {"networks": {"a": used, "b": used | {"train": {"used": 9, "scored": 2}}}}})
    assert "some of these scans were trained on" in capsys.readouterr().out


def test_a_patient_drawn_twice_counts_twice(monkeypatch):
    rows = score_scans(SEGMENT, bright, [make_record(i, group=f"p{i // 2}") for i in range(8)])
    monkeypatch.setattr(metrics, "measure", lambda task, rows: {"groups": float(len(np.unique(rows.group)))})
    assert with_intervals(SEGMENT, rows, draws=50)["groups"] == {"value": 4, "low": 4, "high": 4}


@pytest.mark.parametrize(("prob", "covered"), [(0.45, False), (0.55, True)])
def test_a_pixel_is_lesion_above_one_half(prob, covered):
    rows = score_scans(SEGMENT, lambda s: Outputs(np.full((*s.shape[:3], 1), prob, np.float32)), [make_record(0)])
    assert bool(rows.predicted[0]) == covered


def test_the_command_names_what_is_wrong(tmp_path, capsys, phantom_dir):
    assert evaluate.main([str(tmp_path), f"--data_dir={phantom_dir}"]) == 2
    assert "is not a weights folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match=", ".join(dataset.SPLITS)):
        dataset.records("phantom", "tset", phantom_dir)


def test_the_metric_that_chooses_the_epoch_is_reported():
    rows = score_scans(SEGMENT, bright, [make_record(i, lesion=bool(i)) for i in range(3)])
    for task in (SEGMENT, CLASSIFY):
        assert task.select == LAST or task.select in measure(task, rows)
        assert set(task.metrics) <= set(measure(task, rows))
