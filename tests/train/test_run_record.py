"""What a run's folder says of how it came about."""

import dataclasses
import json
import re
import shutil
import subprocess

import jax
import pytest

from mcis.checkpoints import checkpoint
from mcis.train import loop, resume, run_record
from tests.fixtures.runs import SMALL


def test_each_session_is_written_down_with_what_it_takes_to_repeat_it(finished, scans, tmp_path):
    stops = iter([False, True])
    with pytest.raises(loop.Interrupted):
        loop.train(SMALL, *scans, tmp_path / "run", stop=lambda: next(stops), command="mcis train --task=route")
    for _ in range(2):  # the second time it is complete, and nothing is added
        loop.train(SMALL, *scans, tmp_path / "run", command="the same again")
        found = run_record.read(tmp_path / "run")
        assert [session["step"] for session in found["sessions"]] == [0, 2]
    first, second = found["sessions"]
    assert (first["command"], second["command"]) == ("mcis train --task=route", "the same again")
    assert first["versions"]["jax"] == jax.__version__ and len(first["devices"]) == len(jax.devices())
    assert first["processes"] == 1 and first["began"] <= second["began"]
    assert found["settings"] == run_record.read(finished[0])["settings"]
    assert {"optax", "grain", "numpy", "jaxlib"} <= set(first["versions"]) and first["folder"]
    assert found["settings"]["seed"] == 0 and found["settings"]["learning_rate"] == SMALL.learning_rate


def test_going_on_with_other_code_is_said(scans, tmp_path, monkeypatch, capsys):
    stops = iter([False, True])
    with pytest.raises(loop.Interrupted):
        loop.train(SMALL, *scans, tmp_path / "run", stop=lambda: next(stops))
    assert "than before" not in capsys.readouterr().out
    monkeypatch.setattr(checkpoint, "revision", lambda: "another")
    with pytest.raises(loop.Interrupted):
        loop.train(SMALL, *scans, tmp_path / "run", stop=lambda: True)
    assert "other revision than before: the last bits may differ" in capsys.readouterr().out


def test_a_checkpoint_of_another_run_is_refused_and_the_difference_named(finished, scans, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    found = run_record.read(tmp_path / "run")
    other = dataclasses.replace(SMALL, features=8)
    found["settings"]["features"] = 8  # as if somebody had put these checkpoints into the folder of a wider network
    (tmp_path / "run" / run_record.RUN).write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"checkpoints/\d+ is a checkpoint of another run \(features: 4 -> 8\)"):
        loop.train(other, *scans, tmp_path / "run")


def test_a_checkpoint_says_what_made_it(finished):
    folder = max((finished[0] / resume.CHECKPOINTS).iterdir(), key=lambda path: int(path.name))
    told = json.loads(next(path for path in (folder / "told").iterdir() if path.is_file()).read_text())
    assert told["made"]["settings"] == run_record.read(finished[0])["settings"]
    assert told["made"]["versions"] == checkpoint.versions() and "revision" in told["made"]


def test_the_revision_is_the_codes_own_and_says_where_it_was_changed(tmp_path, monkeypatch):
    def git(*words):
        name = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *name, *words], check=True, capture_output=True)

    def found():
        checkpoint.revision.cache_clear()
        return checkpoint.revision()

    file = tmp_path / "checkpoint.py"
    file.write_text("1")
    monkeypatch.setattr(checkpoint, "__file__", str(file))
    try:
        assert found() is None  # no repository
        git("init")
        assert found() is None  # one that does not hold it
        git("add", "checkpoint.py")
        git("commit", "-m", "first")
        clean = found()
        assert re.fullmatch("[0-9a-f]{40}", clean)
        file.write_text("2")
        assert found() == f"{clean}+"
    finally:
        checkpoint.revision.cache_clear()
