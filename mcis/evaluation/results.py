"""Prepared scans and answers -> rows of results: of a task's network, or of a set of weights as one cascade.

Scoring is a separate act from training, which sees validation only. A test score of scans that the weights were
trained on, or chosen by, is refused.
"""

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mcis.data import dataset
from mcis.data.records import letterboxed_batches
from mcis.evaluation.metrics import Rows
from mcis.imaging.letterbox import unletterbox
from mcis.ops.metrics import MASK_THRESHOLD, dice_loss, mask_counts, surface_distances
from mcis.organs import ORGANS, UNKNOWN, organ_index
from mcis.tasks.config import Task

BATCH = 16
FOREIGN = "foreign"
"""The source of pictures to be refused."""

Record = Mapping[str, Any]
"""A scan as it is stored: of `data.records`."""


def score_scans(task: Task, expert: Callable[[np.ndarray], Any], records: Sequence[Record]) -> Rows:
    """Run a task's expert over records.

    Args:
      task: whose targets are scored.
      expert: uint8 (BATCH, S, S, 3) -> `Outputs` of probabilities on the canvas.
      records: of `data.records`.
    """
    columns: dict[str, list] = collections.defaultdict(list)
    for batch, squares in letterboxed_batches(records):
        outputs = expert(squares)
        masks = None if outputs.mask is None else np.asarray(outputs.mask)
        for i, (record, _, mask, geometry) in enumerate(batch):
            row = _facts(record) | {"label": task.label_of(dataset.text(record["organ"]), int(record["label"]))}
            if masks is not None:
                row |= _overlap(unletterbox(masks[i, ..., 0], geometry), mask[..., 0])
            _append(columns, row)
        if outputs.label is not None:
            columns["probs"].extend(np.asarray(outputs.label)[: len(batch)])
            columns["features"].extend(np.asarray(outputs.features)[: len(batch)])
    return {name: np.array(values) for name, values in columns.items()}


def score_cascade(predict: Callable[[np.ndarray], Any], records: Sequence[Record]) -> Rows:
    """Run the cascade over records of all organs.

    Args:
      predict: uint8 (BATCH, S, S, 3) -> a `cascade.Prediction`.
      records: of `data.records`.
    """
    columns: dict[str, list] = collections.defaultdict(list)
    for batch, squares in letterboxed_batches(records):
        found = predict(squares)
        organ, label, masks = (np.asarray(x) for x in (found.organ, found.label, found.mask))
        told = {name: np.asarray(getattr(found, name)) for name in ("organ_prob", "novelty", "label_probs")}
        for i, (record, _, mask, geometry) in enumerate(batch):
            said: dict[str, Any] = {"said_organ": int(organ[i]), "said_label": int(label[i])}
            said |= {name: value[i] for name, value in told.items()}
            if geometry.thumbnail:  # as `mcis predict` has it
                said |= {"said_organ": len(ORGANS), "said_label": UNKNOWN}
                said["label_probs"] = np.zeros_like(said["label_probs"])
            truth = {"organ": organ_index(dataset.text(record["organ"])), "label": int(record["label"])}
            row = _facts(record) | truth | said | {"thumbnail": geometry.thumbnail}
            # the mask of another organ's network is none of this organ's
            right = said["said_organ"] == truth["organ"]
            prob = unletterbox(masks[i, ..., 0], geometry) if right else np.zeros(mask.shape[:2], np.float32)
            row |= _overlap(prob, mask[..., 0])
            _append(columns, row)
    return {name: np.array(values) for name, values in columns.items()}


def _facts(record: Record) -> dict[str, Any]:
    """What a row says of its scan."""
    source = dataset.text(record["source"])
    return {
        "source": source,
        "group": f"{source}/{dataset.text(record['group'])}",
        "scan_id": dataset.text(record["scan_id"]),
        "fingerprint": dataset.text(record["fingerprint"]),
        "has_mask": bool(record["has_mask"]),
    }


def _overlap(prob: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """What a row says of lesion probabilities float (H, W) beside the mask {0,1} (H, W)."""
    found = prob > MASK_THRESHOLD
    counts = mask_counts(found[None, ..., None], true[None, ..., None])
    farthest, mean = surface_distances(found, true)
    return {name: int(count[0]) for name, count in counts.items()} | {
        "pixels": true.size,
        "dice_loss": dice_loss(prob, true),
        "hd95": farthest,
        "surface_distance": mean,
    }


def _append(columns: dict[str, list], row: dict[str, Any]) -> None:
    for name, value in row.items():
        columns[name].append(value)
