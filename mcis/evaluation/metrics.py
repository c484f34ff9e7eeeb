"""Per-scan results and what they add up to: metrics with intervals, by source, size and class; and two runs compared.

Everything here is a function of `Rows`, which a report's JSON file keeps, so that what was scored once can be scored
another way, or against another run, without weights or scans.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from mcis.ops.calibration import reliability
from mcis.ops.metrics import bootstrap_interval, class_scores, confusion, label_scores, mask_scores
from mcis.organs import ORGANS, organ_named
from mcis.tasks.config import Task
from mcis.tasks.table import task_named

Rows = dict[str, np.ndarray]
"""Per-scan results, N of them: source, group, scan_id str (N,); label int (N,) the task's target, -1 unknown; has_mask
bool (N,); and, where the network has the head, probs float (N, K) and features (N, F), and the pixel counts both,
predicted, true int (N,), the scan's own pixels int (N,), the soft Dice loss dice_loss float (N,), and hd95 and
surface_distance float (N,) in pixels, nan where either mask is empty; all on the scans' own grid. A router's rows have
refused bool (N,). The cascade's rows have organ int (N,), label of that organ's classes, and what it said of them:
said_organ (len(ORGANS) = unsupported) and said_label int (N,), organ_prob and novelty float (N,), and label_probs
(N, CLASSES), zero past the classes of said_organ and where there is no label; thumbnail bool (N,), for which it is
unsupported whatever the networks say; what was not segmented has an empty mask.
Rows of prepared scans have fingerprint str (N,), of their content."""

CASCADE = "cascade"
"""What stands for the task's name in a report of all experts together; its Task is None."""


def take(rows: Rows, index: np.ndarray) -> Rows:
    """Some of the rows: an int index or a bool mask."""
    return {name: value[index] for name, value in rows.items()}


def measure(task: Task | None, rows: Rows) -> dict[str, float]:
    """The task's metrics over rows, or the cascade's; {} where nothing is known of them."""
    if task is None:
        return cascade_metrics(rows)
    found: dict[str, float] = {}
    known = rows["label"] >= 0
    if "probs" in rows and known.any():
        label, probs = rows["label"][known], rows["probs"][known]
        found |= label_scores(probs, label) | class_scores(probs, label, task.classes)
    if "refused" in rows:
        found |= _refusal(rows["refused"], rows["label"] == len(ORGANS))
    if not task.segments:
        return found
    return found | mask_metrics(rows) | (gated_metrics(task, rows) if "probs" in rows else {})


def gated_metrics(task: Task, rows: Rows) -> dict[str, float]:
    """Dice where a scan that the network itself calls free of lesions is given no mask, as in a cascade of it."""
    kept = np.array([organ_named(str(task.organ)).is_lesion(label) for label in range(len(task.classes))])
    gated = rows | {name: np.where(kept[rows["probs"].argmax(1)], rows[name], 0) for name in ("both", "predicted")}
    gated = take(gated, rows["has_mask"])
    if not len(gated["true"]):
        return {}
    found = mask_scores(gated["both"], gated["predicted"], gated["true"], gated["group"])
    return {f"gated_{name}": found[name] for name in ("dice", "dice_lesion", "false_masks") if name in found}


def mask_metrics(rows: Rows) -> dict[str, float]:
    """Metrics of the rows whose mask is known; {} where none is."""
    rows = take(rows, rows["has_mask"])
    if not len(rows["true"]):
        return {}
    found = mask_scores(rows["both"], rows["predicted"], rows["true"], rows["group"])
    found["dice_loss"] = float(rows["dice_loss"].mean())
    lesion, outlined = rows["true"] > 0, ~np.isnan(rows["hd95"])
    if lesion.any():
        found["missed"] = float((rows["both"] == 0)[lesion].mean())
    if outlined.any():  # both masks have an outline; what was given none has no distance, and counts above
        found |= {name: float(rows[name][outlined].mean()) for name in ("hd95", "surface_distance")}
    return found


