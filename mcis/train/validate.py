"""What an evaluation step says of every scan, and a task's metrics of it."""

from typing import Any

import numpy as np

from mcis.data.dataset import WHOLE, Scans, evaluation_batches
from mcis.ops.metrics import label_scores, mask_scores
from mcis.tasks.config import Task


def collect(
    step: Any, variables: dict, scans: Scans, label: np.ndarray, batch_size: int, share: slice = WHOLE
) -> dict[str, np.ndarray]:
    """Per-scan results of a jitted evaluation step over all scans, each (N, ...); filling rows are dropped.

    Of each batch it gives the step a share, and takes the results of all.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for rows, batch in evaluation_batches(scans, label, batch_size, share):
        for name, value in step(variables, batch).items():
            parts.setdefault(name, []).append(np.asarray(value)[: len(rows)])
    return {name: np.concatenate(values) for name, values in parts.items()}


def scores(task: Task, results: dict[str, np.ndarray], scans: Scans, label: np.ndarray) -> dict[str, float]:
    """The task's metrics on the canvas from `collect`'s results: those of its labels, of its masks, or of both."""
    found: dict[str, float] = {}
    known = label >= 0
    if "probs" in results and known.any():
        found |= label_scores(results["probs"][known], label[known])
    masked = scans.has_mask
    if task.segments and masked.any():
        both, predicted, true = (results[name][masked] for name in ("both", "predicted", "true"))
        found |= mask_scores(both, predicted, true, scans.group[masked])
    return found
