"""Single lesions found and missed: sensitivity, precision and F1 per lesion, and sensitivity against false positives.

The counts per scan are columns of `Rows` (`ops.lesions`). No JAX.
"""

from typing import Any

import numpy as np

from mcis.inference.rows import Rows
from mcis.ops.bootstrap import drawn_sums, group_draws, interval, share

FALSE_PER_SCAN = (0.125, 0.25, 0.5, 1.0, 2.0)
"""False positives per scan at which a free-response ROC curve is read."""


def lesion_metrics(rows: Rows) -> dict[str, float]:
    """Metrics of single lesions of rows whose true mask is known; {} where lesions were not counted.

    Returns:
      lesion_sensitivity: share of the true lesions that are found; lesion_precision: share of the predicted lesions
      that find one; lesion_f1: their harmonic mean; false_lesions: predicted lesions per scan that find none. A score
      without lesions is left out.
    """
    if rows.lesions is None or not len(rows):
        return {}
    lesions, found, false = (int(each.sum()) for each in (rows.lesions, rows.found_lesions, rows.false_lesions))
    scores = {"false_lesions": false / len(rows)}
    if lesions:
        scores["lesion_sensitivity"] = found / lesions
    if found + false:
        scores["lesion_precision"] = found / (found + false)
    if lesions + found + false:
        scores["lesion_f1"] = 2 * found / (lesions + found + false)
    return scores


def froc(rows: Rows, draws: int = 1000) -> dict[str, Any] | None:
    """The free-response ROC curve of the rows whose true mask is known; None without lesions, or if none were counted.

    A predicted lesion's score is its mean probability. Lesions are parts of the mask, so that no score is below the
    mask's threshold: the curve ends where all of them count.

    Returns:
      scans, lesions: their numbers; end: false positives per scan at the end of the curve; points: for each of
      FALSE_PER_SCAN, "false_per_scan", the largest sensitivity per lesion with no more false positives ("value", and
      "low" and "high", 95 % by group), "threshold" on the score, None where no lesion may count, and "reached", whether
      the curve has so many false positives.
    """
    rows = rows.take(rows.has_mask)
    if rows.found_scores is None or not len(rows) or not rows.lesions.sum():
        return None
    index, times = group_draws(rows.group, draws)
    columns = (rows.found_scores, rows.false_scores)
    counts = np.array([[len(scan) for scan in column] for column in columns])
    score = np.array([one for column in columns for scan in column for one in scan], np.float64)
    owner = index[np.concatenate([np.repeat(np.arange(len(rows)), count) for count in counts])]
    order = np.argsort(-score, kind="stable")
    owner, hit = owner[order], order < counts[0].sum()
    last = np.append(np.diff(score[order]) != 0, True)[: len(score)]  # equal scores count together
    totals = drawn_sums(np.stack([np.ones(len(rows)), rows.lesions], 1), index, times)

    def curve(times: np.ndarray, scans: float, lesions: float) -> tuple[np.ndarray, np.ndarray]:
        """False positives per scan and sensitivity of a draw, from no lesion to all that were predicted."""
        found, false = (np.append(0, np.cumsum(times[owner] * kind)[last]) for kind in (hit, ~hit))
        return false / scans, share(found, np.array(lesions))

    curves = [curve(draw, *total) for draw, total in zip(times, totals, strict=True)]
    levels = score[order][last]
    end = float(curves[0][0][-1])
    points = []
    for limit in FALSE_PER_SCAN:
        allowed = [int((rate <= limit).sum()) - 1 for rate, _ in curves]  # false positives only grow along the curve
        at = allowed[0]
        point = interval(np.array([sensitivity[k] for k, (_, sensitivity) in zip(allowed, curves, strict=True)]))
        threshold = float(levels[at - 1]) if at else None
        points.append({"false_per_scan": limit} | point | {"threshold": threshold, "reached": end >= limit})
    return {"scans": len(rows), "lesions": int(rows.lesions.sum()), "end": end, "points": points}
