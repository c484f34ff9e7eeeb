"""Is a probability of 0.8 right four times in five? Reliability in bins, beside what chance alone would show."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Reliability:
    """A reliability diagram of B bins that hold the same number of scans, least confident first.

    Attributes:
      count: int (B,) scans.
      confidence: float (B,) mean probability of the class that was said.
      accuracy: float (B,) share of them that were right.
      low, high: float (B,) the ends of the accuracy that a perfectly calibrated model would show in 95 % of data sets
        of this size.
      error: expected calibration error, the mean of |accuracy - confidence| over scans, in [0, 1].
      error_high: what that error of a perfectly calibrated model stays below in 95 % of such data sets.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: float
    error_high: float


def reliability(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 10, draws: int = 1000, seed: int = 0
) -> Reliability:
    """Compare confidences with how often they were right.

    Bins of equal mass, for few scans make bins of equal width empty (Nguyen & O'Connor 2015). The band is simulated
    (consistency bars, Broecker & Smith 2007): each scan is right with the probability that was said.

    Args:
      confidence: (N,) the probability of what was said, in [0, 1].
      correct: bool (N,).
      bins: at most; there are never more than scans.
      draws: simulated data sets.
      seed: of the simulation, and of the order among equal confidences.

    Raises:
      ValueError: no scans.
    """
    if not len(confidence):
        raise ValueError("no scans to compare confidences with")
    rng = np.random.default_rng(seed)
    # equal confidences in chance order: scans come sorted by source, and a bin of one source would look wrong
    order = np.lexsort((rng.random(len(confidence)), confidence))
    confidence, correct = np.asarray(confidence, np.float64)[order], np.asarray(correct, np.float64)[order]
    starts = np.linspace(0, len(order), min(bins, len(order)) + 1).astype(int)[:-1]
    count = np.diff(np.append(starts, len(order)))
    said = np.add.reduceat(confidence, starts) / count
    found = np.add.reduceat(correct, starts) / count
    drawn = rng.random((draws, len(order))) < confidence
    simulated = np.add.reduceat(drawn.astype(np.float64), starts, axis=1) / count
    low, high = np.percentile(simulated, [2.5, 97.5], axis=0)

    def error(accuracy: np.ndarray) -> np.ndarray:
        return (np.abs(accuracy - said) * count).sum(-1) / len(order)

    return Reliability(count, said, found, low, high, float(error(found)), float(np.percentile(error(simulated), 95)))
