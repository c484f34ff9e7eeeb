"""Is a probability of 0.8 right four times in five? Reliability beside what chance alone would show; and a remedy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

FLOOR = 1e-6
"""Probabilities below it count as it, so that none has the logarithm of nothing."""
STEEPEST = 10.0
"""Largest slope that is fitted: all right or all wrong, scans would ask for any."""


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


def calibrated(probs: jax.Array, calibration: dict) -> jax.Array:
    """Probabilities (B, K) put right: softmax(slope log p), float32 (B, K).

    Temperature scaling (Guo et al. 2017), of the mean of an ensemble's probabilities as well as of one network's. It
    keeps their order: how sure a network is changes, never what it says. A bias a class would, and would learn how rare
    a class is in the scans at hand.

    Args:
      probs: float (B, K), each row a distribution.
      calibration: {"slope": ()} as `fit_calibration` gives it; what else is in it is left alone.
    """
    return jax.nn.softmax(calibration["slope"] * jnp.log(jnp.maximum(probs.astype(jnp.float32), FLOOR)))


def fit_calibration(probs: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """The slope for `calibrated` of the least negative log-likelihood, on scans that the network has not seen.

    Args:
      probs: float (N, K).
      label: int (N,) in [0, K).

    Returns:
      {"slope": ()}, float32, in [1 / STEEPEST, STEEPEST].
    """
    from scipy.optimize import minimize_scalar  # a fifth of a second, which findings need not wait for

    log = np.log(np.maximum(np.asarray(probs, np.float64), FLOOR))

    def cost(log_slope: float) -> float:
        logits = np.exp(log_slope) * log
        return float((np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(label)), label]).mean())

    furthest = np.log(STEEPEST)
    best = minimize_scalar(cost, bounds=(-furthest, furthest), method="bounded").x
    return {"slope": np.asarray(np.exp(best), np.float32)}
