"""The finding of one scan, and findings.jsonl, which has one finding per line. No JAX."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

import mcis
from mcis.files import read_lines
from mcis.organs import ORGANS, UNSUPPORTED

SHOWN_REASONS = 5
"""Kinds of reasons in the summary; the others are counted together."""


class ReportError(ValueError):
    """A report that cannot be read, or a folder that cannot hold one."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The finding of one scan. None means unknown or not requested. With an `error`, only `scan` and `series` are set.

    Attributes:
      scan: the scan as the user named it, usually a path.
      frame: index of the page, frame or slice in its file, from 0; None for a file with a single one.
      organ: a name of `organs.ORGANS`, or "unsupported".
      organ_prob: the router's probability of `organ`, [0, 1]; for an "unsupported" scan that of the most similar organ;
        None without the router.
      label: a class of that organ.
      label_probs: probability per class, in the organ's order.
      mask: path of the mask image, relative to the report's folder; None without segmentation.
      boxes: [x, y, width, height] in pixels of the scan, one per lesion, largest first (see `boxes_of`).
      lesion_area_px: number of mask pixels.
      error: why there is no finding.
      reason: why the scan is "unsupported".
      notes: changes made while reading the scan ("alpha blended onto black"), and oddities of its finding.
      confidence: probability of the label times the Dice that the segmenter predicts for its mask, [0, 1]; see
        `inference.cascade`.
      review: whether the confidence is below its organ's limit, or the organ uncertain, so that a person should check
        the scan; None for an "unsupported" scan and for weights without a limit.
      diameter_px: longest diameter of the largest lesion, pixels (see `diameter_of`).
      spacing_mm: pixel spacing [between rows, between columns], millimetres, where the file states it.
      lesion_area_mm2: `lesion_area_px` in mm^2, by `spacing_mm`.
      diameter_mm: longest diameter of the largest lesion, by `spacing_mm`.
      series: identifier of the volume that contains the scan, 16 hex digits (see `imaging.geometry.SliceGeometry`).
      position_mm: position of the slice along `slice_normal`, in patient coordinates.
      slice_normal: [x, y, z], unit normal of the slice, towards left, posterior and head.
      header: the elements of the file's header for which the scan is "unsupported" ("Modality CT"); None otherwise.
      label_set: the classes that remain possible, in the organ's order, `label` among them: for nine of ten scans like
        those of the calibration the true one is among them; None for weights without limits.
      outer_area_px: number of pixels within the outer outline, which contains the mask; it misses less of a lesion, and
        holds more that is none. None without a mask, or for weights without its threshold.
      outer_area_share: the same as a share of the scan's pixels, [0, 1].
      outer_box: [x, y, width, height] in pixels of all that is within the outer outline; None where that is nothing.
      organ_certain: False where `organ_prob` is so low that the scan may be of another kind; then `review` is True.
        None for an "unsupported" scan, without the router, and for weights without this limit.
    """

    scan: str
    frame: int | None = None
    organ: str | None = None
    organ_prob: float | None = None
    label: str | None = None
    label_probs: dict[str, float] | None = None
    mask: str | None = None
    boxes: list[list[int]] | None = None
    lesion_area_px: int | None = None
    error: str | None = None
    reason: str | None = None
    notes: list[str] | None = None
    confidence: float | None = None
    review: bool | None = None
    diameter_px: float | None = None
    spacing_mm: list[float] | None = None
    lesion_area_mm2: float | None = None
    diameter_mm: float | None = None
    series: str | None = None
    position_mm: float | None = None
    slice_normal: list[float] | None = None
    header: str | None = None
    label_set: list[str] | None = None
    outer_area_px: int | None = None
    outer_area_share: float | None = None
    outer_box: list[int] | None = None
    organ_certain: bool | None = None

    def __post_init__(self):
        others = (value for name, value in vars(self).items() if name not in ("scan", "error", "series"))
        if self.error is not None and any(value is not None for value in others):
            raise ValueError(f"{self.scan!r}: a finding with an error must have no other values; got {self}")

    def to_json(self) -> str:
        """One line of ASCII JSON: every field, in order.

        ASCII, because a file name need not be UTF-8: undecodable bytes stay surrogate escapes and survive a round trip.
        """
        return json.dumps(plain(vars(self)))


KEYS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Finding))
"""The keys of a line of findings.jsonl, in order. Keys are only ever added."""


def plain(value: Any) -> Any:
    """`value` in JSON types: NumPy values as Python's, floats to 6 digits, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def boxes_of(mask: np.ndarray) -> list[list[int]]:
    """Bounding boxes of the lesions of a mask, uint8 {0,1} (H, W).

    Returns:
      [x, y, width, height] in pixels for each 8-connected region, largest area first; equal areas from top to bottom,
      then from left to right.

    >>> mask = np.zeros((6, 8), np.uint8)
    >>> mask[0, 0] = 1
    >>> mask[2:5, 3:7] = 1
    >>> boxes_of(mask)
    [[3, 2, 4, 3], [0, 0, 1, 1]]
    """
    _, stats, order = _lesions(mask)
    return stats[order, :4].tolist()


def _lesions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Component labels (H, W); x, y, width, height and area per label; the lesions' labels in `boxes_of`'s order."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    x, y, _, _, area = stats[1:].T  # row 0 is the background
    return labels, stats, 1 + np.lexsort((x, y, -area))


