"""What was found on a scan, and the lines that hold it. No JAX."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

import mcis
from mcis.files import read_lines


class ReportError(ValueError):
    """A report that cannot be read, or a folder that cannot take one."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was found on one scan. None = unknown or not asked; beside an `error` all else but `series` is None.

    Attributes:
      scan: the scan as it was given, usually a path.
      frame: which page of a multi-page file, from 0.
      organ: a name of `organs.ORGANS`, or "unsupported".
      organ_prob: the router's probability of its first choice, [0, 1]: of `organ`, or of what an "unsupported" scan
        is most like; None where the router was not asked.
      label: a class of that organ.
      label_probs: probability by class, in the organ's order.
      mask: path of the mask picture below the report's folder; only where segmentation was asked.
      boxes: [x, y, width, height] in pixels of the scan, one a lesion, largest first (see `boxes_of`).
      lesion_area_px: mask pixels of the scan.
      error: why there is no finding.
      reason: why the scan is "unsupported", in words.
      notes: what was changed in reading the scan, in words ("alpha laid over black"), or is odd about its findings.
      confidence: the label's probability times the Dice that the mask expects of itself, [0, 1]; see `cascade`.
      review: whether the confidence is below its organ's limit, so that somebody should look; None for an
        "unsupported" scan, and where the weights have no limit.
      diameter_px: the longest diameter of the largest lesion, pixels (see `diameter_of`).
      spacing_mm: [between rows, between columns], millimetres from one pixel to the next, where the file says so.
      lesion_area_mm2: `lesion_area_px` by that spacing.
      diameter_mm: the longest diameter of the largest lesion by that spacing.
      series: the volume that the scan is a slice of, 16 hex digits (`SliceGeometry`); `volumes.summarise` sums it up.
      position_mm: where the slice lies along `slice_normal`, of the patient's coordinates.
      slice_normal: [x, y, z], unit vector across the slice, towards left, back and head.
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

    def __post_init__(self):
        if self.error is not None and any(getattr(self, k) is not None for k in KEYS if k not in BESIDE_ERROR):
            raise ValueError(f"{self.scan!r}: a finding with an error has nothing else; got {self}")

    def to_json(self) -> str:
        """One line of ASCII JSON: every field, in order, probabilities to 6 digits, NaN as null.

        ASCII, because a file name need not be UTF-8: its stray bytes stay surrogate escapes and come back on loading.
        """
        return json.dumps(plain({key: getattr(self, key) for key in KEYS}))


BESIDE_ERROR = ("scan", "error", "series")

KEYS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Finding))
"""The keys of a line of findings.jsonl, in order. Keys are only ever added."""


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: NumPy numbers to Python's, floats to 6 digits, what is not finite to None."""
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
    """Lesion numbers (H, W), each number's x, y, width, height and area, and the numbers in `boxes_of`'s order."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    x, y, _, _, area = stats[1:].T  # row 0 is the background
    return labels, stats, 1 + np.lexsort((x, y, -area))


def diameter_of(mask: np.ndarray, spacing: Sequence[float] = (1.0, 1.0)) -> float:
    """The longest diameter (maximum Feret diameter) of the largest lesion of a mask, uint8 {0,1} (H, W).

    Between the middles of pixels' edges, so that one pixel has the diameter 1: as scikit-image's `feret_diameter_max`,
    which draws its outline at one half. The largest is the one with most pixels, as for `boxes_of`.

    Args:
      mask: the lesions.
      spacing: from row to row and from column to column, in the unit of the result.

    Returns:
      the diameter; 0.0 where there is no lesion.

    >>> row = np.zeros((3, 6), np.uint8)
    >>> row[1, 1:5] = 1
    >>> diameter_of(row), diameter_of(row, spacing=(1.0, 0.5))
    (4.0, 2.0)
    """
    labels, _, order = _lesions(mask)
    if not len(order):
        return 0.0
    edge = cv2.findContours((labels == order[0]).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    middles = np.concatenate(edge).reshape(-1, 1, 2) + np.array([[0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])
    points = middles.reshape(-1, 2) * np.array(spacing[::-1])
    corners = cv2.convexHull(points.astype(np.float32))[:, 0].astype(np.float64)
    return float(np.linalg.norm(corners[:, None] - corners[None], axis=-1).max())


def measured(finding: Finding, mask: np.ndarray) -> Finding:
    """`finding` with what its mask, uint8 {0,1} (H, W), tells: boxes, area, diameter; by its `spacing_mm` in mm too."""
    area = int(np.count_nonzero(mask))
    found = dataclasses.replace(finding, boxes=boxes_of(mask), lesion_area_px=area, diameter_px=diameter_of(mask))
    if (spacing := finding.spacing_mm) is None:
        return found
    in_mm2 = area * spacing[0] * spacing[1]
    return dataclasses.replace(found, lesion_area_mm2=in_mm2, diameter_mm=diameter_of(mask, spacing))


def read_findings(path: str | os.PathLike) -> Iterator[Finding]:
    """Stream a findings.jsonl. A last line cut short (a full disk, a crash) is left out; keys not known are ignored.

    Raises:
      ReportError: another line is no finding, and the message gives its number; or it is no plain file.
    """
    return read_lines(path, Finding, ReportError)


def summary(counts: Mapping[str, Any]) -> str:
    """What was found, of `ReportWriter.counts`, in a line."""
    found = ", ".join(f"{number} {organ}" for organ, number in counts["organs"].items()) or "nothing"
    labels = ", ".join(f"{number} {label}" for label, number in counts["labels"].items()) or "no label"
    errors = f", {counts['errors']} not read" if counts["errors"] else ""
    scans = f"{counts['scans']} {'scan' if counts['scans'] == 1 else 'scans'}"
    return f"{scans}: {found}{errors}; {labels}. {mcis.NOTICE}"
