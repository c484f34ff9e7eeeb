"""Metrics from per-scan counts. The counts are made on the device; what they add up to is computed in NumPy.

Empty masks have one policy everywhere: both empty = Dice 1, one empty = Dice 0.
"""

from collections.abc import Mapping, Sequence

import numpy as np

LABEL_METRICS = ("accuracy", "balanced_accuracy")
MASK_METRICS = ("dice_lesion", "iou_lesion", "dice", "dice_balanced", "dice_patient", "dice_patient_median")
"""Scores of `label_scores` and `mask_scores` of which larger is better: an epoch can be chosen by them."""

MASK_THRESHOLD = 0.5
"""Probability above which a pixel is lesion: in training's validation, in evaluation and in findings alike."""


def mask_counts(predicted, mask):
    """Pixels of a scan: {0,1} (B, H, W, 1) twice -> dict of (B,): both (intersection), predicted, true.

    Takes NumPy and JAX arrays alike.

    >>> predicted = np.zeros((1, 4, 4, 1), np.uint8)
    >>> mask = predicted.copy()
    >>> predicted[0, :2], mask[0, 1:3] = 1, 1  # two rows each, one in common
    >>> {name: count.tolist() for name, count in mask_counts(predicted, mask).items()}
    {'both': [4], 'predicted': [8], 'true': [8]}
    """
    predicted, mask = predicted.astype("int32"), mask.astype("int32")
    axes = (1, 2, 3)
    return {"both": (predicted * mask).sum(axes), "predicted": predicted.sum(axes), "true": mask.sum(axes)}


def dice(both, predicted, true) -> np.ndarray:
    """2|A and B| / (|A| + |B|) from counts, elementwise; 1 where both are empty.

    Three scans: half right, both masks empty, a lesion missed.

    >>> dice(both=[30, 0, 0], predicted=[60, 0, 0], true=[60, 0, 25]).tolist()
    [0.5, 1.0, 0.0]
    """
    total = np.asarray(predicted, np.float64) + np.asarray(true)
    return np.where(total == 0, 1.0, 2.0 * np.asarray(both) / np.maximum(total, 1))


def iou(both, predicted, true) -> np.ndarray:
    """|A and B| / |A or B| from counts, elementwise; 1 where both are empty.

    >>> iou(both=[30, 0], predicted=[60, 0], true=[60, 0]).round(3).tolist()
    [0.333, 1.0]
    """
    union = np.asarray(predicted, np.float64) + np.asarray(true) - np.asarray(both)
    return np.where(union == 0, 1.0, np.asarray(both) / np.maximum(union, 1))


def dice_loss(prob: np.ndarray, mask: np.ndarray) -> float:
    """`losses.soft_dice` of one scan from float (H, W) probabilities and a {0,1} mask of that shape; in [0, 1]."""
    overlap = float((prob * mask).sum(dtype=np.float64))
    return 1.0 - (2.0 * overlap + 1.0) / (float(prob.sum(dtype=np.float64)) + float(mask.sum(dtype=np.int64)) + 1.0)


def accuracy(predicted: np.ndarray, label: np.ndarray) -> float:
    """Share of equal entries of two int (N,)."""
    return float(np.mean(predicted == label))


def balanced_accuracy(predicted: np.ndarray, label: np.ndarray) -> float:
    """Mean over the classes present in `label` of the share found; int (N,) twice.

    Who always says 0 is right three times in four, and knows one class of two:

    >>> said, label = np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1])
    >>> accuracy(said, label), balanced_accuracy(said, label)
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
    """How many scans of class i were called j: int (N,) twice, in [0, K) -> int (K, K)."""
    return np.bincount(label * classes + predicted, minlength=classes**2).reshape(classes, classes)


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: how often a positive scan scores above another; ties count half.

    Mann & Whitney's U over its largest value (Hanley & McNeil 1982).

    Args:
      score: (N,) float.
      positive: (N,) bool, some true and some false.

    Of four pairs of a positive and another, three are in order and one is tied:

    >>> auc(np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False]))
    0.875
    """
    others = np.sort(score[~positive])
    below, not_above = (np.searchsorted(others, score[positive], side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(others)))


SENSITIVE = 0.9
"""The sensitivity at which specificities of a chosen threshold are compared."""
POSITIVES = 20
"""Fewest scans of a class from which such a threshold is chosen: on few it flatters."""


