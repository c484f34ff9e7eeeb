"""`mcis runs`: what runs have reached, side by side, and in what they differ."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from mcis.command import exit_status, parse_dataclass, print_table

FIGURES = ("accuracy", "balanced_accuracy", "nll", "dice_lesion", "dice_patient", "false_masks")
"""Validation figures that are shown, where a run has them."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Attributes:
      path: the folder.
      settings: its task's fields, seed and data, as run.json has them.
      sessions: when and how it was begun and gone on with.
      epochs: the log's lines.
    """

    path: pathlib.Path
    settings: dict[str, Any]
    sessions: list[dict[str, Any]]
    epochs: list[dict[str, Any]]

    @property
    def kept(self) -> dict[str, Any] | None:
        """The log's line of the epoch whose weights are kept."""
        from mcis.train.loop import kept

        return kept(self.settings["select"], self.epochs)

    @property
    def minutes(self) -> float:
        """How long it has trained and validated."""
        return sum(line["train_seconds"] + line["validation_seconds"] for line in self.epochs) / 60


def read_run(path: pathlib.Path) -> Run | None:
    """A run's folder; None where it is none. A damaged one is a ValueError."""
    from mcis.train import record
    from mcis.train.loop import LOG

    if (found := record.read(path)) is None:
        return None
    lines = (path / LOG).read_text(encoding="utf-8").splitlines() if (path / LOG).exists() else []
    try:
        return Run(path, found["settings"], found["sessions"], [json.loads(line) for line in lines])
    except ValueError:
        raise ValueError(f"{path / LOG} is damaged; going on with the run writes it anew") from None


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
    from rich.table import Table

    runs = []
    for path in map(pathlib.Path, options.paths):
        if not path.is_dir():
            raise ValueError(f"{path}: there is no such folder; name runs, or a folder of runs")
        alone = read_run(path)
        below = (read_run(folder) for folder in sorted(path.iterdir()) if folder.is_dir())
        runs += [alone] if alone else [run for run in below if run is not None]
    if not runs:
        raise ValueError(f"no run in {', '.join(options.paths)}: `mcis train --task=NAME` makes one")
    if options.json:
        for run, own in zip(runs, differing(runs), strict=True):
            told = {"run": str(run.path), "kept": run.kept, "epochs": len(run.epochs), "minutes": round(run.minutes, 1)}
            print(json.dumps(told | {"differs": own, "settings": run.settings, "sessions": run.sessions}))
        return 0
    shown = [name for name in FIGURES if any(run.kept and name in run.kept["validation"] for run in runs)]
    table = Table("run", "network", "epochs", "minutes", "kept", *shown, "differs in")
    for run, own in zip(runs, differing(runs), strict=True):
        kept, of = run.kept, run.settings
        figures = kept["validation"] if kept else {}
        own = {name: value for name, value in own.items() if not name.startswith("data.") and name != "init_from"}
        table.add_row(
            run.path.name,
            f"{of['model']} {of['features']}, {of['size']} px",
            f"{len(run.epochs)} of {of['epochs']}",
            f"{run.minutes:.1f}",
            f"{kept['epoch']}, {of['select']}" if kept else "none yet",
            *(f"{figures[name]:.3f}" if name in figures else "" for name in shown),
            ", ".join(f"{name} {value}" for name, value in own.items()) or "nothing",
        )
    print_table(table)
    return 0
