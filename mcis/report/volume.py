"""Findings of slices summed up per volume. No JAX.

A volume is all findings with the same `Finding.series`: the files of a DICOM series, the frames of a DICOM file, or the
slices of a NIfTI file. A DICOM image without a position is a volume by itself.
"""

import array
import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mcis.organs import ORGAN_NAMES, UNSUPPORTED, organ_index, organ_named
from mcis.report.finding import Finding, plain

STEP_TOLERANCE = 0.01
"""Largest deviation of a slice distance from the median distance, as a fraction of the median."""
ROUNDING_MM = 0.02
"""Deviation that is always allowed, millimetres: positions may be rounded to hundredths."""
SAME_POSITION_MM = 1e-3
"""Slices closer than this, in millimetres, have the same position."""
PARALLEL_COSINE = 0.9999
"""Smallest cosine between the normals of parallel slices (0.8 degrees)."""


@dataclasses.dataclass(frozen=True)
class Volume:
    """The findings of a volume. None means unknown. A "line" is the index of a line of findings.jsonl, from 0.

    Attributes:
      series: as `Finding.series`.
      kind: "series" (one file per slice) or "file" (all slices in one file); None if no slice could be read.
      scan: the scan of its first line.
      lines: its first and its last line; lines of other volumes may lie between.
      slices: number of slices that were read.
      errors: number of slices that could not be read.
      organs: number of slices per organ, "unsupported" included.
      organ: the organ of most slices. "unsupported" only if all slices are: the ends of a volume often are. In a tie
        the first in `organs.ORGANS`.
      labels: number of confident slices (no review needed) of that organ per label.
      label: the most suspicious of `labels` (the last in the organ's order); None without a confident slice. One slice
        suffices, so false alarms grow with the number of slices: `labels` says how many slices agree.
      review: number of slices of that organ that need review.
      lesion_slices: number of slices of that organ with an outlined lesion, confident or not. The fields below are of
        these slices.
      first, last: first and last line along the normal; in order of lines where positions are unknown.
      largest: line with the largest lesion area.
      longest: line with the longest diameter within its plane.
      diameter_mm: that diameter.
      lesion_volume_mm3: sum of areas times the distance of slices, which is computed from positions, never from a
        header's slice thickness; None without such a slice, where distances are unknown or uneven, and where a slice is
        missing or could not be read.
      spacing_mm: [between slices, between rows, between columns]; None for what is unknown or varies.
      segmentations: paths of its segmentation files, relative to the report's folder; several where merged shards each
        had a part of the volume.
      notes: oddities, in words.
    """

    series: str
    kind: str | None
    scan: str
    lines: list[int]
    slices: int = 0
    errors: int = 0
    organs: dict[str, int] | None = None
    organ: str | None = None
    labels: dict[str, int] | None = None
    label: str | None = None
    review: int = 0
    lesion_slices: int = 0
    first: int | None = None
    last: int | None = None
    largest: int | None = None
    longest: int | None = None
    diameter_mm: float | None = None
    lesion_volume_mm3: float | None = None
    spacing_mm: list[float | None] | None = None
    segmentations: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> str:
        """One line of ASCII JSON: every field, in order."""
        return json.dumps(plain(vars(self)))


KEYS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Volume))
"""The keys of a line of volumes.jsonl, in order. Keys are only ever added."""


def summarise(findings: Iterable[Finding]) -> Iterator[Volume]:
    """The volumes of findings, in order of their first lines. Findings without a series are skipped.

    Slices may come in any order, and volumes may interleave. Memory: 8 bytes per slice, 56 more for a slice with
    lesions, and about 2 KiB per volume.
    """
    volumes: dict[str, _Accumulator] = {}
    for line, finding in enumerate(findings):
        if finding.series is not None:
            if finding.series not in volumes:
                volumes[finding.series] = _Accumulator(finding, line)
            volumes[finding.series].add(finding, line)
    for series in list(volumes):
        yield volumes.pop(series).volume()


