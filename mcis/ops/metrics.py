"""Metrics of labels and masks, in NumPy; `mask_counts` also runs on the device.

Empty masks are treated the same everywhere: Dice is 1 where both masks are empty, 0 where one is.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

LABEL_METRICS = ("accuracy", "balanced_accuracy")
MASK_METRICS = ("dice_lesion", "iou_lesion", "dice", "dice_balanced", "dice_patient", "dice_patient_median")
"""Scores of `label_scores` and `mask_scores` of which larger is better; the best epoch can be chosen by them."""
MASK_THRESHOLD = 0.5
"""Probability above which a pixel is lesion, everywhere."""
SENSITIVE = 0.9
"""Sensitivity of the threshold at which `class_scores` gives a specificity."""
POSITIVES = 20
"""Fewest scans of a class for which that threshold is chosen: with few the specificity is too optimistic."""
PARTIAL = 0.05
"""Largest share of bootstrap draws that may lack a score."""


def mask_counts(predicted, mask):
    """Pixel counts per scan: two {0,1} (B, H, W, 1), of NumPy or JAX -> dict of (B,).

    The keys are both (pixels of the intersection), predicted and true.
    """
    predicted, mask = predicted.astype("int32"), mask.astype("int32")
    axes = (1, 2, 3)
    return {"both": (predicted * mask).sum(axes), "predicted": predicted.sum(axes), "true": mask.sum(axes)}


def dice(both, predicted, true) -> np.ndarray:
    """2|A and B| / (|A| + |B|) from counts, elementwise; 1 where both are empty.

    Three scans: half right, both masks empty, a missed lesion.

    >>> dice(both=[30, 0, 0], predicted=[60, 0, 0], true=[60, 0, 25]).tolist()
    [0.5, 1.0, 0.0]
    """
    total = np.asarray(predicted, np.float64) + np.asarray(true)
    return np.where(total == 0, 1.0, 2.0 * np.asarray(both) / np.maximum(total, 1))


def iou(both, predicted, true) -> np.ndarray:
    """|A and B| / |A or B| from counts, elementwise; 1 where both are empty."""
    union = np.asarray(predicted, np.float64) + np.asarray(true) - np.asarray(both)
    return np.where(union == 0, 1.0, np.asarray(both) / np.maximum(union, 1))


def dice_loss(prob: np.ndarray, mask: np.ndarray) -> float:
    """`losses.soft_dice` of one scan from float (H, W) probabilities and a {0,1} mask of that shape; in [0, 1]."""
    overlap = float((prob * mask).sum(dtype=np.float64))
    return 1.0 - (2.0 * overlap + 1.0) / (float(prob.sum(dtype=np.float64)) + float(mask.sum(dtype=np.int64)) + 1.0)


def mask_scores(both: np.ndarray, predicted: np.ndarray, true: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """Dice over scans and patients from int (N,) counts; `group` (N,) is the patient of each scan.

    Returns:
      dice_lesion, iou_lesion: mean over scans with a lesion; false_masks: share of the empty scans with a predicted
      mask; dice: mean over all scans; dice_balanced: geometric mean of the mean Dice of the scans with a lesion and of
      the empty ones, 0 for a model that predicts a mask always or never; dice_patient, dice_patient_median: over
      patients with a lesion, from the summed counts of their scans. Scores without scans are left out.
    """
    scores: dict[str, float] = {}
    lesion, dices = true > 0, dice(both, predicted, true)
    if lesion.any():
        scores["dice_lesion"] = float(dices[lesion].mean())
        scores["iou_lesion"] = float(iou(both, predicted, true)[lesion].mean())
    if (~lesion).any():
        scores["false_masks"] = float((predicted[~lesion] > 0).mean())
    scores["dice"] = float(dices.mean())
    means = [dices[kind].mean() for kind in (lesion, ~lesion) if kind.any()]
    scores["dice_balanced"] = float(np.prod(means) ** (1 / len(means)))
    _, index = np.unique(group, return_inverse=True)
    sums = [np.bincount(index, counts) for counts in (both, predicted, true)]
    patients = dice(*sums)[sums[2] > 0]
    if len(patients):
        scores["dice_patient"] = float(patients.mean())
        scores["dice_patient_median"] = float(np.median(patients))
    return scores


def accuracy(predicted: np.ndarray, label: np.ndarray) -> float:
    """Share of equal entries of two int (N,)."""
    return float(np.mean(predicted == label))


def balanced_accuracy(predicted: np.ndarray, label: np.ndarray) -> float:
    """Mean sensitivity over the classes that occur in `label`; two int (N,).

    A model that always predicts class 0:

    >>> predicted, label = np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1])
    >>> accuracy(predicted, label), balanced_accuracy(predicted, label)
    (0.75, 0.5)
    """
    return float(np.mean([np.mean(predicted[label == c] == c) for c in np.unique(label)]))


def label_scores(probs: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and mean negative log-likelihood of float (N, K) probs for int (N,) labels >= 0."""
    predicted = probs.argmax(1)
    true_prob = probs[np.arange(len(label)), label]
    return {
        "accuracy": accuracy(predicted, label),
        "balanced_accuracy": balanced_accuracy(predicted, label),
        "nll": float(-np.log(np.maximum(true_prob, 1e-7)).mean()),
    }


