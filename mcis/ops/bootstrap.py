"""Bootstrap over groups for scores that are made of sums over scans: every draw at once. No JAX.

`metrics.bootstrap_interval` calls a function for every draw; here a draw is how often it has each group, and a sum over
its scans is a product of matrices. The draws are the same.
"""

from collections.abc import Mapping

import numpy as np

from mcis.ops.metrics import PARTIAL

Interval = dict[str, float | None]
"""{"value", "low", "high"}: a score and its 95 % interval; low and high are None where there is no interval."""


def group_draws(group: np.ndarray, draws: int = 1000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """How often each group is drawn.

    Args:
      group: (N,) group of each scan.
      draws: number of resamplings D of the G groups with replacement.
      seed: of the resampling.

    Returns:
      The group of each scan as int (N,) in [0, G); and uint16 (1 + D, G), whose first row is all groups once.
    """
    names, index = np.unique(group, return_inverse=True)
    rng, count = np.random.default_rng(seed), len(names)
    chosen = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(draws if count > 1 else 0)]
    return index, np.array([np.ones(count), *chosen], np.uint16)


def drawn_sums(values: np.ndarray, index: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Sums over the scans of each draw: (N, M) values of scans -> float64 (1 + D, M), the first row of all scans."""
    by_group = np.zeros((draws.shape[1], values.shape[1]))
    np.add.at(by_group, index, values)
    return np.stack([draw.astype(np.float64) @ by_group for draw in draws])  # all as float64 may not fit into memory


def interval(scores: np.ndarray) -> Interval:
    """The first of float (1 + D,) scores, and the 2.5th and 97.5th percentiles of the others, which may be NaN.

    There is no interval without draws, or where more than PARTIAL of them lack the score.
    """
    value, drawn = float(scores[0]), scores[1:]
    there = drawn[np.isfinite(drawn)]
    if not len(there) or len(there) < (1 - PARTIAL) * len(drawn):
        return {"value": value, "low": None, "high": None}
    low, high = np.percentile(there, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The ratio, elementwise; NaN where `whole` is 0."""
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)


def share_intervals(
    shares: Mapping[str, tuple[np.ndarray, np.ndarray]], group: np.ndarray, draws: int = 1000
) -> dict[str, Interval]:
    """Ratios of sums over scans with their intervals.

    Args:
      shares: name -> numerator and denominator of each scan, number or bool (N,) twice. A name whose denominators sum
        to 0 is left out.
      group: (N,) group of each scan.
      draws: number of resamplings.

    Of four scans of two patients two are right:

    >>> right = np.array([True, True, False, False])
    >>> share_intervals({"accuracy": (right, np.ones(4))}, np.array(["p1", "p1", "p2", "p2"]))
    {'accuracy': {'value': 0.5, 'low': 0.0, 'high': 1.0}}
    """
    if not shares or not len(group):
        return {}
    index, times = group_draws(group, draws)
    parts, wholes = (np.stack([np.asarray(pair[k], np.float64) for pair in shares.values()], 1) for k in (0, 1))
    found = share(drawn_sums(parts, index, times), drawn_sums(wholes, index, times))
    return {name: interval(column) for name, column in zip(shares, found.T, strict=True) if np.isfinite(column[0])}
