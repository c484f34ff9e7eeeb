"""`mcis train`: killed and run again, stopped, folds, a pretraining stage, options."""

import dataclasses
import os
import shlex
import shutil
import signal

import numpy as np
import pytest

from mcis.checkpoints import checkpoint
from mcis.cli import common, evaluate, train
from mcis.models import MODELS
from mcis.models.pretrained import imagenet_weights
from mcis.tasks import config, table
from mcis.train import loop, step
from mcis.train.setup import STAGE
from tests.fixtures import processes


def assert_same_weights(run, other):
    one, two = (checkpoint.flatten(checkpoint.load(folder / checkpoint.BEST)[0]) for folder in (run, other))
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


@pytest.mark.usefixtures("tiny", "few_draws", "no_figures")
def test_a_run_that_gets_sigterm_is_saved_and_resumes_bit_by_bit(finished, phantom_dir, tmp_path, monkeypatch, capsys):
    """In this process, which has compiled the steps already; the slow test stops and kills processes."""
    run, calls, scores = tmp_path / "route", [], step.scores

    def scores_and_sigterm(*arguments):
        calls.append(arguments)
        if len(calls) == 2:  # at the end of the first epoch; the first is the check before the first step
            signal.raise_signal(signal.SIGTERM)
        return scores(*arguments)

    monkeypatch.setattr(step, "scores", scores_and_sigterm)
    arguments = processes.command(run, phantom_dir, *processes.SMALL)
    assert train.main(arguments) == 75
    printed = capsys.readouterr().out
    assert "is saved after step" in printed and "run the same command again to resume" in printed
    assert len(processes.log_lines(run)) < 3
    assert train.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "resumed after epoch 1" in printed and "of 3, best by balanced_accuracy" in printed
    assert processes.log_lines(run) == processes.log_lines(finished[0])
    assert_same_weights(run, finished[0])
    assert_scored_as_hinted(printed, capsys)


def assert_scored_as_hinted(printed, capsys):
    """The command that a finished run prints scores it."""
    hint = next(line for line in printed.splitlines() if line.startswith("score it once"))
    words = shlex.split(hint.partition(": ")[2])
    assert words[:2] == ["mcis", "evaluate"] and evaluate.main([*words[2:], "--heat=0"]) == 0
    assert "balanced_accuracy" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("tiny", "few_draws", "no_figures")
