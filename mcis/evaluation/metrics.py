"""Metrics of evaluation rows, with intervals, by source, size and class.

Everything here is computed from `Rows`, which the JSON report keeps: an evaluation can be scored again or compared
without weights or scans.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from mcis.evaluation.clinical import clinical
from mcis.evaluation.detection import froc, lesion_metrics
from mcis.evaluation.strata import lesion_sizes, strata
from mcis.inference.rows import UNSUPPORTED_INDEX, Rows
from mcis.ops.calibration import reliability
from mcis.ops.metrics import (
    balanced_accuracy,
    bootstrap_interval,
    class_scores,
    confusion,
    label_scores,
    mask_scores,
    mcc,
    with_ends,
)
from mcis.ops.surface import TOLERANCE
from mcis.organs import ORGANS, organ_named
from mcis.tasks.config import Task
from mcis.tasks.table import task_named

CASCADE = "cascade"
"""The name of the cascade in a report, in place of a task's; its Task is None."""
_FREE = [[not organ.is_lesion(label) for label in range(len(organ.classes))] for organ in ORGANS]
LESION_FREE = np.array([row + [False] * (max(map(len, _FREE)) - len(row)) for row in _FREE])
"""Whether a class is free of lesions, bool (organs, classes)."""
STAGES = ("router", "classifier", "segmenter")
"""The stages of the cascade at which a lesion can be missed, in order."""
REPORT = "report.json"
"""File name of the JSON report in an evaluation's folder."""

Intervals = dict[str, dict[str, float | None]]
"""Metric -> {"value", "low", "high"}: the value and its 95 % bootstrap interval by group, None for no interval."""


def measure(task: Task | None, rows: Rows) -> dict[str, float]:
    """The metrics of a task, or with None of the cascade; {} where no label and no mask is known."""
    if task is None:
        return cascade_metrics(rows)
    found: dict[str, float] = {}
    known = rows.label >= 0
    if rows.probs is not None and known.any():
        label, probs = rows.label[known], rows.probs[known]
        found |= label_scores(probs, label) | class_scores(probs, label, task.classes)
        found["mcc"] = mcc(confusion(probs.argmax(1), label, probs.shape[1]))
    if rows.refused is not None:
        found |= _rejection(rows.refused, rows.label == UNSUPPORTED_INDEX)
    if not task.segments:
        return found
    return found | mask_metrics(rows) | (gated_metrics(task, rows) if rows.probs is not None else {})


def gated_metrics(task: Task, rows: Rows) -> dict[str, float]:
    """Dice where scans whose most probable class by the network itself is free of lesions get no mask.

    The cascade does so too, with the class that its operating point decides.
    """
    rows = rows.take(rows.has_mask)
    if not len(rows):
        return {}
    organ = organ_named(str(task.organ))
    kept = np.array([organ.is_lesion(label) for label in range(len(task.classes))])[rows.probs.argmax(1)]
    found = mask_scores(np.where(kept, rows.both, 0), np.where(kept, rows.predicted, 0), rows.true, rows.group)
    return {f"gated_{name}": found[name] for name in ("dice", "dice_lesion", "false_masks") if name in found}


def mask_metrics(rows: Rows) -> dict[str, float]:
    """Metrics of the rows whose true mask is known; {} where there are none."""
    rows = rows.take(rows.has_mask)
    if not len(rows):
        return {}
    found = mask_scores(*rows.counts, rows.group)
    found["dice_loss"] = float(rows.dice_loss.mean())
    if rows.lesion.any():
        found["missed"] = float((rows.both == 0)[rows.lesion].mean())
    outlined = ~np.isnan(rows.hd95)
    if outlined.any():  # distances exist only where both masks are not empty; `missed` counts the other lesions
        found |= {name: float(getattr(rows, name)[outlined].mean()) for name in ("hd95", "surface_distance")}
        if rows.tolerance is not None:
            found["hd95_relative"] = float((TOLERANCE * rows.hd95 / rows.tolerance)[outlined].mean())
    if rows.nsd is not None:
        found["nsd"] = float(rows.nsd.mean())
        if rows.lesion.any():
            found["nsd_lesion"] = float(rows.nsd[rows.lesion].mean())
    return found | lesion_metrics(rows)


