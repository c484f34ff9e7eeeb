"""`mcis shortcuts --task=NAME`: how well a task's labels can be predicted from image metadata alone."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from mcis.cli.common import Options, PathText, check_extra, print_table, run
from mcis.inference.options import choice, takes


@dataclasses.dataclass(frozen=True)
class Shortcuts(Options):
    """Measure how well a task's labels can be predicted from size, border and grey levels of its scans alone.

    Attributes:
      task: task whose labels are predicted; for a segmentation task, the labels of its label head.
      sources: prepared data sets, separated by commas; by default those of the task.
      split: validation or test (use it only once): the models learn from the training split. Or left_out: the models
        are cross-validated on the training and validation scans; with --against, only scans of that evaluation are
        scored.
      folds: number of folds for left_out; groups stay whole. These folds may differ from those of the fold runs, if the
        runs have other sources or scans of unknown class.
      against: folder of an evaluation of a network on the same scans, or its report.json, to compare with; by default
        none.
      out: JSON file to write; by default only a table is printed.
    """

    task: Annotated[str, tyro.conf.arg(metavar="TASK")] = tyro.MISSING
    sources: Annotated[str, takes("A,B,...")] = ""
    split: Annotated[str, choice(("validation", "test", "left_out"))] = "validation"
    folds: Annotated[int, tyro.conf.arg(metavar="N")] = 5
    against: Annotated[PathText | None, takes("PATH")] = None
    out: Annotated[PathText | None, takes("FILE")] = None


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0, or 2 when nothing was scored."""
    return run("mcis shortcuts", Shortcuts, _main, argv)


def _main(options: Shortcuts) -> int:
    import numpy as np

    from mcis.checkpoints.checkpoint import is_weights_folder
    from mcis.data import dataset
    from mcis.data.records import read_records
    from mcis.evaluation import shortcuts
    from mcis.evaluation.metrics import read_report
    from mcis.files import write_text
    from mcis.tasks.table import task_named

    task, target = task_named(options.task), None
    splits = (*dataset.SPLITS[1:], dataset.LEFT_OUT)
    if options.split not in splits:
        raise ValueError(f"--split={options.split}: allowed are {', '.join(splits)}; the models learn from train")
    if options.out is not None:  # checked before the work is done
        target = pathlib.Path(options.out)
        if any(map(is_weights_folder, target.resolve().parents)):
            raise ValueError(f"--out={target} lies in a weights folder, which takes no further files; choose another")
        if target.is_dir() or not os.access(target.parent, os.W_OK):
            raise ValueError(f"--out={target} cannot be written: a file name in an existing folder is needed")
    if options.folds < 2:
        raise ValueError(f"--folds={options.folds}: must be at least 2")
    check_extra("evaluation", "sklearn")
    report = None if options.against is None else read_report(options.against)
    sources = tuple(filter(None, options.sources.split(","))) or task.sources

    def metadata(*chosen: str) -> shortcuts.ImageMetadata:
        return shortcuts.metadata_of(task, read_records(sources, chosen, options.data_dir, None))

    def network(scored: shortcuts.ImageMetadata) -> Any:
        return None if report is None else shortcuts.network_predictions(report, task, options.split, scored)

    if options.split == dataset.LEFT_OUT:
        train = metadata(*dataset.SPLITS[:2])
        chosen = np.ones(len(train), bool) if report is None else shortcuts.in_report(report, train)
        scored = train.take(chosen)
        if not len(scored):
            raise ValueError(f"--against has none of the scans of {', '.join(sources)}")
        print(f"{len(scored)} of {len(train)} training and validation scans are scored")
        probs = network(scored)
        fold = dataset.folds_of(train.rows, options.folds)
        every = shortcuts.cross_predictions(train, fold, len(task.classes))
        found = shortcuts.audit(task, train, scored, probs, predicted={name: p[chosen] for name, p in every.items()})
    else:
        scored = metadata(options.split)
        probs = network(scored)
        found = shortcuts.audit(task, metadata("train"), scored, probs)
    found = {"task": task.name, "split": options.split, "against": options.against} | found
    print_audit(found)
    if target is not None:
        write_text(target, json.dumps(found, indent=1, allow_nan=False) + "\n")
        print(f"written to {target}")
    return 0


def print_audit(found: dict[str, Any]) -> None:
    """Print the audit as a table, and below it what could not be scored."""
    from rich.table import Table

    from mcis.evaluation.shortcuts import LEADS, METRICS
    from mcis.ops.metrics import with_interval

    table = Table(title=f"{found['task']}, {found['split']} split, from metadata alone: value [95 % interval by group]")
    parts = found["sources"] | {f"{name} by the others": part for name, part in found["left_out"].items()}
    table.add_column("metric")
    table.add_column("predicted from")
    for name, part in parts.items():
        table.add_column(f"{name}\n{part['scans']} scans\n{part['groups']} groups", justify="right")
    for metric in METRICS:
        for name in dict.fromkeys(name for part in parts.values() for name in part["metrics"]):
            sign = "+" if name in LEADS.values() else ""
            values = [part["metrics"].get(name, {}).get(metric) for part in parts.values()]
            table.add_row(metric, name, *["" if value is None else with_interval(value, sign) for value in values])
        table.add_section()
    print_table(table)
    for note in found["notes"]:
        print(note)
