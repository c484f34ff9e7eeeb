"""Conformal prediction by groups: label sets and mask thresholds whose rate of errors is bounded. NumPy alone.

Scans of one patient are alike, so patients are exchangeable and their scans are not. Every group (patient, or cluster
of near-duplicates) therefore has the same weight, shared by its scans, and a new group counts with the worst possible
result (Lee, Barber & Willett 2023, "hierarchical conformal prediction"). What is bounded is the rate for a random
scan of a random new group: groups must be drawn like those of the calibration. A new hospital is no such group.
"""

import math

import numpy as np


def group_weights(group: np.ndarray) -> np.ndarray:
    """The weight of each scan, float64 (N,): 1 / (G + 1) for each of the G groups, shared evenly by its scans.

    >>> group_weights(np.array(["p1", "p1", "p2"])).round(3).tolist()
    [0.167, 0.167, 0.333]
    """
    _, index, sizes = np.unique(group, return_inverse=True, return_counts=True)
    return 1.0 / (sizes[index] * (len(sizes) + 1.0))


def coverage_threshold(score: np.ndarray, group: np.ndarray, coverage: float) -> float:
    """The largest threshold that a scan of a new group reaches with a probability of at least `coverage`.

    Args:
      score: float (N,), at least 0: the probability of the true class, say.
      group: (N,), the group of each scan.
      coverage: in (0, 1).

    Returns:
      One of the scores; 0, which every score reaches, where there are too few groups: below coverage / (1 - coverage).

    With a coverage of 0.75 three of four groups, of which the new one counts as the worst, must reach it:

    >>> coverage_threshold(np.array([0.9, 0.4, 0.6]), np.array(["a", "b", "c"]), 0.75)
    0.4
    >>> coverage_threshold(np.array([0.9, 0.4]), np.array(["a", "b"]), 0.75)
    0.0
    """
    order = np.argsort(-np.asarray(score, np.float64), kind="stable")
    reached = np.cumsum(group_weights(group)[order])
    enough = np.flatnonzero(reached >= coverage - 1e-9)  # a sum of weights may be a rounding error below
    return float(score[order[enough[0]]]) if len(enough) else 0.0


def controlled_threshold(
    loss: np.ndarray, thresholds: np.ndarray, group: np.ndarray, rate: float
) -> tuple[float, float]:
    """The largest threshold at which the expected loss of a scan of a new group is at most `rate`.

    Conformal risk control (Angelopoulos et al. 2022): the mean loss over groups, of which the new one counts with the
    largest loss, 1, must not exceed the rate. A loss that falls somewhere as the threshold rises is replaced by the
    largest loss up to there, so that the bound holds.

    Args:
      loss: float (N, T) in [0, 1], of each scan at each threshold.
      thresholds: float (T,), rising.
      group: (N,), the group of each scan.
      rate: in (0, 1).

    Returns:
      The threshold and the bound of its loss; (nan, nan) where no threshold has a bound of at most `rate`.

    >>> loss = np.array([[0.0, 0.1, 0.9], [0.0, 0.3, 0.9]])
    >>> controlled_threshold(loss, np.array([0.1, 0.5, 0.9]), np.array(["a", "b"]), 0.5)
    (0.5, 0.4666666666666667)
    """
    weight = group_weights(group)
    groups = len(np.unique(group))
    rising = np.maximum.accumulate(np.asarray(loss, np.float64), axis=1)
    bound = weight @ rising + 1.0 / (groups + 1)
    good = np.flatnonzero(bound <= rate + 1e-9)
    return (float(thresholds[good[-1]]), float(bound[good[-1]])) if len(good) else (math.nan, math.nan)


def group_folds(group: np.ndarray, folds: int, seed: int = 0) -> np.ndarray:
    """A fold of each scan, int (N,) in [0, folds): whole groups, drawn at random, nearly as many in every fold."""
    names, index = np.unique(group, return_inverse=True)
    of_group = np.arange(len(names)) % folds
    return np.random.default_rng(seed).permutation(of_group)[index]