def cascade_metrics(rows: Rows) -> dict[str, float]:
    """Metrics of the whole cascade.

    Returns:
      organ, wrong_organ: shares of all scans, OOD scans included; refused: rejected share of the scans of known
      organs; foreign_refused: rejected share of the OOD scans; uncertain, foreign_uncertain: accepted shares with an
      uncertain organ; accuracy: share of scans of known class whose organ and
      class are right, and of an organ balanced_accuracy_<organ>, mcc_<organ> and sensitivity_<organ>_<class>, all
      without organs that have no classifier; a scan that is rejected or routed to another organ is an error;
      auc_<organ>, auc_<organ>_<class>, brier_<organ>, nll_<organ>: of scans routed to the right organ;
      set_coverage_<organ>, set_size_<organ>: of those of them that have a label set; outer_missed; those of
      `mask_metrics`, where a lesion missed by router or classifier has an empty mask and Dice 0; and
      lost_by_<stage>: the share of lesion scans missed at each of STAGES (`missed_at`).
    """
    right, rejected = rows.said_organ == rows.organ, rows.said_organ == UNSUPPORTED_INDEX
    found = {"organ": float(right.mean()), "wrong_organ": float((~right & ~rejected).mean())}
    found |= _rejection(rejected, rows.organ == UNSUPPORTED_INDEX)
    if rows.uncertain is not None:
        shares = _rejection(rows.uncertain, rows.organ == UNSUPPORTED_INDEX)
        found |= {name.replace("refused", "uncertain"): share for name, share in shares.items()}
    unclassified = np.unique(rows.organ[right & (rows.said_label < 0)])  # organs without a classifier
    known = (rows.label >= 0) & ~np.isin(rows.organ, unclassified)
    correct = right & (rows.said_label == rows.label)
    if known.any():
        found["accuracy"] = float(correct[known].mean())
    for index, organ in enumerate(ORGANS):
        for label, name in enumerate(organ.classes):
            chosen = known & (rows.organ == index) & (rows.label == label)
            if chosen.any():
                found[f"sensitivity_{organ.name}_{name}"] = float(correct[chosen].mean())
        chosen = known & (rows.organ == index)
        if chosen.any():  # a scan that got no class of this organ is an error: it gets a class that none has
            classes = len(organ.classes)
            predicted = np.where(right & (rows.said_label >= 0), rows.said_label, classes)[chosen]
            found[f"balanced_accuracy_{organ.name}"] = balanced_accuracy(predicted, rows.label[chosen])
            found[f"mcc_{organ.name}"] = mcc(confusion(predicted, rows.label[chosen], classes + 1))
    for name, (true, probs, _) in routed(rows).items():
        scores = class_scores(probs, true, organ_named(name).classes) | label_scores(probs, true)
        for metric, value in scores.items():
            kind, _, of_class = metric.partition("_")
            if kind in ("auc", "brier", "nll"):
                found["_".join(filter(None, (kind, name, of_class)))] = value
    if rows.label_set is not None:
        for index, organ in enumerate(ORGANS):
            fitted = routed_right(rows, index) & rows.label_set.any(1)
            if fitted.any():
                sets = rows.label_set[fitted]
                found[f"set_coverage_{organ.name}"] = float(sets[np.arange(len(sets)), rows.label[fitted]].mean())
                found[f"set_size_{organ.name}"] = float(sets.sum(1).mean())
    found |= mask_metrics(rows)
    if rows.outer_both is not None and (outlined := rows.lesion & (rows.outer_both >= 0)).any():
        found["outer_missed"] = float((1 - rows.outer_both[outlined] / rows.true[outlined]).mean())
    if rows.lesion.any():
        stage = missed_at(rows)[rows.lesion]
        found |= {f"lost_by_{name}": float((stage == name).mean()) for name in STAGES}
    return found


def _rejection(rejected: np.ndarray, ood: np.ndarray) -> dict[str, float]:
    """Rejected shares of the scans of known organs and of the OOD scans; bool (N,) twice."""
    parts = {"refused": ~ood, "foreign_refused": ood}
    return {name: float(rejected[part].mean()) for name, part in parts.items() if part.any()}


def missed_at(rows: Rows) -> np.ndarray:
    """The stage of the cascade that missed each lesion, str (N,): one of STAGES; "" for no lesion, or a found one.

    The router misses a lesion if it rejects the scan or predicts another organ; the classifier if it predicts a class
    free of lesions; the segmenter if its mask is empty or does not touch the lesion.
    """
    right = rows.said_organ == rows.organ
    classified = right & (rows.organ < UNSUPPORTED_INDEX) & (rows.said_label >= 0)
    free = classified & LESION_FREE[np.where(classified, rows.organ, 0), np.where(classified, rows.said_label, 0)]
    missed = [~right, right & free, right & ~free & (rows.both == 0)]
    return np.select([rows.lesion & stage for stage in missed], STAGES, "")


def routed_right(rows: Rows, organ: int) -> np.ndarray:
    """Which scans of an organ were routed to it and classified, and have a known class: bool (N,)."""
    return (rows.organ == organ) & (rows.said_organ == organ) & (rows.label >= 0) & (rows.said_label >= 0)


def routed(rows: Rows) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Organ name -> label int (M,), probs float (M, K) and decided label int (M,) of the scans of `routed_right`.

    An organ without such scans is left out. The decided label is that of the operating point.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for index, organ in enumerate(ORGANS) if rows.label_probs is not None else ():
        here = routed_right(rows, index)
        if here.any():
            found[organ.name] = rows.label[here], rows.label_probs[here, : len(organ.classes)], rows.said_label[here]
    return found


