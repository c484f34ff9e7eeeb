"""Calibration on folds: what is fitted, to which scans, and which runs are errors."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mcis.calibration import calibrate
from mcis.checkpoints import bundle, checkpoint
from mcis.cli import calibrate as calibrate_command
from mcis.cli import evaluate
from mcis.inference import cascade
from mcis.inference.options import InferenceOptions
from mcis.inference.rows import Rows
from mcis.tasks.apply import make_expert
from mcis.tasks.table import task_to_json

pytestmark = pytest.mark.usefixtures("tiny_models", "few_draws", "no_figures")


@pytest.fixture
def weights(fold_runs, tmp_path):
    bundle.make_bundle([*fold_runs["segment_breast"], fold_runs["route"][0]], tmp_path / "set", half=False)
    return tmp_path / "set"


def test_every_scan_is_predicted_by_the_network_that_has_not_seen_it(fold_runs, phantom_scans):
    folds = {str(run): bundle.load_weights(run) for run in fold_runs["segment_breast"]}
    breast = phantom_scans.take(phantom_scans.organ == "breast")
    rows = calibrate.out_of_fold(folds, breast)
    assert sorted(rows.fingerprint.tolist()) == sorted(breast.fingerprint.tolist())
    expert = jax.jit(make_expert(next(iter(folds.values())).task))
    for row in (0, len(breast) // 2, len(breast) - 1):
        at = int(np.flatnonzero(breast.fingerprint == rows.fingerprint[row])[0])
        (own,) = (f for f in folds.values() if rows.fingerprint[row] in f.manifest["fingerprints"]["validation"])
        outputs = jax.device_get(expert(own.variables, breast.pixels.read([at])[0]))
        np.testing.assert_allclose(rows.probs[row], outputs.label[0], atol=1e-4)
        dice = jax.jit(cascade.expected_dice)(outputs.mask)[0]
        np.testing.assert_allclose(rows.expected_dice[row], dice, atol=1e-4)
        assert rows.true[row] == breast.area[at]
        assert rows.label[row] == breast.label[at]
    with pytest.raises(ValueError, match=r"of the \d+ held-out scans of the runs are not prepared here"):
        calibrate.out_of_fold(folds, breast.take(np.arange(3)))


def test_a_calibrated_bundle_predicts_with_its_limits(fold_runs, weights, phantom_scans, phantom_dir, tmp_path, capsys):
    before = bundle.load_bundle(weights)
    every = [str(run) for members in fold_runs.values() for run in members]
    done = calibrate_command.main(
        [str(weights), *every, f"--data_dir={phantom_dir}", f"--out={tmp_path / 'facts.json'}"]
    )
    assert done == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    printed = capsys.readouterr()
    assert json.loads(printed.out) == facts
    after = bundle.load_bundle(weights)
    assert after["segment_breast"].manifest["calibration"] == facts["segment_breast"]
    labels, review = (facts["segment_breast"][name] for name in ("labels", "review"))
    assert labels["after"]["nll"] <= labels["before"]["nll"] + 1e-6
    assert review["flagged"] == pytest.approx(0.2, abs=0.06)
    operating = facts["segment_breast"]["operating_points"]
    points = after["segment_breast"].variables["calibration"]["points"]
    for point, one in operating["points"].items():
        np.testing.assert_allclose(points[point], list(one["shift"].values()), atol=1e-6)
        assert one.get("reached", True) or f"segment_breast, operating point {point}: the " in printed.err
    assert operating["points"]["balanced"]["mean_over_sources"] >= operating["most_probable"]["mean_over_sources"]
    sets, outer = facts["segment_breast"]["label_set"], facts["segment_breast"]["outer"]
    limits = after["segment_breast"].variables["calibration"]["label_set"]
    np.testing.assert_allclose(limits, list(sets["limits"].values()), atol=1e-6)
    assert (
        sets["wanted"] == 0.9 and "segment_breast: label sets are meant to hold the true class of 0.90" in printed.err
    )
    assert after["segment_breast"].variables.get("outer") == outer["threshold"]
    assert labels["before"]["nll"] and "left_one_source_out" not in labels  # phantoms are one source
    refusal = facts["route"]["refusal"]
    assert refusal["refused"]["known"]["value"] <= 2 / refusal["scans"]["known"] + 0.01
    assert calibrate_command.main([str(weights), *every, f"--data_dir={phantom_dir}"]) == 0  # once more changes nothing
    again = bundle.load_bundle(weights)
    for name, one in after.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.variables, again[name].variables)
    tasks = {name: one.task for name, one in after.items()}
    run = jax.jit(cascade.make_cascade(tasks, InferenceOptions(organ="breast")))
    breast = phantom_scans.take(phantom_scans.organ == "breast")
    found = run({name: one.variables for name, one in after.items()}, breast.pixels.read()[0])
    limit = float(after["segment_breast"].variables["calibration"]["review"])
    np.testing.assert_array_equal(found.review, np.asarray(found.confidence) < limit)
    decided = np.eye(3, dtype=bool)[np.asarray(found.label)]
    np.testing.assert_array_equal(found.label_set, (np.asarray(found.label_probs) >= limits) | decided)
    out = tmp_path / "report"
    asked = [str(weights), "--split=test", "--sources=phantom", f"--data_dir={phantom_dir}", f"--out={out}", "--heat=0"]
    assert evaluate.main(asked) == 0
    page = (out / "report.html").read_text()
    assert 'id="fitted"' in page and "Rejection of OOD scans against known scans" not in page  # nothing is foreign here
    assert "not of this version" not in page
    raw = run({name: one.variables for name, one in before.items()}, breast.pixels.read()[0])
    assert (np.asarray(raw.review) == -1).all()  # no limit was set
    odds = np.asarray(raw.label_probs)[:, :3] ** after["segment_breast"].variables["calibration"]["slope"]
    np.testing.assert_allclose(found.label_probs[:, :3], odds / odds.sum(1, keepdims=True), atol=1e-4)


def test_confidence_is_the_labels_probability_times_the_masks_expected_dice(weights, phantom_scans):
    loaded = bundle.load_bundle(weights)
    tasks = {name: one.task for name, one in loaded.items()}
    found = jax.jit(cascade.make_cascade(tasks, InferenceOptions(organ="breast")))(
        {name: one.variables for name, one in loaded.items()}, phantom_scans.pixels.read(slice(12))[0]
    )
    for i in range(12):
        p = np.asarray(found.mask[i], np.float64)
        cut = p > 0.5
        expected = (2 * p[cut].sum() + 1) / (p.sum() + cut.sum() + 1) if found.segmented[i] else 1.0
        assert float(found.confidence[i]) == pytest.approx(float(found.label_probs[i].max()) * expected, rel=1e-3)


def test_the_review_limit_and_its_errors_by_hand():
    def rows(fingerprint, **columns):
        names = np.array(list(fingerprint))
        facts = {"label": np.array([1, 1, 0, 2, -1]), "has_mask": np.ones(5, bool)} | columns
        return Rows(source=names, group=names, scan_id=names, fingerprint=names, **facts)

    probs = np.array([[0.1, 0.9, 0], [0.5, 0.4, 0.1], [0.9, 0.1, 0], [0, 0.2, 0.8], [0.3, 0.3, 0.4]])
    labels = rows("abcde", probs=probs)
    masks = rows(
        "edcba",
        expected_dice=np.array([0.9, 0.5, 0.9, 0.9, 0.9]),
        both=np.array([0, 1, 0, 8, 8]),
        predicted=np.array([0, 10, 0, 10, 10]),
        true=np.array([0, 10, 0, 10, 10]),
    )
    limit, facts = calibrate.fit_review(1, labels, masks)
    # confidence: 0.81, 0.5 (predicted normal: no mask), 0.9, 0.4; wrong: b's label, d's mask; e has an unknown label
    assert facts["scans"] == 4 and facts["errors"] == 2
    assert 0.4 < limit < 0.5
    assert facts["errors_flagged"] == 0.5 and facts["error_rate_flagged"] == 1.0
    assert facts["error_rate_others"] == pytest.approx(1 / 3)
    # a shift makes b benign, with confidence 0.4 x 0.9; d is wrong only by its mask
    limit, facts = calibrate.fit_review(1, labels, masks, np.float32([-0.3, 0, 0]))
    assert facts["scans"] == 4 and facts["errors"] == 1 and 0.36 < limit < 0.4
    with pytest.raises(ValueError, match="2 of the 5 breast scans have a predicted label but no predicted mask"):
        calibrate.fit_review(1, labels, masks.take(np.arange(3)))


def test_runs_that_are_no_folds_of_the_bundle_are_errors(fold_runs, weights, tmp_path, capsys):
    variables, manifest = checkpoint.load(fold_runs["segment_breast"][0] / "best")

    def refusal(**changes):
        task = dataclasses.replace(bundle.load_weights(fold_runs["segment_breast"][0]).task, **changes)
        checkpoint.save(tmp_path / "run", variables, manifest | {"task": task_to_json(task)})
        assert calibrate_command.main([str(weights), str(tmp_path / "run")]) == 2
        return capsys.readouterr().err

    assert "chosen by dice_balanced" in refusal(select="dice_balanced")
    assert "trained with other settings" in refusal(epochs=3)
    del_route = weights.parent / "only"
    bundle.make_bundle(fold_runs["segment_breast"], del_route)
    assert calibrate_command.main([str(del_route), str(fold_runs["route"][0])]) == 2
    assert "which the bundle does not have" in capsys.readouterr().err
