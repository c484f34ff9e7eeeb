"""Whole training runs, small: resumed, refused, recorded."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mcis.checkpoints import bundle, checkpoint, provenance
from mcis.cli import evaluate
from mcis.data import dataset
from mcis.evaluation import evaluator
from mcis.tasks.table import TASKS, task_from_json, task_to_json
from mcis.train import loop, run_record
from tests.fixtures.runs import SMALL


def test_a_run_leaves_its_task_log_checkpoint_and_best_weights(finished, scans):
    run_dir, best = finished
    lines = [json.loads(line) for line in (run_dir / loop.LOG).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert best in lines
    assert best["validation"]["balanced_accuracy"] == max(line["validation"]["balanced_accuracy"] for line in lines)
    weights = bundle.load_weights(run_dir)
    assert weights.task == SMALL.check()
    assert weights.manifest["epoch"] == best["epoch"]
    assert weights.manifest["fingerprints"]["train"] == sorted(set(scans[0].fingerprint.tolist()))
    assert weights.manifest["fingerprints"]["validation"] == sorted(set(scans[1].fingerprint.tolist()))
    assert set(weights.variables["novelty"]) == {"mean", "whiten", "limit"}


def test_the_last_epoch_is_kept_where_no_metric_is_to_choose_and_novelty_is_told_by_known_scans(scans, tmp_path):
    train, validation = (
        dataclasses.replace(part, organ=np.where(part.label == 0, "unsupported", part.organ)) for part in scans
    )
    best = loop.train(dataclasses.replace(SMALL, select="last", epochs=2), train, validation, tmp_path / "run")
    kept = bundle.load_weights(tmp_path / "run")
    assert best["epoch"] == kept.manifest["epoch"] == 2
    assert len(kept.variables["novelty"]["mean"]) == 2  # one an organ: foreign scans are no class of known ones


def test_the_kept_weights_score_as_the_log_says(finished, phantom_dir):
    run_dir, best = finished
    found = evaluator.evaluate(str(run_dir), "validation", data_dir=str(phantom_dir))
    measured = found["sources"]["phantom"]["metrics"]
    assert measured["accuracy"]["value"] == pytest.approx(best["validation"]["accuracy"], abs=1e-9)
    assert measured["nll"]["value"] == pytest.approx(best["validation"]["nll"], abs=1e-5)
    assert measured["accuracy"]["low"] <= measured["accuracy"]["value"] <= measured["accuracy"]["high"]


def test_a_run_starts_from_weights_of_others(scans, buda, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dataset, "PUBLISHED", ("phantom",))
    small = {"model": "unet", "features": 4, "size": 32, "epochs": 1, "learning_rate": 1e-9, "select": "dice_patient"}
    task = dataclasses.replace(TASKS["segment_brain"], sources=("phantom",), **small)
    state = buda()
    file = tmp_path / "unet.safetensors"
    save_file(state, file)
    loop.train(task, *scans, tmp_path / "run", init_from=file)
    said = capsys.readouterr().out
    assert "loaded: " in said and "label/dense/kernel (not in the file)" in said
    kernel = state["encoder2.enc2conv1.weight"].transpose(2, 3, 1, 0)
    kept = bundle.load_weights(tmp_path / "run").variables["params"]["encoder2_1"]["layer"]["conv"]["kernel"]
    np.testing.assert_allclose(kept, kernel, atol=1e-5)
    with pytest.raises(ValueError, match="init_from"):  # a run that started otherwise is another
        loop.train(task, *scans, tmp_path / "run")
    with pytest.raises(ValueError, match=r"bottleneck_1/layer/conv/kernel is \(3, 3, 64, 128\)"):
        loop.train(dataclasses.replace(task, features=8), *scans, tmp_path / "wide", init_from=file)
    assert not (tmp_path / "wide").exists()
    for start in (tmp_path / "run", tmp_path / "run" / "best"):  # a run, or its weights folder, is a start too
        again = tmp_path / f"from_{start.name}"
        loop.train(task, *scans, again, init_from=start)
        weights = bundle.load_weights(again)
        kept = weights.variables["params"]["encoder2_1"]["layer"]["conv"]["kernel"]
        np.testing.assert_allclose(kept, kernel, atol=1e-5)
        seen = set(np.concatenate([part.fingerprint for part in scans]).tolist())  # also what chose the start's epoch
        assert set(weights.manifest["fingerprints"]["train"]) == seen
        assert weights.manifest["names"]["train"] == sorted(dataset.public_names(dataset.Scans.join(scans)))
    with pytest.raises(ValueError, match=r"init_from=.*none: no such state dict, run or weights folder"):
        loop.train(task, *scans, tmp_path / "other", init_from=tmp_path / "none")


def test_a_finished_run_is_not_trained_again(finished, scans, tmp_path):
    run_dir, best = finished
    before = (run_dir / loop.LOG).read_text()
    assert loop.train(SMALL, *scans, run_dir) == best
    assert (run_dir / loop.LOG).read_text() == before
    shutil.copytree(run_dir, tmp_path / "older")  # of a time when tasks had fewer fields
    found = json.loads((run_dir / run_record.RUN).read_text())
    del found["settings"]["start"], found["settings"]["augmentation"]["flip"]
    (tmp_path / "older" / run_record.RUN).write_text(json.dumps(found))
    assert loop.train(SMALL, *scans, tmp_path / "older") == best


def test_better_weights_say_that_the_crf_was_chosen_for_older_ones(finished, scans, tmp_path, capsys):
    run_dir = tmp_path / "run"
    best = run_dir / checkpoint.BEST
    weights = bundle.load_weights(finished[0])
    tuned = dataclasses.replace(weights.task, crf=dataclasses.replace(weights.task.crf, steps=5))
    checkpoint.save(best, weights.variables, weights.manifest | {"task": task_to_json(tuned)})
    for said in (True, False):  # the first time it replaces the CRF, then nothing is lost
        loop._save_best(
            run_dir, SMALL, 0, weights.variables, finished[1], {"fingerprints": weights.manifest["fingerprints"]}
        )
        assert ("tune again" in capsys.readouterr().out) == said


def test_another_task_in_the_same_folder_is_refused_and_the_difference_named(finished, scans):
    run_dir, _ = finished
    with pytest.raises(ValueError, match=r"learning_rate: 0\.01 -> 0\.5.*--fresh"):
        loop.train(dataclasses.replace(SMALL, learning_rate=0.5), *scans, run_dir)
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        loop.train(SMALL, *scans, run_dir, seed=1)


def test_other_scans_in_the_same_folder_are_refused(finished, scans):
    run_dir, _ = finished
    changes = (
        lambda s: s.take(np.arange(1, len(s))),
        lambda s: dataclasses.replace(s, outline=s.outline[::-1]),
        lambda s: dataclasses.replace(s, organ=s.organ[::-1]),  # what the router learns
    )
    for change in changes:
        with pytest.raises(ValueError, match=r"data: .*train"):
            loop.train(SMALL, change(scans[0]), scans[1], run_dir)


def test_the_best_epoch_is_kept_not_the_last(scans, tmp_path, monkeypatch):
    original, values = loop.scores, iter([0.0, 0.4, 0.9, 0.2])  # the first is asked before the first step
    monkeypatch.setattr(loop, "scores", lambda *a: original(*a) | {"balanced_accuracy": next(values)})
    assert loop.train(SMALL, *scans, tmp_path / "three")["epoch"] == 2
    manifest = checkpoint.load(tmp_path / "three" / loop.BEST)[1]
    assert manifest["epoch"] == 2
    lines = [json.loads(line) for line in (tmp_path / "three" / loop.LOG).read_text().splitlines()]
    assert manifest["validation"] == lines[1]["validation"]


def test_training_ends_early_where_nothing_gets_better_and_stays_ended(scans, tmp_path, monkeypatch):
    original, values = (
        loop.scores,
        iter([0.0, 0.4, 0.9, 0.2, 0.3, 0.0, 0.0]),
    )  # the first is asked before the first step
    monkeypatch.setattr(loop, "scores", lambda *a: original(*a) | {"balanced_accuracy": next(values)})
    task = dataclasses.replace(SMALL, epochs=6, patience=2)
    assert loop.train(task, *scans, tmp_path / "run")["epoch"] == 2
    for _ in range(2):
        assert len((tmp_path / "run" / loop.LOG).read_text().splitlines()) == 4
        monkeypatch.setattr(loop, "scores", original)
        assert loop.train(task, *scans, tmp_path / "run")["epoch"] == 2


def test_a_metric_that_the_validation_scans_do_not_tell_is_refused_before_the_folder_is_taken(scans, tmp_path):
    task = dataclasses.replace(
        TASKS["segment_brain"], sources=("phantom",), features=4, size=32, epochs=1, select="dice_patient"
    )
    blank = dataclasses.replace(scans[1], area=scans[1].area * 0)
    with pytest.raises(ValueError, match=r"select='dice_patient' cannot.*accuracy.*dice"):
        loop.train(task, scans[0], blank, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluate_refuses_a_leak_and_leaves_weights_whole(finished, phantom_dir, tmp_path, capsys):
    shutil.copytree(finished[0] / loop.BEST, tmp_path / "route")
    (tmp_path / "manifest.json").write_text("{}")  # another program's: it makes no weights folder of ours
    arguments = [str(tmp_path / "route"), f"--data_dir={phantom_dir}"]
    for _ in range(2):  # a second time, for the first wrote nothing into the sealed folder
        assert evaluate.main(arguments) == 0
    assert evaluate.main([*arguments, f"--out={tmp_path / 'route' / 'found'}"]) == 2
    assert evaluate.main([*arguments, f"--out={tmp_path / 'route' / 'variables' / 'found'}"]) == 2
    assert capsys.readouterr().err.count("takes no further files") == 2
    assert evaluate.main([*arguments, "--split=a/b"]) == 2
    assert "no split 'a/b'; there are: train" in capsys.readouterr().err
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


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_no_best(scans, tmp_path):
    run_dir = tmp_path / "route"
    with pytest.raises(FloatingPointError, match=r"step (\d+): its loss, gradient or update is not finite") as failure:
        loop.train(dataclasses.replace(SMALL, learning_rate=float("inf")), *scans, run_dir)
    number = int(re.search(r"step (\d+)", str(failure.value))[1])
    assert not (run_dir / loop.BEST).exists()
    variables, manifest = checkpoint.load(run_dir / loop.FAILED / "variables")
    assert manifest["step"] == number - 1
    assert all(np.isfinite(value).all() for value in checkpoint.flatten(variables).values())
    with np.load(run_dir / loop.FAILED / "batch.npz") as batch:
        assert batch["image"].shape[0] == SMALL.batch_size and batch["valid"].all()


def test_figures_of_other_scans_and_without_a_crf_have_files_of_their_own(finished, phantom_dir, tmp_path):
    run_dir = tmp_path / "route"
    shutil.copytree(finished[0], run_dir)
    for more in ([], ["--sources=phantom"], ["--no_crf"]):
        assert evaluate.main([str(run_dir), "--split=validation", f"--data_dir={phantom_dir}", *more]) == 0
    names = {"evaluation_validation", "evaluation_validation_phantom", "evaluation_validation_no_crf"}
    assert {folder.name for folder in run_dir.glob("evaluation*")} == names
    for name in names:
        assert {file.name for file in (run_dir / name).iterdir()} == {"report.json", "report.html"}


def test_a_set_of_weights_is_scored_as_one_cascade_but_not_on_scans_it_has_seen(
    finished, phantom_dir, tmp_path, capsys
):
    weights, out = tmp_path / "set", tmp_path / "cascade"
    shutil.copytree(finished[0] / loop.BEST, weights / "route")
    manifest = checkpoint.read_manifest(weights / "route")
    arguments = [str(weights), "--sources=phantom", f"--data_dir={phantom_dir}"]
    assert evaluate.main(arguments) == 2  # a router alone makes no cascade
    assert "a router and nothing else" in capsys.readouterr().err
    task = dataclasses.replace(TASKS["segment_breast"], features=4, size=32)
    init = jax.jit(task.make_model().init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, 32, 32, 3)))
    segmenter = manifest | {"task": task_to_json(task), "classes": list(task.classes)}
    checkpoint.save(weights / task.name, init, segmenter)
    files = sorted(weights.rglob("*"))
    assert evaluate.main([*arguments, f"--out={out}", "--heat=0"]) == 0
    found = json.loads((out / "report.json").read_text())
    assert found["task"] == "cascade" and found["split"] == "test"
    assert len(found["rows"]["said_organ"]) == len(dataset.records("phantom", "test", phantom_dir))
    assert evaluate.main(arguments) == 0 and sorted(weights.rglob("*")) == files  # a set gets no further file
    seen = dataset.text(dataset.records("phantom", "test", phantom_dir)[0]["fingerprint"])
    segmenter["fingerprints"] = {"train": [seen], "validation": []}
    checkpoint.save(weights / task.name, init, segmenter)
    assert evaluate.main(arguments) == 2
    assert "were used for train" in capsys.readouterr().err


def test_a_run_is_scored_against_anothers_evaluation(finished, phantom_dir, tmp_path, capsys):
    arguments = [str(finished[0] / loop.BEST), "--split=validation", f"--data_dir={phantom_dir}"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert evaluate.main([*arguments, f"--out={first}"]) == 0
    assert evaluate.main([*arguments, f"--out={second}", f"--against={first}"]) == 0
    assert json.loads((second / "report.json").read_text())["against"]["metrics"]["accuracy"] == {
        "value": 0,
        "low": 0,
        "high": 0,
    }
    assert "+0.000 [+0.000, +0.000]" in capsys.readouterr().out
    assert evaluate.main([*arguments, f"--out={second}", f"--against={tmp_path / 'third.json'}"]) == 2
    assert "third.json: no such file" in capsys.readouterr().err


def test_scoring_what_was_trained_on_is_refused_as_a_test(finished, phantom_dir):
    run_dir, _ = finished
    manifest = bundle.load_weights(run_dir).manifest
    test = [dataset.text(record["fingerprint"]) for record in dataset.records("phantom", "test", phantom_dir)]
    provenance.check_unseen(test, [None] * len(test), manifest)
    for use in ("train", "validation"):
        with pytest.raises(provenance.LeakError, match=f"1 of the {len(test) + 1} scans were used for {use}"):
            provenance.check_unseen([*test, manifest["fingerprints"][use][0]], [None] * (len(test) + 1), manifest)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_trains_and_is_scored_on_its_own_metric(name, scans, tmp_path):
    task = dataclasses.replace(TASKS[name], sources=("phantom",), features=4, size=32, epochs=1, batch_size=8)
    mine = [s.take(np.isin(s.organ, [task.organ] if task.organ else s.organ)) for s in scans]
    best = loop.train(task, *mine, tmp_path / name)
    assert loop.kept(task.select, [best]) is best
    assert all(np.isfinite(value) for value in best["validation"].values())
    assert task_from_json(bundle.load_weights(tmp_path / name).manifest["task"]) == task.check()


def test_a_folder_that_cannot_be_made_is_said_with_what_to_do(scans, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="name a folder for runs that can be written to with --runs_dir"):
        loop.train(SMALL, *scans, tmp_path / "file" / "run")
