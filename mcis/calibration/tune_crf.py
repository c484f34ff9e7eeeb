"""`mcis tune RUN...`: choose the CRF of a segmentation run on its validation scans, or none where none helps.

Of several runs, which are folds, each answers the scans that it has left out, and one CRF is chosen for all.

The network answers once; then the CRF's strengths are searched one after the other, each over a few values, twice
round; the number of updates stays. The best one has the highest value of a metric, by default the one that chose the
epoch, less what lesion scans lose by it. After so many trials on few patients something always looks better, so that
choosing is judged as a whole: each patient is scored with the setting that is best for the others, and the gain must
hold over patients. The test split is not looked at.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mcis.data import dataset, storage
from mcis.imaging import letterbox
from mcis.ops.crf import CRF
from mcis.ops.metrics import MASK_THRESHOLD, mask_counts, mask_scores
from mcis.tasks.config import Names, Task

BATCH = 8
VALUES: dict[str, tuple[float, ...]] = {
    "weight": (1.0, 2.0, 4.0, 7.0, 10.0),
    "sigma": (5.0, 10.0, 20.0, 40.0, 80.0),
    "grey_sigma": (1.5, 3.0, 6.0, 13.0, 26.0),
    "smooth_weight": (0.0, 1.0, 3.0, 6.0),
    "smooth_sigma": (1.0, 2.0, 3.0),
}
"""What is tried for each strength; sigmas in pixels of the network's size."""
ROUNDS = 2
NONE = CRF(steps=0)
PATIENTS = 5
"""Fewest patients with a lesion from whom a CRF is chosen."""

DOUBT = 0.3
"""Below this probability everywhere no CRF of VALUES outlines anything. By the field's definition 0.5 would do, for all
messages are the background's then; but kernels cut to few factors have small negative lobes (`ops.crf`)."""

Counts = dict[str, np.ndarray]
"""Pixel counts both, predicted, true of N scans, int (N,); and group, str (N,), their patients."""


def search(score: Callable[[CRF], float], rounds: int = ROUNDS) -> list[tuple[CRF, float]]:
    """Every setting that was tried with its score, in order: none first, then one strength at a time from the best.

    Args:
      score: higher is better.
      rounds: how often each strength has its turn.
    """
    tried: dict[CRF, float] = {}

    def ask(crf: CRF) -> float:
        if crf not in tried:
            tried[crf] = score(crf)
        return tried[crf]

    ask(NONE)
    best = CRF()
    for _ in range(rounds):
        for name, values in VALUES.items():
            changes: list[dict[str, Any]] = [{name: value} for value in values]
            choices = [dataclasses.replace(best, **change) for change in changes]
            best = max([best, *choices], key=ask)
    return list(tried.items())


def worth(counts: Counts, without: Counts, select: str) -> float:
    """What a CRF is chosen by: the metric `select`, less what the lesion scans' Dice lost against `without` a CRF.

    A metric over patients, or one in which empty scans count, hardly sees a small lesion that is smoothed away.
    """
    scores, before = mask_scores(**counts), mask_scores(**without)
    return scores[select] - max(0.0, before["dice_lesion"] - scores["dice_lesion"])


def left_out(found: dict[CRF, Counts], select: str) -> Counts:
    """Counts in which each patient's scans are answered by the CRF, or none, that is best without that patient."""
    without = found[NONE]
    answered = {name: values.copy() for name, values in without.items()}
    for patient in np.unique(without["group"]):
        mine = without["group"] == patient
        others = {crf: _rows(counts, ~mine) for crf, counts in found.items()}
        if not others[NONE]["true"].any():  # no lesion is left to choose by
            continue
        best = max(found, key=lambda crf: worth(others[crf], others[NONE], select))
        for name, values in found[best].items():
            answered[name][mine] = values[mine]
    return answered


