"""Runs side by side."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest

from mcis.cli import runs
from mcis.train import loop, run_record
from tests.fixtures.runs import SMALL


@pytest.fixture(scope="module")
def folder(finished, scans, tmp_path_factory):
    """Two runs of one task, one of them stopped after its first epoch, and something else."""
    folder = tmp_path_factory.mktemp("side by side")
    shutil.copytree(finished[0], folder / "first")
    (folder / "notes").mkdir()
    steps = 0

    def stop():
        nonlocal steps
        steps += 1
        return (folder / "second" / loop.LOG).exists() and bool((folder / "second" / loop.LOG).read_text())

    with pytest.raises(loop.Interrupted):
        loop.train(dataclasses.replace(SMALL, learning_rate=0.02), *scans, folder / "second", seed=1, stop=stop)
    return folder


def test_runs_are_listed_with_what_they_kept_and_in_what_they_differ(folder, finished, capsys):
    assert runs.main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = (next(line for line in lines if name in line) for name in ("first", "second"))
    assert "route" in lines[0] and "3/3" in first and f" {finished[1]['epoch']} " in first
    assert (
        f"{finished[1]['validation']['accuracy']:.3f}" in first and f"{finished[1]['validation']['nll']:.3f}" in first
    )
    assert "1/3" in second and "seed 1, learning_rate 0.02" in second
    assert "seed 0, learning_rate 0.01" in first and "features" not in first
    assert runs.main([str(folder / "first")]) == 0  # a run itself; alone it differs from nobody
    alone = capsys.readouterr().out
    assert "3/3" in alone and "seed" not in alone and "nothing" not in alone


def test_no_figure_is_cut_in_a_narrow_terminal(folder, finished):
    program = "import io, sys; from rich.console import Console; from mcis.cli import runs; import pathlib; "
    program += f"found = [runs.read_run(pathlib.Path({str(folder)!r}) / name) for name in ('first', 'second')]; "
    program += "Console(width=80).print(runs._table('route', found))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert f"{finished[1]['validation']['accuracy']:.3f}" in done.stdout and "…" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_runs_as_json_hold_all_that_is_known(folder, finished, capsys):
    assert runs.main([str(folder), "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["kept"] == finished[1] and first["settings"]["select"] == SMALL.select
    assert first["differs"] == {"seed": 0, "learning_rate": 0.01} and second["differs"]["learning_rate"] == 0.02
    assert len(first["sessions"]) == len(second["sessions"]) == 1
    assert first["minutes"] >= 0 and (first["epochs"], second["epochs"]) == (3, 1)


def test_where_there_is_no_run_or_a_damaged_one_that_is_said(folder, tmp_path, capsys):
    assert runs.main([str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert runs.main([str(tmp_path)]) == 2
    assert "no run in" in capsys.readouterr().err
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / run_record.RUN).write_text('{"options": {}}')  # of `mcis predict`
    shutil.copytree(folder / "first", tmp_path / "whole")
    damages = [(run_record.RUN, '{"settings": 1}'), (run_record.RUN, '{"settings": {"name": "route"}, "sessions": []}')]
    damages += [(loop.LOG, "{"), (loop.LOG, '{"epoch": 1}')]
    for number, (name, content) in enumerate(damages):
        shutil.copytree(folder / "first", tmp_path / f"damaged{number}")
        (tmp_path / f"damaged{number}" / name).write_text(content)
    assert runs.main([str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "whole" in said.out and "findings" not in said.out and "damaged" not in said.out
    lines = said.err.splitlines()
    assert len(lines) == len(damages)
    for number, line in enumerate(lines):
        assert f"damaged{number}" in line and "is damaged" in line


def test_folds_are_told_apart_and_other_scans_are_said(folder, finished, tmp_path, capsys):
    for name, change in (
        ("one", {"fold": "0/5"}),
        ("two", {"fold": "1/5"}),
        ("three", {"data": {"train": "x", "validation": "y"}}),
    ):
        shutil.copytree(finished[0], tmp_path / name)
        found = run_record.read(tmp_path / name)
        (tmp_path / name / run_record.RUN).write_text(json.dumps(found | {"settings": found["settings"] | change}))
    assert runs.main([str(tmp_path)]) == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1}
    assert "fold 0/5" in lines["one"] and "fold 1/5" in lines["two"] and ", scans" not in lines["one"]
    assert "scans" in lines["three"] and "fold" not in lines["three"]
