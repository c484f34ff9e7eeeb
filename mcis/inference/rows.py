"""Per-scan results as columns, from which evaluation, calibration and the choice of a CRF are computed. No JAX."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcis.organs import ORGANS

RAGGED = ("found_scores", "false_scores")
"""Columns of lists, which differ in length from scan to scan."""

UNSUPPORTED_INDEX = len(ORGANS)
"""Organ index of an unsupported scan; its name is `organs.UNSUPPORTED`."""

Column = Any
"""A NumPy array (N, ...), or None where the network has no such head or the column was not computed."""


def scan_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Rows that do not depend on a task, of a stored scan (`data.dataset.records`)."""
    from mcis.data.attributes import from_record
    from mcis.data.dataset import group_name, text

    source = text(record["source"])
    return {
        "source": source,
        "group": group_name(source, text(record["group"])),
        "scan_id": text(record["scan_id"]),
        "fingerprint": text(record["fingerprint"]),
        "has_mask": bool(record["has_mask"]),
        "attributes": from_record(record),
    }


@dataclasses.dataclass(frozen=True)
class Rows:
    """Results of N scans. The fields are also the keys of the JSON form, in which `features` is left out.

    Attributes:
      source: str (N,), the prepared data set.
      group: str (N,), "<source>/<patient>", or a cluster of near-duplicates, which may be of another source: the key of
        cross-validation and intervals.
      scan_id: str (N,), unique within a source.
      label: int (N,), the true class: the task's target, or for a cascade a class of the organ; -1 unknown.
      has_mask: bool (N,), whether the true mask is known.
      fingerprint: str (N,), of the scan's content.
      attributes: dict (N,), what the source states of the scan beyond its class (`data.attributes`): name -> value.
      probs: float (N, K), probabilities of the label head.
      features: float (N, F), the input of the label head.
      refused: bool (N,), whether the router rejected the scan.
      both, predicted, true: int (N,), pixels of the intersection, of the predicted and of the true mask. Evaluation
        counts on the scan's own grid, calibration on the model input.
      pixels: int (N,), of the whole scan.
      dice_loss: float (N,), soft Dice loss.
      hd95, surface_distance: float (N,), pixels; NaN where either mask is empty.
      nsd: float (N,), normalised surface distance in [0, 1]; 1 where both masks are empty, 0 where one is.
      tolerance: float (N,), that of `nsd` in pixels (`ops.surface.tolerance`), 1 % of the diagonal of the content.
      lesions, found_lesions, false_lesions: int (N,), single lesions (`ops.lesions`): true ones, those of them that a
        predicted one finds, and predicted ones that find none.
      found_scores, false_scores: lists of floats (N,), the mean probability of each of these predicted lesions.
      at_border: bool (N,), whether the true mask reaches the border of the scan's content.
      sector: bool (N,), whether an ultrasound frame is a sector (`imaging.frame`); False for other scans.
      expected_dice: float (N,), see `cascade.expected_dice`.
      inside, area: int (N, T), pixels of the intersection, and of the predicted mask, at each of
        `calibration.uncertainty.THRESHOLDS`, on the model input.
      organ: int (N,), the true organ, index into ORGANS or UNSUPPORTED_INDEX.
      said_organ: int (N,), the organ that the cascade predicted, likewise.
      said_label: int (N,), the class that the cascade predicted, of the predicted organ; -1 for none.
      organ_prob: float (N,), the router's probability of its first choice.
      novelty: float (N,), the router's OOD score: above 1 the scan is rejected.
      label_probs: float (N, CLASSES), of the predicted organ's classes, then zeros; all zero without a label.
      label_set: bool (N, CLASSES), the classes of the predicted organ that remain possible; all False for none fitted.
      outer_both: int (N,), pixels of the true mask within the outer outline; -1 where there is none.
      thumbnail: bool (N,), whether the scan is a thumbnail, which the cascade rejects.
      uncertain: bool (N,), whether the cascade accepted the scan with an uncertain organ.
    """

    source: np.ndarray
    group: np.ndarray
    scan_id: np.ndarray
    label: np.ndarray
    has_mask: np.ndarray
    fingerprint: Column = None
    attributes: Column = None
    probs: Column = None
    features: Column = None
    refused: Column = None
    both: Column = None
    predicted: Column = None
    true: Column = None
    pixels: Column = None
    dice_loss: Column = None
    hd95: Column = None
    surface_distance: Column = None
    nsd: Column = None
    tolerance: Column = None
    lesions: Column = None
    found_lesions: Column = None
    false_lesions: Column = None
    found_scores: Column = None
    false_scores: Column = None
    at_border: Column = None
    sector: Column = None
    expected_dice: Column = None
    inside: Column = None
    area: Column = None
    organ: Column = None
    said_organ: Column = None
    said_label: Column = None
    organ_prob: Column = None
    novelty: Column = None
    label_probs: Column = None
    label_set: Column = None
    outer_both: Column = None
    thumbnail: Column = None
    uncertain: Column = None

    @staticmethod
    def of_scans(scans: Sequence[Mapping[str, Any]]) -> "Rows":
        """One row per mapping of field name to value; all mappings have the same keys."""
        return Rows(**{name: _column(name, [scan[name] for scan in scans]) for name in scans[0]})

    @staticmethod
    def concatenate(parts: Sequence["Rows"]) -> "Rows":
        """The rows of all parts, which have the same columns."""
        return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0].columns})

    @staticmethod
    def from_json(columns: Mapping[str, Sequence[Any]]) -> "Rows":
        """The inverse of `to_json`; unknown keys are ignored.

        Raises:
          ValueError: the columns differ in length.
          TypeError: a required column is missing.
        """
        fields = {field.name for field in dataclasses.fields(Rows)}
        found = {
            name: _column(name, [math.nan if value is None else value for value in column])
            for name, column in columns.items()
            if name in fields
        }
        if len({len(column) for column in found.values()}) > 1:
            raise ValueError("its rows have columns of different lengths")
        return Rows(**found)

    def to_json(self) -> dict[str, list]:
        """The columns as lists, NaN as None, without `features`, which are meaningless without the weights."""
        return {
            name: [None if isinstance(value, float) and math.isnan(value) else value for value in column.tolist()]
            for name, column in self.columns.items()
            if name != "features"
        }

    def __len__(self) -> int:
        return len(self.group)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The columns that are there, by name."""
        return {name: column for name, column in vars(self).items() if column is not None}

    @property
    def counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pixel counts both, predicted and true, as the functions of `ops.metrics` take them."""
        return self.both, self.predicted, self.true

    @property
    def lesion(self) -> np.ndarray:
        """Whether the true mask is known and not empty, bool (N,)."""
        return self.has_mask & (self.true > 0)

    def take(self, index: np.ndarray) -> "Rows":
        """Some of the rows: an int index or a bool mask."""
        return Rows(**{name: column[index] for name, column in self.columns.items()})


def _column(name: str, values: Sequence[Any]) -> np.ndarray:
    """The values of N scans as an array (N, ...); the lists of a RAGGED column as objects (N,)."""
    if name not in RAGGED:
        return np.array(values)
    column = np.empty(len(values), object)
    for at, value in enumerate(values):  # an assignment of all would take lists of one length for a second axis
        column[at] = list(value)
    return column
