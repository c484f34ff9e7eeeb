"""Batches of scans for training and evaluation, made by grain. No JAX.

grain may import JAX, so it is imported where it is used: reading and building data sets stay free of JAX.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mcis.data.crops import crop_scan
from mcis.data.dataset import Scans
from mcis.data.storage import THREADS
from mcis.data.transplant import donors, transplant_lesion
from mcis.imaging.letterbox import INPUT_SIZE
from mcis.organs import UNKNOWN, organ_named

if TYPE_CHECKING:
    import grain

Array = Any
"""A NumPy array on the host, a JAX array inside a jitted function."""

WHOLE = slice(None)
"""All rows of a batch: one process feeds every device."""


class Batch(NamedTuple):
    """What a step takes: uint8 image (B, S, S, 3), uint8 {0,1} mask (B, S, S, 1), int32 label (B,), bool the rest.

    `label` is the task's target, -1 where unknown. `has_mask` is whether the mask is known. Rows that are not `valid`
    only pad the batch and count for nothing.
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
    transplant: float = 0.0,
    crop: float = 0.0,
    lesion: Sequence[bool] = (),
) -> "grain.MapDataset":
    """An endless random-access data set of batches: `batches[step]` depends on the seed and the step alone.

    Args:
      scans: the scans to draw from.
      label: int32 (N,) the task's targets.
      cell: int (N,) the cell of each scan (`balance`); each cell is shuffled and iterated separately.
      weights: share of each cell in the batches; scans of other cells are never drawn.
      batch_size: B.
      seed: seed of the order.
      parts: number of parts in which a training step takes a batch; part i has the rows i, i + parts, ... Each gets
        consecutive draws, in which the cells alternate: all parts have the same share of every cell.
      share: rows of each batch that this process gathers; other processes gather the others.
      transplant: share of the drawn scans without a lesion that get the lesion and label of another, where it fits.
      crop: share of the drawn scans of known mask that are cropped, where a crop fits; without a lesion they get the
        first label without one.
      lesion: whether each class is one with a lesion; needed for `transplant` and `crop`.
    """
    import grain

    cells = [c for c in weights if (cell == c).any() and weights[c] > 0]
    if not cells:
        raise ValueError("no scan to learn from: every label or mask that the task needs is unknown")
    streams = [
        grain.MapDataset.source(np.flatnonzero(cell == c)).seed(seed * 1009 + c).shuffle().repeat() for c in cells
    ]
    mixed = grain.MapDataset.mix(streams, weights=[weights[c] for c in cells]) if len(cells) > 1 else streams[0]

    def gather(rows: np.ndarray) -> Batch:
        return make_batch(scans, label, rows.reshape(parts, -1).T.ravel(), len(rows), share)

    if not transplant and not crop:
        return mixed.batch(batch_size).map(gather)
    known = np.append(lesion, False)[label]  # the last for labels of -1
    sure = scans.has_mask & (label != UNKNOWN) & (known == (scans.area > 0))
    free = sure & ~known
    given = donors(scans.area, scans.source, scans.has_mask & known, INPUT_SIZE**2)

    def gather_changed(rows: np.ndarray, rng: np.random.Generator) -> Batch:
        rows = rows.reshape(parts, -1).T.ravel()
        batch = make_batch(scans, label, rows, len(rows), share)
        seeds = rng.integers(2**63, size=len(rows))  # every process draws those of all rows
        for at, row in enumerate(rows[share].tolist()):
            own = np.random.default_rng(seeds[share][at])
            if free[row] and own.random() < transplant and given.by_source:
                (image,), (mask,) = scans.pixels.read(np.array([donor := given.draw(own)]))
                if (found := transplant_lesion(batch.image[at], image, mask, own)) is not None:
                    batch.image[at], batch.mask[at] = found
                    batch.label[at] = label[donor]
            if sure[row] and own.random() < crop and (found := crop_scan(batch.image[at], batch.mask[at], own)):
                batch.image[at], batch.mask[at] = found
                if not batch.mask[at].any():
                    batch.label[at] = list(lesion).index(False)
        return batch

    return mixed.batch(batch_size).seed(seed).random_map(gather_changed)


def make_batch(scans: Scans, label: np.ndarray, rows: np.ndarray, batch_size: int, share: slice = WHOLE) -> Batch:
    """A share of the Batch of these rows, padded to `batch_size` with the last row, which is then not valid."""
    valid = (np.arange(batch_size) < len(rows))[share]
    rows = np.concatenate([rows, np.full(batch_size - len(rows), rows[-1])]).astype(np.int64)[share]
    image, mask = scans.pixels.read(rows)
    return Batch(image, mask, label[rows].astype(np.int32), scans.has_mask[rows], valid)


