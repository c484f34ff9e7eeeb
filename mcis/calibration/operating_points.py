"""Operating points: fit the shifts of log-probabilities by which the cascade decides for a class (`ops.calibration`).

Calibrated probabilities say how likely a class is among scans as they were collected. The label also depends on what a
missed malignancy costs compared with a false alarm. There are three trade-offs, each a shift per class:

- `balanced`: the largest mean over classes of their sensitivity, which is the mean over the sources that have the
  class, weighted by the square root of their scans of it. Pooled, the largest source would decide, and the prevalence
  of a class in this collection; a hospital where the bundle is used has another. Sources with fewer than FEW scans of a
  class are not counted for it: one normal breast moved the shift by 0.8. Of the shifts within one
  standard error of the best (Breiman et al. 1984), by a bootstrap over groups, the smallest is taken.
- `sensitive`: from the balanced point on, the smallest shift of the last class with which SENSITIVITY of its pooled
  scans are found.
- `specific`: from the balanced point down, the largest shift of the last class with which SPECIFICITY of the pooled
  scans of other classes do not get it.

The last class of an organ is its most suspicious one (malignant, tumor). Its shift and that of the lesion-free class
are fitted, the others stay 0; with two classes only the last, for only the difference counts. A shift of the
lesion-free class also decides how many masks are removed. Whether there is a lesion is decided first, by all
its classes together (`ops.calibration.decide`). The sensitive point never finds less than the
balanced one, nor does the specific one raise more false alarms: a balanced point that reaches the target is kept.

Points are fitted to and measured on the same held-out scans, by one or two numbers in steps of 0.1, which is slightly
optimistic.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcis.inference.rows import Rows
from mcis.ops.calibration import decide
from mcis.ops.points import BALANCED, SENSITIVE, SENSITIVITY, SPECIFIC, SPECIFICITY
from mcis.organs import Organ

STEPS = range(-15, 16)
"""The shifts that are tried, in tenths."""
FEW = 5
"""Fewest scans of a class with which a source is counted for it, unless no source has so many."""
DRAWS = 200
"""Bootstrap samples of the standard error."""
CHUNK = 64
"""Shifts that are decided at once: bounds memory with many scans."""

Steps = tuple[int, ...]
"""The shift of every class in tenths."""


def fit_points(organ: Organ, rows: Rows) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The operating points of an organ's label network, and what they reach.

    Args:
      organ: whose classes the labels are.
      rows: predictions for held-out scans, with calibrated `probs`; scans of unknown class are left out.

    Returns:
      point -> shift per class, float32 (K,); and facts in JSON values: {"scans", "groups", "last_class",
      "most_probable": measures of the unshifted decision, "points": {point: {"shift" by class, the measures, and for
      `sensitive` and `specific` "wanted", the least sensitivity or specificity, and "reached", whether it was}}}.
      Measures are those of `measures`. A target that no shift reaches gives the grid's end; one that cannot be
      measured, because no scan has the class or all have it, the balanced point.

    Raises:
      ValueError: no scan has a known class.
    """
    rows = rows.take(rows.label >= 0)
    if not len(rows):
        raise ValueError(f"no {organ.name} scan has a known class, so no operating point can be fitted")
    last = len(organ.classes) - 1
    tried = grid(organ)
    decided = dict(zip(tried, decisions(organ, rows.probs, tried), strict=True))
    score = {steps: _mean_over_sources(rows, decided[steps]) for steps in tried}
    best = max(tried, key=lambda steps: score[steps])
    # rounded: the same score must not differ by the order of a sum
    least = round(score[best] - _standard_error(rows, decided[best]), 9)
    good = [steps for steps in tried if round(score[steps], 9) >= least]
    # of equally small ones the better, then the one for the more suspicious class
    balanced = min(good, key=lambda steps: (sum(map(abs, steps)), -round(score[steps], 9), [-k for k in steps[::-1]]))

    def along(steps: Steps) -> bool:
        return steps[:last] == balanced[:last]

    upwards = sorted(steps for steps in tried if along(steps) and steps >= balanced)
    downwards = sorted((steps for steps in tried if along(steps) and steps <= balanced), reverse=True)
    positive = rows.label == last
    chosen, targets = {BALANCED: balanced}, {}
    for point, way, part, wanted in (
        (SENSITIVE, upwards, positive, SENSITIVITY),
        (SPECIFIC, downwards, ~positive, SPECIFICITY),
    ):
        enough = [s for s in way if part.any() and ((decided[s] == last) == positive)[part].mean() >= wanted]
        chosen[point] = enough[0] if enough else way[-1] if part.any() else balanced
        targets[point] = {"wanted": wanted, "reached": bool(enough)}
    points = {point: shift_of(steps) for point, steps in chosen.items()}
    return points, {
        "scans": len(rows),
        "groups": len(np.unique(rows.group)),
        "last_class": organ.classes[last],
        "most_probable": measures(organ, rows, rows.probs.argmax(1)),
        "points": {
            point: {"shift": dict(zip(organ.classes, (step / 10 for step in steps), strict=True))}
            | targets.get(point, {})
            | measures(organ, rows, decided[steps])
            for point, steps in chosen.items()
        },
    }


