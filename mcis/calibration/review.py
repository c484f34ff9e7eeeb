"""The review flag: fit the confidence below which a fifth of an organ's scans lie, and count the errors among them.

Confidence is the label's calibrated probability times the mask's expected Dice. Other scores were compared with it on
held-out scans, and none marked clearly more errors (docs/experiments.md): margins and entropies, the mask's own
uncertainty, the agreement of label and mask, the router's scores, and regressions on all of these.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from mcis.calibration.uncertainty import held_out
from mcis.inference.rows import Rows
from mcis.ops.calibration import decide
from mcis.ops.metrics import bootstrap_interval, dice, with_ends
from mcis.organs import ORGANS

REVIEW = 0.20
"""Share of scans that are for review."""
GOOD_DICE = 0.5
"""Dice below which a lesion's mask counts as an error."""


def decided_labels(organ: int, labels: Rows, shift: np.ndarray | None) -> np.ndarray:
    """The labels of the cascade, int (N,): at the operating point of a shift, float32 (K,), or the most probable."""
    is_lesion = jnp.asarray(ORGANS[organ].lesion_classes)
    return np.asarray(decide(jnp.asarray(labels.probs), *(() if shift is None else (jnp.asarray(shift), is_lesion))))


def aligned(organ: int, labels: Rows, masks: Rows) -> Rows:
    """The rows of `masks` in the order of `labels`; ValueError where some are missing. `organ` is an index."""
    row_of = {name: row for row, name in enumerate(masks.fingerprint.tolist())}
    missing = sum(name not in row_of for name in labels.fingerprint.tolist())
    if missing:
        raise ValueError(
            f"{missing} of the {len(labels)} {ORGANS[organ].name} scans have a predicted label but no predicted "
            "mask: name the same folds of the classifier and of the segmenter"
        )
    return masks.take(np.array([row_of[name] for name in labels.fingerprint.tolist()]))


def fit_review(
    organ: int, labels: Rows, masks: Rows | None, shift: np.ndarray | None = None
) -> tuple[float, dict[str, Any]]:
    """The confidence below which REVIEW of an organ's scans lie, and the share of the errors among those.

    Confidence is that of the cascade: the calibrated probability of the label, times the mask's expected Dice where the
    label is a lesion's. An error is a wrong label, or a lesion's mask with a Dice below GOOD_DICE. The facts also
    have the shares for limits fitted to other groups ("in_source") and to other sources ("left_one_source_out").

    Args:
      organ: index into ORGANS.
      labels: predictions of the network that gives the label, calibrated.
      masks: predictions of the network that gives the mask; None where there is none.
      shift: of the operating point at which labels are decided, float32 (K,); None for the most probable class.

    Raises:
      ValueError: masks of some of the scans are missing.
    """
    predicted = decided_labels(organ, labels, shift)
    confidence, wrong = labels.probs[np.arange(len(labels)), predicted], predicted != labels.label
    if masks is not None:
        masks = aligned(organ, labels, masks)
        lesion = np.array(ORGANS[organ].lesion_classes)[predicted]
        confidence = confidence * np.where(lesion, masks.expected_dice, 1.0)
        wrong |= masks.lesion & lesion & (dice(*masks.counts) < GOOD_DICE)
    known = labels.label >= 0
    confidence, wrong = confidence[known], wrong[known]
    limit = float(np.quantile(confidence, REVIEW))
    flagged = confidence < limit
    known_rows = labels.take(known)

    def apply(part: np.ndarray, others: np.ndarray) -> np.ndarray:
        return confidence[others] < np.quantile(confidence[part], REVIEW)

    return limit, {
        "scans": len(wrong),
        "errors": int(wrong.sum()),
        "flagged": float(flagged.mean()),
        "errors_flagged": float(wrong[flagged].sum() / max(wrong.sum(), 1)),
        "error_rate_flagged": float(wrong[flagged].mean()) if flagged.any() else 0.0,
        "error_rate_others": float(wrong[~flagged].mean()),
    } | {
        name: None if out is None else _of_review(known_rows, out, wrong)
        for name, out in held_out(known_rows, apply).items()
    }


def _of_review(rows: Rows, flagged: np.ndarray, wrong: np.ndarray) -> dict[str, Any]:
    """The share of the errors in bool (N,) `flagged`: {"flagged", "errors_flagged" with an interval, "sources"}."""

    def share(index: np.ndarray, _: np.ndarray) -> dict[str, float]:
        errors = wrong[index]
        return {"held": float(flagged[index][errors].mean())} if errors.any() else {}

    held = float(flagged[wrong].mean()) if wrong.any() else None
    sources = {name: rows.source == name for name in np.unique(rows.source).tolist()}
    return {
        "flagged": float(flagged.mean()),
        "errors_flagged": with_ends(held, bootstrap_interval(share, rows.group).get("held", (np.nan, np.nan))),
        "sources": {
            name: {
                "scans": int(part.sum()),
                "flagged": float(flagged[part].mean()),
                "errors": int(wrong[part].sum()),
                "errors_flagged": float(flagged[part & wrong].mean()) if wrong[part].any() else None,
            }
            for name, part in sources.items()
        },
    }
