"""The choice of a CRF (`mcis tune`) for a segmentation run on its validation scans, or of none where none helps.

Of several runs, which are folds, each predicts its held-out scans, and one CRF is chosen for all.

The network runs once. Then the CRF's strengths are searched by coordinate descent, each over a few values, in two
rounds; the number of updates stays. The best setting has the highest value of a metric, by default the one that chose
the epoch, less the loss of Dice on lesion scans. After so many trials on few patients some setting always looks better.
The choice as a whole is therefore cross-validated: each patient is scored with the setting that is best for the others,
and the gain must hold over patients. The test split is not used.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mcis.data.records import letterboxed_batches
from mcis.imaging.letterbox import INPUT_SIZE, unletterbox
from mcis.inference.rows import Rows, scan_facts
from mcis.ops.crf import CRF
from mcis.ops.metrics import MASK_THRESHOLD, mask_counts, mask_scores
from mcis.tasks.apply import make_network, refined_mask
from mcis.tasks.config import Task

BATCH = 8
VALUES: dict[str, tuple[float, ...]] = {
    "weight": (1.0, 2.0, 4.0, 7.0, 10.0),
    "sigma": (5.0, 10.0, 20.0, 40.0, 80.0),
    "grey_sigma": (1.5, 3.0, 6.0, 13.0, 26.0),
    "smooth_weight": (0.0, 1.0, 3.0, 6.0),
    "smooth_sigma": (1.0, 2.0, 3.0),
}
"""The values tried for each strength; sigmas in pixels of the network's size."""
ROUNDS = 2
NONE = CRF(steps=0)
PATIENTS = 5
"""Smallest number of patients with a lesion from which a CRF is chosen."""

DOUBT = 0.3
"""A scan without a probability above it gets no mask by any CRF of VALUES. By definition of the field 0.5 would do, for
all messages are then the background's; but kernels of few factors have small negative values (`ops.crf`)."""


def search(score: Callable[[CRF], float], rounds: int = ROUNDS) -> list[tuple[CRF, float]]:
    """Every setting tried with its score, in order: first none, then one strength at a time from the best.

    Args:
      score: higher is better.
      rounds: number of passes over the strengths.
    """
    tried: dict[CRF, float] = {}

    def score_once(crf: CRF) -> float:
        if crf not in tried:
            tried[crf] = score(crf)
        return tried[crf]

    score_once(NONE)
    best = CRF()
    for _ in range(rounds):
        for name, values in VALUES.items():
            choices = [dataclasses.replace(best, **{name: value}) for value in values]  # type: ignore[arg-type]
            best = max([best, *choices], key=score_once)
    return list(tried.items())


def objective(rows: Rows, without: Rows, select: str) -> float:
    """What a CRF is chosen by: the metric `select`, less what the lesion scans' Dice lost compared with no CRF.

    A metric over patients, or one that counts empty scans, hardly depends on a small lesion that is smoothed away.
    """
    scores, before = (mask_scores(*each.counts, each.group) for each in (rows, without))
    return scores[select] - max(0.0, before["dice_lesion"] - scores["dice_lesion"])


def cross_validated(found: dict[CRF, Rows], select: str) -> Rows:
    """Rows in which each patient's scans are those of the CRF, or none, that is best for the other patients."""
    without = found[NONE]
    parts, order = [], []
    for patient in np.unique(without.group):
        here = without.group == patient
        others = {crf: rows.take(~here) for crf, rows in found.items()}
        best = NONE
        if others[NONE].true.any():  # else there is no lesion to choose by
            best = max(found, key=lambda crf: objective(others[crf], others[NONE], select))
        parts.append(found[best].take(here))
        order.append(np.flatnonzero(here))
    return Rows.concatenate(parts).take(np.argsort(np.concatenate(order)))


def gain(rows: Rows, without: Rows, select: str) -> tuple[float, float, float]:
    """How much higher the objective of `rows` is than without a CRF, and its 95 % jackknife interval over patients.

    A bootstrap is overconfident on few patients. The interval is (nan, nan) where fewer than two can be held out.
    """
    from scipy import stats

    def difference(index: np.ndarray) -> float:
        part, before = rows.take(index), without.take(index)
        return objective(part, before, select) - mask_scores(*before.counts, before.group)[select]

    group = without.group
    patients = [patient for patient in np.unique(group) if without.true[group != patient].any()]
    whole = difference(np.ones(len(group), bool))
    if len(patients) < 2:
        return whole, math.nan, math.nan
    without_one = np.array([difference(group != patient) for patient in patients])
    parts = len(patients) * whole - (len(patients) - 1) * without_one  # Tukey's pseudo-values
    half = stats.t.ppf(0.975, len(parts) - 1) * parts.std(ddof=1) / math.sqrt(len(parts))
    return whole, float(parts.mean() - half), float(parts.mean() + half)


def make_rows(task: Task, variables: dict[str, Any], records: Sequence[dict[str, Any]]) -> Callable[[CRF], Rows]:
    """The rows of scans as a function of the CRF; the network runs here, once.

    Only scans with a probability above DOUBT go through a CRF; the others get an empty mask.
    """
    network = jax.jit(make_network(task))
    scans: list[dict[str, Any]] = []
    truths, geometries = [], []
    doubtful: list[tuple[int, np.ndarray, np.ndarray]] = []  # a scan's number, probabilities and prepared image
    for batch, images in letterboxed_batches(records, BATCH):
        outputs, prepared = network(variables, images)
        masks, prepared = np.asarray(outputs.mask), np.asarray(prepared)
        for i, scan in enumerate(batch):
            if masks[i].max() > DOUBT:
                doubtful.append((len(scans), masks[i], prepared[i]))
            counts = {"both": 0, "predicted": 0, "true": np.count_nonzero(scan.mask)}
            scans.append(scan_facts(scan.record) | {"label": int(scan.record["label"])} | counts)
            truths.append(scan.mask)
            geometries.append(scan.geometry)
    blank = Rows.of_scans(scans)
    refine = jax.jit(refined_mask, static_argnums=(2, 3))

    def rows_of(crf: CRF) -> Rows:
        both, predicted = np.zeros_like(blank.both), np.zeros_like(blank.predicted)
        for start in range(0, len(doubtful), BATCH):
            numbers, masks, prepared = zip(*doubtful[start : start + BATCH], strict=True)
            fill = [(0, BATCH - len(numbers)), (0, 0), (0, 0), (0, 0)]  # one shape is compiled once
            padded = (np.pad(np.stack(values), fill) for values in (masks, prepared))
            refined = np.asarray(refine(*padded, crf, (INPUT_SIZE, INPUT_SIZE)))
            for i, number in enumerate(numbers):
                mask = unletterbox(refined[i, ..., 0], geometries[number]) > MASK_THRESHOLD
                counts = mask_counts(mask[None, ..., None], truths[number][None])
                both[number], predicted[number] = counts["both"][0], counts["predicted"][0]
        return dataclasses.replace(blank, both=both, predicted=predicted)

    return rows_of
