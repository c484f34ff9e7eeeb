"""Prepared scans and answers -> rows of results: of a task's network, or of a set of weights as one cascade.

Scoring is a separate act from training, which sees validation only. A test score of scans that the weights were
trained on, or chosen by, is refused.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mcis.data import dataset, storage
from mcis.evaluation.metrics import Rows
from mcis.imaging import letterbox
from mcis.ops.metrics import MASK_THRESHOLD, dice_loss, mask_counts
from mcis.ops.surface import surface_distances
from mcis.organs import ORGANS, UNKNOWN, organ_index
from mcis.tasks.config import LAST, Task

BATCH = 16
FOREIGN = "foreign"
"""The source of pictures to be refused."""

Record = Mapping[str, Any]
"""A scan as it is stored: of `data.records`."""


class LeakError(ValueError):
    """Scans to be scored as a test were seen in training."""


def uses(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """What weights have used scans for: "train", and "validation" unless these have only watched.

    They have chosen the epoch where not simply the last one was kept, and the CRF where there is one; a router's limit
    of novelty is theirs, and so is whatever `mcis calibrate` has fitted.
    """
    task = manifest["task"]
    watched = task["select"] == LAST and not task.get("crf", {}).get("steps") and task["name"] != "route"
    return ("train",) if watched and "calibration" not in manifest else ("train", "validation")


def check_unseen(fingerprints: Sequence[str], names: Sequence[str | None], manifest: Mapping[str, Any]) -> None:
    """LeakError if weights have used any of the scans to be tested.

    Args:
      fingerprints: of the scans' contents, which a copy of another size changes.
      names: `data.public_name` of each, which no copy changes.
      manifest: of the weights; one of weights older than names has none.
    """
    for use in uses(manifest):
        used, called = set(manifest["fingerprints"][use]), set(manifest.get("names", {}).get(use, ()))
        pairs = zip(fingerprints, names, strict=True)
        seen = [fingerprint for fingerprint, name in pairs if fingerprint in used or name in called]
        if seen:
            raise LeakError(
                f"{len(seen)} of the {len(fingerprints)} scans were used for {use} of these weights, or copies of them "
                f"(fingerprint {min(seen)}, ...): this is no test. Score another split, or retrain without them"
            )


def leaks(fingerprints: Sequence[str], manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """How many of the scored scans' contents each network has seen: task name -> use, of `uses` -> counts.

    Each use says `used`, how many contents there were, and `scored`, how many of the scored ones are among them.
    """
    scored = set(fingerprints)
    return {
        name: {
            use: {
                "used": len(set(manifest["fingerprints"][use])),
                "scored": len(scored & {*manifest["fingerprints"][use]}),
            }
            for use in uses(manifest)
        }
        for name, manifest in manifests.items()
    }


def _prepared(record: Record):
    image, mask = storage.decode(dict(record))
    square, geometry = letterbox.fit(image)
    return record, mask, square, geometry


def batches(records: Sequence[Record]) -> Iterator[tuple[list, np.ndarray]]:
    """Records decoded and laid on the canvas, BATCH at once; the last squares are filled up with black ones."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for start in range(0, len(records), BATCH):
            chosen = [records[i] for i in range(start, min(start + BATCH, len(records)))]
            batch = list(pool.map(_prepared, chosen))
            squares = np.zeros((BATCH, letterbox.CANVAS, letterbox.CANVAS, 3), np.uint8)
            for i, (_, _, square, _) in enumerate(batch):
                squares[i] = square
            yield batch, squares


def score_scans(task: Task, expert: Callable[[np.ndarray], Any], records: Sequence[Record]) -> Rows:
    """Run a task's expert over records.

    Args:
      task: whose targets are scored.
      expert: uint8 (BATCH, S, S, 3) -> `Outputs` of probabilities on the canvas.
      records: of `data.records`.
    """
    columns: dict[str, list] = collections.defaultdict(list)
    for batch, squares in batches(records):
        outputs = expert(squares)
        masks = None if outputs.mask is None else np.asarray(outputs.mask)
        for i, (record, mask, _, geometry) in enumerate(batch):
            row = _facts(record) | {"label": task.label_of(dataset.text(record["organ"]), int(record["label"]))}
            if masks is not None:
                row |= _overlap(letterbox.unfit(masks[i, ..., 0], geometry), mask[..., 0])
            _append(columns, row)
        if outputs.label is not None:
            columns["probs"].extend(np.asarray(outputs.label)[: len(batch)])
            columns["features"].extend(np.asarray(outputs.features)[: len(batch)])
    return {name: np.array(values) for name, values in columns.items()}


