"""`mcis tune RUN...`: choose the CRF of a segmentation run on its validation scans, or none."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mcis.cli.common import Options, PathText, enable_compilation_cache, run
from mcis.inference.options import takes

if TYPE_CHECKING:
    from mcis.checkpoints.bundle import Weights
    from mcis.data.records import Records
    from mcis.ops.crf import CRF


@dataclasses.dataclass(frozen=True)
class Tune(Options):
    """Choose the CRF of a segmentation run on its validation scans, and keep it with the weights.

    Attributes:
      runs: folder of a run, or a weights folder; or those of several fold runs, which get the same CRF.
      by: metric that the CRF is chosen by; by default the one that chose the epoch, or dice_patient.
      sources: prepared data sets to tune on, separated by commas; by default those the task was trained on.
      dry_run: only print the table.
      always: keep the best CRF even if its gain may be due to chance, to measure its effect.
      off: remove the CRF that is kept with the weights; choose none.
    """

    runs: Annotated[tuple[PathText, ...], tyro.conf.Positional, takes("RUN...")] = tyro.MISSING
    by: Annotated[str | None, takes("METRIC")] = None
    sources: Annotated[str, takes("A,B,...")] = ""
    dry_run: bool = False
    always: bool = False
    off: bool = False


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0, or 2 when nothing was chosen."""
    return run("mcis tune", Tune, _main, argv)


def _main(options: Tune) -> int:
    import numpy as np
    from rich.progress import Progress

    from mcis.calibration import tune_crf
    from mcis.checkpoints.bundle import load_weights
    from mcis.inference.rows import Rows
    from mcis.ops.metrics import MASK_METRICS, mask_scores

    enable_compilation_cache()
    if not options.runs:
        raise ValueError("name a run's folder or a weights folder")
    weights = [load_weights(path) for path in options.runs]
    task = weights[0].task
    by = options.by or (task.select if task.select in MASK_METRICS else "dice_patient")
    if not task.segments:
        raise ValueError(f"{options.runs[0]} holds {task.name}, which has no masks; name a run of a segmentation task")
    if by not in MASK_METRICS:
        raise ValueError(f"--by={by}: must be one of {', '.join(MASK_METRICS)}")
    if options.off and options.always:
        raise ValueError("--off and --always exclude each other: one removes the CRF, the other keeps one")
    if options.off:
        return _keep(options, weights, tune_crf.NONE)
    parts = [tune_crf.make_rows(task, one.variables, records) for one, records in _held_out(options, weights)]
    found: dict[CRF, Rows] = {}
    with Progress(transient=True) as bar:
        progress = bar.add_task("settings", total=1 + tune_crf.ROUNDS * sum(map(len, tune_crf.VALUES.values())))

        def score(crf: "CRF") -> float:
            found[crf] = Rows.concatenate([rows_of(crf) for rows_of in parts])
            if not found[crf].true.any():
                raise ValueError("none of the scans has an outlined lesion: there is nothing to choose by")
            bar.advance(progress)
            return tune_crf.objective(found[crf], found[tune_crf.NONE], by)

        tried = tune_crf.search(score)
    for crf, _ in sorted(tried, key=lambda one: -one[1])[:10] + tried[:1]:
        scores = mask_scores(*found[crf].counts, found[crf].group)
        values = "  ".join(f"{name} {scores[name]:.4f}" for name in dict.fromkeys((by, "dice_lesion")))
        print(f"{values}  {_describe(crf)}")
    best = max(tried[1:], key=lambda one: one[1])[0]
    without = found[tune_crf.NONE]
    more, low, high = tune_crf.gain(tune_crf.cross_validated(found, by), without, by)
    patients = len(np.unique(without.group[without.true > 0]))
    print(f"best: {_describe(best)}")
    print(
        f"cross-validated gain of choosing a CRF: {more:+.4f} [{low:+.4f}, {high:+.4f}] {by}; {len(without)} scans, "
        f"{patients} groups with a lesion"
    )
    if not options.always and (patients < tune_crf.PATIENTS or not low > 0):
        few = f"fewer than {tune_crf.PATIENTS} groups are too few to tell"
        why = few if patients < tune_crf.PATIENTS else "the gain may be chance"
        print(f"not kept: {why}. The weights stay as they are: {_describe(task.crf)}. --always keeps the best")
        return 0
    return _keep(options, weights, best)


def _held_out(options: Tune, weights: Sequence["Weights"]) -> list[tuple["Weights", "Records"]]:
    """Each network and its held-out scans whose mask is known."""
    from mcis.checkpoints.provenance import check_folds
    from mcis.data.records import read_records
    from mcis.inference.folds import held_out_scans

    task = weights[0].task
    if len(weights) > 1:
        check_folds([(path, one.task, one.manifest) for path, one in zip(options.runs, weights, strict=True)])
    sources = tuple(filter(None, options.sources.split(","))) or task.sources
    records = read_records(sources, ("train", "validation"), options.data_dir, task.organ)
    by_run = dict(zip(options.runs, weights, strict=True))
    found = []
    for path, index in held_out_scans(
        {path: one.manifest for path, one in by_run.items()}, records.fingerprints
    ).items():
        if not len(index):
            raise ValueError(f"none of the scans that {path} holds out is prepared here: there is nothing to choose by")
        masked = [i for i in index.tolist() if bool(records[i]["has_mask"])]
        if masked:
            found.append((by_run[path], records.take(masked)))
    if not found:
        raise ValueError("none of the scans has an outlined lesion: there is nothing to choose by")
    return found


def _keep(options: Tune, weights: Sequence["Weights"], crf: "CRF") -> int:
    """Write the weights anew with a CRF, unless the run is dry."""
    from mcis.checkpoints import checkpoint
    from mcis.tasks.table import task_to_json

    for path, one in zip(options.runs, weights, strict=True):
        before = one.task.crf
        if crf == before:
            print(f"unchanged: {path} has {_describe(crf)}")
        elif options.dry_run:
            print(f"would keep: {_describe(crf)}; now: {_describe(before)}")
        else:
            folder = checkpoint.weights_folder(path)
            manifest: dict[str, Any] = one.manifest | {"task": task_to_json(dataclasses.replace(one.task, crf=crf))}
            checkpoint.save(folder, one.variables, manifest, half=one.half)
            print(f"kept in {folder}: {_describe(crf)}; before: {_describe(before)}")
    return 0


def _describe(crf: "CRF") -> str:
    return ", ".join(f"{name} {value:g}" for name, value in vars(crf).items()) if crf.steps else "no CRF"
