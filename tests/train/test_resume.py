"""A run's checkpoints: resumed bit by bit, hashed, damaged, missing."""

import json
import shutil
import types

import jax
import numpy as np
import pytest

from mcis.checkpoints import bundle, checkpoint
from mcis.train import loop, resume, run_record, step
from mcis.train.loop import RunOptions
from tests.fixtures import processes
from tests.fixtures.runs import SMALL

pytestmark = pytest.mark.usefixtures("tiny")


class Stop(Exception):
    pass


def assert_same_run(run, other):
    """Two runs have the same best weights to the bit, and the same log but for durations."""
    one, two = (checkpoint.load(run_dir / checkpoint.BEST)[0] for run_dir in (run, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert processes.log_lines(run) == processes.log_lines(other)


def steps_of(run_dir):
    return sorted(int(path.name) for path in (run_dir / resume.CHECKPOINTS).iterdir())


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_crashed_run_ends_with_the_same_bits_and_later_damage_is_not_hashed(finished, scans, tmp_path, monkeypatch):
    run_dir = tmp_path / "route"
    calls, original = [], step.scores

    def crash_in_epoch_three(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # the first is the check before the first step
            raise Stop
        return original(*arguments)

    monkeypatch.setattr(step, "scores", crash_in_epoch_three)
    with pytest.raises(Stop):
        loop.train(SMALL, *scans, run_dir)
    monkeypatch.setattr(step, "scores", original)
    crashed = tmp_path / "damaged"
    shutil.copytree(run_dir, crashed)
    victim = largest_file(crashed / resume.CHECKPOINTS / str(steps_of(crashed)[0]))
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    stored = json.loads((crashed / resume.HASHES).read_text())
    manager = types.SimpleNamespace(wait_until_finished=lambda: None, all_steps=lambda: map(int, stored))
    resume.store_hashes(crashed, manager)
    assert json.loads((crashed / resume.HASHES).read_text()) == stored
    loop.train(SMALL, *scans, run_dir)
    assert_same_run(run_dir, finished[0])


def test_stopping_and_saving_within_epochs_changes_no_bit(finished, scans, tmp_path, capsys):
    run_dir = tmp_path / "route"
    calls = 0

    def stop():
        nonlocal calls
        calls += 1
        return calls % 4 == 2  # in the middle of the first epoch and at the end of the second

    interrupted = 0
    while True:
        try:
            assert loop.train(SMALL, *scans, run_dir, RunOptions(stop=stop, save_minutes=0.0))
            break
        except loop.Interrupted:
            interrupted += 1
    assert interrupted == 2
    assert "resumed after epoch 0, step" in capsys.readouterr().out
    assert_same_run(run_dir, finished[0])


def test_the_two_newest_checkpoints_are_kept(finished):
    run_dir, _ = finished
    steps = [line["step"] for line in processes.log_lines(run_dir)]
    assert len(steps) == 3 and steps_of(run_dir) == steps[-2:]
    assert sorted(map(int, json.loads((run_dir / resume.HASHES).read_text()))) == steps[-2:]


def test_a_damaged_checkpoint_is_skipped_and_the_one_before_it_resumed(finished, scans, tmp_path, capsys):
    run_dir = tmp_path / "route"
    shutil.copytree(finished[0], run_dir)
    newest = run_dir / resume.CHECKPOINTS / str(steps_of(run_dir)[-1])
    victim = largest_file(newest)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert loop.train(SMALL, *scans, run_dir)["validation"] == finished[1]["validation"]
    printed = capsys.readouterr().out
    assert f"{newest.name} is damaged" in printed and "resumed after epoch 2" in printed
    assert_same_run(run_dir, finished[0])
    for path in (run_dir / resume.CHECKPOINTS).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    for _ in range(2):  # the damaged files stay, and the run does not start anew by itself
        with pytest.raises(ValueError, match="no intact checkpoint"):
            loop.train(SMALL, *scans, run_dir)


@pytest.mark.parametrize("content", ["", "[]", "{}{}", '{"1": 2}'])
def test_damaged_hashes_are_an_error_that_names_the_file(finished, scans, tmp_path, content):
    run_dir = tmp_path / "route"
    shutil.copytree(finished[0], run_dir)
    (run_dir / resume.HASHES).write_text(content)
    if content == "[]":  # as before the first hashes were stored
        assert loop.train(SMALL, *scans, run_dir)["validation"] == finished[1]["validation"]
    else:
        with pytest.raises(ValueError, match=rf"{resume.HASHES} is damaged.*--fresh"):
            loop.train(SMALL, *scans, run_dir)


def test_a_run_without_its_checkpoints_does_not_start_anew_by_itself(finished, scans, tmp_path):
    run_dir = tmp_path / "route"
    shutil.copytree(finished[0], run_dir)
    log = (run_dir / run_record.LOG).read_text()
    shutil.rmtree(run_dir / resume.CHECKPOINTS)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"checkpoints is missing or empty.*--fresh"):
            loop.train(SMALL, *scans, run_dir)
        (run_dir / resume.CHECKPOINTS).mkdir(exist_ok=True)
    assert (run_dir / run_record.LOG).read_text() == log
    assert bundle.load_weights(run_dir).manifest["epoch"] == finished[1]["epoch"]


def test_a_run_without_its_best_weights_is_an_error(finished, scans, tmp_path):
    run_dir = tmp_path / "route"
    shutil.copytree(finished[0], run_dir)
    shutil.rmtree(run_dir / checkpoint.BEST)
    with pytest.raises(ValueError, match=r"best is missing or empty.*--fresh"):
        loop.train(SMALL, *scans, run_dir)
