"""What weights have used, and which runs are folds, from manifests alone."""

import dataclasses

import pytest

from mcis.checkpoints import provenance
from mcis.tasks.table import TASKS, task_to_json

TASK = dataclasses.replace(TASKS["segment_brain"], select="last", epochs=6)


def manifest(train="ab", validation="c", **further):
    scans = {"train": list(train), "validation": list(validation)}
    return {"task": task_to_json(TASK), "epoch": TASK.epochs, "fingerprints": scans} | further


def task(**fields):
    return {"task": task_to_json(TASK) | fields}


@pytest.mark.parametrize(
    ("further", "uses"),
    [
        ({}, ("train",)),
        (task(select="dice_lesion"), ("train", "validation")),
        (task(crf={"steps": 5}), ("train", "validation")),
        (task(name="route"), ("train", "validation")),
        ({"calibration": {}}, ("train", "validation")),
    ],
    ids=["last epoch", "chosen epoch", "tuned CRF", "router", "calibrated"],
)
def test_validation_scans_count_as_used_unless_they_only_monitored_the_training(further, uses):
    weights = manifest(**further)
    assert provenance.uses(weights) == uses
    assert provenance.scans_of(weights, "fingerprints", *uses) == (set("ab") if len(uses) == 1 else set("abc"))
    assert provenance.scans_of(weights, "names", *uses) == set()  # weights older than names
    assert provenance.leaks("cd", {"segment_brain": weights})["segment_brain"] == {
        use: {"used": len(weights["fingerprints"][use]), "scored": int(use == "validation")} for use in uses
    }
    if len(uses) == 1:
        provenance.check_unseen("cd", [None] * 2, weights)
    else:
        with pytest.raises(provenance.LeakError, match="1 of the 2 scans were used for validation"):
            provenance.check_unseen("cd", [None] * 2, weights)


def test_what_was_fitted_after_training_is_not_passed_on_to_another_run():
    assert provenance.inherited_uses(manifest(calibration={})) == ("train",)
    assert provenance.inherited_uses(manifest(**task(select="dice_lesion"), calibration={})) == ("train", "validation")


def test_an_ensemble_has_been_trained_on_what_any_member_was_trained_on():
    members = [manifest("ab", "c"), manifest("bc", "ad", names={"train": ["n"], "validation": ["m"]})]
    assert provenance.merged_scans(members) == {
        "fingerprints": {"train": ["a", "b", "c"], "validation": ["d"]},
        "names": {"train": ["n"], "validation": ["m"]},
    }


def test_folds_are_finished_runs_of_one_task_with_disjoint_held_out_scans():
    folds = [("one", TASK, manifest("ab", "c")), ("two", TASK, manifest("bc", "a"))]
    provenance.check_folds(folds)
    tuned = dataclasses.replace(TASK, crf=dataclasses.replace(TASK.crf, steps=5))
    provenance.check_folds([folds[0], ("two", tuned, manifest("bc", "a"))])
    with pytest.raises(ValueError, match="name each fold once"):
        provenance.check_folds([folds[0], ("two", TASK, manifest("ab", "c"))])
    with pytest.raises(ValueError, match="trained with other settings than one: size;"):
        provenance.check_folds([folds[0], ("two", dataclasses.replace(TASK, size=64), manifest("bc", "a"))])
    with pytest.raises(ValueError, match="chosen by dice_lesion"):
        provenance.check_fold("run", dataclasses.replace(TASK, select="dice_lesion"), manifest())
    with pytest.raises(ValueError, match=f"unfinished, at epoch 1 of {TASK.epochs}"):
        provenance.check_fold("run", TASK, manifest(epoch=1))
    with pytest.raises(ValueError, match="no held-out scans"):
        provenance.check_fold("run", TASK, manifest(validation=""))
    with pytest.raises(provenance.LeakError, match="trained on 1 of the scans"):
        provenance.check_fold("run", TASK, manifest("abc", "c"))
    with pytest.raises(provenance.LeakError, match="or on copies"):
        provenance.check_fold("run", TASK, manifest(names={"train": ["n"], "validation": ["n", "m"]}))
