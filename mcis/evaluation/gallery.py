"""The gallery: which scans of an evaluation to show, their captions, and their images with both outlines. No JAX."""

from collections.abc import Sequence

import cv2
import numpy as np

from mcis.evaluation.metrics import missed_at
from mcis.inference.rows import UNSUPPORTED_INDEX, Rows
from mcis.ops.metrics import dice
from mcis.organs import ORGAN_NAMES, ORGANS, UNSUPPORTED

SHOWN = 8
"""Scans under each title."""
SIDE = 320
"""Longer side of an image, pixels."""
TRUE, PREDICTED = (40, 220, 255), (255, 150, 0)
"""Colours of the true and of the predicted outline, RGB, which the colour-blind can tell apart."""

WORST = "Lesion scans of lowest Dice"
MEDIAN = "Lesion scans around the median Dice"
FALSE = "Masks on scans without a lesion, largest first"
WRONG = "Wrong classes, most confident first"
TYPICAL = "Scans around the median probability of the true class"

EXPLAINED = (WRONG, TYPICAL)
"""Titles under which the classifier's saliency maps are shown."""


def choose(rows: Rows, kind: str) -> dict[str, list[int]]:
    """Title -> indices of the rows to show, at most SHOWN, in order; titles without rows are left out.

    Args:
      rows: the results.
      kind: the name of their task, or "cascade".
    """
    found: dict[str, list[int]] = {}
    if kind == "cascade" or kind.startswith("segment_"):
        found |= _by_mask(rows)
    if kind == "cascade":
        if rows.label_probs is not None:
            known = (rows.organ == rows.said_organ) & (rows.label >= 0) & (rows.said_label >= 0)
            found[WRONG] = _by_label(rows, rows.label_probs, rows.said_label, known)[WRONG]
    elif rows.probs is not None:
        found |= _by_label(rows, rows.probs, rows.probs.argmax(1), rows.label >= 0)
    return {title: index for title, index in found.items() if index}


def _by_mask(rows: Rows) -> dict[str, list[int]]:
    overlap, lesion = dice(*rows.counts), np.flatnonzero(rows.lesion)
    # among equal Dice, the largest lesion first
    ranked = lesion[np.lexsort((-(rows.true / rows.pixels)[lesion], overlap[lesion]))].tolist()
    worst = _one_per_group(ranked, rows)[:SHOWN]
    empty = np.flatnonzero(rows.has_mask & (rows.true == 0) & (rows.predicted > 0))
    covered = (rows.predicted / rows.pixels)[empty]
    return {
        WORST: worst,
        MEDIAN: _around_median(ranked, worst, rows),
        FALSE: _one_per_group(empty[np.argsort(-covered)].tolist(), rows)[:SHOWN],
    }


def _by_label(rows: Rows, probs: np.ndarray, predicted: np.ndarray, known: np.ndarray) -> dict[str, list[int]]:
    index = np.flatnonzero(known)
    truth = rows.label[index]
    wrong = index[predicted[index] != truth]
    order = np.argsort(-probs[wrong, predicted[wrong]], kind="stable")
    wrong = _one_per_group(wrong[order].tolist(), rows)[:SHOWN]
    ranked = index[np.argsort(probs[index, truth], kind="stable")].tolist()
    return {WRONG: wrong, TYPICAL: _around_median(ranked, wrong, rows)}


def _one_per_group(ranked: Sequence[int], rows: Rows) -> list[int]:
    """The first of each group, in order: near-duplicates would show one mistake many times."""
    first: dict[str, int] = {}
    for at in ranked:
        first.setdefault(str(rows.group[at]), at)
    return list(first.values())


def _around_median(ranked: Sequence[int], shown: Sequence[int], rows: Rows) -> list[int]:
    """The SHOWN entries nearest to the middle of a ranking, in its order, one per group, without those in `shown`."""
    rank = {at: place for place, at in enumerate(ranked)}
    near = sorted(ranked, key=lambda at: abs(rank[at] - (len(ranked) - 1) / 2))
    chosen = _one_per_group([at for at in near if at not in shown], rows)[:SHOWN]
    return sorted(chosen, key=rank.__getitem__)


