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
from mcis.imaging.letterbox import INPUT_SIZE, letterbox, unletterbox
from mcis.ops.crf import CRF
from mcis.ops.metrics import MASK_THRESHOLD, mask_counts, mask_scores
from mcis.tasks.config import Task

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

    from mcis.tasks.apply import make_network, refined_mask

    network = jax.jit(make_network(task))
    true = np.zeros(len(records), int)
    doubtful: list[tuple[int, np.ndarray, np.ndarray]] = []  # a scan's number, probabilities and picture
    truths, geometries = [], []
    for start in range(0, len(records), BATCH):
        squares = np.zeros((BATCH, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        rows = range(start, min(start + BATCH, len(records)))
        for i, row in enumerate(rows):
            image, mask = storage.decode(records[row])
            squares[i], geometry = letterbox(image)
            truths.append(mask)
            geometries.append(geometry)
            true[row] = np.count_nonzero(mask)
        outputs, prepared = network(variables, squares)
        masks, pictures = np.asarray(outputs.mask), np.asarray(prepared)
        doubtful += [(row, masks[i], pictures[i]) for i, row in enumerate(rows) if masks[i].max() > DOUBT]
    groups = np.array([f"{dataset.text(r['source'])}/{dataset.text(r['group'])}" for r in records])
    refine = jax.jit(refined_mask, static_argnums=(2, 3))

    def counts_of(crf: CRF) -> Counts:
        both, predicted = np.zeros_like(true), np.zeros_like(true)
        for start in range(0, len(doubtful), BATCH):
            rows, masks, pictures = zip(*doubtful[start : start + BATCH], strict=True)
            fill = [(0, BATCH - len(rows)), (0, 0), (0, 0), (0, 0)]  # compiled once
            batch = (np.pad(np.stack(values), fill) for values in (masks, pictures))
            refined = np.asarray(refine(*batch, crf, (INPUT_SIZE, INPUT_SIZE)))
            for i, row in enumerate(rows):
                found = unletterbox(refined[i, ..., 0], geometries[row]) > MASK_THRESHOLD
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
