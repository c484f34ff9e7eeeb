"""`mcis runs`: the table of runs."""

import io
import json
import shutil

import pytest
from rich.console import Console

from mcis.cli import runs
from mcis.train import resume, run_record
from tests.fixtures.runs import SMALL

pytestmark = pytest.mark.usefixtures("tiny")


def change(run_dir, **settings):
    """Change settings in the record of a run."""
    record = run_record.read(run_dir)
    (run_dir / run_record.RUN).write_text(json.dumps(record | {"settings": record["settings"] | settings}))


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    """Two runs of one task, one of them stopped after its first epoch, and another folder."""
    folder = tmp_path_factory.mktemp("several")
    for name in ("first", "second"):
        shutil.copytree(finished[0], folder / name, ignore=shutil.ignore_patterns(resume.CHECKPOINTS))
    (folder / "notes").mkdir()
    change(folder / "second", seed=1, learning_rate=0.02)
    log = folder / "second" / run_record.LOG
    log.write_text(log.read_text().splitlines()[0] + "\n")
    return folder


def test_runs_are_listed_with_what_they_have_reached_and_how_they_differ(folder, finished, capsys):
    assert runs.main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    first, second = (next(line for line in lines if name in line) for name in ("first", "second"))
    assert "route" in lines[0] and "3/3" in first and f" {finished[1]['epoch']} " in first
    assert (
        f"{finished[1]['validation']['accuracy']:.3f}" in first and f"{finished[1]['validation']['nll']:.3f}" in first
    )
    assert "1/3" in second and "seed 1, learning_rate 0.02" in second
    assert "seed 0, learning_rate 0.01" in first and "features" not in first
    assert runs.main([str(folder / "first")]) == 0  # a single run differs from none
    single = capsys.readouterr().out
    assert "3/3" in single and "seed" not in single and "nothing" not in single


def test_no_number_is_cut_in_a_narrow_terminal(folder, finished):
    found, printed = [runs.read_run(folder / name) for name in ("first", "second")], io.StringIO()
    Console(width=80, file=printed).print(runs._table("route", found))
    lines = printed.getvalue().splitlines()
    assert any(f"{finished[1]['validation']['accuracy']:.3f}" in line for line in lines)
    assert not any("…" in line for line in lines) and max(map(len, lines)) <= 80


def test_runs_as_json_hold_everything_that_is_recorded(folder, finished, capsys):
    assert runs.main([str(folder), "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["kept"] == finished[1] and first["settings"]["select"] == SMALL.select
    assert first["differs"] == {"seed": 0, "learning_rate": 0.01} and second["differs"]["learning_rate"] == 0.02
    assert len(first["sessions"]) == len(second["sessions"]) == 1
    assert first["minutes"] >= 0 and (first["epochs"], second["epochs"]) == (3, 1)


def test_missing_and_damaged_runs_are_reported(folder, tmp_path, capsys):
    assert runs.main([str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert runs.main([str(tmp_path)]) == 2
    assert "no run in" in capsys.readouterr().err
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / run_record.RUN).write_text('{"options": {}}')  # written by `mcis predict`
    shutil.copytree(folder / "first", tmp_path / "whole")
    damages = [(run_record.RUN, '{"settings": 1}'), (run_record.RUN, '{"settings": {"name": "route"}, "sessions": []}')]
    damages += [(run_record.LOG, "{"), (run_record.LOG, '{"epoch": 1}'), (run_record.LOG, "\udcff")]
    for number, (name, content) in enumerate(damages):
        shutil.copytree(folder / "first", tmp_path / f"damaged{number}")
        (tmp_path / f"damaged{number}" / name).write_text(content, errors="surrogateescape")
    assert runs.main([str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "whole" in printed.out and "findings" not in printed.out and "damaged" not in printed.out
    lines = printed.err.splitlines()
    assert len(lines) == len(damages)
    for number, line in enumerate(lines):
        assert f"damaged{number}" in line and "is damaged" in line


def test_folds_and_other_scans_are_shown_as_differences(folder, tmp_path, capsys):
    for name, settings in (
        ("one", {"fold": "0/5"}),
        ("two", {"fold": "1/5"}),
        ("three", {"data": {"train": "x", "validation": "y"}}),
    ):
        shutil.copytree(folder / "first", tmp_path / name)
        change(tmp_path / name, **settings)
    assert runs.main([str(tmp_path)]) == 0
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1}
    assert "fold 0/5" in lines["one"] and "fold 1/5" in lines["two"] and ", scans" not in lines["one"]
    assert "scans" in lines["three"] and "fold" not in lines["three"]
