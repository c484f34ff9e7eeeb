"""Stored scans one by one, with their masks, for evaluation: every scan once, none augmented. No JAX."""

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mcis.data import dataset, storage
from mcis.imaging.letterbox import INPUT_SIZE, letterbox

BATCH = 16

Record = Mapping[str, Any]
"""A scan as it is stored: of `dataset.records`."""


def _prepared(record: Record):
    image, mask = storage.decode(dict(record))
    square, geometry = letterbox(image)
    return record, mask, square, geometry


def batches(records: Sequence[Record]) -> Iterator[tuple[list, np.ndarray]]:
    """Records decoded and laid on the canvas, BATCH at once; the last squares are filled up with black ones."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for start in range(0, len(records), BATCH):
            chosen = [records[i] for i in range(start, min(start + BATCH, len(records)))]
            batch = list(pool.map(_prepared, chosen))
            squares = np.zeros((BATCH, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
            for i, (_, _, square, _) in enumerate(batch):
                squares[i] = square
            yield batch, squares


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