def cascade_metrics(rows: Rows) -> dict[str, float]:
    """What the whole cascade gets right, and where it loses what it loses.

    Returns:
      organ, wrong_organ: shares of all scans, foreign ones included; refused: share of the others, foreign_refused of
      the foreign; accuracy: of scans of known class, organ and class right, and
      sensitivity_<organ>_<class>, both without organs that have no classifier; auc_<organ>, auc_<organ>_<class>,
      brier_<organ> and nll_<organ> of what the router sent to the right organ; those of `mask_metrics`, where what
      router or classifier lost has no mask and Dice 0; and where a lesion scan was lost: lost_by_router (refused, or of
      another organ), lost_by_classifier (called free of lesions), lost_by_segmenter (no mask, or one that misses it),
      as shares of lesion scans.
    """
    right, refused = rows["said_organ"] == rows["organ"], rows["said_organ"] == len(ORGANS)
    found = {"organ": float(right.mean()), "wrong_organ": float((~right & ~refused).mean())}
    found |= _refusal(refused, rows["organ"] == len(ORGANS))
    mute = np.unique(rows["organ"][right & (rows["said_label"] < 0)])  # organs that have no classifier
    known = (rows["label"] >= 0) & ~np.isin(rows["organ"], mute)
    agreed = right & (rows["said_label"] == rows["label"])
    if known.any():
        found["accuracy"] = float(agreed[known].mean())
    for index, organ in enumerate(ORGANS):
        for label, name in enumerate(organ.classes):
            chosen = known & (rows["organ"] == index) & (rows["label"] == label)
            if chosen.any():
                found[f"sensitivity_{organ.name}_{name}"] = float(agreed[chosen].mean())
    for name, (true, probs) in routed(rows).items():
        scores = class_scores(probs, true, organ_named(name).classes) | label_scores(probs, true)
        for metric, value in scores.items():
            kind, _, of = metric.partition("_")
            if kind in ("auc", "brier", "nll"):
                found["_".join(filter(None, (kind, name, of)))] = value
    found |= mask_metrics(rows)
    lesion = rows["has_mask"] & (rows["true"] > 0)
    if lesion.any():
        found |= {f"lost_by_{where}": float((lost(rows) == where)[lesion].mean()) for where in LOSERS}
    return found


def _refusal(refused: np.ndarray, foreign: np.ndarray) -> dict[str, float]:
    """Shares refused, of scans of a known organ and of foreign ones; bool (N,) twice."""
    parts = {"refused": ~foreign, "foreign_refused": foreign}
    return {name: float(refused[part].mean()) for name, part in parts.items() if part.any()}


LOSERS = ("router", "classifier", "segmenter")
"""Where the cascade can lose a lesion, in order."""


def lost(rows: Rows) -> np.ndarray:
    """Where the cascade lost each lesion scan, str (N,): one of LOSERS, or "" where it was found or there is none."""
    right = rows["said_organ"] == rows["organ"]
    said = right & (rows["organ"] < len(ORGANS)) & (rows["said_label"] >= 0)  # labels of another organ are none of ours
    free = np.zeros(len(right), bool)
    for at in np.flatnonzero(said).tolist():
        free[at] = not ORGANS[rows["organ"][at]].is_lesion(int(rows["said_label"][at]))
    lesion = rows["has_mask"] & (rows["true"] > 0)
    where = [~right & lesion, right & free & lesion, right & ~free & (rows["both"] == 0) & lesion]
    return np.select(where, LOSERS, "")


def routed(rows: Rows) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What the cascade's classifiers said of the scans that the router sent to their organ, where the class is known.

    Returns:
      organ name -> label int (M,), probs float (M, K) by its K classes; no organ without such scans.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for index, organ in enumerate(ORGANS) if "label_probs" in rows else ():
        here = (
            (rows["organ"] == index) & (rows["said_organ"] == index) & (rows["label"] >= 0) & (rows["said_label"] >= 0)
        )
        if here.any():
            found[organ.name] = rows["label"][here], rows["label_probs"][here, : len(organ.classes)]
    return found


