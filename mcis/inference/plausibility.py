"""Plausibility rules: scans that are unsupported whatever the networks predict. No JAX."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mcis.imaging.letterbox import MIN_CONTENT, Letterbox
from mcis.inference.rows import UNSUPPORTED_INDEX
from mcis.organs import UNKNOWN

if TYPE_CHECKING:
    from mcis.inference.cascade import Prediction


EMPTY = {
    "organ": UNSUPPORTED_INDEX,
    "label": UNKNOWN,
    "label_probs": 0.0,
    "segmented": False,
    "mask": 0.0,
    "confidence": np.nan,
    "review": UNKNOWN,
}
"""Fields of a rejected scan's Prediction; the others keep what the router predicted."""


def thumbnail_reason(geometry: Letterbox) -> str | None:
    """Why a scan is too small to be analysed; None where it is not."""
    if not geometry.thumbnail:
        return None
    width, height = geometry.box[2:]
    return f"a thumbnail: {width} x {height} pixels of content, {MIN_CONTENT} along one side are needed"


def reject_implausible(
    prediction: "Prediction", geometries: Sequence[Letterbox]
) -> tuple["Prediction", list[str | None]]:
    """Make the scans unsupported that break a rule.

    Args:
      prediction: of the cascade, NumPy arrays of N scans.
      geometries: how each of them was letterboxed.

    Returns:
      the prediction, EMPTY for rejected scans; and why each scan was rejected, None where it was not.
    """
    reasons = [thumbnail_reason(geometry) for geometry in geometries]
    rejected = np.array([reason is not None for reason in reasons], bool)
    if not rejected.any():
        return prediction, reasons
    columns: dict[str, Any] = dict(vars(prediction))
    for name, value in EMPTY.items():
        columns[name] = np.array(columns[name])  # a copy that can be written to
        columns[name][rejected] = value
    return dataclasses.replace(prediction, **columns), reasons