def test_a_process_that_is_stopped_and_killed_resumes_bit_by_bit(number, phantom_dir, tmp_path, capsys):
    """The last part of the run is in this process, which has compiled the steps already."""
    size = ["--batch_size=4", "--epochs=6"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train.main(processes.command(whole, phantom_dir, *size)) == 0
    arguments = processes.command(run, phantom_dir, *size)
    started = processes.start(arguments, devices=2)
    processes.wait_for_epochs(run, 1, started)
    started.send_signal(number)
    ((printed, _, status),) = processes.end(started)
    assert status == 75, printed
    assert "is saved after step" in printed and "run the same command again to resume" in printed
    done = len(processes.log_lines(run))
    started = processes.start(arguments, devices=2)
    processes.wait_for_epochs(run, done + 1, started)
    os.kill(started.pid, signal.SIGKILL)
    processes.end(started)
    assert len(processes.log_lines(run)) < 6
    capsys.readouterr()
    assert train.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "resumed after epoch" in printed and "epoch 6 of 6, the last" in printed
    assert [line["epoch"] for line in processes.log_lines(run)] == list(range(1, 7))
    assert_same_weights(run, whole)
    assert_scored_as_hinted(printed, capsys)


@pytest.mark.slow
def test_a_real_network_resumes_bit_by_bit_after_a_kill(phantom_dir, tmp_path):
    size = ["--model=cnn", "--batch_size=16", "--epochs=8"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    processes.finish(processes.start(processes.command(whole, phantom_dir, *size), module="mcis.launch"))
    arguments = processes.command(run, phantom_dir, *size)
    started = processes.start(arguments, module="mcis.launch")
    processes.wait_for_epochs(run, 2, started)
    os.kill(started.pid, signal.SIGKILL)
    processes.end(started)
    processes.finish(processes.start(arguments, module="mcis.launch"))
    assert_same_weights(run, whole)


def test_a_second_interrupt_stops_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with common.stop_requested() as stop:
            assert not stop()
            signal.raise_signal(signal.SIGINT)
            assert stop()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_folds_hold_out_each_scan_once_and_no_test_scan(phantom_scans, phantom_dir, tmp_path, monkeypatch, capsys):
    seen, dirs = [], []

    def record(task, train_scans, validation_scans, run_dir, options):
        dirs.append(run_dir)
        seen.append((set(train_scans.fingerprint), set(validation_scans.fingerprint), options.fold))
        return {"epoch": 1, "validation": {}}

    monkeypatch.setattr(loop, "train", record)
    options = ["--task=route", "--sources=phantom", f"--data_dir={phantom_dir}", f"--runs_dir={tmp_path}"]
    for fold in range(3):
        assert train.main([*options, f"--fold={fold}/3"]) == 0
    every = set(phantom_scans.fingerprint)
    for trained, held_out, _ in seen:
        assert trained | held_out == every and not trained & held_out
    assert sum(len(held_out) for _, held_out, _ in seen) == len(every)
    assert [fold for *_, fold in seen] == ["0/3", "1/3", "2/3"]
    assert train.main([*options, "--fold=3/3"]) == 2
    assert "--fold=3/3: it must be K/N" in capsys.readouterr().err
    assert sorted(path.name for path in dirs) == ["route_fold0", "route_fold1", "route_fold2"]
    assert train.main([*options, "--fold=999/1000"]) == 2
    assert "this fold has no scan" in capsys.readouterr().err


def test_a_fold_is_its_number_and_the_number_of_folds():
    assert train.parse_fold("2") == train.parse_fold("2/5") == (2, 5)
    assert train.parse_fold("0/3") == (0, 3)
    for text in ("5", "x/3", "0/1", "-1", "1/x", ""):
        with pytest.raises(ValueError, match=r"K from 0 to N - 1, as 0/5 to 4/5; K alone is K/5"):
            train.parse_fold(text)


def test_a_task_has_a_pretraining_stage_at_another_size(phantom_dir, tmp_path, capsys, tiny):
    run = tmp_path / "route"
    # the steps of the stage are those of `runs.SMALL`, which other tests compile too
    stage = ["--start.epochs=3", "--start.size=32", "--start.learning_rate=1e-2", "--batch_size=16", "--ema=0.5"]
    options = processes.command(run, phantom_dir, *stage)
    options += ["--size=64", "--epochs=1", "--learning_rate=1e-12", "--weight_decay=0", "--refit=0"]
    assert train.main(options) == 0
    assert "route: first 3 epochs at 32 px, then 1 at 64" in capsys.readouterr().out
    first, last = (checkpoint.load(folder / checkpoint.BEST) for folder in (run / STAGE, run))
    assert [manifest["task"]["size"] for _, manifest in (first, last)] == [32, 64]
    assert last[1]["task"]["start"] == {"epochs": 3, "size": 32, "learning_rate": 1e-2}
    # the stage keeps its last epoch: no validation scan has chosen it, so none counts as trained on
    assert last[1]["fingerprints"]["train"] == first[1]["fingerprints"]["train"]
    assert not set(last[1]["fingerprints"]["train"]) & set(last[1]["fingerprints"]["validation"])
    before, after = (checkpoint.flatten(variables["params"]) for variables, _ in (first, last))
    for name, value in before.items():  # at this learning rate nothing changes
        np.testing.assert_allclose(after[name], value, atol=1e-7)
    assert train.main(options) == 0
    assert capsys.readouterr().out.count("complete already") == 2
    shutil.rmtree(run / STAGE)
    for option in ("--start.epochs=4", "--learning_rate=1e-3"):  # noticed before a stage is trained
        assert train.main([*options, option]) == 2
        assert "holds a run with other settings" in capsys.readouterr().err
    assert not (run / STAGE).exists()


def test_another_length_or_a_small_size_replaces_the_pretraining_stage(monkeypatch):
    row = dataclasses.replace(table.TASKS["route"], epochs=2, size=128, start=config.Pretraining(epochs=9, size=64))
    monkeypatch.setitem(table.TASKS, "route", row)

    def stages(options):
        task = train.parse(["--task=route", *options.split()])[1]
        return (task.start.epochs, task.start.size, task.epochs, task.size)[0 if task.start.epochs else 2 :]

    assert stages("--batch_size=8") == stages("--size=128") == (9, 64, 2, 128)
    assert stages("--size=256") == (9, 64, 2, 256)
    assert stages("--size=64") == (11, 64) and stages("--size=32") == (11, 32)
    assert stages("--epochs=3") == (3, 128) and stages("--epochs=3 --size=32") == (3, 32)
    assert stages("--size=32 --start.epochs=2") == (2, 64, 2, 32)
    assert stages("--epochs=3 --start.epochs=2") == (2, 128, 3, 128)


@pytest.mark.parametrize("model", ["efficientnet_lite0", "unet_efficientnet_lite0"])
def test_a_network_with_bundled_weights_starts_from_them_at_its_published_width(model, tmp_path):
    task = dataclasses.replace(table.TASKS["segment_brain"], model=model, features=0)
    published = MODELS[model].features
    for same in (task, dataclasses.replace(task, features=published)):
        assert train._initial_weights(None, same) == imagenet_weights(model)
    assert train._initial_weights(None, dataclasses.replace(task, features=published // 2)) is None
    assert train._initial_weights("none", task) is None
    assert train._initial_weights("imagenet", task) == imagenet_weights(model)
    assert train._initial_weights(str(tmp_path), task) == tmp_path
    with pytest.raises(ValueError, match="--init_from=runs/nosuch: no such state dict, run or weights folder"):
        train._initial_weights("runs/nosuch", task)
    with pytest.raises(ValueError, match="encoder_rate=0 would freeze an encoder of random numbers; name its weights"):
        train._initial_weights("none", dataclasses.replace(task, encoder_rate=0.0))


def test_a_network_without_bundled_weights_starts_from_none():
    task = dataclasses.replace(table.TASKS["segment_brain"], model="light", features=0)
    assert train._initial_weights(None, task) is None
    with pytest.raises(ValueError, match="init_from=imagenet: light has no bundled weights; efficientnet_lite0, unet_"):
        train._initial_weights("imagenet", task)


@pytest.mark.parametrize(
    ("options", "starts"),
    [([], True), (["--init_from=none"], False), (["--features=8"], False), (["--model=light"], False)],
)
def test_the_first_stage_of_a_run_starts_from_the_default_weights(options, starts, phantom_dir, tmp_path, monkeypatch):
    row = dataclasses.replace(table.TASKS["segment_brain"], model="unet_efficientnet_lite0", features=0)
    row = dataclasses.replace(row, start=config.Pretraining(epochs=1))
    monkeypatch.setitem(table.TASKS, "segment_brain", row)
    seen = []

    def record(task, train_scans, validation_scans, run_dir, options):
        seen.append((run_dir.name, options.init_from))
        return {"epoch": 1, "validation": {}}

    monkeypatch.setattr(loop, "train", record)
    where = ["--sources=phantom", f"--data_dir={phantom_dir}", f"--runs_dir={tmp_path}"]
    assert train.main(["--task=segment_brain", *where, *options]) == 0
    weights = imagenet_weights("unet_efficientnet_lite0") if starts else None
    assert seen == [(STAGE, weights), ("segment_brain", tmp_path / "segment_brain" / STAGE)]


def test_the_task_decides_which_defaults_the_options_have(capsys):
    options, task = train.parse(["--runs_dir", "here", "--task", "segment_brain", "--seed=3", "--init_from=~/best"])
    assert task == table.TASKS["segment_brain"].check()
    assert (options.task, options.runs_dir, options.seed) == ("segment_brain", "here", 3)
    assert "~" not in options.init_from and options.init_from.endswith("/best")
    assert train.parse(["--task=route", "--task=segment_brain"])[1].name == "segment_brain"  # the last one counts
    with pytest.raises(SystemExit) as stop:
        train.parse(["--task=segment_brain", "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "--runs-dir" in printed and f"(default: {task.learning_rate})" in printed
    with pytest.raises(SystemExit) as stop:
        train.parse(["--help"])
    assert stop.value.code == 0 and "tasks: route, classify_brain" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--task=NAME is needed\. The tasks are route"):
        train.parse(["--size=32"])