def caption(rows: Rows, at: int, kind: str, classes: Sequence[str]) -> list[tuple[str, str]]:
    """Names and values to show below a scan.

    Args:
      rows: the results.
      at: index of the scan's row.
      kind: the name of their task, or "cascade".
      classes: of the task's label head.
    """
    names = ("scan_id", "source", "group")
    found = [(name.removesuffix("_id"), str(getattr(rows, name)[at])) for name in names]
    label = int(rows.label[at])
    if kind == "cascade":
        organ = ORGANS[rows.organ[at]] if rows.organ[at] < UNSUPPORTED_INDEX else None
        truth = UNSUPPORTED if organ is None else f"{organ.name}, {_class_name(organ.classes, label)}"
        found += [("true", truth), ("predicted", _cascade(rows, at))]
        stage = missed_at(rows.take(np.array([at])))[0] if rows.true is not None else ""
        if stage:
            found.append(("missed by", f"the {stage}"))
    else:
        found.append(("true", _class_name(classes, label)))
        if rows.probs is not None:
            probs = rows.probs[at]
            rejected = " (rejected)" if rows.refused is not None and rows.refused[at] else ""
            found.append(("predicted", f"{_class_name(classes, int(probs.argmax()))} {probs.max():.2f}{rejected}"))
            if label >= 0 and label != probs.argmax():
                found.append(("true class's probability", f"{probs[label]:.2f}"))
    if rows.true is not None and rows.has_mask[at]:
        shares = (f"{count[at] / rows.pixels[at]:.1%}" for count in (rows.true, rows.predicted))
        found.append(("Dice", f"{dice(rows.both[at], rows.predicted[at], rows.true[at]):.2f}"))
        found.append(("lesion", "{} of the scan, predicted {}".format(*shares)))
    return found


def _cascade(rows: Rows, at: int) -> str:
    """What the cascade predicted of a scan."""
    organ, label = int(rows.said_organ[at]), int(rows.said_label[at])
    name = UNSUPPORTED if organ == UNSUPPORTED_INDEX else ORGAN_NAMES[organ]
    if rows.thumbnail is not None and rows.thumbnail[at]:
        return f"{name} (a thumbnail)"
    if rows.organ_prob is not None and (organ == UNSUPPORTED_INDEX or organ != rows.organ[at]):
        name += f" (router's probability {rows.organ_prob[at]:.2f}, out-of-distribution score {rows.novelty[at]:.2f})"
    if label < 0:
        return name
    prob = "" if rows.label_probs is None else f" {rows.label_probs[at][label]:.2f}"
    return f"{name}, {ORGANS[organ].classes[label]}{prob}"


def _class_name(classes: Sequence[str], label: int) -> str:
    return classes[label] if label >= 0 else "unknown"


def predicted_label(rows: Rows, at: int) -> int:
    """The predicted class of a row; -1 for none."""
    if rows.said_label is not None:
        return int(rows.said_label[at])
    return -1 if rows.probs is None else int(rows.probs[at].argmax())


def draw_saliency(image: np.ndarray, saliency: np.ndarray) -> bytes:
    """A scan under its saliency map in red, as JPEG like that of `draw_outlines`.

    Args:
      image: uint8 RGB (H, W, 3).
      saliency: float (H, W); opaque at its maximum, transparent at 0 and below.
    """
    strength = np.clip(saliency / max(float(saliency.max()), 1e-6), 0.0, 1.0)[..., None] * 0.75
    red = np.array([255.0, 40.0, 30.0])
    return draw_outlines(np.rint(image * (1 - strength) + red * strength).astype(np.uint8), None, None)


def draw_outlines(image: np.ndarray, true: np.ndarray | None, predicted: np.ndarray | None) -> bytes:
    """A scan with its outlines as JPEG, SIDE pixels along its longer side.

    Args:
      image: uint8 RGB (H, W, 3).
      true: {0,1} (H, W), drawn as a broad line below the other; None where it is not known.
      predicted: the same, drawn as a fine line.
    """
    scale = SIDE / max(image.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for mask, colour, width in ((true, TRUE, 4), (predicted, PREDICTED, 2)):
        if mask is not None and mask.any():
            lines, _ = cv2.findContours(np.ascontiguousarray(mask, np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            # in sixteenths of a pixel: enlarged outlines of small scans stay exact
            points = [np.rint(((line + 0.5) * scale - 0.5) * 16).astype(np.int32) for line in lines]
            cv2.polylines(small, points, True, colour, width, cv2.LINE_AA, shift=4)
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]  # thin colours would smear
    done, coded = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82, *sampling])
    if not done:
        raise ValueError(f"cannot write an array of shape {small.shape} and type {small.dtype} as JPEG")
    return coded.tobytes()
