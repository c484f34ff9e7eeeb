"""The comparison of two evaluations of the same scans. No JAX."""

import dataclasses
from typing import Any

import numpy as np

from mcis.evaluation.metrics import Intervals, intervals, measure, task_of
from mcis.inference.rows import Rows
from mcis.tasks.config import Task


def compare(task: Task | None, rows: Rows, other: Rows, draws: int = 1000) -> Intervals:
    """By how much each metric of `rows` is higher than that of `other`, on the same scans.

    Both are scored on the same bootstrap draws of groups, so that the difficulty of a draw cancels out; distances over
    the scans for which both have one.

    Raises:
      ValueError: the rows are of different scans, or differ in their true labels or masks.
    """
    first, second = (np.char.add(np.char.add(each.source, "/"), each.scan_id) for each in (rows, other))
    left, right = np.argsort(first), np.argsort(second)
    if len(first) != len(second) or (first[left] != second[right]).any():
        shared = len(np.intersect1d(first, second))
        raise ValueError(f"a comparison needs the same scans: of {len(first)} and {len(second)}, {shared} are the same")
    rows, other = rows.take(left), other.take(right)
    for name in ("group", "label", "has_mask", "true", "pixels", "organ"):
        mine, others = getattr(rows, name), getattr(other, name)
        if mine is not None and others is not None and (mine != others).any():
            raise ValueError(f"a comparison needs the same truth: {name} differs; score both on the same prepared data")
    if rows.hd95 is not None and other.hd95 is not None:
        absent = np.isnan(rows.hd95) | np.isnan(other.hd95)
        rows, other = (
            dataclasses.replace(
                each,
                hd95=np.where(absent, np.nan, each.hd95),
                surface_distance=np.where(absent, np.nan, each.surface_distance),
            )
            for each in (rows, other)
        )

    def score(index: np.ndarray, group: np.ndarray) -> dict[str, float]:
        a, b = (measure(task, dataclasses.replace(each.take(index), group=group)) for each in (rows, other))
        return {name: a[name] - b[name] for name in a if name in b}

    return intervals(score, rows.group, draws)


def compare_reports(found: dict[str, Any], other: dict[str, Any]) -> Intervals:
    """`compare` for two reports; ValueError unless they are of the same task and scans."""
    if found["task"] != other["task"]:
        raise ValueError(f"a comparison needs the same task: {found['task']} and {other['task']} differ")
    rows, others = (Rows.from_json(report["rows"]) for report in (found, other))
    return compare(task_of(found), rows, others)