def gain(counts: Counts, without: Counts, select: str) -> tuple[float, float, float]:
    """What some counts are worth more than those without a CRF, and its 95 % jackknife interval over patients.

    A bootstrap is too sure of so few patients. The interval is (nan, nan) where no patient can be left out.
    """
    from scipy import stats

    def more(rows: np.ndarray) -> float:
        before = _rows(without, rows)
        return worth(_rows(counts, rows), before, select) - mask_scores(**before)[select]

    group = without["group"]
    patients = [patient for patient in np.unique(group) if without["true"][group != patient].any()]
    whole = more(np.ones(len(group), bool))
    if len(patients) < 2:
        return whole, math.nan, math.nan
    left = np.array([more(group != patient) for patient in patients])
    parts = len(patients) * whole - (len(patients) - 1) * left  # Tukey's pseudo-values
    half = stats.t.ppf(0.975, len(parts) - 1) * parts.std(ddof=1) / math.sqrt(len(parts))
    return whole, float(parts.mean() - half), float(parts.mean() + half)


def _rows(counts: Counts, index: np.ndarray) -> Counts:
    return {name: values[index] for name, values in counts.items()}


def make_counts(task: Task, variables: dict[str, Any], records: Sequence[dict[str, Any]]) -> Callable[[CRF], Counts]:
    """The counts of scans as a function of the CRF; the network runs here, once.

    Only scans with a pixel above DOUBT go through a CRF; the others have no mask by any.
    """
    import jax

    from mcis.tasks.apply import make_network, on_canvas

    network = jax.jit(make_network(task))
    true = np.zeros(len(records), int)
    doubtful: list[tuple[int, np.ndarray, np.ndarray]] = []  # a scan's number, probabilities and picture
    truths, geometries = [], []
    for start in range(0, len(records), BATCH):
        squares = np.zeros((BATCH, letterbox.CANVAS, letterbox.CANVAS, 3), np.uint8)
        rows = range(start, min(start + BATCH, len(records)))
        for i, row in enumerate(rows):
            image, mask = storage.decode(records[row])
            squares[i], geometry = letterbox.fit(image)
            truths.append(mask)
            geometries.append(geometry)
            true[row] = np.count_nonzero(mask)
        outputs, prepared = network(variables, squares)
        masks, pictures = np.asarray(outputs.mask), np.asarray(prepared)
        doubtful += [(row, masks[i], pictures[i]) for i, row in enumerate(rows) if masks[i].max() > DOUBT]
    groups = np.array([f"{dataset.text(r['source'])}/{dataset.text(r['group'])}" for r in records])
    refine = jax.jit(on_canvas, static_argnums=(2, 3))

    def counts_of(crf: CRF) -> Counts:
        both, predicted = np.zeros_like(true), np.zeros_like(true)
        for start in range(0, len(doubtful), BATCH):
            rows, masks, pictures = zip(*doubtful[start : start + BATCH], strict=True)
            fill = [(0, BATCH - len(rows)), (0, 0), (0, 0), (0, 0)]  # compiled once
            batch = (np.pad(np.stack(values), fill) for values in (masks, pictures))
            refined = np.asarray(refine(*batch, crf, (letterbox.CANVAS, letterbox.CANVAS)))
            for i, row in enumerate(rows):
                found = letterbox.unfit(refined[i, ..., 0], geometries[row]) > MASK_THRESHOLD
                counts = mask_counts(found[None, ..., None], truths[row][None])
                both[row], predicted[row] = counts["both"][0], counts["predicted"][0]
        return {"both": both, "predicted": predicted, "true": true, "group": groups}

    return counts_of


def joined(parts: Sequence[Callable[[CRF], Counts]]) -> Callable[[CRF], Counts]:
    """The counts of several networks' scans, one after the other, as a function of the CRF."""

    def counts_of(crf: CRF) -> Counts:
        found = [part(crf) for part in parts]
        return {name: np.concatenate([counts[name] for counts in found]) for name in found[0]}

    return counts_of


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
    from mcis.evaluation.results import read_records

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
    from mcis.tasks.config import task_to_json

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
