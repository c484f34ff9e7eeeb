"""`mcis tune RUN`: choose the CRF of a segmentation run on its validation scans, or none where none helps.

The network answers once; then the CRF's strengths are searched one after the other, each over a few values, twice
round. The best one has the highest validation value of the metric that chose the epoch, less what lesion scans lose by
it. It is kept if it is better than none beyond chance: after so many trials on few patients something always looks
better. The test split is not looked at.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mcis import data, scan
from mcis.ops.crf import CRF
from mcis.ops.metrics import MASK_THRESHOLD, bootstrap_interval, mask_counts, mask_scores
from mcis.tasks import Names, Task

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


def gain(counts: Counts, without: Counts, select: str) -> tuple[float, float, float]:
    """What a CRF is worth more than none, and its 95 % bootstrap interval over patients, the same for both."""

    def some(index: np.ndarray, group: np.ndarray) -> dict[str, float]:
        drawn, before = ({name: values[index] for name, values in of.items()} for of in (counts, without))
        if not drawn["true"].any():
            return {}
        return {"gain": worth(drawn | {"group": group}, before | {"group": group}, select) - none(before, group)}

    def none(before: Counts, group: np.ndarray) -> float:
        return mask_scores(**before | {"group": group})[select]

    rows = np.arange(len(counts["group"]))
    return some(rows, counts["group"])["gain"], *bootstrap_interval(some, counts["group"])["gain"]


def make_counts(task: Task, variables: dict[str, Any], records: Sequence[dict[str, Any]]) -> Callable[[CRF], Counts]:
    """The counts of scans as a function of the CRF; the network runs here, once."""
    import jax

    from mcis.tasks import make_network, on_canvas

    network = jax.jit(make_network(task))
    answers, truths, geometries = [], [], []
    for start in range(0, len(records), BATCH):
        squares = np.zeros((BATCH, scan.CANVAS, scan.CANVAS, 3), np.uint8)
        for i in range(min(BATCH, len(records) - start)):
            image, mask = data.decode(records[start + i])
            squares[i], geometry = scan.fit(image)
            truths.append(mask)
            geometries.append(geometry)
        outputs, prepared = network(variables, squares)
        answers.append((outputs.mask, prepared))
    groups = np.array([f"{data.text(r['source'])}/{data.text(r['group'])}" for r in records])
    refine = jax.jit(on_canvas, static_argnums=(2, 3))

    def counts_of(crf: CRF) -> Counts:
        counts: dict[str, list[int]] = {}
        for number, (mask, prepared) in enumerate(answers):
            refined = np.asarray(refine(mask, prepared, crf, (scan.CANVAS, scan.CANVAS)))
            for i, at in enumerate(range(number * BATCH, min((number + 1) * BATCH, len(records)))):
                found = scan.unfit(refined[i, ..., 0], geometries[at]) > MASK_THRESHOLD
                for name, count in mask_counts(found[None, ..., None], truths[at][None]).items():
                    counts.setdefault(name, []).append(int(count[0]))
        return {name: np.array(values) for name, values in counts.items()} | {"group": groups}

    return counts_of


def main(argv: Sequence[str]) -> int:
    """The command."""
    import tyro

    from mcis.command import Options, exit_status, parse_dataclass

    @dataclasses.dataclass(frozen=True)
    class Tune(Options):
        """Choose the CRF of a segmentation run on its validation scans, and keep it with the weights.

        Attributes:
          run: a run's folder, or a weights folder.
          sources: prepared data sets to tune on; by default those the task was trained on.
          dry_run: only show the table.
          always: keep the best CRF even where its gain may be chance, to measure what it does.
        """

        run: tyro.conf.Positional[str] = tyro.MISSING
        sources: Names = ()
        dry_run: bool = False
        always: bool = False

    options = parse_dataclass(Tune, argv, "mcis tune")
    return exit_status("mcis tune", lambda: _main(options))


def _main(options: Any) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from mcis import checkpoint
    from mcis.bundle import load_weights, weights_folder
    from mcis.command import enable_compilation_cache
    from mcis.ops.metrics import MASK_METRICS
    from mcis.tasks import task_to_json

    enable_compilation_cache()
    weights = load_weights(options.run)
    task = weights.task
    if not task.segments or task.select not in MASK_METRICS:
        raise ValueError(f"{options.run} holds {task.name}, chosen by {task.select}: only a mask has a CRF to tune")
    parts = [data.records(source, "validation", options.data_dir) for source in options.sources or task.sources]
    records = [part[i] for part in parts for i in range(len(part))]
    records = [r for r in records if bool(r["has_mask"]) and data.text(r["organ"]) == task.organ]
    if not any(data.decode(record)[1].any() for record in records):
        raise ValueError("the validation split of these sources holds no outlined lesion")
    counts_of, found = make_counts(task, weights.variables, records), {}
    with Progress(transient=True) as bar:
        row = bar.add_task("settings", total=1 + ROUNDS * sum(len(values) for values in VALUES.values()))

        def score(crf: CRF) -> float:
            found[crf] = counts_of(crf)
            bar.advance(row)
            return worth(found[crf], found[NONE], task.select)

        tried = search(score)
    console = Console(markup=False, highlight=False)
    for crf, _ in sorted(tried, key=lambda one: -one[1])[:10] + tried[:1]:
        scores = mask_scores(**found[crf])
        values = "  ".join(f"{name} {scores[name]:.4f}" for name in dict.fromkeys((task.select, "dice_lesion")))
        console.print(f"{values}  {_describe(crf)}")
    best = max(tried[1:], key=lambda one: one[1])[0]
    more, low, high = gain(found[best], found[NONE], task.select)
    kept = low > 0 or options.always
    print(f"{task.name}: {_describe(best)}: {more:+.4f} [{low:+.4f}, {high:+.4f}] on {len(records)} validation scans")
    print("kept" if kept else "not kept: what it gains may be chance. --always keeps it")
    chosen = best if kept else NONE
    if options.dry_run:
        return 0
    folder = pathlib.Path(weights_folder(options.run))
    tuned = dataclasses.replace(task, crf=chosen)
    manifest = weights.manifest | {"task": task_to_json(tuned)}
    half = any(dtype == "float16" for dtype, _ in manifest["arrays"].values())
    checkpoint.save(folder, weights.variables, manifest, half=half)
    print(f"written to {folder}")
    return 0


def _describe(crf: CRF) -> str:
    if not crf.steps:
        return "no CRF"
    return ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(crf).items())