def diameter_of(mask: np.ndarray, spacing: Sequence[float] = (1.0, 1.0)) -> float:
    """The longest diameter (maximum Feret diameter) of the largest lesion of a mask, uint8 {0,1} (H, W); 0.0 if empty.

    Measured between the midpoints of pixel edges, so that one pixel has diameter 1, as scikit-image's
    `feret_diameter_max`. The largest lesion is the one with most pixels, as in `boxes_of`.

    Args:
      mask: the lesions.
      spacing: distance between rows and between columns, in the unit of the result.

    >>> row = np.zeros((3, 6), np.uint8)
    >>> row[1, 1:5] = 1
    >>> diameter_of(row), diameter_of(row, spacing=(1.0, 0.5))
    (4.0, 2.0)
    """
    labels, _, order = _lesions(mask)
    if not len(order):
        return 0.0
    contours = cv2.findContours((labels == order[0]).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    midpoints = np.concatenate(contours).reshape(-1, 1, 2) + np.array([[0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])
    points = midpoints.reshape(-1, 2) * np.array(spacing[::-1])
    hull = cv2.convexHull(points.astype(np.float32))[:, 0].astype(np.float64)
    return float(np.linalg.norm(hull[:, None] - hull[None], axis=-1).max())


def measured(finding: Finding, mask: np.ndarray) -> Finding:
    """`finding` with boxes, area and diameter of its mask, uint8 {0,1} (H, W); in mm too where it has `spacing_mm`."""
    area = int(np.count_nonzero(mask))
    result = dataclasses.replace(finding, boxes=boxes_of(mask), lesion_area_px=area, diameter_px=diameter_of(mask))
    if (spacing := finding.spacing_mm) is None:
        return result
    area_mm2 = area * spacing[0] * spacing[1]
    return dataclasses.replace(result, lesion_area_mm2=area_mm2, diameter_mm=diameter_of(mask, spacing))


def with_outer(finding: Finding, outer: np.ndarray) -> Finding:
    """`finding` with area and box of all that is within the outer outline, uint8 {0,1} (H, W).

    >>> outer = np.zeros((6, 8), np.uint8)
    >>> outer[0, 1] = outer[2:5, 3:7] = 1
    >>> found = with_outer(Finding("a.png"), outer)
    >>> found.outer_area_px, found.outer_area_share, found.outer_box
    (13, 0.2708333333333333, [1, 0, 6, 5])
    """
    area = int(np.count_nonzero(outer))
    box = list(cv2.boundingRect(outer)) if area else None
    return dataclasses.replace(finding, outer_area_px=area, outer_area_share=area / outer.size, outer_box=box)


def read_findings(path: str | os.PathLike) -> Iterator[Finding]:
    """Stream a findings.jsonl. An incomplete last line (full disk, crash) is skipped; unknown keys are ignored.

    Raises:
      ReportError: another line is not a finding (the message gives its number), or the path is not a regular file.
    """
    return read_lines(path, Finding, ReportError)


def kind_of(finding: Finding) -> str | None:
    """The reason of an unsupported scan without its numbers, by which scans are counted; None for other scans.

    >>> kind_of(Finding("a.png", organ="unsupported", reason="blank: nearly all its pixels have one grey value"))
    'blank'
    >>> kind_of(Finding("a.dcm", organ="unsupported", reason="its header says ...", header="Modality CT"))
    'by their header: Modality CT'
    """
    if finding.organ != UNSUPPORTED or finding.reason is None:
        return None
    if finding.header is not None:
        return f"by their header: {finding.header}"
    return re.split(r"[:(]", finding.reason, maxsplit=1)[0].strip()


def summary(out: str | os.PathLike, counts: Mapping[str, Any], operating_point: str | None = None) -> str:
    """`ReportWriter.counts` in one line of text, without what did not occur, and a line that names the report's files.

    Labels stand with their organ, and the reasons of unsupported scans with their number. The operating point is named
    where labels were decided at one.
    """
    parts = [_organ_part(name, number, counts) for name, number in counts["organs"].items() if number]
    parts += [f"{counts['errors']} not read"] if counts["errors"] else []
    scans = f"{counts['scans']} {'scan' if counts['scans'] == 1 else 'scans'}"
    found = f"{scans}: {', '.join(parts)}" if parts else scans
    page, lines = (os.path.join(out, name) for name in ("index.html", "findings.jsonl"))
    see = " See `reason` in findings.jsonl." if counts["organs"].get(UNSUPPORTED) else ""
    point = "" if operating_point is None else f" Labels at the operating point {operating_point}."
    return f"{found}.{point}{see} {mcis.NOTICE}\n{page} shows the findings; {lines} has one scan per line"


def _organ_part(name: str, number: int, counts: Mapping[str, Any]) -> str:
    """The number of an organ's scans, and of which labels, or for which reasons they are unsupported."""
    if name == UNSUPPORTED:
        kinds = sorted(counts.get("reasons", {}).items(), key=lambda item: -item[1])
        within = [f"{times} {kind}" for kind, times in kinds[:SHOWN_REASONS]]
        within += [f"{sum(times for _, times in kinds[SHOWN_REASONS:])} others"] if len(kinds) > SHOWN_REASONS else []
        return f"{number} {name} ({'; '.join(within)})" if within else f"{number} {name}"
    classes = next((organ.classes for organ in ORGANS if organ.name == name), ())
    labels = [f"{times} {label}" for label in classes if (times := counts["labels"].get(label))]
    return f"{number} {name} ({', '.join(labels)})" if labels else f"{number} {name}"
