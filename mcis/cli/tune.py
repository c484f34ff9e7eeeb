"""`mcis tune RUN...`: choose the CRF of a segmentation run on its validation scans, or none."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mcis.calibration.tune_crf import NONE, PATIENTS, ROUNDS, VALUES, gain, joined, left_out, make_counts, search, worth
from mcis.data import dataset, storage
from mcis.ops.crf import CRF
from mcis.ops.metrics import mask_scores
from mcis.tasks.config import Names


def main(argv: Sequence[str]) -> int:
    """The command."""
    import tyro

    from mcis.cli.common import Options, exit_status, parse_dataclass

    @dataclasses.dataclass(frozen=True)
    class Tune(Options):
        """Choose the CRF of a segmentation run on its validation scans, and keep it with the weights.

        Attributes:
          runs: a run's folder, or a weights folder; or several fold runs, which get one CRF together.
          by: the metric it is chosen by; by default the one that chose the epoch, or dice_patient.
          sources: prepared data sets to tune on; by default those the task was trained on.
          dry_run: only show the table.
          always: keep the best CRF even where its gain may be chance, to measure what it does.
          off: choose nothing; take out the CRF that is kept with the weights.
        """

        runs: tyro.conf.Positional[tuple[str, ...]] = tyro.MISSING
        by: str | None = None
        sources: Names = ()
        dry_run: bool = False
        always: bool = False
        off: bool = False

    options = parse_dataclass(Tune, argv, "mcis tune")
    return exit_status("mcis tune", lambda: _main(options))


def _main(options: Any) -> int:
    from rich.progress import Progress

    from mcis.checkpoints.bundle import load_weights
    from mcis.cli.common import enable_compilation_cache
    from mcis.ops.metrics import MASK_METRICS

    enable_compilation_cache()
    if not options.runs:
        raise ValueError("name a run's folder or a weights folder")
    weights = [load_weights(run) for run in options.runs]
    task = weights[0].task
    by = options.by or (task.select if task.select in MASK_METRICS else "dice_patient")
    if not task.segments or by not in MASK_METRICS:
        raise ValueError(
            f"{options.runs[0]} holds {task.name}, and a CRF would be chosen by {by}: it takes a task that segments, "
            f"and --by one of {', '.join(MASK_METRICS)}"
        )
    if options.off and options.always:
        raise ValueError("--off and --always exclude each other: one takes the CRF out, the other puts one in")
    if options.off:
        return _keep(options, weights, NONE)
    parts = [
        (one, [r for r in records if bool(r["has_mask"]) and dataset.text(r["organ"]) == task.organ])
        for one, records in _scans(options, weights)
    ]
    count = sum(len(records) for _, records in parts)
    if not any(storage.decode(record)[1].any() for _, records in parts for record in records):
        raise ValueError("there is no outlined lesion among the scans to choose by")
    counts_of, found = joined([make_counts(task, one.variables, records) for one, records in parts if records]), {}
    with Progress(transient=True) as bar:
        row = bar.add_task("settings", total=1 + ROUNDS * sum(len(values) for values in VALUES.values()))

        def score(crf: CRF) -> float:
            found[crf] = counts_of(crf)
            bar.advance(row)
            return worth(found[crf], found[NONE], by)

        tried = search(score)
    for crf, _ in sorted(tried, key=lambda one: -one[1])[:10] + tried[:1]:
        scores = mask_scores(**found[crf])
        values = "  ".join(f"{name} {scores[name]:.4f}" for name in dict.fromkeys((by, "dice_lesion")))
        print(f"{values}  {_describe(crf)}")
    best = max(tried[1:], key=lambda one: one[1])[0]
    more, low, high = gain(left_out(found, by), found[NONE], by)
    patients = len(np.unique(found[NONE]["group"][found[NONE]["true"] > 0]))
    print(f"best: {_describe(best)}")
    print(
        f"what choosing gains, each group of scans by the CRF that is best for the others: {more:+.4f} "
        f"[{low:+.4f}, {high:+.4f}] {by}; {count} scans, {patients} groups with a lesion"
    )
    if not options.always and (patients < PATIENTS or not low > 0):
        why = "the gain may be chance" if patients >= PATIENTS else f"below {PATIENTS} groups nothing can be said"
        print(f"not kept: {why}. What there is stays: {_describe(task.crf)}. --always keeps the best")
        return 0
    return _keep(options, weights, best)


def _scans(options: Any, weights: Sequence[Any]) -> list[tuple[Any, list[dict[str, Any]]]]:
    """Each network and the records it is to answer, those that it has left out of its training."""
    from mcis.checkpoints.provenance import check_folds
    from mcis.data.records import read_records

    task = weights[0].task
    if len(weights) > 1:
        check_folds([(run, one.task, one.manifest) for run, one in zip(options.runs, weights, strict=True)])
    records = read_records(options.sources or task.sources, ("train", "validation"), options.data_dir, task.organ)
    found = []
    for run, one in zip(options.runs, weights, strict=True):
        mine = set(one.manifest["fingerprints"]["validation"])
        found.append((one, [records[i] for i, name in enumerate(records.fingerprints) if name in mine]))
        if not found[-1][1]:
            raise ValueError(
                f"{run} has left out none of the scans that are prepared here: there is nothing to choose by"
            )
    return found


def _keep(options: Any, weights: Sequence[Any], crf: CRF) -> int:
    """Write the weights anew with a CRF, unless the run is dry."""
    from mcis.checkpoints import checkpoint
    from mcis.tasks.table import task_to_json

    for run, one in zip(options.runs, weights, strict=True):
        before = one.task.crf
        if crf == before:
            print(f"nothing changes: {run} has {_describe(crf)}")
        elif options.dry_run:
            print(f"would keep: {_describe(crf)}; now: {_describe(before)}")
        else:
            folder = checkpoint.weights_folder(run)
            manifest = one.manifest | {"task": task_to_json(dataclasses.replace(one.task, crf=crf))}
            half = any(dtype == "float16" for dtype, _ in manifest["arrays"].values())
            checkpoint.save(folder, one.variables, manifest, half=half)
            print(f"kept in {folder}: {_describe(crf)}; before: {_describe(before)}")
    return 0


def _describe(crf: CRF) -> str:
    if not crf.steps:
        return "no CRF"
    return ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(crf).items())
