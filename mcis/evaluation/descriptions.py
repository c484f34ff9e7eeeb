"""What each metric says, in a few words, for readers of a report. Standard library only."""

from collections.abc import Mapping
from typing import Any

MEANINGS = {
    "accuracy": "share of scans called what they are; of a cascade, organ and class",
    "balanced_accuracy": "mean over the classes of the share that is called so",
    "nll": "mean negative log-likelihood of the true class; lower is better",
    "brier": "mean squared error of the probabilities, 0 to 2; lower is better",
    "sensitivity": "share of this class that is called so",
    "specificity": "share of the others that is not called so",
    "specificity_at_90": "share of the others below the threshold that 90 % of this class reach, chosen on these scans",
    "auc": "area under the ROC curve, of this class against the rest, or the mean over classes",
    "organ": "share of scans whose organ is told",
    "refused": "share of scans of a known organ that were refused; lower is better",
    "foreign_refused": "share of pictures of other kinds that were refused",
    "wrong_organ": "share of scans sent to another organ",
    "dice": "mean Dice over all scans; 1 where there is no lesion and no mask",
    "dice_lesion": "mean Dice over scans with a lesion",
    "iou_lesion": "mean intersection over union, over scans with a lesion",
    "dice_balanced": "geometric mean of the Dice of lesion scans and of empty ones",
    "dice_patient": "mean Dice over groups with a lesion, their scans pooled",
    "dice_patient_median": "median Dice over groups with a lesion, their scans pooled",
    "dice_loss": "mean soft Dice loss over all scans; lower is better",
    "false_masks": "share of scans without a lesion that were given a mask; lower is better",
    "gated_dice": "dice, no mask being given to what the network itself calls free of lesions",
    "gated_dice_lesion": "dice_lesion, no mask being given to what the network itself calls free of lesions",
    "gated_false_masks": "false_masks, no mask being given to what the network itself calls free of lesions",
    "missed": "share of lesion scans whose mask is empty or beside the lesion; lower is better",
    "hd95": "95th percentile Hausdorff distance, pixels, where both outlines exist; lower is better",
    "surface_distance": "mean distance between outlines, pixels, where both exist; lower is better",
    "lost_by_router": "share of lesion scans refused or sent to another organ",
    "lost_by_classifier": "share of lesion scans called free of lesions",
    "lost_by_segmenter": "share of lesion scans given no mask, or one beside the lesion",
}
"""Metric -> what it says; a metric of one class or organ has that as its ending."""


def scans_scored(found: Mapping[str, Any]) -> str:
    """Which scans a report is of, in words."""
    if "folder" in found:
        return f"folder {found['folder']['name']}"
    if "left_out" in found:
        left = found["left_out"]
        return f"left out by {left['runs']} runs ({left['scans']} scans of {left['of']})"
    return f"{found['split']} split"


USES = {"train": "were trained on", "validation": "chose epoch, CRF or limits"}
"""What weights may have used scans for -> what is said of such scans."""


def uses_seen(audit: Mapping[str, Any]) -> str:
    """What the networks have used scored scans for, in words, from a report's audit; "" where for nothing."""
    networks = audit.get("networks", {}).values()
    used = {use for network in networks for use, count in network.items() if count["scored"]}
    return " and ".join(words for use, words in USES.items() if use in used)


def meaning(name: str) -> str:
    """What a metric says, by its name or the longest beginning of it that is known; "" where none is."""
    words = name.split("_")
    beginnings = ("_".join(words[:n]) for n in range(len(words), 0, -1))
    return next((MEANINGS[begin] for begin in beginnings if begin in MEANINGS), "")
