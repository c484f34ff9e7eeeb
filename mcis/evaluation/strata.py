"""Metrics of lesion scans by size, number and place of their lesions, and by the shape of the frame. No JAX."""

from typing import Any

import numpy as np

from mcis.inference.rows import Rows
from mcis.ops.bootstrap import share_intervals
from mcis.ops.metrics import dice
from mcis.organs import ORGANS
from mcis.tasks.config import Task

LESION_SIZES = {"under 1 %": (0.0, 0.01), "1 to 5 %": (0.01, 0.05), "above 5 %": (0.05, 1.0)}
"""Lesion sizes as shares of the scan's area: above the first number, up to the second."""
FEW = 10
"""With fewer groups a part has no interval: a bootstrap of few groups is too narrow."""


def lesion_sizes(rows: Rows) -> dict[str, np.ndarray]:
    """Name of a size -> which scans have a lesion of it, bool (N,)."""
    share = np.where(rows.has_mask, rows.true / rows.pixels, 0.0)
    return {name: (share > low) & (share <= high) for name, (low, high) in LESION_SIZES.items()}


def strata(task: Task | None, rows: Rows, draws: int = 1000) -> list[dict[str, Any]]:
    """Metrics of the scans with a lesion, organ by organ, by what masks and pixels show; [] without masks.

    Returns:
      One mapping for each part that has scans, as JSON values: organ; by: "size", "lesions" (in the true mask),
      "border" (whether a lesion reaches the border of the scan's content) or "frame" (the shape of an ultrasound
      frame); stratum; scans; groups; few: whether these are fewer than FEW, so that no metric has an interval; metrics:
      dice_lesion, nsd_lesion, missed, lesion_sensitivity, and accuracy of the class where one is predicted.
    """
    if rows.true is None or (task is not None and not task.segments):
        return []
    rows = rows.take(rows.lesion)
    found = []
    for index, organ in enumerate(ORGANS):
        if task is not None and task.organ != organ.name:
            continue
        here = rows if task is not None else rows.take(rows.organ == index)
        ultrasound = "US" in organ.modalities
        for by, parts in _parts(here, ultrasound).items():
            for name, chosen in parts.items():
                if chosen.any():
                    found.append(
                        {"organ": organ.name, "by": by, "stratum": name} | _scored(task, here.take(chosen), draws)
                    )
    return found


def _parts(rows: Rows, ultrasound: bool) -> dict[str, dict[str, np.ndarray]]:
    found = {"size": lesion_sizes(rows)}
    if rows.lesions is not None:
        found["lesions"] = {"single": rows.lesions == 1, "several": rows.lesions > 1}
    if rows.at_border is not None:
        found["border"] = {"inside": ~rows.at_border, "at the border": rows.at_border}
    if rows.sector is not None and ultrasound:
        found["frame"] = {"rectangular": ~rows.sector, "sector": rows.sector}
    return found


def _scored(task: Task | None, rows: Rows, draws: int) -> dict[str, Any]:
    every = np.ones(len(rows))
    shares: dict[str, tuple[np.ndarray, np.ndarray]] = {
        "dice_lesion": (dice(*rows.counts), every),
        "missed": (rows.both == 0, every),
    }
    if rows.nsd is not None:
        shares["nsd_lesion"] = (rows.nsd, every)
    if rows.lesions is not None:
        shares["lesion_sensitivity"] = (rows.found_lesions, rows.lesions)
    known = rows.label >= 0
    if task is None:
        shares["accuracy"] = ((rows.said_organ == rows.organ) & (rows.said_label == rows.label) & known, known)
    elif rows.probs is not None:
        shares["accuracy"] = ((rows.probs.argmax(1) == rows.label) & known, known)
    groups = len(np.unique(rows.group))
    metrics = share_intervals(shares, rows.group, draws if groups >= FEW else 0)
    return {"scans": len(rows), "groups": groups, "few": groups < FEW, "metrics": metrics}