def class_scores(probs: np.ndarray, label: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """What each class's own scores are, from float (N, K) probs and int (N,) labels in [0, K).

    Returns:
      sensitivity_<class>, specificity_<class>: of the class that is most probable; auc_<class>: of its probability,
      this class against the rest; auc: the mean of these over the classes; brier: mean over scans of the sum over
      classes of (probability - truth) squared, in [0, 2] (Brier 1950); specificity_at_90_<class>: that of the largest
      threshold on the class's probability with a sensitivity of SENSITIVE or more, where POSITIVES scans are of it.
      A class that does not occur has no sensitivity, one that is all there is no specificity, and neither has an AUC.
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


def mask_scores(both: np.ndarray, predicted: np.ndarray, true: np.ndarray, group: np.ndarray) -> dict[str, float]:
    """Dice over scans and patients from int (N,) counts; `group` (N,) names each scan's patient.

    Returns:
      dice_lesion, iou_lesion: mean over scans whose mask is not empty; false_masks: share of empty scans that were
      given a mask; dice: mean over all scans; dice_balanced: geometric mean of the lesion scans' Dice and of the empty
      scans', so that the rarer kind counts as much, and neither no mask at all nor a mask everywhere scores;
      dice_patient, dice_patient_median: over patients with a lesion, counts of a patient's scans pooled. What does not
      occur is left out.
    """
    scores: dict[str, float] = {}
    lesion = true > 0
    if lesion.any():
        scores["dice_lesion"] = float(dice(both, predicted, true)[lesion].mean())
        scores["iou_lesion"] = float(iou(both, predicted, true)[lesion].mean())
    if (~lesion).any():
        scores["false_masks"] = float((predicted[~lesion] > 0).mean())
    scores["dice"] = float(dice(both, predicted, true).mean())
    kinds = [dice(both, predicted, true)[kind].mean() for kind in (lesion, ~lesion) if kind.any()]
    scores["dice_balanced"] = float(np.prod(kinds) ** (1 / len(kinds)))
    _, index = np.unique(group, return_inverse=True)
    pooled = [np.bincount(index, counts) for counts in (both, predicted, true)]
    patients = dice(*pooled)[pooled[2] > 0]
    if len(patients):
        scores["dice_patient"] = float(patients.mean())
        scores["dice_patient_median"] = float(np.median(patients))
    return scores


def with_interval(found: Mapping[str, float | None], sign: str = "") -> str:
    """A figure in words, "0.812 [0.763, 0.851]", from its value, low and high; with `sign` "+" differences have one."""
    ends = "no interval" if found["low"] is None else f"{found['low']:{sign}.3f}, {found['high']:{sign}.3f}"
    return f"{found['value']:{sign}.3f} [{ends}]"


PARTIAL = 0.05
"""Largest share of a bootstrap's draws that may lack a score."""


def bootstrap_interval(score, group: np.ndarray, draws: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of scores under resampling of whole groups (patients) with replacement.

    Args:
      score: function of int (M,) row indices and int (M,) groups -> dict of floats; a name that is missing from a draw
        is left out of that draw. A group drawn twice comes as two groups: a mean over patients counts it twice.
      group: (N,) group of each row.
      draws: number of resamplings.
      seed: of the resampling.

    Returns:
      name -> (low, high), the 2.5 and 97.5 percentiles; (nan, nan) when there are fewer than two groups, or when more
      than PARTIAL of the draws lack the name, for what is left of them tells too narrow an interval.

    Four scans of two patients tell less than four patients would:

    >>> right = np.array([1.0, 1.0, 0.0, 0.0])
    >>> def score(rows, group):
    ...     return {"accuracy": right[rows].mean()}
    >>> bootstrap_interval(score, np.array(["p1", "p1", "p2", "p2"]))["accuracy"]
    (0.0, 1.0)
    """
    _, index = np.unique(group, return_inverse=True)
    members = [np.flatnonzero(index == g) for g in range(index.max() + 1)]
    if len(members) < 2:
        return {name: (float("nan"), float("nan")) for name in score(np.arange(len(group)), index)}
    rng = np.random.default_rng(seed)
    values: dict[str, list[float]] = {}
    for _ in range(draws):
        chosen = [members[g] for g in rng.integers(0, len(members), len(members))]
        drawn = np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen])
        for name, value in score(np.concatenate(chosen), drawn).items():
            values.setdefault(name, []).append(value)
    few = (1 - PARTIAL) * draws
    ends = {name: np.percentile(v, [2.5, 97.5]) if len(v) >= few else (np.nan, np.nan) for name, v in values.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}
