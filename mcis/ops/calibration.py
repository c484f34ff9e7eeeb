"""Calibration of label probabilities: reliability diagrams with consistency bars, temperature scaling, decisions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

FLOOR = 1e-6
"""Smaller probabilities are raised to it before their logarithm is taken."""
STEEPEST = 10.0
"""Largest slope that is fitted: scans that are all right or all wrong have no finite optimum."""


@dataclasses.dataclass(frozen=True)
class Reliability:
    """A reliability diagram of B bins with equal numbers of scans, least confident first.

    Attributes:
      count: int (B,) scans.
      confidence: float (B,) mean probability of the predicted class.
      accuracy: float (B,) share of correct predictions.
      low, high: float (B,) the interval that contains the accuracy of a perfectly calibrated model in 95 % of data sets
        of this size.
      error: expected calibration error, the mean of |accuracy - confidence| over scans, in [0, 1].
      error_high: 95th percentile of that error for a perfectly calibrated model on such data sets.
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
    """Compare confidences with the shares of correct predictions.

    `confidence` (N,), in [0, 1], is the probability of the predicted class, `correct` is bool (N,). Bins have equal
    mass: with few scans bins of equal width would be empty (Nguyen & O'Connor 2015). There are at most `bins`, and no
    more than scans. The interval is simulated (consistency bars, Broecker & Smith 2007) on `draws` data sets: each scan
    is correct with the probability of its confidence. ValueError without scans.
    """
    if not len(confidence):
        raise ValueError("no scans to compare confidences with")
    rng = np.random.default_rng(seed)
    # Equal confidences in random order: scans are sorted by source, and a bin of one source would mislead.
    order = np.lexsort((rng.random(len(confidence)), confidence))
    confidence, correct = np.asarray(confidence, np.float64)[order], np.asarray(correct, np.float64)[order]
    starts = np.linspace(0, len(order), min(bins, len(order)) + 1).astype(int)[:-1]
    count = np.diff(np.append(starts, len(order)))
    mean = np.add.reduceat(confidence, starts) / count
    accuracy = np.add.reduceat(correct, starts) / count
    drawn = rng.random((draws, len(order))) < confidence
    simulated = np.add.reduceat(drawn.astype(np.float64), starts, axis=1) / count
    low, high = np.percentile(simulated, [2.5, 97.5], axis=0)

    def error(accuracy: np.ndarray) -> np.ndarray:
        return (np.abs(accuracy - mean) * count).sum(-1) / len(order)

    error_high = float(np.percentile(error(simulated), 95))
    return Reliability(count, mean, accuracy, low, high, float(error(accuracy)), error_high)


def calibrated(probs: jax.Array, calibration: dict) -> jax.Array:
    """Calibrated probabilities (B, K): softmax(slope log p), float32 (B, K).

    Temperature scaling (Guo et al. 2017), of one network or of the mean of an ensemble. It keeps the order of the
    classes, so the most probable class stays the same. A bias per class would change it, and would learn how rare a
    class is in the scans at hand; `decide` applies the operating point. `calibration` is
    {"slope": ()} of `fit_calibration`; other keys are ignored.
    """
    return jax.nn.softmax(calibration["slope"] * jnp.log(jnp.maximum(probs.astype(jnp.float32), FLOOR)))


def decide(probs: jax.Array, shift: jax.Array | None = None, lesion: np.ndarray | jax.Array | None = None) -> jax.Array:
    """The label of each scan, argmax(log p + shift): int32 (B,), the first of equal classes.

    Computed as argmax(p exp(shift)), which is the same but exact where all shifts are equal: logarithms of close
    probabilities can be equal. With `lesion` two questions are answered in turn, whether there is a lesion and which:
    a class of lesions is chosen where all of them together have more than the others.

    Args:
      probs: float (B, K), calibrated probabilities. A class of probability 0 is never chosen beside another.
      shift: float (K,) or (B, K), finite, added to the logarithms; only differences between classes matter. None for
        the most probable class.
      lesion: bool (K,) or (B, K), the classes of lesions; None where each class stands for itself.

    The third class is chosen with a shift above log(0.63 / 0.27) = 0.85:

    >>> probs = jnp.array([[0.1, 0.63, 0.27]])
    >>> [int(decide(probs, jnp.array([0.0, 0.0, shift]))[0]) for shift in (0.0, 0.7, 1.0)]
    [1, 1, 2]

    The first class is the most probable one, but a lesion, benign or malignant, is more probable than none:

    >>> decide(jnp.array([[0.4, 0.35, 0.25]]), lesion=jnp.array([False, True, True])).tolist()
    [1]
    """
    if shift is not None:
        weight = jnp.exp(shift - shift.max(-1, keepdims=True))  # at most 1, so nothing overflows
        probs = probs * jnp.broadcast_to(weight, probs.shape)
    if lesion is not None:
        lesions, others = jnp.where(lesion, probs, 0.0), jnp.where(lesion, 0.0, probs)
        found = lesions.sum(-1, keepdims=True) > others.sum(-1, keepdims=True)
        probs = jnp.where(found, lesions, others)
    return probs.argmax(-1).astype(jnp.int32)


def fit_calibration(probs: np.ndarray, label: np.ndarray, weight: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """{"slope": ()} for `calibrated`, float32, in [1 / STEEPEST, STEEPEST], of the least negative log-likelihood.

    Fitted to float (N, K) probs and int (N,) labels in [0, K) of scans that the network was not trained on; weight is
    float (N,), by which scans count, None for all alike.
    """
    from scipy.optimize import minimize_scalar  # takes 0.2 s to import, which inference need not wait for

    log = np.log(np.maximum(np.asarray(probs, np.float64), FLOOR))

    def cost(log_slope: float) -> float:
        logits = np.exp(log_slope) * log
        losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(label)), label]
        return float(np.average(losses, weights=weight))

    bound = np.log(STEEPEST)
    best = minimize_scalar(cost, bounds=(-bound, bound), method="bounded").x
    return {"slope": np.asarray(np.exp(best), np.float32)}
