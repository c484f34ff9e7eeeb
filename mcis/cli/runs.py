"""`mcis runs`: what runs have reached, side by side, and in what they differ."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from mcis.cli.common import exit_status, parse_dataclass, print_table
from mcis.train.run_record import Run, read_run

FIGURES = {
    "accuracy": "acc",
    "balanced_accuracy": "bal\nacc",
    "nll": "nll",
    "dice_lesion": "dice\nlesion",
    "dice_patient": "dice\npatient",
    "false_masks": "false\nmasks",
}
"""Validation figures that are shown, where a run has them, and what stands above them."""


def differing(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run the settings that not all runs of its task share, by dotted name."""
    flat = [_flatten(run.settings) for run in runs]
    found = []
    for mine in flat:
        alike = [other for other in flat if other["name"] == mine["name"]]
        names = dict.fromkeys(name for other in alike for name in other)
        found.append({n: mine.get(n) for n in names if any(other.get(n) != mine.get(n) for other in alike)})
    return found


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def main(argv: Sequence[str]) -> int:
    """The command."""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class Runs:
        """What runs have reached, side by side, and in what they differ.

        Attributes:
          paths: runs, or folders of runs; by default ./runs.
          json: print one JSON object a run instead of a table.
        """

        paths: tyro.conf.Positional[tuple[str, ...]] = ("runs",)
        json: bool = False

    options = parse_dataclass(Runs, argv, "mcis runs")
    return exit_status("mcis runs", lambda: _main(options))


def _main(options: Any) -> int:
    from mcis.train.run_record import RUN

    runs: list[Run] = []
    damaged = 0
    for path in map(pathlib.Path, options.paths):
        if not path.is_dir():
            raise ValueError(
                f"{path}: there is no such folder; name runs, or a folder of runs, which `mcis train` makes"
            )
        alone = (path / RUN).is_file() and read_run(path)
        for folder in [path] if alone else sorted(folder for folder in path.iterdir() if folder.is_dir()):
            try:
                runs += [run] if (run := read_run(folder)) else []
            except ValueError as error:
                damaged += 1
                print(f"mcis runs: {error}", file=sys.stderr)
    if not runs and not damaged:
        raise ValueError(f"no run in {', '.join(options.paths)}: `mcis train --task=NAME` makes one")
    if options.json:
        for run, own in zip(runs, differing(runs), strict=True):
            told = {"run": str(run.path), "kept": run.kept, "epochs": len(run.epochs), "minutes": round(run.minutes, 1)}
            print(json.dumps(told | {"differs": own, "settings": run.settings, "sessions": run.sessions}))
        return 1 if damaged else 0
    for task in dict.fromkeys(run.settings["name"] for run in runs):
        print_table(_table(task, [run for run in runs if run.settings["name"] == task]))
    return 1 if damaged else 0


def _table(task: str, runs: Sequence[Run]) -> Any:
    """A `rich` table of one task's runs."""
    from rich.table import Table

    shown = [name for name in FIGURES if any(run.kept and name in run.kept["validation"] for run in runs)]
    table = Table(title=task, title_justify="left")
    table.add_column("run", overflow="fold")
    for name in ("epochs", "min", "kept", *(FIGURES[name] for name in shown)):
        table.add_column(name, no_wrap=True, justify="right")  # a figure that is cut is none
    table.add_column("differs in", overflow="fold")
    for run, own in zip(runs, differing(runs), strict=True):
        figures = run.kept["validation"] if run.kept else {}
        hidden = ("data.train", "data.validation", "init_from", *(() if own.get("fold") else ("fold",)))
        said = [f"{name} {value}" for name, value in own.items() if name not in hidden]
        if not own.get("fold") and any(name.startswith("data.") for name in own):
            said.append("scans")
        table.add_row(
            run.path.name,
            run.state,
            f"{run.minutes:.1f}",
            str(run.kept["epoch"]) if run.kept else "none",
            *(f"{figures[name]:.3f}" if name in figures else "" for name in shown),
            ", ".join(said) or ("nothing" if len(runs) > 1 else ""),
        )
    return table
