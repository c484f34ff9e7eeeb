"""What a run's folder records about it."""

import dataclasses
import json
import re
import shutil
import subprocess

import jax
import pytest

from mcis.checkpoints import provenance
from mcis.train import loop, resume, run_record
from mcis.train.loop import RunOptions
from tests.fixtures.runs import SMALL

pytestmark = pytest.mark.usefixtures("tiny")


def test_each_session_is_recorded_and_a_change_of_the_code_is_reported(finished, scans, tmp_path, monkeypatch, capsys):
    stops = iter([False, True])
    options = RunOptions(stop=lambda: next(stops), command="mcis train --task=route")
    with pytest.raises(loop.Interrupted):
        loop.train(SMALL, *scans, tmp_path / "run", options)
    assert "changed since" not in capsys.readouterr().out
    monkeypatch.setattr(provenance, "revision", lambda: "another")
    for _ in range(2):  # the second time the run is complete, and nothing is added
        loop.train(SMALL, *scans, tmp_path / "run", RunOptions(command="the same again"))
        found = run_record.read(tmp_path / "run")
        assert [session["step"] for session in found["sessions"]] == [0, 2]
    printed = capsys.readouterr().out
    assert "route: revision changed since the last session; results may not be bit-identical" in printed
    first, second = found["sessions"]
    assert (first["command"], second["command"]) == ("mcis train --task=route", "the same again")
    assert first["versions"]["jax"] == jax.__version__ and len(first["devices"]) == len(jax.devices())
    assert first["processes"] == 1 and first["began"] <= second["began"]
    assert found["settings"] == run_record.read(finished[0])["settings"]
    assert {"optax", "grain", "numpy", "jaxlib"} <= set(first["versions"]) and first["folder"]
    assert found["settings"]["seed"] == 0 and found["settings"]["learning_rate"] == SMALL.learning_rate


def test_a_checkpoint_of_another_run_is_an_error_that_names_the_difference(finished, scans, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    found = run_record.read(tmp_path / "run")
    other = dataclasses.replace(SMALL, features=8)
    found["settings"]["features"] = 8  # as if these checkpoints were copied into the folder of a wider network
    (tmp_path / "run" / run_record.RUN).write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"checkpoints/\d+ is a checkpoint of another run \(features: 4 -> 8\)"):
        loop.train(other, *scans, tmp_path / "run")


def test_a_checkpoint_records_the_settings_and_the_code_of_its_run(finished):
    folder = max((finished[0] / resume.CHECKPOINTS).iterdir(), key=lambda path: int(path.name))
    told = json.loads(next(path for path in (folder / "told").iterdir() if path.is_file()).read_text())
    assert told["made"]["settings"] == run_record.read(finished[0])["settings"]
    assert told["made"]["versions"] == provenance.versions() and "revision" in told["made"]


def test_the_revision_is_that_of_the_code_and_marks_uncommitted_changes(tmp_path, monkeypatch):
    def git(*words):
        name = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *name, *words], check=True, capture_output=True)

    def found():
        provenance.revision.cache_clear()
        return provenance.revision()

    file = tmp_path / "provenance.py"
    file.write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(file))
    try:
        assert found() is None  # no repository
        git("init")
        assert found() is None  # a repository that does not hold the file
        git("add", "provenance.py")
        git("commit", "-m", "first")
        clean = found()
        assert re.fullmatch("[0-9a-f]{40}", clean)
        file.write_text("2")
        assert found() == f"{clean}+"
    finally:
        provenance.revision.cache_clear()


def test_a_run_ends_early_after_so_many_epochs_without_improvement():
    values = [0.4, 0.9, 0.2, 0.3, 0.95, 0.1]
    history = [{"epoch": n, "validation": {"dice": value}} for n, value in enumerate(values, 1)]
    ends = {
        patience: [run_record.stops_early("dice", patience, history[:n]) for n in range(7)] for patience in (0, 1, 2)
    }
    assert ends[2] == [False, False, False, False, True, False, False]
    assert ends[1] == [False, False, False, True, True, False, True] and not any(ends[0])
    assert not any(run_record.stops_early("last", 1, history[:n]) for n in range(7))
