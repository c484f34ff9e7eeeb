"""What is scored: fold runs answer what each has left out, as they answer it alone."""

import dataclasses
import json

import numpy as np
import pytest

from mcis import bundle, checkpoint, evaluate, scores, scoring, subject
from mcis.tasks import task_to_json


@pytest.fixture(scope="module")
def folds(fold_runs):
    return subject.load_folds(fold_runs["segment_breast"])


def test_every_scan_is_answered_by_the_run_that_has_left_it_out(folds, fold_runs, phantom_dir):
    records = subject.read_left_out(folds, ("phantom",), phantom_dir)
    rows = subject.score(folds, records)
    assert rows["fingerprint"].tolist() == list(records.fingerprints)
    for run, mine in zip(fold_runs["segment_breast"], folds.left_out().values(), strict=True):
        alone = subject.load_subject(run)
        here = np.isin(rows["fingerprint"], list(mine))
        assert here.sum() == len(mine) > 0
        expected = subject.score(alone, records.take(np.flatnonzero(here).tolist()))
        for name, column in expected.items():
            np.testing.assert_array_equal(rows[name][here], column, err_msg=name)
    shown = [2, len(records) - 1, 0]
    for at, seen in zip(shown, subject.look(folds, records, shown), strict=True):
        assert seen.said.sum() == rows["predicted"][at] and seen.true.sum() == rows["true"][at]
    counts = folds.seen(records.fingerprints)
    assert all(use["scored"] == 0 for uses in counts.values() for use in uses.values())


def test_the_command_reports_folds_with_label_and_mask(fold_runs, phantom_dir, tmp_path, capsys):
    runs = [str(run) for run in fold_runs["segment_breast"]]
    arguments = [*runs, f"--data_dir={phantom_dir}", f"--out={tmp_path / 'out'}"]
    assert evaluate.main([*arguments, "--heat=2"]) == 0
    assert "left out of 2 folds" in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["split"] == subject.LEFT_OUT and set(found["weights"]) == {"segment_breast_0", "segment_breast_1"}
    metrics = found["sources"]["phantom"]["metrics"]
    assert {"accuracy", "sensitivity_malignant", "dice_lesion", "gated_dice"} <= set(metrics)
    assert "confusion" in found["sources"]["phantom"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no network was trained on a scan it is scored on" in page
    assert evaluate.main([*runs, "--split=validation"]) == 2
    assert "leave --split and --folder away" in capsys.readouterr().err


def test_runs_that_are_no_folds_of_one_task_are_refused(fold_runs, folds, phantom_dir, tmp_path):
    first, second = fold_runs["segment_breast"]
    with pytest.raises(ValueError, match="name each fold once"):
        subject.load_folds([first, first])
    with pytest.raises(ValueError, match="was trained otherwise"):
        subject.load_folds([first, fold_runs["route"][0]])
    variables, manifest = checkpoint.load(second / "best")
    task = dataclasses.replace(bundle.load_weights(second).task, select="dice_balanced")
    checkpoint.save(tmp_path / "chosen", variables, manifest | {"task": task_to_json(task)})
    with pytest.raises(ValueError, match="chosen by dice_balanced"):
        subject.load_folds([first, tmp_path / "chosen"])
    bundle.make_bundle([first], tmp_path / "set")
    with pytest.raises(ValueError, match="is a set of weights"):
        subject.load_folds([tmp_path / "set", second])
    strange = manifest["fingerprints"] | {"validation": [*manifest["fingerprints"]["validation"], "f" * 16]}
    checkpoint.save(tmp_path / "far", variables, manifest | {"fingerprints": strange})
    with pytest.raises(ValueError, match=r"1 of the \d+ scans that the runs left out are not prepared here"):
        subject.read_left_out(subject.load_folds([first, tmp_path / "far"]), ("phantom",), phantom_dir)


def test_scans_that_only_watched_the_training_are_a_test(fold_runs):
    manifest = bundle.load_weights(fold_runs["segment_breast"][0]).manifest
    scoring.check_unseen(manifest["fingerprints"]["validation"], manifest)  # the last epoch was kept whatever they said
    with pytest.raises(scoring.LeakError, match="used for train"):
        scoring.check_unseen(manifest["fingerprints"]["train"], manifest)
    chosen = manifest | {"task": manifest["task"] | {"select": "dice_balanced"}}
    with pytest.raises(scoring.LeakError, match="used for validation"):
        scoring.check_unseen(manifest["fingerprints"]["validation"], chosen)


def test_gated_dice_drops_the_masks_of_what_is_called_free_of_lesions(folds):
    rows = {
        "label": np.array([1, 1, 0, 0]),
        "probs": np.eye(3)[[1, 0, 0, 2]],  # the second lesion is called normal, the last normal malignant
        "has_mask": np.ones(4, bool),
        "group": np.array(list("abcd")),
        "both": np.array([80, 80, 0, 0]),
        "predicted": np.array([80, 80, 50, 50]),
        "true": np.array([80, 80, 0, 0]),
    }
    assert scores.gated_metrics(folds.task, rows) == {
        "gated_dice": 0.5,
        "gated_dice_lesion": 0.5,
        "gated_false_masks": 0.5,
    }
