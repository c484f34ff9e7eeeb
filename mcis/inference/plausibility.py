"""Plausibility rules: scans that are unsupported whatever the networks predict. No JAX.

A scan is rejected if its picture holds nothing to look at, if the header of its file contradicts the organ, or if it is
a thumbnail. The limits of the first rule were measured on the 10,375 pictures of nine public data sets of brain MRI and
breast ultrasound: it rejects 57 of them, all slices of air above the head.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mcis.imaging.letterbox import MIN_CONTENT, Letterbox
from mcis.imaging.modality import contradiction, sentence
from mcis.imaging.scan import Statement
from mcis.inference.rows import UNSUPPORTED_INDEX
from mcis.organs import ORGANS, UNKNOWN

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
    "label_set": False,
    "outer": np.nan,
    "certain": np.nan,
}
"""Fields of a rejected scan's Prediction; the others keep what the router predicted."""

MIN_LEVELS = 8
"""Fewest grey levels of 256 between the 0.5th and the 99.5th percentile of the content. Every picture below it was a
slice of air; the next ones show some scalp. A scan of full contrast has about 200, reduced to a tenth 20."""
MIN_GREY, WHITE_SHARE = 0.2, 0.005
"""A saturated picture: fewer than MIN_GREY of its pixels are neither black nor white, and WHITE_SHARE are
white. Of the scans with as many white pixels, none has less than 0.39 between."""
MIN_CORRELATION = 0.3
"""Smallest correlation of neighbouring pixels; that of white noise is 0. The smallest of a scan is 0.69."""
MAX_BETWEEN = 0.05
"""A saturated picture is black and white only if no more of its pixels are between, or if it has few levels; masks
that are JPEG files have up to 0.04."""
MIN_CHANGE = 0.05
"""Stripes: rows (or columns) differ from the mean row by less than this share of what all pixels differ from their
mean. The smallest of a scan is 0.24."""


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Why a scan is unsupported.

    Attributes:
      reason: in a sentence.
      header: the elements of the file's header that decided it; None where another rule did.
    """

    reason: str
    header: str | None = None


MIN_INNER = 16
"""Pixels of the model input that the content must have along its shorter side."""


def picture_reason(square: np.ndarray, geometry: Letterbox) -> str | None:
    """Why a picture is empty or incomplete; None where it is plausible.

    Args:
      square: the model input, uint8 (S, S, 3).
      geometry: how the scan was letterboxed to it.
    """
    x, y, width, height = geometry.inner
    if min(width, height) < MIN_INNER:
        across, down = geometry.box[2:]
        return f"a strip: {across} x {down} pixels of content, far longer than wide; check the file"
    grey = (square[y : y + height, x : x + width].sum(-1, dtype=np.uint16) // 3).astype(np.uint8)
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    low, high = np.searchsorted(np.cumsum(share), (0.005, 0.995))
    advice = "check the file and its brightness window"
    if high - low < MIN_LEVELS and grey.max() > high + MIN_LEVELS:
        advice += "; a few pixels that are far brighter than the others may be the cause"
    if low == high:
        return f"blank: nearly all its pixels have one grey value; {advice}"
    if high - low < MIN_LEVELS:
        return f"nearly constant: its grey values differ by {high - low} of 255, {MIN_LEVELS} are needed; {advice}"
    dark = grey < 250
    inside = grey[dark.any(1)][:, dark.any(0)]  # without white margins
    white, black = (inside >= 250).mean(), (inside < 6).mean()
    if (between := 1 - white - black) < MIN_GREY and white >= WHITE_SHARE:
        shares = f"{black:.0%} black, {white:.0%} white"
        if between <= MAX_BETWEEN or geometry.flaw is not None:
            what = "perhaps a mask or a drawing. Keep masks in another folder; if it is a scan, export it again"
            return f"black and white only ({shares}): {what} with another brightness window"
        return f"saturated: nearly all its pixels are black or white ({shares}); {advice}"
    centred = grey - grey.mean(dtype=np.float32)
    pairs = (centred[:, 1:] * centred[:, :-1]).mean() + (centred[1:] * centred[:-1]).mean()
    if pairs / 2 < MIN_CORRELATION * np.square(centred).mean():
        return f"noise: its neighbouring pixels are not alike; {advice}"
    if geometry.flaw is not None:
        return geometry.flaw
    if (lines := _stripes(grey)) is not None:
        return f"stripes: all its {lines} are alike, so it is no picture of a body; check the file"
    return None


def _stripes(grey: np.ndarray) -> str | None:
    """Whether the rows or the columns of uint8 (H, W) are all alike: their name; None if neither."""
    values = grey.astype(np.float32)
    total = np.abs(values - values.mean()).mean()
    for axis, name in enumerate(("rows", "columns")):
        if np.abs(values - values.mean(axis, keepdims=True)).mean() < MIN_CHANGE * total:
            return name
    return None


def header_rejection(stated: Sequence[Statement], organ: int) -> Rejection | None:
    """Why a header contradicts the organ that was predicted, index into ORGANS or UNSUPPORTED_INDEX; None if not."""
    name = None if organ == UNSUPPORTED_INDEX else ORGANS[organ].name
    if (header := contradiction(stated, name)) is None:
        return None
    if name is not None and contradiction(stated, None) is None:
        return Rejection(f"the router takes it for a {ORGANS[organ].scan}, but {sentence(header)}", header)
    scans = [one.scan for one in ORGANS]
    analysed = " and ".join([", ".join(scans[:-1]), scans[-1]] if len(scans) > 1 else scans)
    return Rejection(f"{sentence(header)}; the organs that are analysed are {analysed}", header)


def thumbnail_reason(geometry: Letterbox) -> str | None:
    """Why a scan is too small to be analysed; None where it is not."""
    if not geometry.thumbnail:
        return None
    width, height = geometry.box[2:]
    return f"a thumbnail: {width} x {height} pixels of content, {MIN_CONTENT} along one side are needed"


def reject_implausible(
    prediction: "Prediction",
    images: np.ndarray,
    geometries: Sequence[Letterbox],
    stated: Sequence[Sequence[Statement]] | None = None,
    thumbnails: bool = True,
) -> tuple["Prediction", list[Rejection | None]]:
    """Make the scans unsupported that break a rule.

    Args:
      prediction: of the cascade, NumPy arrays of N scans.
      images: their model inputs, uint8 (N or more, S, S, 3).
      geometries: how each of them was letterboxed.
      stated: what each file's header says about the organ; None where headers are not to be compared.
      thumbnails: whether thumbnails are rejected.

    Returns:
      the prediction, EMPTY for rejected scans; and why each scan was rejected, None where it was not.
    """
    rejections: list[Rejection | None] = []
    for row, geometry in enumerate(geometries):
        found, organ = None, int(prediction.organ[row])
        if (reason := picture_reason(images[row], geometry)) is not None:
            found = Rejection(reason)
        elif stated is not None:
            found = header_rejection(stated[row], organ)
        if found is None and thumbnails and (reason := thumbnail_reason(geometry)) is not None:
            found = Rejection(reason)
        rejections.append(found)
    rejected = np.array([found is not None for found in rejections], bool)
    if not rejected.any():
        return prediction, rejections
    columns: dict[str, Any] = dict(vars(prediction))
    for name, value in EMPTY.items():
        columns[name] = np.array(columns[name])  # a copy that can be written to
        columns[name][rejected] = value
    return dataclasses.replace(prediction, **columns), rejections
