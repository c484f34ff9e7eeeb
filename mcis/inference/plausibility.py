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
from mcis.imaging.modality import contradiction
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
MAX_FILLED, FILL = 0.05, 40
"""A cut picture, beside those that `imaging.cut_scans` finds in the whole scan: more than this share of the content,
along one side, has one grey level of at least FILL, and the opposite side has another. No scan has more than 0.02."""
MAX_ENDING, GAP, CONTRAST = 0.7, 0.05, 45
"""Likewise, for an organ that air surrounds: two rows above its lowest one, it is still wider than this share of the
content, CONTRAST levels brighter than the background, and at least GAP of the scan's height is empty below. Of 3,850
brain scans with such a gap, none has more than 0.39."""
SAME = 3
"""Grey levels that differ by no more count as one: JPEG changes them."""
WHOLE = "a part seems to be missing from the file, get a whole one"
CUT = f"cut: an area along one side has a single grey value; {WHOLE}"


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


def picture_reason(square: np.ndarray, geometry: Letterbox, surrounded: bool = False) -> str | None:
    """Why a picture holds nothing to look at, or not all of it; None where it is plausible.

    Args:
      square: the model input, uint8 (S, S, 3).
      geometry: how the scan was letterboxed to it.
      surrounded: whether it should show an organ that air surrounds.
    """
    x, y, width, height = geometry.inner
    if min(width, height) < MIN_INNER:
        across, down = geometry.box[2:]
        return f"a strip: {across} x {down} pixels of content, far longer than wide; check the file"
    grey = (square[y : y + height, x : x + width].sum(-1, dtype=np.uint16) // 3).astype(np.uint8)
    share = np.bincount(grey.ravel(), minlength=256) / grey.size
    low, high = np.searchsorted(np.cumsum(share), (0.005, 0.995))
    advice = "check the file, its window and its scaling"
    if low == high:
        return f"blank: nearly all its pixels have one grey value; {advice}"
    if high - low < MIN_LEVELS:
        return f"nearly constant: its grey values differ by {high - low} of 255, {MIN_LEVELS} are needed; {advice}"
    if geometry.cut:
        return CUT
    if (between := share[6:250].sum()) < MIN_GREY and (white := share[250:].sum()) >= WHITE_SHARE:
        black = max(0.0, 1 - between - white)
        return f"saturated: {black:.0%} of its pixels are black and {white:.0%} white; {advice}"
    centred = grey - grey.mean(dtype=np.float32)
    pairs = (centred[:, 1:] * centred[:, :-1]).mean() + (centred[1:] * centred[:-1]).mean()
    if pairs / 2 < MIN_CORRELATION * np.square(centred).mean():
        return f"noise: its neighbouring pixels are not alike; {advice}"
    if _filled(square[y : y + height, x : x + width]) > MAX_FILLED:
        return CUT
    if surrounded and _ends_straight(grey, geometry):
        return f"cut: it ends in a straight line, and the area below is empty; {WHOLE}"
    return None


def _ends_straight(grey: np.ndarray, geometry: Letterbox) -> bool:
    """Whether what uint8 (H, W), the content of a model input, shows ends in a long straight line above nothing."""
    width = (grey > np.median(grey[1:2]) + CONTRAST).mean(1)
    rows = np.flatnonzero(width > 0.02)
    if not len(rows) or len(grey) < 2:
        return False
    _, top, _, height = geometry.box
    end = top + (rows[-1] + 1) * height / len(grey)
    return end <= (1 - GAP) * geometry.shape[0] and bool(width[max(rows[-1] - 2, 0)] > MAX_ENDING)


def _filled(content: np.ndarray) -> float:
    """Largest share of uint8 (H, W, 3), along one side, that has one grey level of at least FILL, unlike the opposite.

    If the opposite side has it, too, it is the background.
    """
    upright = content.astype(np.int16)
    shares = [0.0]
    for lines in (upright, upright[::-1], upright.swapaxes(0, 1), upright.swapaxes(0, 1)[::-1]):
        level = int(np.median(lines[0]))
        if level >= FILL and abs(int(np.median(lines[-1])) - level) > SAME:
            differs = (np.abs(lines - level) > SAME).any((1, 2))
            shares.append(float(np.argmax(differs)) / len(differs) if differs.any() else 1.0)
    return max(shares)


def header_rejection(stated: Sequence[Statement], organ: int) -> Rejection | None:
    """Why a header contradicts the organ that was predicted, index into ORGANS or UNSUPPORTED_INDEX; None if not."""
    name = None if organ == UNSUPPORTED_INDEX else ORGANS[organ].name
    if (header := contradiction(stated, name)) is None:
        return None
    if name is not None and contradiction(stated, None) is None:
        return Rejection(f"the router takes it for a {ORGANS[organ].scan}, but its header says {header}", header)
    scans = [one.scan for one in ORGANS]
    analysed = " and ".join([", ".join(scans[:-1]), scans[-1]] if len(scans) > 1 else scans)
    return Rejection(f"its header says {header}; the organs that are analysed are {analysed}", header)


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
        surrounded = organ != UNSUPPORTED_INDEX and ORGANS[organ].surrounded
        if (reason := picture_reason(images[row], geometry, surrounded)) is not None:
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
