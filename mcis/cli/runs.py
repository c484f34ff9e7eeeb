"""`mcis runs`: a table of the results of runs, and of the settings in which they differ."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from flax.traverse_util import flatten_dict

from mcis.cli import common
from mcis.cli.common import PathText, print_table
from mcis.inference.options import takes
from mcis.train.run_record import RUN, Run, read_run

METRICS = {
    "accuracy": "acc",
    "balanced_accuracy": "bal\nacc",
    "nll": "nll",
    "dice_lesion": "dice\nlesion",
    "dice_patient": "dice\npatient",
    "false_masks": "false\nmasks",
}
"""Validation metrics that are shown if a run has them, and their column headings."""


@dataclasses.dataclass(frozen=True)
class RunsOptions:
    """Show the results of runs, and the settings in which they differ.

    Attributes:
      paths: runs, or folders of runs; by default ./runs.
      json: print one JSON object per run instead of a table.
    """

    paths: Annotated[tuple[PathText, ...], tyro.conf.Positional, takes("RUN...")] = ("runs",)
    json: bool = False


def main(argv: Sequence[str]) -> int:
    """The command."""
    return common.run("mcis runs", RunsOptions, show, argv)


def show(options: RunsOptions) -> int:
    """Print the runs; 1 if one of them is damaged."""
    runs: list[Run] = []
    damaged = 0
    for path in map(pathlib.Path, options.paths):
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder; name runs, or a folder of runs made by `mcis train`")
        single = (path / RUN).is_file() and read_run(path)
        for folder in [path] if single else sorted(folder for folder in path.iterdir() if folder.is_dir()):
            try:
                runs += [run] if (run := read_run(folder)) else []
            except ValueError as error:
                damaged += 1
                print(f"mcis runs: {error}", file=sys.stderr)
    if not runs and not damaged:
        raise ValueError(f"no run in {', '.join(options.paths)}: `mcis train --task=NAME` makes one")
    if options.json:
        for run, own in zip(runs, differing(runs), strict=True):
            row = {"run": str(run.path), "kept": run.kept, "epochs": len(run.epochs), "minutes": round(run.minutes, 1)}
            print(json.dumps(row | {"differs": own, "settings": run.settings, "sessions": run.sessions}))
    else:
        for task in dict.fromkeys(run.settings["name"] for run in runs):
            print_table(_table(task, [run for run in runs if run.settings["name"] == task]))
    return 1 if damaged else 0


def differing(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each run its settings, by dotted name, that differ among the runs of its task."""
    flat = [flatten_dict(run.settings, sep=".") for run in runs]
    found = []
    for settings in flat:
        same_task = [other for other in flat if other["name"] == settings["name"]]
        names = dict.fromkeys(name for other in same_task for name in other)
        found.append({n: settings.get(n) for n in names if any(o.get(n) != settings.get(n) for o in same_task)})
    return found


def _table(task: str, runs: Sequence[Run]) -> Any:
    """A `rich` table of one task's runs."""
    from rich.table import Table

    shown = [name for name in METRICS if any(run.kept and name in run.kept["validation"] for run in runs)]
    table = Table(title=task, title_justify="left")
    table.add_column("run", overflow="fold")
    for name in ("epochs", "min", "kept", *(METRICS[name] for name in shown)):
        table.add_column(name, no_wrap=True, justify="right")  # numbers are never cut
    table.add_column("differs in", overflow="fold")
    for run, own in zip(runs, differing(runs), strict=True):
        metrics = run.kept["validation"] if run.kept else {}
        hidden = ("data.train", "data.validation", "init_from", *(() if own.get("fold") else ("fold",)))
        differences = [f"{name} {value}" for name, value in own.items() if name not in hidden]
        if not own.get("fold") and any(name.startswith("data.") for name in own):
            differences.append("scans")
        table.add_row(
            run.path.name,
            run.state,
            f"{run.minutes:.1f}",
            str(run.kept["epoch"]) if run.kept else "none",
            *(f"{metrics[name]:.3f}" if name in metrics else "" for name in shown),
            ", ".join(differences) or ("nothing" if len(runs) > 1 else ""),
        )
    return table
