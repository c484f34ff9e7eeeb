"""`mcis shortcuts --task=NAME`: how much of a task can be predicted from image metadata alone."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mcis.data import dataset
from mcis.data.records import read_records
from mcis.evaluation.metrics import read_report
from mcis.evaluation.shortcuts import BETTER, METRICS, answered, audit, folded_answers, frames_of, network_answers
from mcis.ops.metrics import with_interval
from mcis.tasks.config import Names
from mcis.tasks.table import task_named


def print_audit(found: dict[str, Any]) -> None:
    """The audit as a table on standard output, and below it what could not be scored."""
    from rich.table import Table

    from mcis.cli.common import print_table

    table = Table(title=f"{found['task']}, {found['split']} split, from the frame: value [95 % interval by group]")
    parts = found["sources"] | {f"{name} left out": part for name, part in found["left_out"].items()}
    table.add_column("metric")
    table.add_column("what is seen")
    for name, part in parts.items():
        table.add_column(f"{name}\n{part['scans']} scans\n{part['groups']} groups", justify="right")
    for metric in METRICS:
        for who in dict.fromkeys(who for part in parts.values() for who in part["metrics"]):
            sign = "+" if who in BETTER.values() else ""
            said = [part["metrics"].get(who, {}).get(metric) for part in parts.values()]
            cells = ["" if one is None else with_interval(one, sign) for one in said]
            table.add_row(metric, who, *cells)
        table.add_section()
    print_table(table)
    for note in found["notes"]:
        print(note)


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0, or 2 when nothing was scored."""
    import tyro

    from mcis.cli.common import Options, exit_status, parse_dataclass

    @dataclasses.dataclass(frozen=True)
    class Shortcuts(Options):
        """Ask how much of a task can be read off size, border and grey of its scans, beside chance and a network.

        Attributes:
          task: whose labels; of a segmentation task, those of its label head.
          sources: prepared data sets; by default those of the task.
          split: validation or test, what is scored by what the training split teaches, at test once; or left_out, the
            training and validation scans, each fold by what the others teach: with --against, those that fold runs
            have left out.
          folds: number of folds of left_out: by group, and not the same that the runs have, where these have scans of
            unknown class or other sources.
          against: the folder, or its report.json, of a network's evaluation on the same scans, to stand beside the
            frame.
          out: JSON file to write.
        """

        task: str = tyro.MISSING
        sources: Names = ()
        split: str = "validation"
        folds: int = 5
        against: str | None = None
        out: str | None = None

    options = parse_dataclass(Shortcuts, argv, "mcis shortcuts")
    return exit_status("mcis shortcuts", lambda: _main(options))


def _main(options: Any) -> int:
    from mcis.checkpoints.checkpoint import is_weights_folder, write_text
    from mcis.cli.common import check_extra

    check_extra("evaluation", "sklearn")

    task, target = task_named(options.task), None
    splits = (*dataset.SPLITS[1:], dataset.LEFT_OUT)
    if options.split not in splits:
        allowed = ", ".join(splits)
        raise ValueError(f"--split={options.split}: allowed are {allowed}; the frame's models learn from train")
    if options.out is not None:  # asked before the work is done
        target = pathlib.Path(options.out)
        if any(map(is_weights_folder, target.resolve().parents)):
            raise ValueError(f"--out={target} lies in a weights folder, which takes no further files; name another")
        if target.is_dir() or not os.access(target.parent, os.W_OK):
            raise ValueError(f"--out={target} cannot be written: a file name in a folder that exists is needed")
    if options.folds < 2:
        raise ValueError(f"--folds={options.folds}: at least 2 are needed, one to score and one to learn from")
    report = None if options.against is None else read_report(options.against)
    sources = options.sources or task.sources
    said = None
    if options.split == dataset.LEFT_OUT:
        train = frames_of(task, read_records(sources, dataset.SPLITS[:2], options.data_dir, None))
        chosen = np.full(len(train.label), True) if report is None else answered(report, train)
        if not chosen.any():
            raise ValueError(f"--against has answered none of the scans of {', '.join(sources)}")
        scored = train.take(chosen)
        print(f"{len(scored.label)} of {len(train.label)} training and validation scans are scored")
        network = None if report is None else network_answers(report, task, options.split, scored)
        every = folded_answers(train, dataset.folds_of(train, options.folds), len(task.classes))
        said = {name: probs[chosen] for name, probs in every.items()}
    else:
        scored = frames_of(task, read_records(sources, (options.split,), options.data_dir, None))
        network = None if report is None else network_answers(report, task, options.split, scored)
        train = frames_of(task, read_records(sources, ("train",), options.data_dir, None))
    asked = {"task": task.name, "split": options.split, "against": options.against}
    found = asked | audit(task, train, scored, network, said=said)
    print_audit(found)
    if target is not None:
        write_text(target, json.dumps(found, indent=1, allow_nan=False) + "\n")
        print(f"{target} holds the same figures")
    return 0
