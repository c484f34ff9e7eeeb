"""Where the classifiers of an evaluation look, and how often that is the lesion."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mcis.data import dataset, storage
from mcis.data.records import Record
from mcis.evaluation.evaluator import Folds, Subject
from mcis.evaluation.metrics import Rows
from mcis.imaging.letterbox import letterbox, unletterbox
from mcis.inference.saliency import class_maps
from mcis.ops.metrics import bootstrap_interval
from mcis.organs import ORGANS, organ_index

Heat = Callable[[Record, int], np.ndarray | None]
"""A record and a class -> how much hiding each pixel lowers the class's probability, float32 (H, W) of the scan's size
(`ops.occlusion`); None where nothing classifies such a scan."""


def make_heat(subject: Subject | Folds) -> Heat | None:
    """The maps of a classifier, or of a cascade's; None where a subject is no classifier of lesions."""
    if isinstance(subject, Subject):
        return _make_heat(subject)
    made = {name: _make_heat(run) for name, run in subject.runs.items()}
    if not all(made.values()):
        return None
    run_of = {fingerprint: name for name, mine in subject.left_out().items() for fingerprint in mine}

    def of(record: Record, label: int) -> np.ndarray | None:
        run = made[run_of[dataset.text(record["fingerprint"])]]
        assert run is not None
        return run(record, label)

    return of


def _make_heat(subject: Subject) -> Heat | None:
    if subject.task is not None and subject.task.organ is None:
        return None
    maps = class_maps(subject.tasks, subject.variables)
    if not maps:
        return None

    def of(record: Record, label: int) -> np.ndarray | None:
        run = maps.get(organ_index(dataset.text(record["organ"])))
        if run is None or label < 0:
            return None
        square, geometry = letterbox(storage.decode(dict(record))[0])
        return unletterbox(np.asarray(run(square, label)), geometry)

    return of


def check(heat: Heat, records: Sequence[Record], rows: Rows, count: int) -> dict[str, Any] | None:
    """How often a map's peak lies in the lesion: the pointing game (Zhang et al. 2018).

    Args:
      heat: of `make_heat`.
      records: the scans that were scored.
      rows: their results.
      count: scans to look at, evenly spread over those whose class is a lesion's and was found.

    Returns:
      {"scans", "groups", "in_lesion", "low", "high", "by_chance"}: the share of peaks in the lesion with its 95 %
      interval by group, None where all hit or all miss, and what peaks anywhere would have, the lesions' share of their
      scans; None without such scans.
    """
    said = rows["said_label"] if "said_label" in rows else rows["probs"].argmax(1)
    organ = rows["organ"] if "organ" in rows else np.array([organ_index(dataset.text(r["organ"])) for r in records])
    lesion = [o < len(ORGANS) and ORGANS[o].is_lesion(int(k)) for o, k in zip(organ, rows["label"], strict=True)]
    drawn = [bool(record["has_mask"]) for record in records]
    found = (said == rows["label"]) & (rows["said_organ"] == organ if "said_organ" in rows else True)
    index = np.flatnonzero(np.array(lesion) & found & np.array(drawn))
    index = (
        index[np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(int))] if len(index) else index
    )
    if not len(index):
        return None
    hits, shares = [], []
    for at in index.tolist():
        mask, seen = storage.decode(dict(records[at]))[1][..., 0], heat(records[at], int(rows["label"][at]))
        assert seen is not None  # something said the class
        hits.append(bool(mask[np.unravel_index(seen.argmax(), seen.shape)]))
        shares.append(float(mask.mean()))
    group = rows["group"][index]
    low, high = bootstrap_interval(lambda chosen, _: {"hit": float(np.mean(np.array(hits)[chosen]))}, group)["hit"]
    # resampling what is all alike finds no spread, which is not to say that there is none
    ends = {"low": low, "high": high} if np.isfinite(low) and low < high else {"low": None, "high": None}
    counts = {"scans": len(index), "groups": len(np.unique(group))}
    return counts | {"in_lesion": float(np.mean(hits))} | ends | {"by_chance": float(np.mean(shares))}