def with_intervals(task: Task | None, rows: Rows, draws: int = 1000) -> Intervals:
    """`measure` with intervals."""

    def score(index: np.ndarray, group: np.ndarray) -> dict[str, float]:
        return measure(task, dataclasses.replace(rows.take(index), group=group))

    return intervals(score, rows.group, draws)


def intervals(score: Callable[[np.ndarray, np.ndarray], dict[str, float]], group: np.ndarray, draws: int) -> Intervals:
    """The scores of all rows with their intervals; arguments as for `bootstrap_interval`."""
    ends = bootstrap_interval(score, group, draws)
    found: Intervals = {}
    for name, value in score(np.arange(len(group)), group).items():
        found[name] = with_ends(value, ends.get(name, (math.nan, math.nan)))
    return found


def subsets(task: Task | None, rows: Rows) -> dict[str, np.ndarray]:
    """Parts of the rows that get metrics of their own, bool (N,) each.

    For a segmenter: lesion sizes and classes. For the router and the cascade: organs, and kinds of OOD scans.
    """
    if task is None or task.organ is None:
        organ = rows.organ if task is None else rows.label
        kinds = {name: rows.group == name for name in np.unique(rows.group[organ == UNSUPPORTED_INDEX]).tolist()}
        return {row.name: organ == i for i, row in enumerate(ORGANS) if (organ == i).any()} | kinds
    if not task.segments:
        return {}
    sizes = {f"lesions {name}": chosen for name, chosen in lesion_sizes(rows).items()}
    classes = {name: rows.has_mask & (rows.label == index) for index, name in enumerate(task.classes)}
    return {name: chosen for name, chosen in (sizes | classes).items() if chosen.any()}


def report(task: Task | None, rows: Rows, split: str, draws: int = 1000) -> dict[str, Any]:
    """The report as JSON values: metrics of every source, and of all together if there are several; and the rows."""
    parts = {source: rows.take(rows.source == source) for source in np.unique(rows.source).tolist()}
    if len(parts) > 1:
        parts["all"] = rows
    return {
        "task": CASCADE if task is None else task.name,
        "split": split,
        "classes": [] if task is None else list(task.classes),
        "sources": {name: _part(task, part, draws) for name, part in parts.items()},
        "rows": rows.to_json(),
    }


def _part(task: Task | None, rows: Rows, draws: int) -> dict[str, Any]:
    def scored(rows: Rows) -> dict[str, Any]:
        metrics = with_intervals(task, rows, draws)
        return {"scans": len(rows), "groups": len(np.unique(rows.group)), "metrics": metrics}

    found = scored(rows)
    if chosen := subsets(task, rows):
        segmenter = task is not None and task.segments  # label metrics of one lesion size or class are meaningless
        shown = dataclasses.replace(rows, probs=None) if segmenter else rows
        found["subsets"] = {name: scored(shown.take(index)) for name, index in chosen.items()}
    known = rows.label >= 0
    if task is None:
        stage = missed_at(rows)
        found["lost"] = {"lesions": int(rows.lesion.sum())} | {name: int((stage == name).sum()) for name in STAGES}
        found["routed"] = {name: _classification(*columns) for name, columns in routed(rows).items()}
    elif rows.probs is not None and known.any():
        found |= _classification(rows.label[known], rows.probs[known], rows.probs[known].argmax(1))
    more = {
        "clinical": clinical(task, rows, draws),
        "froc": _froc(task, rows, draws),
        "strata": strata(task, rows, draws),
    }
    return found | {name: one for name, one in more.items() if one}


def _froc(task: Task | None, rows: Rows, draws: int) -> dict[str, Any]:
    """Organ -> its `detection.froc`."""
    if task is None:
        parts = {organ.name: rows.take(rows.organ == index) for index, organ in enumerate(ORGANS)}
    else:
        parts = {str(task.organ): rows}
    curves = {name: froc(part, draws) for name, part in parts.items()}
    return {name: curve for name, curve in curves.items() if curve is not None}


def _classification(label: np.ndarray, probs: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Calibration of the predicted classes, and the confusion matrix [true][predicted]."""
    found = reliability(probs[np.arange(len(label)), predicted], predicted == label)
    return {
        "reliability": {name: np.asarray(value).tolist() for name, value in vars(found).items()},
        "confusion": confusion(predicted, label, probs.shape[1]).tolist(),
    }


def read_report(path: str | os.PathLike) -> dict[str, Any]:
    """A report from its JSON file, or from the folder that holds it as REPORT; ValueError where it is none."""
    path = pathlib.Path(path)
    path = path / REPORT if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"{path}: no such file; name a report.json of `mcis evaluate`, or its folder")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = Rows.from_json(dict(found["rows"]))
        measure(task_of(found), rows)  # fails unless every column that is scored is there
        if not len(rows):
            raise ValueError("it holds no scans")
        return found
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no report of this version ({type(error).__name__}: {error}); `mcis evaluate` writes reports"
        ) from None


def task_of(found: dict[str, Any]) -> Task | None:
    """The task of a report; None for the cascade."""
    return None if found["task"] == CASCADE else task_named(found["task"])