def with_intervals(task: Task | None, rows: Rows, draws: int = 1000) -> dict[str, dict[str, float | None]]:
    """Metric -> value and the ends of its 95 % bootstrap interval by group; one group has none: None."""

    def score(index: np.ndarray, group: np.ndarray) -> dict[str, float]:
        return measure(task, take(rows, index) | {"group": group})

    return _with_intervals(score, rows["group"], draws)


def _with_intervals(
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]], group: np.ndarray, draws: int
) -> dict[str, dict[str, float | None]]:
    point = score(np.arange(len(group)), group)
    intervals = bootstrap_interval(score, group, draws)
    ends = {
        name: [end if math.isfinite(end) else None for end in intervals.get(name, (math.nan, math.nan))]
        for name in point
    }
    return {name: {"value": value, "low": ends[name][0], "high": ends[name][1]} for name, value in point.items()}


LESION_SIZES = {"under 1 %": (0.0, 0.01), "1 to 5 %": (0.01, 0.05), "above 5 %": (0.05, 1.0)}
"""Lesions by their share of the scan's area, above the first number and up to the second."""


def subsets(task: Task | None, rows: Rows) -> dict[str, np.ndarray]:
    """Parts of the rows that have metrics of their own, as bool (N,): sizes of lesions and classes of scans.

    The cascade's and the router's are organs, and kinds of foreign pictures.
    """
    if task is None or task.organ is None:
        organ = rows["organ"] if task is None else rows["label"]
        kinds = {name: rows["group"] == name for name in np.unique(rows["group"][organ == len(ORGANS)]).tolist()}
        return {row.name: organ == i for i, row in enumerate(ORGANS) if (organ == i).any()} | kinds
    if not task.segments:
        return {}
    share = np.where(rows["has_mask"], rows["true"] / rows["pixels"], 0.0)
    sizes = {f"lesions {name}": (share > low) & (share <= high) for name, (low, high) in LESION_SIZES.items()}
    classes = {name: rows["has_mask"] & (rows["label"] == index) for index, name in enumerate(task.classes)}
    return {name: chosen for name, chosen in (sizes | classes).items() if chosen.any()}


def report(task: Task | None, rows: Rows, split: str, draws: int = 1000) -> dict[str, Any]:
    """JSON values: metrics of every source and, where there are several, of all together; and the rows."""
    parts = {source: take(rows, rows["source"] == source) for source in np.unique(rows["source"]).tolist()}
    if len(parts) > 1:
        parts["all"] = rows
    return {
        "task": CASCADE if task is None else task.name,
        "split": split,
        "classes": [] if task is None else list(task.classes),
        "sources": {name: _part(task, part, draws) for name, part in parts.items()},
        "rows": rows_to_json(rows),
    }


def _part(task: Task | None, rows: Rows, draws: int) -> dict[str, Any]:
    def scored(rows: Rows) -> dict[str, Any]:
        return {
            "scans": len(rows["label"]),
            "groups": len(np.unique(rows["group"])),
            "metrics": with_intervals(task, rows, draws),
        }

    found = scored(rows)
    if chosen := subsets(task, rows):  # a segmenter's are of its masks: among lesions of one size labels say little
        shown = {name: column for name, column in rows.items() if name != "probs" or task is None or not task.segments}
        found["subsets"] = {name: scored(take(shown, index)) for name, index in chosen.items()}
    known = rows["label"] >= 0
    if task is None:
        where, lesion = lost(rows), rows["has_mask"] & (rows["true"] > 0)
        found["lost"] = {"lesions": int(lesion.sum())} | {name: int((where == name).sum()) for name in LOSERS}
        found["routed"] = {name: _said(label, probs) for name, (label, probs) in routed(rows).items()}
        return found
    if "probs" in rows and known.any():
        found |= _said(np.asarray(rows["label"][known]), np.asarray(rows["probs"][known]))
    return found