def evaluation_batches(
    scans: Scans, label: np.ndarray, batch_size: int, share: slice = WHOLE
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every scan once, in order: (rows (M,), a share of the Batch of `batch_size` whose first M rows are valid)."""
    import grain

    def gather(number: int) -> tuple[np.ndarray, Batch]:
        rows = np.arange(number * batch_size, min((number + 1) * batch_size, len(scans)))
        return rows, make_batch(scans, label, rows, batch_size, share)

    yield from ahead(grain.MapDataset.range(math.ceil(len(scans) / batch_size)).map(gather), scans)


def ahead(batches: "grain.MapDataset", scans: Scans, start: int = 0) -> Iterator[Any]:
    """`batches` in order from number `start` on; threads prefetch the next ones."""
    import grain

    threads = THREADS if scans.pixels.streamed else 1
    return iter(
        batches[start:].to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
    )


def targets(scans: Scans, task: Any) -> np.ndarray:
    """int32 (N,): each scan's target for a task's label head (`Task.label_of`), -1 where it has none."""
    pairs = zip(scans.organ.tolist(), scans.label.tolist(), strict=True)
    return np.array([task.label_of(organ, label) for organ, label in pairs], np.int32)


def balance(scans: Scans, task: Any) -> tuple[np.ndarray, dict[int, float]]:
    """The balanced sampling of a task: (cell int (N,), weight of each cell) for `training_batches`.

    A cell is a class; for a segmentation task, it is "no lesion" (0) or "lesion" (1). With `task.even_sources`
    (source-balanced sampling) each source has its own cells, and all sources have the same weight. A segmentation
    task draws lesion scans with the share `task.lesion_share`; other tasks draw their classes evenly. A lesion scan
    without mask is drawn where the task has a label head. Scans without a label or mask to learn from are in cell
    UNKNOWN.

    With `task.even_classes`, each class of each source is a cell, for every task. With `task.even_sources` too, the
    sources have equal weights, and in each its classes; else the classes have, and in each the sources that have it. A
    scan of unknown class with a known mask counts as the first class with or without a lesion, as its mask is.

    With `task.max_repeats`, a cell of n of N scans has at most the share max_repeats * n / N, since an epoch draws N
    scans. The rest goes to the other cells in proportion.
    """
    cell, weights = _evenly(scans, task) if task.even_classes else _by_lesion(scans, task)
    if task.max_repeats:
        most = {c: task.max_repeats * np.count_nonzero(cell == c) / len(scans) for c in weights}
        weights = _limited(weights, most)
    return cell, weights


def _evenly(scans: Scans, task: Any) -> tuple[np.ndarray, dict[int, float]]:
    kind = targets(scans, task)
    if task.segments:
        organ = organ_named(task.organ)
        lesions = [organ.classes.index(name) for name in organ.lesions]
        first = [k for k in range(len(organ.classes)) if k not in lesions][:1] + lesions[:1]
        by_mask = np.where(scans.has_mask, np.array(first)[(scans.area > 0).astype(int)], UNKNOWN)
        kind = np.where(kind == UNKNOWN, np.where(scans.organ == task.organ, by_mask, UNKNOWN), kind)
        if not task.label_loss:
            kind = np.where(scans.has_mask, kind, UNKNOWN)
    source = np.unique(scans.source, return_inverse=True)[1]
    cell = np.where(kind == UNKNOWN, UNKNOWN, source * len(task.classes) + kind).astype(int)
    present = [int(c) for c in np.unique(cell) if c != UNKNOWN]
    # The cells that share a weight of 1: those of a source, or those of a class.
    together = [c // len(task.classes) if task.even_sources else c % len(task.classes) for c in present]
    return cell, {c: 1.0 / together.count(owner) for c, owner in zip(present, together, strict=True)}


def _limited(weights: dict[int, float], most: dict[int, float]) -> dict[int, float]:
    """Shares in proportion to `weights`, but at most `most`, as far as these leave a share of 1 in all."""
    total = sum(weights.values())
    shares = {c: weight / total for c, weight in weights.items()}
    full: set[int] = set()
    while more := {c for c in shares if c not in full and shares[c] > most[c]}:
        full |= more
        left = 1.0 - sum(most[c] for c in full)
        rest = sum(weights[c] for c in weights if c not in full)
        shares = {c: most[c] if c in full else left * weights[c] / rest for c in weights}
    return shares


def _by_lesion(scans: Scans, task: Any) -> tuple[np.ndarray, dict[int, float]]:
    target = targets(scans, task)
    if task.segments:
        organ = organ_named(task.organ)
        lesion = np.isin(target, [organ.classes.index(name) for name in organ.lesions])
        unmasked = np.where(target == UNKNOWN, UNKNOWN, lesion) if task.label_loss else UNKNOWN
        kind = np.where(scans.has_mask, scans.area > 0, unmasked).astype(int)
        shares = {0: 1.0 - task.lesion_share, 1: task.lesion_share}
    else:
        kind = target.astype(int)
        shares = dict.fromkeys(np.unique(kind[kind != UNKNOWN]).tolist(), 1.0)
    if not task.even_sources:
        return kind, shares
    names, source = np.unique(scans.source, return_inverse=True)
    cell = np.where(kind == UNKNOWN, UNKNOWN, source * len(task.classes) + kind)
    weights: dict[int, float] = {}
    for number in range(len(names)):
        present = [k for k in shares if k in kind[source == number]]
        total = sum(shares[k] for k in present)
        weights |= {number * len(task.classes) + k: shares[k] / total for k in present}
    return cell, weights