def score_cascade(predict: Callable[[np.ndarray], Any], records: Sequence[Record]) -> Rows:
    """Run the cascade over records of all organs.

    Args:
      predict: uint8 (BATCH, S, S, 3) -> a `cascade.Prediction`.
      records: of `data.records`.
    """
    columns: dict[str, list] = collections.defaultdict(list)
    for batch, squares in batches(records):
        found = predict(squares)
        organ, label, masks = (np.asarray(x) for x in (found.organ, found.label, found.mask))
        told = {name: np.asarray(getattr(found, name)) for name in ("organ_prob", "novelty", "label_probs")}
        for i, (record, mask, _, geometry) in enumerate(batch):
            said: dict[str, Any] = {"said_organ": int(organ[i]), "said_label": int(label[i])}
            said |= {name: value[i] for name, value in told.items()}
            if geometry.thumbnail:  # as `mcis predict` has it
                said |= {"said_organ": len(ORGANS), "said_label": UNKNOWN}
                said["label_probs"] = np.zeros_like(said["label_probs"])
            truth = {"organ": organ_index(dataset.text(record["organ"])), "label": int(record["label"])}
            row = _facts(record) | truth | said | {"thumbnail": geometry.thumbnail}
            # the mask of another organ's network is none of this organ's
            right = said["said_organ"] == truth["organ"]
            prob = letterbox.unfit(masks[i, ..., 0], geometry) if right else np.zeros(mask.shape[:2], np.float32)
            row |= _overlap(prob, mask[..., 0])
            _append(columns, row)
    return {name: np.array(values) for name, values in columns.items()}


def _facts(record: Record) -> dict[str, Any]:
    """What a row says of its scan."""
    source = dataset.text(record["source"])
    return {
        "source": source,
        "group": f"{source}/{dataset.text(record['group'])}",
        "scan_id": dataset.text(record["scan_id"]),
        "fingerprint": dataset.text(record["fingerprint"]),
        "has_mask": bool(record["has_mask"]),
    }


def _overlap(prob: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """What a row says of lesion probabilities float (H, W) beside the mask {0,1} (H, W)."""
    found = prob > MASK_THRESHOLD
    counts = mask_counts(found[None, ..., None], true[None, ..., None])
    farthest, mean = surface_distances(found, true)
    return {name: int(count[0]) for name, count in counts.items()} | {
        "pixels": true.size,
        "dice_loss": dice_loss(prob, true),
        "hd95": farthest,
        "surface_distance": mean,
    }


def _append(columns: dict[str, list], row: dict[str, Any]) -> None:
    for name, value in row.items():
        columns[name].append(value)


@dataclasses.dataclass(frozen=True)
class Records(Sequence):
    """Records of several splits as one sequence, each read when it is asked for.

    Attributes:
      parts: of `data.records`.
      places: which part, and which of its records, each one is.
      fingerprints: their contents' fingerprints.
      names: their `data.public_name`.
    """

    parts: tuple[Sequence[Record], ...]
    places: tuple[tuple[int, int], ...]
    fingerprints: tuple[str, ...]
    names: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: Any) -> Any:
        part, row = self.places[at]
        return self.parts[part][row]

    def take(self, index: Sequence[int]) -> "Records":
        """Some of them."""
        return Records(
            self.parts,
            tuple(self.places[i] for i in index),
            tuple(self.fingerprints[i] for i in index),
            tuple(self.names[i] for i in index),
        )


def read_records(
    sources: Iterable[str], splits: Iterable[str], data_dir: str | os.PathLike | None, organ: str | None
) -> Records:
    """The records of some splits of some sources, of one organ if `organ` names it.

    Raises:
      MissingData, ValueError: a source is not prepared; there is no such split, or it holds no such scans.
    """
    sources, splits = tuple(sources), tuple(splits)
    parts = tuple(dataset.records(source, split, data_dir) for source, split in itertools.product(sources, splits))
    places, fingerprints, names = [], [], []
    for number, part in enumerate(parts):
        for row in range(len(part)):
            record = part[row]
            if organ in (None, dataset.text(record["organ"])):
                places.append((number, row))
                fingerprints.append(dataset.text(record["fingerprint"]))
                names.append(dataset.public_name(dataset.text(record["source"]), dataset.text(record["scan_id"])))
    if not places:
        kind = "scans" if organ is None else f"{organ} scans"
        raise ValueError(f"split {' or '.join(map(repr, splits))} of {', '.join(sources)} holds no {kind}")
    return Records(parts, tuple(places), tuple(fingerprints), tuple(names))