def grid(organ: Organ) -> list[Steps]:
    """The shifts that are tried for an organ; with three classes and more, every pair of two of them."""
    classes = len(organ.classes)
    free = next((k for k in range(classes - 1) if not organ.is_lesion(k)), None)
    found = []
    for first in STEPS if classes > 2 and free is not None else (0,):
        for last in STEPS:
            steps = [0] * classes
            steps[-1] = last
            if free is not None:
                steps[free] = first
            found.append(tuple(steps))
    return found


def shift_of(steps: Steps) -> np.ndarray:
    """The shift as it is stored: float32 (K,)."""
    return np.asarray(steps, np.float32) / np.float32(10)


def decisions(organ: Organ, probs: np.ndarray, tried: Sequence[Steps]) -> np.ndarray:
    """The labels that each shift gives to float (N, K) probabilities, by the arithmetic of the cascade: int (S, N)."""
    lesion = np.array(organ.lesion_classes)
    decide_all = jax.jit(jax.vmap(lambda scans, shift: decide(scans, shift, lesion), (None, 0)))
    shifts = np.stack([shift_of(steps) for steps in tried])
    pad = -len(shifts) % CHUNK  # one shape is compiled once
    parts = np.split(np.pad(shifts, ((0, pad), (0, 0))), (len(shifts) + pad) // CHUNK)
    scans = jnp.asarray(probs, jnp.float32)
    found = [np.asarray(decide_all(scans, part), np.int8) for part in parts]
    return np.concatenate(found)[: len(shifts)]


def measures(organ: Organ, rows: Rows, decided: np.ndarray) -> dict[str, Any]:
    """How well int (N,) labels agree with the true ones: of all scans, and in "sources" of each source, JSON values.

    Returns:
      scans; classes: scans by class; sensitivity, specificity: of the organ's last class, None where it does not occur
      or is the only one; accuracy; balanced_accuracy: mean sensitivity over the classes that occur; and of all scans
      also mean_over_sources: what the balanced point maximises.
    """
    every = {source: rows.source == source for source in np.unique(rows.source).tolist()}
    found = _measures(organ, rows.label, decided)
    return found | {
        "mean_over_sources": _mean_over_sources(rows, decided),
        "sources": {source: _measures(organ, rows.label[here], decided[here]) for source, here in every.items()},
    }


def _measures(organ: Organ, label: np.ndarray, decided: np.ndarray) -> dict[str, Any]:
    last = len(organ.classes) - 1
    positive, right = label == last, (decided == last) == (label == last)
    return {
        "scans": len(label),
        "classes": {name: int((label == k).sum()) for k, name in enumerate(organ.classes)},
        "sensitivity": float(right[positive].mean()) if positive.any() else None,
        "specificity": float(right[~positive].mean()) if not positive.all() else None,
        "accuracy": float((decided == label).mean()),
        "balanced_accuracy": _balanced(label, decided),
    }


def _balanced(label: np.ndarray, decided: np.ndarray) -> float:
    return float(np.mean([(decided[label == k] == k).mean() for k in np.unique(label)]))


def _mean_over_sources(rows: Rows, decided: np.ndarray) -> float:
    found = []
    for k in np.unique(rows.label):
        right, source = decided[rows.label == k] == k, rows.source[rows.label == k]
        _, of_source, scans = np.unique(source, return_inverse=True, return_counts=True)
        sensitivity = np.bincount(of_source, right) / scans
        counted = scans >= min(FEW, int(scans.max()))
        found.append(np.average(sensitivity[counted], weights=np.sqrt(scans[counted])))
    return float(np.mean(found))


def _standard_error(rows: Rows, decided: np.ndarray) -> float:
    """Of `_mean_over_sources`, by resampling the groups."""
    rng, (_, of_group) = np.random.default_rng(0), np.unique(rows.group, return_inverse=True)
    members = np.split(np.argsort(of_group, kind="stable"), np.cumsum(np.bincount(of_group))[:-1])
    found = []
    for _ in range(DRAWS):
        index = np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
        found.append(_mean_over_sources(rows.take(index), decided[index]))
    return float(np.std(found))


def not_reached(facts: Mapping[str, Any]) -> list[str]:
    """The targets of `fit_points`'s facts that no shift reached, one sentence each."""
    found = []
    for point, one in facts["points"].items():
        if one.get("reached", True):
            continue
        kind = "sensitivity" if point == SENSITIVE else "specificity"
        value = "cannot be measured" if one[kind] is None else f"is {one[kind]:.3f} at the end of the grid"
        found.append(f"{point}: the {kind} of {facts['last_class']} {value}, not {one['wanted']:.2f}")
    return found