def confusion(predicted: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Number of scans of class i predicted as class j: two int (N,) in [0, K) -> int (K, K)."""
    return np.bincount(label * classes + predicted, minlength=classes**2).reshape(classes, classes)


def mcc(counts: np.ndarray) -> float:
    """Matthews correlation coefficient of a confusion matrix of K classes, [true][predicted] int (K, K); in [-1, 1].

    For more than two classes Gorodkin's R_K (2004). 0 where all scans are of one true, or of one predicted class.

    As good as chance, although three of four are right; and one error among four:

    >>> mcc(np.array([[3, 0], [1, 0]])), round(mcc(np.array([[2, 0], [1, 1]])), 4)
    (0.0, 0.5774)
    """
    counts = np.asarray(counts, np.float64)
    true, predicted, total = counts.sum(1), counts.sum(0), counts.sum()
    spread = (total**2 - predicted @ predicted) * (total**2 - true @ true)
    return float((np.trace(counts) * total - true @ predicted) / np.sqrt(spread)) if spread > 0 else 0.0


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of float (N,) scores; `positive` is bool (N,), with some true and some false.

    The share of pairs of a positive and a negative scan in which the positive one has the higher score, ties counted
    half: the Mann-Whitney U over its largest value (Hanley & McNeil 1982).

    Of four pairs three are in order and one is tied:

    >>> auc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False]))
    0.875
    """
    negatives = np.sort(score[~positive])
    below, not_above = (np.searchsorted(negatives, score[positive], side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(negatives)))


def class_scores(probs: np.ndarray, label: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Scores of each class from float (N, K) probs and int (N,) labels in [0, K).

    Returns:
      sensitivity_<class>, specificity_<class>: of the most probable class; auc_<class>: of the probability of the
      class, against the rest; auc: the mean of these over the classes; brier: mean over scans of the squared
      differences between probabilities and truth, summed over classes, in [0, 2] (Brier 1950);
      specificity_at_90_<class>: at the largest threshold on the probability of the class with a sensitivity of at least
      SENSITIVE, if there are POSITIVES scans of the class. A class that does not occur has no sensitivity, a class that
      is the only one no specificity, and neither has an AUC.
    """
    scores: dict[str, float] = {"brier": float(np.square(probs - np.eye(probs.shape[1])[label]).sum(1).mean())}
    predicted, areas = probs.argmax(1), []
    for index, name in enumerate(classes):
        positive = label == index
        if positive.any():
            scores[f"sensitivity_{name}"] = float((predicted[positive] == index).mean())
        if not positive.all():
            scores[f"specificity_{name}"] = float((predicted[~positive] != index).mean())
        if positive.any() and not positive.all():
            areas.append(auc(probs[:, index], positive))
            scores[f"auc_{name}"] = areas[-1]
            if positive.sum() >= POSITIVES:
                threshold = np.sort(probs[positive, index])[int((1 - SENSITIVE) * positive.sum() + 1e-9)]
                scores[f"specificity_at_90_{name}"] = float((probs[~positive, index] < threshold).mean())
    if areas:
        scores["auc"] = float(np.mean(areas))
    return scores


def bootstrap_interval(
    score: Callable[[np.ndarray, np.ndarray], Mapping[str, float]], group: np.ndarray, draws: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of scores under resampling of whole groups (patients) with replacement.

    Args:
      score: function of int (M,) row indices and int (M,) groups -> scores by name; a draw that lacks a name does not
        count for it. A group drawn twice is passed as two groups, so that a mean over patients counts it twice.
      group: (N,) group of each row.
      draws: number of resamplings.
      seed: of the resampling.

    Returns:
      name -> (low, high), the 2.5th and 97.5th percentiles. (nan, nan) with fewer than two groups, or where more than
      PARTIAL of the draws lack the name: the interval of the others would be too narrow.

    Four scans of two patients give a wider interval than four patients would:

    >>> correct = np.array([1.0, 1.0, 0.0, 0.0])
    >>> def score(rows, group):
    ...     return {"accuracy": correct[rows].mean()}
    >>> bootstrap_interval(score, np.array(["p1", "p1", "p2", "p2"]))["accuracy"]
    (0.0, 1.0)
    """
    _, index, sizes = np.unique(group, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return {name: (float("nan"), float("nan")) for name in score(np.arange(len(group)), index)}
    by_group, starts = np.argsort(index, kind="stable"), np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    values: dict[str, list[float]] = {}
    for _ in range(draws):
        chosen = rng.integers(0, len(sizes), len(sizes))
        drawn = np.repeat(np.arange(len(sizes)), sizes[chosen])
        shift = starts[chosen] - (np.cumsum(sizes[chosen]) - sizes[chosen])  # from a draw to by_group
        for name, value in score(by_group[np.arange(len(drawn)) + shift[drawn]], drawn).items():
            values.setdefault(name, []).append(value)
    fewest = (1 - PARTIAL) * draws
    ends = {name: np.percentile(v, [2.5, 97.5]) if len(v) >= fewest else (np.nan, np.nan) for name, v in values.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def with_ends(value: float | None, ends: tuple[float, float]) -> dict[str, float | None]:
    """{"value", "low", "high"} of a score and its `bootstrap_interval`, in JSON values: None for no interval."""
    low, high = (None if math.isnan(end) else end for end in ends)
    return {"value": value, "low": low, "high": high}


def rate(values: np.ndarray, group: np.ndarray, draws: int = 1000) -> dict[str, float | None]:
    """The mean of (N,) values `with_ends` of its interval by group."""
    ends = bootstrap_interval(lambda index, _: {"mean": float(values[index].mean())}, group, draws)["mean"]
    return with_ends(float(values.mean()), ends)


def with_interval(row: Mapping[str, float | None], sign: str = "") -> str:
    """Text as "0.812 [0.763, 0.851]" from a row of value, low and high; with `sign` "+" differences have their sign."""
    ends = "no interval" if row["low"] is None else f"{row['low']:{sign}.3f}, {row['high']:{sign}.3f}"
    return f"{row['value']:{sign}.3f} [{ends}]"
