"""Whole training runs of a tiny network: what they write, what they start from, what they refuse."""

import dataclasses
import functools
import json
import re
import shutil

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from mcis.checkpoints import bundle, checkpoint, provenance
from mcis.cli import evaluate
from mcis.data import dataset
from mcis.data.batches import targets
from mcis.evaluation import scoring
from mcis.models import MODELS
from mcis.ops import last_layer
from mcis.tasks.config import Pretraining
from mcis.tasks.table import TASKS, task_from_json, task_to_json
from mcis.train import loop, resume, run_record, setup, step
from mcis.train.loop import RunOptions
from tests.fixtures.runs import SMALL
from tests.fixtures.tasks import small_task
from tests.fixtures.weights import drawn_variables

pytestmark = pytest.mark.usefixtures("tiny", "few_draws", "no_figures")


def test_a_run_writes_its_task_log_and_best_weights(finished, scans):
    run_dir, best = finished
    lines = [json.loads(line) for line in (run_dir / run_record.LOG).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert best in lines
    assert best["validation"]["balanced_accuracy"] == max(line["validation"]["balanced_accuracy"] for line in lines)
    weights = bundle.load_weights(run_dir)
    assert weights.task == SMALL.check() and not weights.half
    assert weights.manifest["epoch"] == best["epoch"]
    assert weights.manifest["fingerprints"]["train"] == sorted(set(scans[0].fingerprint.tolist()))
    assert weights.manifest["fingerprints"]["validation"] == sorted(set(scans[1].fingerprint.tolist()))
    assert set(weights.variables["novelty"]) == {"mean", "whiten", "limit"}


def test_the_last_epoch_is_kept_without_a_metric_and_the_ood_score_is_fitted_to_known_scans(scans, tmp_path):
    train, validation = (
        dataclasses.replace(split, organ=np.where(split.label == 0, "unsupported", split.organ)) for split in scans
    )
    best = loop.train(dataclasses.replace(SMALL, select="last"), train, validation, tmp_path / "run")
    kept = bundle.load_weights(tmp_path / "run")
    assert best["epoch"] == kept.manifest["epoch"] == 3
    assert len(kept.variables["novelty"]["mean"]) == 2  # one per organ; out-of-distribution scans are no class


def test_the_routers_kept_head_is_the_regression_on_its_features(finished, scans):
    """The features do not depend on the head, so that the kept weights give those that it was fitted to."""
    kept, (train, _) = bundle.load_weights(finished[0]), scans
    label = targets(train, kept.task)
    features = step.collect(jax.jit(step.make_evaluation_step(kept.task)), kept.variables, train, label, 16)["features"]
    weight = last_layer.group_weights(label, train.source)
    kernel, bias = last_layer.fit_last_layer(features, label, weight, kept.task.refit, len(kept.task.classes))
    head = kept.variables["params"]["label"]["dense"]
    np.testing.assert_allclose(head["kernel"], kernel, atol=1e-3 * np.abs(kernel).max())
    np.testing.assert_allclose(head["bias"], bias, atol=1e-2)


def test_the_kept_weights_score_as_the_log_says(finished, phantom_dir):
    run_dir, best = finished
    found = scoring.evaluate(str(run_dir), "validation", data_dir=str(phantom_dir))
    measured = found["sources"]["phantom"]["metrics"]
    assert measured["accuracy"]["value"] == pytest.approx(best["validation"]["accuracy"], abs=1e-9)
    assert measured["nll"]["value"] == pytest.approx(best["validation"]["nll"], abs=1e-5)
    assert measured["accuracy"]["low"] <= measured["accuracy"]["value"] <= measured["accuracy"]["high"]


def test_a_run_starts_from_a_published_state_dict(scans, buda, tmp_path, monkeypatch):
    """Set up, but not trained: its averaged variables are those that training starts from.

    The initial variables are zeros, and the optimizer has no state: a U-Net's take long to compile.
    """

    def zeros(self, *arguments, **options):
        shapes = jax.eval_shape(functools.partial(init, self, **options), *arguments)
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    init = type(MODELS["unet"]).init
    monkeypatch.setattr(type(MODELS["unet"]), "init", zeros)
    monkeypatch.setattr(step, "make_optimizer", lambda *_: optax.sgd(1e-3))
    state, file = buda(), tmp_path / "unet.safetensors"
    save_file(state, file)
    task = small_task("segment_brain", model="unet", select="dice_patient")
    _, start = setup.set_up(task, *scans, tmp_path / "run", RunOptions(init_from=file))
    kernel = start.ema["params"]["encoder2_1"]["layer"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, state["encoder2.enc2conv1.weight"].transpose(2, 3, 1, 0))
    with pytest.raises(ValueError, match=r"bottleneck_1/layer/conv/kernel is \(3, 3, 64, 128\)"):
        setup.set_up(dataclasses.replace(task, features=8), *scans, tmp_path / "wide", RunOptions(init_from=file))
    assert not (tmp_path / "wide").exists()


def test_a_run_starts_from_another_run_or_its_weights_folder(finished, scans, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dataset, "PUBLISHED", ("phantom",))
    task, again, started = SMALL, tmp_path / "again", []
    kernel = bundle.load_weights(finished[0]).variables["params"]["conv1"]["conv"]["kernel"]
    restore = resume.restore

    def restored(run_dir, manager, state, settings):
        started.append(np.array(state.params["conv1"]["conv"]["kernel"]))
        return restore(run_dir, manager, state, settings)

    monkeypatch.setattr(resume, "restore", restored)
    loop.train(task, *scans, again, RunOptions(init_from=finished[0]))
    assert "loaded: " in capsys.readouterr().out
    np.testing.assert_array_equal(started, [kernel])
    weights = bundle.load_weights(again)
    used = set(np.concatenate([split.fingerprint for split in scans]).tolist())  # validation chose the start's epoch
    assert set(weights.manifest["fingerprints"]["train"]) == used
    assert weights.manifest["names"]["train"] == dataset.public_names(scans[0])  # the start has recorded no names
    _, state = setup.set_up(task, *scans, tmp_path / "other", RunOptions(init_from=finished[0] / "best"))
    np.testing.assert_array_equal(state.params["conv1"]["conv"]["kernel"], kernel)
    with pytest.raises(ValueError, match="init_from"):  # other initial weights make another run
        loop.train(task, *scans, again)
    with pytest.raises(ValueError, match=r"init_from=.*none: no such state dict, run or weights folder"):
        loop.train(task, *scans, tmp_path / "other", RunOptions(init_from=tmp_path / "none"))


@pytest.mark.parametrize(
    ("task", "further", "uses_validation"),
    [
        ({"select": "last"}, {}, False),
        ({"select": "dice_lesion"}, {}, True),
        ({"select": "last", "crf": {"steps": 5}}, {}, True),
        ({"select": "last", "name": "route"}, {}, True),
        ({"select": "last"}, {"calibration": {}}, False),
    ],
    ids=["last epoch", "chosen epoch", "tuned CRF", "router", "calibrated"],
)
def test_a_run_lists_what_its_initial_weights_have_used(task, further, uses_validation, scans, tmp_path):
    scan_ids = {"train": ["a"], "validation": ["b"]}
    manifest = {"task": task_to_json(small_task("segment_brain")) | task, "fingerprints": scan_ids, "names": scan_ids}
    checkpoint.save(tmp_path / "other" / "best", {"params": {"kernel": np.zeros(1)}}, manifest | further)
    inherited = {"a", "b"} if uses_validation else {"a"}
    used = setup.used_scans(*scans, tmp_path / "other", tmp_path / "run")
    for listed, by in ((set(scans[0].fingerprint.tolist()), "fingerprints"), (set(), "names")):
        assert set(used[by]["train"]) == listed | inherited
    assert set(used["fingerprints"]["validation"]) == set(scans[1].fingerprint.tolist())
    (tmp_path / "other").rename(tmp_path / setup.STAGE)
    own_stage = setup.used_scans(*scans, tmp_path / setup.STAGE, tmp_path)
    assert own_stage["names"]["train"] == ["a"]  # its network has not used the validation scans
    assert setup.used_scans(*scans, tmp_path / "state_dict.pth", tmp_path)["names"]["train"] == []


def test_a_finished_run_is_not_trained_again(finished, scans, tmp_path):
    run_dir, best = finished
    before = (run_dir / run_record.LOG).read_text()
    assert loop.train(SMALL, *scans, run_dir) == best
    assert (run_dir / run_record.LOG).read_text() == before
    shutil.copytree(run_dir, tmp_path / "older")  # from a version with fewer task fields
    found = json.loads((run_dir / run_record.RUN).read_text())
    del found["settings"]["start"], found["settings"]["augmentation"]["flip"]
    (tmp_path / "older" / run_record.RUN).write_text(json.dumps(found))
    assert loop.train(SMALL, *scans, tmp_path / "older") == best


def test_replacing_weights_with_a_tuned_crf_prints_a_warning(finished, scans, tmp_path, capsys):
    weights = bundle.load_weights(finished[0])
    tuned = dataclasses.replace(weights.task, crf=dataclasses.replace(weights.task.crf, steps=5))
    checkpoint.save(tmp_path / "best", weights.variables, weights.manifest | {"task": task_to_json(tuned)})
    run, _ = setup.set_up(SMALL, *scans, tmp_path, RunOptions())
    for warns in (True, False):  # the second time there is no CRF to lose
        loop._save_best(run, weights.variables, finished[1])
        assert ("`mcis tune` chose a CRF" in capsys.readouterr().out) == warns


def test_other_settings_or_scans_in_a_runs_folder_are_an_error_that_names_the_difference(finished, scans):
    run_dir, _ = finished
    with pytest.raises(ValueError, match=r"learning_rate: 0\.01 -> 0\.5.*--fresh"):
        loop.train(dataclasses.replace(SMALL, learning_rate=0.5), *scans, run_dir)
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        loop.train(SMALL, *scans, run_dir, RunOptions(seed=1))
    changes = (
        lambda s: s.take(np.arange(1, len(s))),
        lambda s: dataclasses.replace(s, outline=s.outline[::-1]),
        lambda s: dataclasses.replace(s, organ=s.organ[::-1]),  # the router's target
    )
    for change in changes:
        with pytest.raises(ValueError, match=r"data: .*train"):
            loop.train(SMALL, change(scans[0]), scans[1], run_dir)


def test_training_ends_early_without_improvement_and_keeps_the_best_epoch(scans, tmp_path, monkeypatch):
    original = step.scores
    values = iter([0.0, 0.9, 0.2, 0.0, 0.0])  # the first is for the check before the first step
    monkeypatch.setattr(step, "scores", lambda *a: original(*a) | {"balanced_accuracy": next(values)})
    task = dataclasses.replace(SMALL, patience=1)
    assert loop.train(task, *scans, tmp_path / "run")["epoch"] == 1
    manifest = checkpoint.load(tmp_path / "run" / checkpoint.BEST)[1]
    lines = [json.loads(line) for line in (tmp_path / "run" / run_record.LOG).read_text().splitlines()]
    assert manifest["epoch"] == 1 and manifest["validation"] == lines[0]["validation"]
    monkeypatch.setattr(step, "scores", original)
    assert loop.train(task, *scans, tmp_path / "run")["epoch"] == 1  # and stays ended
    assert len((tmp_path / "run" / run_record.LOG).read_text().splitlines()) == 2


def test_a_metric_that_the_validation_scans_cannot_give_is_an_error_before_the_folder_is_made(scans, tmp_path):
    task = small_task("segment_brain", epochs=1, select="dice_patient")
    blank = dataclasses.replace(scans[1], area=scans[1].area * 0)
    with pytest.raises(ValueError, match=r"select='dice_patient' cannot.*accuracy.*dice"):
        loop.train(task, scans[0], blank, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluate_reports_a_leak_and_never_writes_into_a_weights_folder(finished, phantom_dir, tmp_path, capsys):
    shutil.copytree(finished[0] / checkpoint.BEST, tmp_path / "route")
    (tmp_path / "manifest.json").write_text("{}")  # another program's: it makes no weights folder
    arguments = [str(tmp_path / "route"), f"--data_dir={phantom_dir}"]
    files = sorted(tmp_path.rglob("*"))
    assert evaluate.main(arguments) == 0 and sorted(tmp_path.rglob("*")) == files
    assert evaluate.main([*arguments, f"--out={tmp_path / 'route' / 'found'}"]) == 2
    assert evaluate.main([*arguments, f"--out={tmp_path / 'route' / 'variables' / 'found'}"]) == 2
    assert capsys.readouterr().err.count("takes no further files") == 2
    assert evaluate.main([*arguments, "--split=a/b"]) == 2
    assert "There is no split 'a/b'. The splits are train" in capsys.readouterr().err
    assert evaluate.main([*arguments, f"--out={tmp_path / 'found'}", "--heat=0"]) == 0
    assert json.loads((tmp_path / "found" / "report.json").read_text())["split"] == "test"
    variables, manifest = checkpoint.load(tmp_path / "route")
    manifest["fingerprints"]["train"].append(
        dataset.text(dataset.records("phantom", "test", phantom_dir)[0]["fingerprint"])
    )
    checkpoint.save(tmp_path / "route", variables, manifest)
    capsys.readouterr()
    assert evaluate.main(arguments) == 2
    assert "were used for train" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_no_weights(scans, tmp_path):
    run_dir = tmp_path / "route"
    with pytest.raises(FloatingPointError, match=r"step (\d+): its loss, gradient or update is not finite") as failure:
        loop.train(dataclasses.replace(SMALL, learning_rate=float("inf")), *scans, run_dir)
    number = int(re.search(r"step (\d+)", str(failure.value))[1])
    assert not (run_dir / checkpoint.BEST).exists()
    variables, manifest = checkpoint.load(run_dir / loop.FAILED / "variables")
    assert manifest["step"] == number - 1
    assert all(np.isfinite(value).all() for value in checkpoint.flatten(variables).values())
    with np.load(run_dir / loop.FAILED / "batch.npz") as batch:
        assert batch["image"].shape[0] == SMALL.batch_size and batch["valid"].all()


def test_evaluations_have_their_own_files_and_are_compared_with_each_other(finished, phantom_dir, tmp_path, capsys):
    run_dir = tmp_path / "route"
    shutil.copytree(finished[0], run_dir)
    first = run_dir / "evaluation_validation"
    arguments = [str(run_dir), "--split=validation", f"--data_dir={phantom_dir}"]
    for further in ([], ["--sources=phantom"], ["--no_crf", f"--against={first}"]):
        assert evaluate.main([*arguments, *further]) == 0
    names = {"evaluation_validation", "evaluation_validation_phantom", "evaluation_validation_no_crf"}
    assert {folder.name for folder in run_dir.glob("evaluation*")} == names
    for name in names:
        assert {file.name for file in (run_dir / name).iterdir()} == {"report.json", "report.html"}
    against = json.loads((run_dir / "evaluation_validation_no_crf" / "report.json").read_text())["against"]
    assert against["metrics"]["accuracy"] == {"value": 0, "low": 0, "high": 0}
    assert "+0.000 [+0.000, +0.000]" in capsys.readouterr().out
    assert evaluate.main([*arguments, f"--against={tmp_path / 'third.json'}"]) == 2
    assert "third.json: no such file" in capsys.readouterr().err


def test_a_bundle_is_scored_as_one_cascade_but_not_on_scans_it_has_used(finished, phantom_dir, tmp_path, capsys):
    weights, out = tmp_path / "bundle", tmp_path / "cascade"
    shutil.copytree(finished[0] / checkpoint.BEST, weights / "route")
    manifest = checkpoint.read_manifest(weights / "route")
    arguments = [str(weights), "--sources=phantom", f"--data_dir={phantom_dir}"]
    assert evaluate.main(arguments) == 2  # a router alone is no cascade
    assert "hold a router only" in capsys.readouterr().err
    task = small_task("segment_breast")
    init = drawn_variables(task)
    segmenter = manifest | {"task": task_to_json(task), "classes": list(task.classes)}
    checkpoint.save(weights / task.name, init, segmenter)
    files = sorted(weights.rglob("*"))
    assert evaluate.main([*arguments, f"--out={out}", "--heat=0"]) == 0
    found = json.loads((out / "report.json").read_text())
    assert found["task"] == "cascade" and found["split"] == "test"
    assert len(found["rows"]["said_organ"]) == len(dataset.records("phantom", "test", phantom_dir))
    assert sorted(weights.rglob("*")) == files  # nothing is written into a bundle
    used = dataset.text(dataset.records("phantom", "test", phantom_dir)[0]["fingerprint"])
    segmenter["fingerprints"] = {"train": [used], "validation": []}
    checkpoint.save(weights / task.name, init, segmenter)
    assert evaluate.main(arguments) == 2
    assert "were used for train" in capsys.readouterr().err


def test_scans_of_training_are_no_test(finished, phantom_dir):
    run_dir, _ = finished
    manifest = bundle.load_weights(run_dir).manifest
    test = [dataset.text(record["fingerprint"]) for record in dataset.records("phantom", "test", phantom_dir)]
    provenance.check_unseen(test, [None] * len(test), manifest)
    for use in ("train", "validation"):
        with pytest.raises(provenance.LeakError, match=f"1 of the {len(test) + 1} scans were used for {use}"):
            provenance.check_unseen([*test, manifest["fingerprints"][use][0]], [None] * (len(test) + 1), manifest)


def check_task(task, scans, run_dir):
    own = [split.take(np.isin(split.organ, [task.organ] if task.organ else split.organ)) for split in scans]
    best = loop.train(task, *own, run_dir)
    assert run_record.best_epoch(task.select, [best]) is best
    assert all(np.isfinite(value) for value in best["validation"].values())
    assert task_from_json(bundle.load_weights(run_dir).manifest["task"]) == task.check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segment_brain", "classify_breast"])
def test_a_task_trains_and_is_scored_on_its_own_metrics(name, scans, tmp_path):
    check_task(small_task(name, epochs=1, batch_size=8), scans, tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_its_own_network(name, scans, tmp_path):
    assert TASKS[name].model in MODELS
    start = {"start": Pretraining(), "encoder_rate": 1.0}  # from no weights, in one stage
    small = {"sources": ("phantom",), "features": 4, "size": 32, "epochs": 1, "batch_size": 8} | start
    check_task(dataclasses.replace(TASKS[name], **small), scans, tmp_path / name)


def test_a_folder_that_cannot_be_made_is_an_error_that_says_what_to_do(scans, tmp_path):
    (tmp_path / "file").write_text("a file instead of a folder")
    with pytest.raises(OSError, match="name a folder for runs that can be written to with --runs_dir"):
        loop.train(SMALL, *scans, tmp_path / "file" / "run")
