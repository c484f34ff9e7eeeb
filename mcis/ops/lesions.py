"""Single lesions: the connected parts of masks, and which predicted part is which true lesion. No JAX."""

from typing import NamedTuple

import cv2
import numpy as np

SMALLEST = 10
"""Pixels of the smallest lesion: smaller parts of either mask are specks of drawing or resampling, and do not count."""
MATCH = 0.1
"""Smallest intersection over union of a predicted lesion with the true lesion that it finds."""


class LesionMatch(NamedTuple):
    """The lesions of a scan.

    Attributes:
      lesions: number of true lesions.
      found: mean probability of the predicted lesion that finds a true one, for each that is found.
      false: mean probability of each predicted lesion that finds none.
    """

    lesions: int
    found: list[float]
    false: list[float]


def components(mask: np.ndarray) -> np.ndarray:
    """Numbers of the connected parts of a {0,1} (H, W) mask: int32 (H, W), 0 outside of them, 1, 2, ... inside.

    Pixels that touch at a corner are connected. Parts below SMALLEST pixels are left out.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(mask, np.uint8), connectivity=8)
    kept = stats[:, cv2.CC_STAT_AREA] >= SMALLEST
    kept[0] = False
    number = np.zeros(count, np.int32)
    number[kept] = np.arange(1, kept.sum() + 1)
    return number[labels]


def match_lesions(predicted: np.ndarray, true: np.ndarray, probability: np.ndarray) -> LesionMatch:
    """Match predicted with true lesions one to one, where their intersection over union is at least MATCH.

    The matching is optimal: as many pairs as possible, and among these the largest sum of intersections over unions.

    Args:
      predicted: {0,1} (H, W).
      true: {0,1} (H, W).
      probability: float (H, W), of which the mean over a predicted lesion is its score.

    Two true lesions, of which one is found, and a predicted one elsewhere:

    >>> true, predicted = np.zeros((2, 20, 20), np.uint8)
    >>> true[2:6, 2:6] = true[12:16, 2:6] = predicted[2:6, 3:7] = predicted[2:6, 12:16] = 1
    >>> match_lesions(predicted, true, 0.75 * predicted)
    LesionMatch(lesions=2, found=[0.75], false=[0.75])
    """
    from scipy.optimize import linear_sum_assignment

    a, b = components(predicted), components(true)
    there, lesions = int(a.max(initial=0)), int(b.max(initial=0))
    pairs = np.bincount((a.astype(np.int64) * (lesions + 1) + b).ravel(), minlength=(there + 1) * (lesions + 1))
    both = pairs.reshape(there + 1, lesions + 1)
    areas = both.sum(1)[1:, None], both.sum(0)[None, 1:]
    overlap = both[1:, 1:] / (areas[0] + areas[1] - both[1:, 1:])
    # a pair that counts is worth more than all the overlaps together
    worth = np.where(overlap >= MATCH, min(overlap.shape, default=0) + 1 + overlap, 0.0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    matched = np.isin(np.arange(there), rows[worth[rows, columns] > 0])
    scores = np.bincount(a.ravel(), probability.ravel(), minlength=there + 1)[1:] / areas[0][:, 0]
    return LesionMatch(
        lesions, *([round(float(score), 4) for score in scores[chosen]] for chosen in (matched, ~matched))
    )