def _said(label: np.ndarray, probs: np.ndarray) -> dict[str, Any]:
    """How often classes were called each other, [true][said], and the calibration of what was said."""
    said = reliability(probs.max(1), probs.argmax(1) == label)
    return {
        "reliability": {name: np.asarray(value).tolist() for name, value in vars(said).items()},
        "confusion": confusion(probs.argmax(1), label, probs.shape[1]).tolist(),
    }


def rows_to_json(rows: Rows) -> dict[str, list]:
    """Rows as JSON values, column by column; nan is None. Features, which only the weights understand, are left out."""
    return {
        name: [None if isinstance(value, float) and math.isnan(value) else value for value in column.tolist()]
        for name, column in rows.items()
        if name != "features"
    }


def rows_from_json(columns: dict[str, list]) -> Rows:
    """The inverse of `rows_to_json`; ValueError unless every column has as many entries."""
    rows = {
        name: np.array([math.nan if value is None else value for value in column]) for name, column in columns.items()
    }
    if len({len(column) for column in rows.values()}) > 1:
        raise ValueError("its rows have columns of different lengths")
    return rows


def compare(task: Task | None, rows: Rows, other: Rows, draws: int = 1000) -> dict[str, dict[str, float | None]]:
    """How much higher each metric of `rows` is than of `other`, on the same scans, with 95 % intervals by group.

    Both are scored on the same draws of groups, so that what makes a draw hard or easy falls out of the difference;
    distances over the scans in which both runs have one.

    Raises:
      ValueError: the rows are not of the same scans, or what is true of them differs.
    """
    first, second = (np.char.add(np.char.add(r["source"], "/"), r["scan_id"]) for r in (rows, other))
    left, right = np.argsort(first), np.argsort(second)
    if len(first) != len(second) or (first[left] != second[right]).any():
        shared = len(np.intersect1d(first, second))
        raise ValueError(f"a comparison needs the same scans: of {len(first)} and {len(second)}, {shared} are the same")
    rows, other = take(rows, left), take(other, right)
    for name in ("group", "label", "has_mask", "true", "pixels", "organ"):
        if name in rows and name in other and (rows[name] != other[name]).any():
            raise ValueError(f"a comparison needs the same truth: {name} differs; score both on the same prepared data")
    if "hd95" in rows and "hd95" in other:  # a distance is compared where both have one
        neither = np.isnan(rows["hd95"]) | np.isnan(other["hd95"])
        distances = ("hd95", "surface_distance")
        rows, other = (r | {name: np.where(neither, np.nan, r[name]) for name in distances} for r in (rows, other))

    def score(index: np.ndarray, group: np.ndarray) -> dict[str, float]:
        a, b = (measure(task, take(r, index) | {"group": group}) for r in (rows, other))
        return {name: a[name] - b[name] for name in a if name in b}

    return _with_intervals(score, rows["group"], draws)


REPORT = "report.json"
"""The file of an evaluation's folder that has its figures."""


def read_report(path: str | os.PathLike) -> dict[str, Any]:
    """What `report` made, from its JSON file or the folder that has it as REPORT; ValueError where it is none."""
    path = pathlib.Path(path)
    path = path / REPORT if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"{path}: no such file; `mcis evaluate` writes them, with a page")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = rows_from_json(dict(found["rows"]))
        measure(_task_of(found), rows)  # it has all that is scored
        if not len(rows["source"]) or not len(rows["scan_id"]):
            raise ValueError("it holds no scans")
        return found
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{path} is no evaluation of this version ({type(error).__name__}: {error}); `mcis evaluate` writes them"
        ) from None


def _task_of(found: dict[str, Any]) -> Task | None:
    return None if found["task"] == CASCADE else task_named(found["task"])


def compare_reports(found: dict[str, Any], other: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """`compare` for two reports; ValueError unless they are of the same task and scans."""
    if found["task"] != other["task"]:
        raise ValueError(f"a comparison needs the same task: {found['task']} and {other['task']} are not")
    rows, others = (rows_from_json(report["rows"]) for report in (found, other))
    return compare(_task_of(found), rows, others)
