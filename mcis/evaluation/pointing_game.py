"""The pointing game (Zhang et al. 2018): how often the maximum of a classifier's saliency map lies in the lesion."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mcis.data import dataset, storage
from mcis.data.records import Record
from mcis.evaluation.evaluator import SaliencyMap
from mcis.inference.rows import Rows
from mcis.ops.metrics import bootstrap_interval
from mcis.organs import ORGANS, organ_index


def pointing_game(saliency_of: SaliencyMap, records: Sequence[Record], rows: Rows, count: int) -> dict[str, Any] | None:
    """Play the game on some of the scored scans.

    Args:
      saliency_of: saliency map of an evaluator.
      records: the scans that were scored.
      rows: their results.
      count: number of scans, evenly spaced among those whose class is a lesion's, was predicted, and has a mask.

    Returns:
      {"scans", "groups", "in_lesion", "low", "high", "by_chance"}: the share of maxima in the lesion with its 95 %
      interval by group, None if every maximum is in its lesion, or none is; and the expected share of random points,
      the lesions' mean share of their scans. None without such scans.
    """
    if rows.said_label is not None:
        organ, right = rows.organ, (rows.said_label == rows.label) & (rows.said_organ == rows.organ)
    else:
        organ = np.full(len(rows), organ_index(dataset.text(records[0]["organ"])))
        right = rows.probs.argmax(1) == rows.label
    pairs = zip(organ.tolist(), rows.label.tolist(), strict=True)
    lesion = np.array([k < len(ORGANS) and ORGANS[k].is_lesion(label) for k, label in pairs])
    index = np.flatnonzero(lesion & right & rows.has_mask)
    if not len(index):
        return None
    index = index[np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(int))]
    hits, shares = [], []
    for at in index.tolist():
        image, mask = storage.decode(dict(records[at]))
        saliency = saliency_of(records[at], image, int(rows.label[at]))
        assert saliency is not None  # a network has predicted the class
        hits.append(bool(mask[np.unravel_index(saliency.argmax(), saliency.shape)][0]))
        shares.append(float(mask.mean()))
    group = rows.group[index]
    low, high = bootstrap_interval(lambda chosen, _: {"hit": float(np.mean(np.array(hits)[chosen]))}, group)["hit"]
    # where all scans agree, resampling finds no spread, though there may be some
    ends = {"low": low, "high": high} if np.isfinite(low) and low < high else {"low": None, "high": None}
    counts = {"scans": len(index), "groups": len(np.unique(group))}
    return counts | {"in_lesion": float(np.mean(hits))} | ends | {"by_chance": float(np.mean(shares))}
