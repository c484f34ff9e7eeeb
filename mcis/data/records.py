"""Stored scans one by one, with their masks, for evaluation: every scan once, none augmented. No JAX."""

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mcis.data import dataset, storage
from mcis.data.storage import Record
from mcis.imaging.letterbox import INPUT_SIZE, Letterbox, letterbox

BATCH = 16


class LetterboxedScan(NamedTuple):
    """A scan of a batch: its record, image uint8 (H, W, 3), mask uint8 {0,1} (H, W, 1) and letterbox."""

    record: Record
    image: np.ndarray
    mask: np.ndarray
    geometry: Letterbox


def letterboxed_batches(
    records: Sequence[Record], size: int = BATCH
) -> Iterator[tuple[tuple[LetterboxedScan, ...], np.ndarray]]:
    """Every scan once, in order: up to `size` scans, and their letterboxed images uint8 (size, S, S, 3).

    The last batch is padded with black images.
    """
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for start in range(0, len(records), size):
            chosen = [records[row] for row in range(start, min(start + size, len(records)))]
            scans, images = zip(*pool.map(_letterboxed, chosen), strict=True)
            batch = np.zeros((size, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
            batch[: len(images)] = images
            yield scans, batch


def _letterboxed(record: Record) -> tuple[LetterboxedScan, np.ndarray]:
    image, mask = storage.decode(record)
    square, geometry = letterbox(image)
    return LetterboxedScan(record, image, mask, geometry), square


@dataclasses.dataclass(frozen=True)
class Records(Sequence):
    """Records of several splits as one sequence. Each is read when it is accessed.

    places: the sequence (of `dataset.records`) and the index in it of each; names: their `dataset.public_name`s;
    groups: their `dataset.group_name`s.
    """

    places: tuple[tuple[Sequence[Record], int], ...]
    fingerprints: tuple[str, ...]
    names: tuple[str | None, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: Any) -> Any:
        stored, row = self.places[at]
        return stored[row]

    def take(self, index: Sequence[int]) -> "Records":
        """The records of these indices."""
        return Records(*(tuple(values[i] for i in index) for values in vars(self).values()))

    @staticmethod
    def join(parts: Sequence["Records"]) -> "Records":
        """Concatenation."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return Records(*(tuple(itertools.chain.from_iterable(values)) for values in columns))


def read_records(
    sources: Iterable[str], splits: Iterable[str], data_dir: str | os.PathLike | None, organ: str | None
) -> Records:
    """The records of some splits of some sources, of one organ unless `organ` is None.

    Raises:
      MissingData: a source is not prepared.
      ValueError: there is no such split, or there are no such scans.
    """
    sources, splits = tuple(sources), tuple(splits)
    places, fingerprints, names, groups = [], [], [], []
    for source, split in itertools.product(sources, splits):
        stored = dataset.records(source, split, data_dir)
        for row in range(len(stored)):
            record = stored[row]
            if organ in (None, dataset.text(record["organ"])):
                places.append((stored, row))
                fingerprints.append(dataset.text(record["fingerprint"]))
                stored_in = dataset.text(record["source"])
                names.append(dataset.public_name(stored_in, dataset.text(record["scan_id"])))
                groups.append(dataset.group_name(stored_in, dataset.text(record["group"])))
    if not places:
        kind = "scans" if organ is None else f"{organ} scans"
        raise ValueError(f"split {' or '.join(map(repr, splits))} of {', '.join(sources)} holds no {kind}")
    return Records(tuple(places), tuple(fingerprints), tuple(names), tuple(groups))
