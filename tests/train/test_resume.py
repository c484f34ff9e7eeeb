"""A run's checkpoints: resumed bit by bit, sealed, damaged, gone."""

import json
import shutil
import types

import jax
import numpy as np
import pytest

from mcis.checkpoints import bundle, checkpoint
from mcis.train import loop, resume
from tests.fixtures.runs import SMALL


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(finished, scans, tmp_path, monkeypatch):
    run_dir, _ = finished

    class Stop(Exception):
        pass

    seen = []

    def stop_in_epoch_two(*arguments):
        seen.append(arguments)
        if len(seen) == 3:  # the first is asked before the first step
            raise Stop
        return original(*arguments)

    original = loop.scores
    monkeypatch.setattr(loop, "scores", stop_in_epoch_two)
    with pytest.raises(Stop):
        loop.train(SMALL, *scans, tmp_path / "route")
    monkeypatch.setattr(loop, "scores", original)
    loop.train(SMALL, *scans, tmp_path / "route")
    one, other = (checkpoint.load(d / loop.BEST)[0] for d in (run_dir, tmp_path / "route"))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_stopping_and_saving_within_epochs_changes_no_bit(finished, scans, tmp_path, capsys):
    run_dir, _ = finished
    asked = 0

    def stop():
        nonlocal asked
        asked += 1
        return asked % 2 == 0

    interrupted = 0
    while True:
        try:
            assert loop.train(SMALL, *scans, tmp_path / "route", stop=stop, save_minutes=0.0)
            break
        except loop.Interrupted:
            interrupted += 1
    assert interrupted >= 2
    assert "resumed after epoch 0, step" in capsys.readouterr().out
    one, other = (checkpoint.load(d / loop.BEST)[0] for d in (run_dir, tmp_path / "route"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    lines = [
        [{name: json.loads(line)[name] for name in ("step", "train", "validation")} for line in text.splitlines()]
        for text in ((d / loop.LOG).read_text() for d in (run_dir, tmp_path / "route"))
    ]
    assert lines[0] == lines[1]


def test_a_damaged_checkpoint_is_left_out_and_the_one_before_it_resumed(finished, scans, tmp_path, capsys):
    run_dir = tmp_path / "route"
    shutil.copytree(finished[0], run_dir)
    newest = max((run_dir / resume.CHECKPOINTS).iterdir(), key=lambda path: int(path.name))
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert loop.train(SMALL, *scans, run_dir)["validation"] == finished[1]["validation"]
    printed = capsys.readouterr().out
    assert f"{newest.name} is damaged" in printed and "resumed after epoch 2" in printed
    one, other = (checkpoint.load(d / loop.BEST)[0] for d in (run_dir, finished[0]))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    for path in (run_dir / resume.CHECKPOINTS).rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    for _ in range(2):  # what is damaged stays as it is, and the run does not begin anew by itself
        with pytest.raises(ValueError, match="no checkpoint that is whole"):
            loop.train(SMALL, *scans, run_dir)


def test_what_befell_an_older_checkpoint_is_not_sealed_with_the_newer_one(finished, scans, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    seen, original = [], loop.scores

    def damage_the_first_in_epoch_three(*arguments):
        seen.append(arguments)
        if len(seen) == 4:  # the first is asked before the first step
            first = min((tmp_path / "route" / resume.CHECKPOINTS).iterdir(), key=lambda path: int(path.name))
            victim = max((path for path in first.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
            victim.write_bytes(victim.read_bytes()[:-1] + b"?")
            sealed = json.loads((tmp_path / "route" / resume.HASHES).read_text())
            resume.seal(tmp_path / "route", manager(sealed))
            assert json.loads((tmp_path / "route" / resume.HASHES).read_text()) == sealed
            raise Stop
        return original(*arguments)

    def manager(steps):
        return types.SimpleNamespace(wait_until_finished=lambda: None, all_steps=lambda: map(int, steps))

    monkeypatch.setattr(loop, "scores", damage_the_first_in_epoch_three)
    with pytest.raises(Stop):
        loop.train(SMALL, *scans, tmp_path / "route")


@pytest.mark.parametrize("content", ["", "[]", "{}{}", '{"1": 2}'])
def test_hashes_that_are_damaged_are_named(finished, scans, tmp_path, content):
    run_dir = tmp_path / "route"
    shutil.copytree(finished[0], run_dir)
    (run_dir / resume.HASHES).write_text(content)
    if content == "[]":  # says nothing, as before the first one was sealed
        assert loop.train(SMALL, *scans, run_dir)["validation"] == finished[1]["validation"]
    else:
        with pytest.raises(ValueError, match=rf"{resume.HASHES} is damaged.*--fresh"):
            loop.train(SMALL, *scans, run_dir)


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew_by_itself(finished, scans, tmp_path):
    run_dir = tmp_path / "route"
    shutil.copytree(finished[0], run_dir)
    log = (run_dir / loop.LOG).read_text()
    shutil.rmtree(run_dir / resume.CHECKPOINTS)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"checkpoints is empty or gone.*--fresh"):
            loop.train(SMALL, *scans, run_dir)
        (run_dir / resume.CHECKPOINTS).mkdir(exist_ok=True)
    assert (run_dir / loop.LOG).read_text() == log
    assert bundle.load_weights(run_dir).manifest["epoch"] == finished[1]["epoch"]


def test_a_run_whose_best_weights_are_gone_says_so(finished, scans, tmp_path):
    run_dir = tmp_path / "route"
    shutil.copytree(finished[0], run_dir)
    shutil.rmtree(run_dir / loop.BEST)
    with pytest.raises(ValueError, match=r"best is gone.*--fresh"):
        loop.train(SMALL, *scans, run_dir)
