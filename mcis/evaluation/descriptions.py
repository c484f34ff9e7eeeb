"""What each metric is, and how an evaluation's scans were chosen, in words. Standard library only."""

from collections.abc import Mapping
from typing import Any

MEANINGS = {
    "accuracy": "share of scans with the right class; for a cascade, with the right organ and class",
    "balanced_accuracy": "mean of the classes' sensitivities",
    "nll": "mean negative log-likelihood of the true class; lower is better",
    "brier": "mean squared error of the probabilities, 0 to 2; lower is better",
    "sensitivity": "true-positive rate: share of the scans of this class that are predicted as it",
    "specificity": "true-negative rate: share of the other scans that are not predicted as this class",
    "specificity_at_90": "specificity at the threshold with a sensitivity of 90 %, chosen on these scans",
    "auc": "area under the ROC curve, of this class against the rest, or the mean over classes",
    "organ": "share of scans whose organ is right",
    "refused": "rejected share of the scans of known organs; lower is better",
    "foreign_refused": "rejected share of the out-of-distribution scans",
    "wrong_organ": "share of scans routed to a wrong organ",
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
    "surface_distance": "mean distance between the outlines, pixels, where both masks are not empty; lower is better",
    "lost_by_router": "share of lesion scans rejected or routed to a wrong organ",
    "lost_by_classifier": "share of lesion scans classified as free of lesions",
    "lost_by_segmenter": "share of lesion scans with the right organ and a lesion's class whose mask misses the lesion",
}
"""Metric -> what it is; the name of a metric of one class or organ ends in the name of that."""

USES = {"train": "were trained on", "validation": "chose epoch, CRF or limits"}
"""What weights may have used scans for -> how a sentence about such scans ends."""


def meaning(name: str) -> str:
    """What a metric is, by its name or the longest beginning of it in MEANINGS; "" where there is none."""
    words = name.split("_")
    beginnings = ("_".join(words[:n]) for n in range(len(words), 0, -1))
    return next((MEANINGS[begin] for begin in beginnings if begin in MEANINGS), "")


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
