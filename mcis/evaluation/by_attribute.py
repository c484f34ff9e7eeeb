"""Strata: the main metrics of the scans with each value of an attribute, such as BI-RADS, scanner or hospital.

A comparison of strata is no experiment: the scans of two scanners may differ in their patients as well.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mcis.data.attributes import from_record
from mcis.evaluation.metrics import intervals, routed_right
from mcis.inference.rows import UNSUPPORTED_INDEX, Rows
from mcis.ops.metrics import auc, dice
from mcis.organs import ORGANS
from mcis.tasks.config import Task

MAX_VALUES = 20
"""Most values of an attribute that has strata."""
FEW = 10
"""Number of groups below which a stratum has no intervals."""


def names_of(by: str) -> tuple[str, ...]:
    """The attributes that somebody lists, separated by commas: " site,birads" -> ("site", "birads")."""
    return tuple(dict.fromkeys(filter(None, (name.strip().lower() for name in by.split(",")))))


def check_names(names: Sequence[str], records: Iterable[Mapping[str, Any]]) -> None:
    """ValueError where strata by these attributes cannot be made of the stored scans (`data.dataset.records`)."""
    if not names:
        return
    values = _values([from_record(record) for record in records])
    usable = [name for name, own in values.items() if _enough(own)]
    for name in names:
        if name in usable:
            continue
        found = f"has {len(values[name])} different values here" if name in values else "is stated of none of the scans"
        raise ValueError(
            f"--by={name}: the attribute {name} {found}; --by takes attributes with 2 to {MAX_VALUES} values. "
            f"These scans have: {', '.join(usable) or 'none'}"
        )


def by_attribute(task: Task | None, rows: Rows, by: Sequence[str] = (), draws: int = 1000) -> dict[str, Any]:
    """The main metrics by attribute and value, as JSON values.

    Args:
      task: the rows' task; None for the cascade.
      rows: the results.
      by: the attributes; by default all with 2 to MAX_VALUES values.
      draws: of the bootstrap.

    Returns:
      attribute -> {"not_stated": {"scans", "groups"}, "values": {value: {"scans", "groups", "few", "metrics"}}}. With
      "few", below FEW groups, metrics have no interval.
    """
    if rows.attributes is None:
        return {}
    stated = rows.attributes.tolist()
    found = {}
    for name, values in sorted(_values(stated).items()):
        if not _enough(values) or (by and name not in by):
            continue
        column = np.array([own.get(name, "") for own in stated])
        found[name] = {
            "not_stated": _counts(rows.take(column == "")),
            "values": {value: _stratum(task, rows.take(column == value), draws) for value in values},
        }
    return found


def _values(stated: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Attribute -> its values, numbers in their order."""
    found: dict[str, set[str]] = {}
    for own in stated:
        for name, value in own.items():
            found.setdefault(name, set()).add(value)
    return {name: sorted(values, key=_order) for name, values in found.items()}


def _order(value: str) -> list[tuple[int, int, str]]:
    """A key by which "2" < "4a" < "10"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", value)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts]


def _enough(values: Sequence[str]) -> bool:
    return 2 <= len(values) <= MAX_VALUES


def _counts(rows: Rows) -> dict[str, int]:
    return {"scans": len(rows), "groups": len(np.unique(rows.group))}


def _stratum(task: Task | None, rows: Rows, draws: int) -> dict[str, Any]:
    counts, columns = _counts(rows), main_columns(task, rows)

    def score(index: np.ndarray, _: np.ndarray) -> dict[str, float]:
        values = {name: column.score(index) for name, column in columns.items()}
        return {name: value for name, value in values.items() if value is not None}

    few = counts["groups"] < FEW
    if few:
        values = score(np.arange(len(rows)), rows.group)
        metrics: dict[str, Any] = {name: {"value": value, "low": None, "high": None} for name, value in values.items()}
    else:
        metrics = intervals(score, rows.group, draws)
    return {**counts, "few": few, "metrics": metrics}


@dataclasses.dataclass(frozen=True)
class Column:
    """What a metric is made of: `values` float (N,), NaN for scans that do not count.

    The metric is their mean; or, with `positive`, bool (N,), the area under the ROC curve of these scores.
    """

    values: np.ndarray
    positive: np.ndarray | None = None

    def score(self, index: np.ndarray) -> float | None:
        """The metric of the rows of an int index (M,); None where it is not defined."""
        values = self.values[index]
        counts = ~np.isnan(values)
        if not counts.any():
            return None
        if self.positive is None:
            return float(values[counts].mean())
        positive = self.positive[index][counts]
        return None if positive.all() or not positive.any() else auc(values[counts], positive)


def main_columns(task: Task | None, rows: Rows) -> dict[str, Column]:
    """Metric -> its column: some of `metrics.measure`, which is too slow to be resampled for every stratum.

    accuracy; sensitivity and AUC of the last class of each organ, which is the suspicious one; dice_lesion; refused.
    """
    found = _cascade_columns(rows) if task is None else _task_columns(task, rows)
    if task is None or task.segments:
        found["dice_lesion"] = Column(_where(rows.lesion, dice(*rows.counts)))
    if task is None:
        found["refused"] = Column(_where(rows.organ != UNSUPPORTED_INDEX, rows.said_organ == UNSUPPORTED_INDEX))
    elif rows.refused is not None:
        found["refused"] = Column(_where(rows.label != UNSUPPORTED_INDEX, rows.refused))
    return found


def _cascade_columns(rows: Rows) -> dict[str, Column]:
    right = rows.said_organ == rows.organ
    unclassified = np.unique(rows.organ[right & (rows.said_label < 0)])  # organs without a classifier
    known = (rows.label >= 0) & ~np.isin(rows.organ, unclassified)
    correct = right & (rows.said_label == rows.label)
    found = {"accuracy": Column(_where(known, correct))}
    for index, organ in enumerate(ORGANS):
        last = len(organ.classes) - 1
        name, positive = f"{organ.name}_{organ.classes[last]}", rows.label == last
        found[f"sensitivity_{name}"] = Column(_where(known & (rows.organ == index) & positive, correct))
        if rows.label_probs is not None:
            scores = _where(routed_right(rows, index), rows.label_probs[:, last])
            found[f"auc_{name}"] = Column(scores, positive)
    return found


def _task_columns(task: Task, rows: Rows) -> dict[str, Column]:
    if rows.probs is None:
        return {}
    known, correct = rows.label >= 0, rows.probs.argmax(1) == rows.label
    found = {"accuracy": Column(_where(known, correct))}
    if task.organ is not None:
        last = len(task.classes) - 1
        name, positive = task.classes[last], rows.label == last
        found[f"sensitivity_{name}"] = Column(_where(known & positive, correct))
        found[f"auc_{name}"] = Column(_where(known, rows.probs[:, last]), positive)
    return found


def _where(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(counts, values.astype(float), np.nan)