class _Accumulator:
    """Sums over the slices of a volume that have come so far."""

    def __init__(self, finding: Finding, line: int):
        self.series, self.scan, self.lines = str(finding.series), finding.scan, [line, line]
        self.slices = self.errors = self.frames = self.not_parallel = self.other_spacing = 0
        self.organs: collections.Counter[str] = collections.Counter()
        self.labels: collections.Counter[tuple[str, str]] = collections.Counter()
        self.review: collections.Counter[str] = collections.Counter()
        self.normal: Sequence[float] | None = None
        self.spacing: Sequence[float] | None = None
        self.positions = array.array("d")  # NaN where unknown
        self.lesions = array.array("d")  # see add(): seven numbers per slice with lesions

    def add(self, finding: Finding, line: int) -> None:
        self.lines[1] = line
        if finding.error is not None:
            self.errors += 1
            return
        if not self.slices:
            self.normal, self.spacing = finding.slice_normal, finding.spacing_mm
        self.slices += 1
        self.frames += finding.frame is not None
        self.positions.append(_number(finding.position_mm))
        if self.normal and finding.slice_normal:
            cosine = sum(a * b for a, b in zip(self.normal, finding.slice_normal, strict=True))
            self.not_parallel += cosine < PARALLEL_COSINE
        self.other_spacing += finding.spacing_mm != self.spacing
        if finding.organ is None:
            return
        self.organs[finding.organ] += 1
        self.review[finding.organ] += bool(finding.review)
        if finding.label is not None and not finding.review:
            self.labels[finding.organ, finding.label] += 1
        if finding.lesion_area_px and finding.organ in ORGAN_NAMES:
            sizes = (finding.lesion_area_px, finding.lesion_area_mm2, finding.diameter_px, finding.diameter_mm)
            self.lesions.extend(map(_number, (organ_index(finding.organ), line, finding.position_mm, *sizes)))

    def volume(self) -> Volume:
        distance, note = self._slice_distance()
        unsupported = self.organs[UNSUPPORTED]
        present = [name for name in ORGAN_NAMES if self.organs[name]]
        labels: dict[str, int] = {}
        organ = UNSUPPORTED if unsupported else None
        if present:
            organ = most_common = max(present, key=self.organs.__getitem__)
            counts = ((label, self.labels[most_common, label]) for label in organ_named(most_common).classes)
            labels = {label: count for label, count in counts if count}
        others = ", ".join(f"{self.organs[name]} {name}" for name in present if name != organ)
        notes = (
            (note, note),
            (self.errors, f"slices that could not be read: {self.errors}"),
            (self.other_spacing, f"slices with another pixel spacing than the first: {self.other_spacing}"),
            (unsupported, f"unsupported slices, not analysed: {unsupported}"),
            (others, f"slices of another organ, not counted in label and lesions: {others}"),
            (organ in present and self.review[organ] and not labels, "no slice with a confident label"),
        )
        spacing = (None, None) if self.spacing is None or self.other_spacing else self.spacing
        return Volume(
            series=self.series,
            kind=("file" if self.frames else "series") if self.slices else None,
            scan=self.scan,
            lines=self.lines,
            slices=self.slices,
            errors=self.errors,
            organs=dict(self.organs),
            organ=organ,
            labels=labels,
            label=list(labels)[-1] if labels else None,
            review=0 if organ is None else self.review[organ],
            **self._lesion_fields(organ, distance),
            spacing_mm=[distance, *spacing],
            notes=[text for applies, text in notes if applies],
        )

    def _lesion_fields(self, organ: str | None, distance: float | None) -> dict[str, Any]:
        rows = np.array(self.lesions).reshape(-1, 7)
        rows = rows[rows[:, 0] == organ_index(organ)] if organ is not None else rows[:0]
        if not len(rows):
            return {}
        _, line, position, area_px, area_mm2, diameter_px, diameter_mm = rows.T
        line = line.astype(int)
        along = np.lexsort((line, line if np.isnan(position).any() else position))
        in_mm = not np.isnan(area_mm2).any()
        area, diameter = (area_mm2, diameter_mm) if in_mm else (area_px, diameter_px)
        return {
            "lesion_slices": len(rows),
            "first": int(line[along[0]]),
            "last": int(line[along[-1]]),
            "largest": int(line[np.argmax(area)]),
            "longest": int(line[np.argmax(diameter)]),
            "diameter_mm": float(diameter.max()) if in_mm else None,
            "lesion_volume_mm3": float(area.sum()) * distance if in_mm and distance and not self.errors else None,
        }

    def _slice_distance(self) -> tuple[float | None, str]:
        """Millimetres between neighbouring slices; None, and a note, where they are not evenly spaced."""
        positions = np.sort(np.array(self.positions))
        if len(positions) < 2:
            return None, ""
        if missing := int(np.isnan(positions).sum()):
            return None, f"slices without a position: {missing}"
        if self.not_parallel:
            return None, f"slices that are not parallel to the first: {self.not_parallel}"
        steps = np.diff(positions)
        if same := int((steps < SAME_POSITION_MM).sum()):
            return None, f"slices at the same position as another: {same}"
        median = float(np.median(steps))
        deviation = np.abs(steps - median)
        if deviation.max() > max(STEP_TOLERANCE * median, ROUNDING_MM):
            at = int(np.argmax(deviation))
            where = f"the slice after {positions[at]:.6g} mm is {steps[at]:.4g} mm away, the median is {median:.4g} mm"
            return None, f"slices are missing or unevenly spaced: {where}"
        return float((positions[-1] - positions[0]) / len(steps)), ""


def _number(value: float | None) -> float:
    return math.nan if value is None else value
