"""Scans in memory or in files -> batches for training and evaluation, through grain."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import grain
import numpy as np

from mcis.data.dataset import Scans
from mcis.data.storage import THREADS
from mcis.organs import UNKNOWN, organ_named

Array = Any
"""A NumPy array on the host, a JAX array inside the jit."""

WHOLE = slice(None)
"""All rows of a batch: this process feeds every device."""


class Batch(NamedTuple):
    """What a step takes: uint8 image (B, S, S, 3), uint8 {0,1} mask (B, S, S, 1), int32 label (B,), bool the rest.

    `label` is the task's own target, -1 where unknown; `has_mask` says that the mask is known; rows that are not
    `valid` only fill the batch up and count for nothing.
    """

    image: Array
    mask: Array
    label: Array
    has_mask: Array
    valid: Array


def training_batches(
    scans: Scans,
    label: np.ndarray,
    cell: np.ndarray,
    weights: dict[int, float],
    batch_size: int,
    seed: int,
    parts: int = 1,
    share: slice = WHOLE,
) -> grain.MapDataset:
    """An endless random-access data set of batches: `batches[step]` depends on the seed and the step alone.

    Args:
      scans: to draw from.
      label: int32 (N,) the task's targets.
      cell: int (N,) what is balanced: each cell is shuffled and gone through by itself.
      weights: share of the batches for each cell; scans of other cells are never drawn.
      batch_size: B.
      seed: of the order.
      parts: that the training step takes a batch in, each every `parts`-th scan of it. Cells take turns within a batch;
        each part gets a run of such turns, so that all have their share of every cell.
      share: the rows of each batch that are gathered, where other processes feed the others.
    """
    cells = [c for c in weights if (cell == c).any() and weights[c] > 0]
    if not cells:
        raise ValueError("no scan to learn from: every label or mask that the task needs is unknown")
    streams = [
        grain.MapDataset.source(np.flatnonzero(cell == c)).seed(seed * 1009 + c).shuffle().repeat() for c in cells
    ]
    mixed = grain.MapDataset.mix(streams, weights=[weights[c] for c in cells]) if len(cells) > 1 else streams[0]

    def gather(rows: np.ndarray) -> Batch:
        return make_batch(scans, label, rows.reshape(parts, -1).T.ravel(), len(rows), share)

    return mixed.batch(batch_size).map(gather)


def make_batch(scans: Scans, label: np.ndarray, rows: np.ndarray, batch_size: int, share: slice = WHOLE) -> Batch:
    """The Batch of some rows, filled up to `batch_size` with its last row, marked not valid; of it, a share."""
    valid = (np.arange(batch_size) < len(rows))[share]
    rows = np.concatenate([rows, np.full(batch_size - len(rows), rows[-1])]).astype(np.int64)[share]
    image, mask = scans.pixels.read(rows)
    return Batch(image, mask, label[rows].astype(np.int32), scans.has_mask[rows], valid)


def evaluation_batches(
    scans: Scans, label: np.ndarray, batch_size: int, share: slice = WHOLE
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every scan once, in order: (rows (M,), a share of the Batch of `batch_size` whose first M rows are valid)."""

    def gather(number: int) -> tuple[np.ndarray, Batch]:
        rows = np.arange(number * batch_size, min((number + 1) * batch_size, len(scans)))
        return rows, make_batch(scans, label, rows, batch_size, share)

    yield from ahead(grain.MapDataset.range(math.ceil(len(scans) / batch_size)).map(gather), scans)


def ahead(batches: grain.MapDataset, scans: Scans, start: int = 0) -> Iterator[Any]:
    """`batches` one after the other from `start` on, the next ones gathered by threads while one is worked on."""
    threads = THREADS if scans.pixels.stored else 1
    return iter(
        batches[start:].to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    )


def targets(scans: Scans, task: Any) -> np.ndarray:
    """int32 (N,): each scan's target for a task's label head (`Task.label_of`), -1 where it has none."""
    pairs = zip(scans.organ.tolist(), scans.label.tolist(), strict=True)
    return np.array([task.label_of(organ, label) for organ, label in pairs], np.int32)


def balance(scans: Scans, task: Any) -> tuple[np.ndarray, dict[int, float]]:
    """What a task's batches balance: (cell (N,), weight of each cell) for `training_batches`.

    A cell is a class, or lesion and no lesion for a segmentation task; with `task.even_sources` it is one of these in
    one source. A segmentation task draws lesion scans with `task.lesion_share`, other tasks draw their classes evenly.
    A lesion scan without outline is drawn where the task has a label head. Scans that the task can learn nothing from
    are in cell UNKNOWN.
    """
    if task.segments:
        kind = np.where(scans.has_mask, scans.area > 0, UNKNOWN).astype(int)
        if task.label_loss:  # a scan whose lesion nobody has outlined still has a label to learn from
            pairs = zip(scans.organ.tolist(), scans.label.tolist(), strict=True)
            lesion = np.array([label != UNKNOWN and organ_named(organ).is_lesion(label) for organ, label in pairs])
            kind = np.where(~scans.has_mask & (targets(scans, task) >= 0), lesion, kind)
        shares = {0: 1.0 - task.lesion_share, 1: task.lesion_share}
    else:
        kind = targets(scans, task).astype(int)
        shares = dict.fromkeys((int(k) for k in np.unique(kind) if k != UNKNOWN), 1.0)
    if not task.even_sources:
        return kind, shares
    _, source = np.unique(scans.source, return_inverse=True)
    cell = np.where(kind == UNKNOWN, UNKNOWN, source * len(task.classes) + kind)
    weights: dict[int, float] = {}
    for s in range(int(source.max()) + 1):
        here = [k for k in shares if ((source == s) & (kind == k)).any()]
        total = sum(shares[k] for k in here)
        weights |= {s * len(task.classes) + k: shares[k] / total for k in here}
    return cell, weights
