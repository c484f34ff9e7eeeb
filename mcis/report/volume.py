"""Findings of slices, summed up by volume. No JAX.

A volume is what has the same `Finding.series`: the files of a DICOM series, the frames of a DICOM file, the slices of a
NIfTI file. A DICOM picture that says no position is one by itself.
"""

import array
import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mcis.organs import ORGAN_NAMES, UNSUPPORTED, organ_index, organ_named
from mcis.report.finding import Finding, plain

EVEN = 0.01
"""By how much of their median the distances of neighbouring slices may differ from it, or by ROUNDED."""
ROUNDED = 0.02
"""Millimetres by which a distance is off where positions are rounded to hundredths."""
SAME = 1e-3
"""Millimetres; slices nearer to each other lie in one place."""
PARALLEL = 0.9999
"""The least cosine between normals of slices that are parallel, 0.8 degrees."""


@dataclasses.dataclass(frozen=True)
class Volume:
    """What was found in a volume. None = unknown. Lines are those of findings.jsonl, from 0, as in names of masks.

    Attributes:
      series: as `Finding.series`.
      kind: "series", a file a slice; "file", all slices in one; None where no slice could be read.
      scan: the scan of its first line.
      lines: its first line and its last; others may lie between.
      slices: number of slices that were read.
      errors: number of those that were not.
      organs: number of slices by organ, "unsupported" among them.
      organ: that of most slices. Unsupported ones have no vote, unless all are: a volume's ends often are. Of as many
        votes, the first of `organs.ORGANS`.
      labels: number of slices by label, of that organ, of those that are sure: of which no review is asked.
      label: the most suspicious of these labels, the last in the organ's order; None where no slice is sure. One slice
        suffices: the more slices there are, the likelier is a false alarm, so look at how many say it.
      review: number of slices of that organ of which a review is asked.
      lesion_slices: number of slices of that organ with an outlined lesion, sure or not; the following are of these.
      first, last: lines of the first and the last of them along the normal; in order of lines without positions.
      largest: line of that with the largest area.
      longest: line of that with the longest diameter in its plane.
      diameter_mm: that diameter.
      lesion_volume_mm3: areas times the distance of slices, by their positions, never by a thickness that a header
        says; None where there is no such slice, or where distances are unknown or uneven, or a slice is missing
        or could not be read.
      spacing_mm: [between slices, between rows, between columns]; None for what is unknown or not the same everywhere.
      segmentations: paths of its masks in one file, below the report's folder; several where shards were merged that
        each had a part.
      notes: what was odd about it, in words.
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
        return json.dumps(plain({key: getattr(self, key) for key in KEYS}))


KEYS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Volume))
"""The keys of a line of volumes.jsonl, in order. Keys are only ever added."""


def summarise(findings: Iterable[Finding]) -> Iterator[Volume]:
    """The volumes of findings, in order of their first lines; findings of no volume are passed over.

    Slices may come in any order, volumes one within another. What is kept meanwhile: 8 bytes a slice, 56 more where it
    has lesions, and some 2 KiB a volume.
    """
    sums: dict[str, _Sum] = {}
    for line, finding in enumerate(findings):
        if finding.series is not None:
            if finding.series not in sums:
                sums[finding.series] = _Sum(finding, line)
            sums[finding.series].add(finding, line)
    for series in list(sums):
        yield sums.pop(series).volume()


class _Sum:
    """A volume of which slices are still coming in."""

    def __init__(self, finding: Finding, line: int):
        self.series, self.scan, self.lines = str(finding.series), finding.scan, [line, line]
        self.slices = self.errors = self.frames = self.skew = self.respaced = 0
        self.organs: collections.Counter[str] = collections.Counter()
        self.labels: collections.Counter[tuple[str, str]] = collections.Counter()
        self.review: collections.Counter[str] = collections.Counter()
        self.normal: Sequence[float] | None = None
        self.spacing: Sequence[float] | None = None
        self.positions = array.array("d")  # NaN where there is none
        self.outlined = array.array("d")  # len(_OUTLINED) numbers a slice with lesions

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
            self.skew += sum(a * b for a, b in zip(self.normal, finding.slice_normal, strict=True)) < PARALLEL
        self.respaced += finding.spacing_mm != self.spacing
        if finding.organ is None:
            return
        self.organs[finding.organ] += 1
        self.review[finding.organ] += bool(finding.review)
        if finding.label is not None and not finding.review:
            self.labels[finding.organ, finding.label] += 1
        if finding.lesion_area_px and finding.organ in ORGAN_NAMES:
            numbers = (getattr(finding, name) for name in _OUTLINED[2:])
            self.outlined.extend(map(_number, (organ_index(finding.organ), line, *numbers)))

    def volume(self) -> Volume:
        notes: list[str] = []
        between = self._between(notes)
        if self.errors:
            notes.append(f"slices that could not be read: {self.errors}")
        if self.respaced:
            notes.append(f"slices whose pixels are spaced otherwise than those of the first: {self.respaced}")
        if unsupported := self.organs[UNSUPPORTED]:
            notes.append(f"unsupported slices, on which nothing was looked for: {unsupported}")
        voting = [name for name in ORGAN_NAMES if self.organs[name]]
        organ = max(voting, key=self.organs.__getitem__) if voting else UNSUPPORTED if unsupported else None
        labels: dict[str, int] = {}
        if organ is not None and voting:
            labels = {label: n for label in organ_named(organ).classes if (n := self.labels[organ, label])}
            if len(voting) > 1:
                notes.append(f"slices of another organ, left out of all that follows: {_others(self.organs, organ)}")
            if self.review[organ] and not labels:
                notes.append("no slice is sure of its label")
        in_plane: list[float | None] = [None, None] if self.spacing is None or self.respaced else list(self.spacing)
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
            **self._lesions(organ, between),
            spacing_mm=[between, *in_plane],
            notes=notes,
        )

    def _lesions(self, organ: str | None, between: float | None) -> dict[str, Any]:
        rows = np.array(self.outlined).reshape(-1, len(_OUTLINED))
        rows = rows[rows[:, 0] == organ_index(organ)] if organ is not None else rows[:0]
        if not len(rows):
            return {}
        column = dict(zip(_OUTLINED, rows.T, strict=True))
        line = column["line"].astype(int)
        along = np.lexsort((line, line if np.isnan(column["position_mm"]).any() else column["position_mm"]))
        in_mm = not np.isnan(column["lesion_area_mm2"]).any()
        area = column["lesion_area_mm2" if in_mm else "lesion_area_px"]
        diameter = column["diameter_mm" if in_mm else "diameter_px"]
        return {
            "lesion_slices": len(rows),
            "first": int(line[along[0]]),
            "last": int(line[along[-1]]),
            "largest": int(line[np.argmax(area)]),
            "longest": int(line[np.argmax(diameter)]),
            "diameter_mm": float(diameter.max()) if in_mm else None,
            "lesion_volume_mm3": float(area.sum()) * between if in_mm and between and not self.errors else None,
        }

    def _between(self, notes: list[str]) -> float | None:
        """Millimetres from slice to slice; None, and a note, where they are not evenly spaced."""
        along = np.sort(np.array(self.positions))
        if len(along) < 2:
            return None
        if missing := int(np.isnan(along).sum()):
            notes.append(f"slices without a position: {missing}")
            return None
        if self.skew:
            notes.append(f"slices that are not parallel to the first: {self.skew}")
            return None
        steps = np.diff(along)
        if same := int((steps < SAME).sum()):
            notes.append(f"slices that lie where another does: {same}")
            return None
        usual = float(np.median(steps))
        odd = np.abs(steps - usual)
        if odd.max() > max(EVEN * usual, ROUNDED):
            at = int(np.argmax(odd))
            where = f"{steps[at]:.4g} mm after that at {along[at]:.6g} mm, where {usual:.4g} mm are usual"
            notes.append(f"slices are missing or unevenly spaced: one lies {where}")
            return None
        return float((along[-1] - along[0]) / len(steps))


_OUTLINED = ("organ", "line", "position_mm", "lesion_area_px", "lesion_area_mm2", "diameter_px", "diameter_mm")


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _others(organs: Mapping[str, int], organ: str) -> str:
    return ", ".join(f"{n} {name}" for name, n in organs.items() if name not in (organ, UNSUPPORTED))
