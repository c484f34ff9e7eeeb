"""What each metric is, and how an evaluation's scans were chosen, in words. Standard library only."""

from collections.abc import Mapping
from typing import Any

MEANINGS = {
    "accuracy": "share of scans with the right class; for a cascade, with the right organ and class",
    "balanced_accuracy": "mean of the classes' sensitivities",
    "mcc": "Matthews correlation of predicted and true class, -1 to 1; 0 for a constant or random answer",
    "nll": "mean negative log-likelihood of the true class; lower is better",
    "brier": "mean squared error of the probabilities, 0 to 2; lower is better",
    "sensitivity": "true-positive rate: share of the scans of this class that are predicted as it",
    "specificity": "true-negative rate: share of the other scans that are not predicted as this class",
    "specificity_at_90": "specificity at the threshold with a sensitivity of 90 %, chosen on these scans",
    "auc": "area under the ROC curve, of this class against the rest, or the mean over classes",
    "organ": "share of scans whose organ is right",
    "refused": "rejected share of the scans of known organs; lower is better",
    "foreign_refused": "rejected share of the out-of-distribution scans",
    "uncertain": "share of the scans of known organs that are accepted with an uncertain organ; lower is better",
    "foreign_uncertain": "share of the out-of-distribution scans that are accepted with an uncertain organ",
    "wrong_organ": "share of scans routed to a wrong organ",
    "set_coverage": "share of scans of the right organ whose label set holds the true class",
    "set_size": "mean number of classes in the label set, of the same scans; lower is better",
    "dice": "mean Dice over all scans; 1 where there is no lesion and no mask",
    "dice_lesion": "mean Dice over scans with a lesion",
    "iou_lesion": "mean intersection over union, over scans with a lesion",
    "dice_balanced": "geometric mean of the mean Dice of lesion scans and that of scans without a lesion",
    "dice_patient": "mean Dice over groups with a lesion, the pixels of their scans pooled",
    "dice_patient_median": "median Dice over groups with a lesion, the pixels of their scans pooled",
    "dice_loss": "mean soft Dice loss over all scans; lower is better",
    "false_masks": "share of scans without a lesion whose predicted mask is not empty; lower is better",
    "gated_dice": "dice, with empty masks where the network's own class is free of lesions",
    "gated_dice_lesion": "dice_lesion, with empty masks where the network's own class is free of lesions",
    "gated_false_masks": "false_masks, with empty masks where the network's own class is free of lesions",
    "missed": "share of lesion scans whose mask does not touch the lesion or is empty; lower is better",
    "hd95": "95th percentile Hausdorff distance, pixels, where both masks are not empty; lower is better",
    "hd95_relative": "hd95 as a share of the diagonal of the scan's content; lower is better",
    "surface_distance": "mean distance between the outlines, pixels, where both masks are not empty; lower is better",
    "nsd": "surface Dice: share of the outlines within 1 % of the diagonal of the other; 1 where no lesion and no mask",
    "nsd_lesion": "surface Dice over scans with a lesion; 0 where the mask is empty",
    "lesion_sensitivity": "share of the single lesions that are found: a predicted one overlaps, IoU at least 0.1",
    "lesion_precision": "share of the single predicted lesions that find a true one",
    "lesion_f1": "harmonic mean of lesion_sensitivity and lesion_precision",
    "false_lesions": "single predicted lesions per scan that find no true one; lower is better",
    "outer_missed": "share of a lesion outside the outer outline, mean over lesion scans with one; lower is better",
    "lost_by_router": "share of lesion scans rejected or routed to a wrong organ",
    "lost_by_classifier": "share of lesion scans classified as free of lesions",
    "lost_by_segmenter": "share of lesion scans with the right organ and a lesion's class whose mask misses the lesion",
}
"""Metric -> what it is; the name of a metric of one class or organ ends in the name of that."""

NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "mcc": "Matthews correlation",
    "nll": "Log loss",
    "brier": "Brier score",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "specificity_at_90": "Specificity at 90 % sensitivity",
    "ppv": "Positive predictive value",
    "npv": "Negative predictive value",
    "auc": "Area under the ROC curve",
    "set_coverage": "True class in the label set",
    "set_size": "Classes in the label set",
    "organ": "Right organ",
    "refused": "Rejected scans",
    "foreign_refused": "Rejected out-of-distribution scans",
    "uncertain": "Organ uncertain",
    "foreign_uncertain": "Out-of-distribution scans with an uncertain organ",
    "wrong_organ": "Wrong organ",
    "dice": "Dice",
    "dice_lesion": "Dice, lesion scans",
    "iou_lesion": "Intersection over union, lesion scans",
    "dice_balanced": "Dice, lesion and empty scans balanced",
    "dice_patient": "Dice by group",
    "dice_patient_median": "Dice by group, median",
    "dice_loss": "Soft Dice loss",
    "false_masks": "Masks on lesion-free scans",
    "gated_dice": "Dice, gated by the class",
    "gated_dice_lesion": "Dice, lesion scans, gated by the class",
    "gated_false_masks": "Masks on lesion-free scans, gated by the class",
    "outer_missed": "Missed by the outer outline",
    "missed": "Missed lesion scans",
    "hd95": "95 % Hausdorff distance, pixels",
    "hd95_relative": "95 % Hausdorff distance, of the diagonal",
    "surface_distance": "Mean surface distance, pixels",
    "nsd": "Surface Dice",
    "nsd_lesion": "Surface Dice, lesion scans",
    "lesion_sensitivity": "Lesions found",
    "lesion_precision": "Predicted lesions that are right",
    "lesion_f1": "F1 of single lesions",
    "false_lesions": "False lesions per scan",
    "lost_by_router": "Lesion scans lost by the router",
    "lost_by_classifier": "Lesion scans lost by the classifier",
    "lost_by_segmenter": "Lesion scans lost by the segmenter",
}
"""Metric -> its name in plain English."""
PREDICTIVE = {
    "ppv": "share of the scans called suspicious that are",
    "npv": "share of the scans not called suspicious that are not",
}
"""What the predictive values of `evaluation.clinical` are."""

USES = {"train": "were trained on", "validation": "chose epoch, CRF or limits"}
"""What weights may have used scans for -> how a sentence about such scans ends."""


def _beginning(name: str, table: Mapping[str, str]) -> str:
    """The longest beginning of a metric's name, in whole words, that is in a table; "" for none."""
    words = name.split("_")
    beginnings = ("_".join(words[:n]) for n in range(len(words), 0, -1))
    return next((begin for begin in beginnings if begin in table), "")


def meaning(name: str) -> str:
    """What a metric is, by its name or the longest beginning of it in MEANINGS; "" where there is none."""
    return MEANINGS.get(_beginning(name, MEANINGS), "")


def plain_name(name: str) -> str:
    """The name of a metric in print, from its own where NAMES has none.

    >>> plain_name("sensitivity_breast_malignant"), plain_name("auc_brain"), plain_name("specificity_no_tumor")
    ('Sensitivity, breast malignant', 'Area under the ROC curve, brain', 'Specificity, no tumor')
    """
    begin = _beginning(name, NAMES)
    if not begin:
        return name.replace("_", " ").capitalize()
    of = name[len(begin) + 1 :].replace("_", " ")
    return f"{NAMES[begin]}, {of}" if of else NAMES[begin]


def scans_scored(found: Mapping[str, Any]) -> str:
    """Which scans a report is of."""
    if "folder" in found:
        return f"folder {found['folder']['name']}"
    if "left_out" in found:
        held_out = found["left_out"]
        return f"held out by {held_out['runs']} runs ({held_out['scans']} scans of {held_out['of']})"
    if "unseen" in found:
        facts = found["unseen"]
        near, absent = facts["near_duplicates"], ", ".join(facts["not_compared"])
        less = f", less {near} near-duplicates of training scans" if near else ""
        less += f"; near-duplicates of {absent}, not prepared here, may be among them" if absent else ""
        return f"sources that the networks were trained without ({facts['scans']} scans{less})"
    return f"{found['split']} split"


def uses_seen(audit: Mapping[str, Any]) -> str:
    """What the networks have used scored scans for, from a report's audit; "" where for nothing."""
    networks = audit.get("networks", {}).values()
    used = {use for network in networks for use, count in network.items() if count["scored"]}
    return " and ".join(words for use, words in USES.items() if use in used)
