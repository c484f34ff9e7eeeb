"""Prepared data sets: TFDS's files -> scans, whose pixels are in memory or stay there -> batches, through grain.

No JAX here.

The contract with the builder is the feature schema alone; the builder is never imported, nor is TensorFlow.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from mcis.data.storage import BYTES, THREADS, Decoded, Pixels, Stored, free_memory, lay, record_of, room
from mcis.files import expand_user

DATASET = "mcis_scans"
SPLITS = ("train", "validation", "test")
LEFT_OUT = "left_out"
"""What stands for the split where each scan is answered by a model that has learned from the other folds."""
PUBLISHED = ("busi", "busbra", "lgg", "br35h")
"""Sources whose scans are called what their publishers call them: one name is one picture, whatever copy it is in."""


class MissingData(ValueError):
    """A source that is not prepared; the message says which command prepares it."""


@dataclasses.dataclass(frozen=True)
class Scans:
    """Scans of one split, N of them, laid into the canvas (`mcis.imaging.letterbox.fit`).

    pixels: their images and masks; the rest (N,): area int32 (pixels of the mask), outline str (16 hex digits of the
    mask's sha256), has_mask bool, organ str, label int32 (index into the organ's classes, -1 unknown), group str
    ("<source>/<patient>"), source str, scan_id str, fingerprint str, thumbnail bool (`canvas.Fit`).
    """

    pixels: Pixels
    area: np.ndarray
    outline: np.ndarray
    has_mask: np.ndarray
    organ: np.ndarray
    label: np.ndarray
    group: np.ndarray
    source: np.ndarray
    scan_id: np.ndarray
    fingerprint: np.ndarray
    thumbnail: np.ndarray

    def __len__(self) -> int:
        """Number of scans."""
        return len(self.label)

    def take(self, rows: np.ndarray) -> "Scans":
        """The scans of the given rows: an int index or a bool mask (N,)."""
        columns = {name: getattr(self, name)[rows] for name in COLUMNS}
        return Scans(self.pixels.take(rows), **columns)

    @staticmethod
    def join(parts: Sequence["Scans"]) -> "Scans":
        """One after the other."""
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
        return Scans(Pixels.join([part.pixels for part in parts]), **columns)


COLUMNS = tuple(field.name for field in dataclasses.fields(Scans) if field.name != "pixels")


def data_folder(data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Where prepared data is: `data_dir`, else TFDS's folder ($TFDS_DATA_DIR or ~/tensorflow_datasets)."""
    return expand_user(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def versions_of(source: str, data_dir: str | os.PathLike | None = None) -> list[pathlib.Path]:
    """The folders of a source's prepared versions, oldest first."""
    root = data_folder(data_dir) / DATASET / source
    found = [info.parent for info in root.glob("*/dataset_info.json")]
    return sorted(found, key=lambda folder: tuple(int(n) for n in folder.name.split(".") if n.isdigit()))


def prepared(source: str, data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """The folder of the newest prepared version of a source.

    Raises:
      MissingData: there is none; the message gives the command that builds it.
    """
    versions = versions_of(source, data_dir)
    if not versions:
        root = data_folder(data_dir)
        there = ", ".join(folder.name for folder in sources_in(root)) or "none"
        where = "" if data_dir is None else f" --data_dir={data_dir}"
        origin = "" if source == "phantom" else " --from <its folder or zip>"
        raise MissingData(
            f"source {source!r} is not prepared in {root} (prepared there: {there}). Build it with\n"
            f"    mcis build {source}{origin}{where}\n"
            "or say with --data_dir where it is. `mcis build --help` lists the sources"
            + ("" if source == "phantom" else "; --sources=phantom needs no data")
        )
    return versions[-1]


def sources_in(data_dir: str | os.PathLike | None = None) -> list[pathlib.Path]:
    """Folders of the prepared sources below a data folder."""
    root = data_folder(data_dir) / DATASET
    return sorted({info.parent.parent for info in root.glob("*/*/dataset_info.json")})


def records(source: str, split: str, data_dir: str | os.PathLike | None = None) -> Sequence[dict[str, Any]]:
    """Random access to the records of a split, image and mask as the PNG bytes they are stored as.

    Raises:
      MissingData: the source is not prepared.
      ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are: {', '.join(SPLITS)}")
    builder = tfds.builder_from_directory(prepared(source, data_dir))
    if split not in builder.info.splits or builder.info.splits[split].num_examples == 0:
        return []
    skip = {"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split, decoders=skip)


def public_name(source: str, scan_id: str) -> str | None:
    """Twelve hex digits of a published scan's name; None for scans whose name says nothing beyond its folder.

    A copy of another size or format has other fingerprints, and the same name.
    """
    return hashlib.sha256(f"{source}/{scan_id}".encode()).hexdigest()[:12] if source in PUBLISHED else None


def public_names(scans: Scans) -> list[str]:
    """`public_name` of those scans that have one, each once, in order."""
    pairs = zip(scans.source.tolist(), scans.scan_id.tolist(), strict=True)
    return sorted({name for pair in pairs if (name := public_name(*pair)) is not None})


def text(value: Any) -> str:
    """A Text feature as str; TFDS gives bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def load(
    sources: Sequence[str],
    split: str,
    data_dir: str | os.PathLike | None = None,
    organ: str | None = None,
    stream: bool | None = None,
    neighbours: int = 1,
) -> Scans:
    """Read a split of some sources, in stored order; of one organ if `organ` names it.

    Args:
      sources: names of prepared sources.
      split: one of SPLITS.
      data_dir: where they are prepared.
      organ: which scans to keep.
      stream: whether pixels stay in the files, to be decoded each time they are needed; if not, they are decoded once,
        into memory. None decides: they stay where all would take more than a third of what memory is free, which is
        said. (A training's two splits then leave four ninths of it.)
      neighbours: how many processes on this machine do the same at this moment, and share what is free.

    Raises:
      MissingData: a source is not prepared.
      ValueError: no source has such a scan in this split.
    """
    found = {source: records(source, split, data_dir) for source in sources}
    if stream is None:
        stream = _too_many(split, sum(map(len, found.values())), neighbours)
    parts = [scans for scans in (_load(source, split, found[source], organ, stream) for source in found) if len(scans)]
    if not parts:
        raise ValueError(f"split {split!r} of {', '.join(sources)} holds no {organ or ''} scans".replace("  ", " "))
    return Scans.join(parts)


def _load(source: str, split: str, found: Sequence[dict[str, Any]], organ: str | None, stream: bool) -> Scans:
    store = None if stream else _room(source, split, len(found))

    def look(pair: tuple[int, dict[str, Any]]) -> dict[str, Any] | None:
        number, record = pair
        if organ not in (None, text(record["organ"])):
            return None
        image, mask, geometry = lay(record)
        if store is not None:
            store.image[number], store.mask[number] = image, mask
        return {
            "number": number,
            "area": np.int32(mask.sum()),
            "outline": hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:16],
            "has_mask": np.bool_(record["has_mask"]),
            "organ": text(record["organ"]),
            "label": np.int32(record["label"]),
            "group": f"{text(record['source'])}/{text(record['group'])}",
            "source": text(record["source"]),
            "scan_id": text(record["scan_id"]),
            "fingerprint": text(record["fingerprint"]),
            "thumbnail": np.bool_(geometry.thumbnail),
        }

    numbered = grain.MapDataset.range(len(found)).map(lambda number: (number, record_of(found, number)))
    looked = numbered.map(look).to_iter_dataset(
        grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=4 * THREADS)
    )
    rows = [row for row in looked if row is not None]
    columns = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
    numbers = np.array([row["number"] for row in rows], np.int64)
    return Scans(Pixels.of(Stored(found) if store is None else store, numbers), **columns)


def _too_many(split: str, count: int, neighbours: int) -> bool:
    """Whether so many scans would take more than a third of the memory that is free; says so."""
    needed, free = count * BYTES, free_memory() // neighbours
    if needed <= free // 3:
        return False
    _say_streamed(split, count, f"{free / 1e9:.1f} GB are free" + (" for each process" if neighbours > 1 else ""))
    return True


def _room(source: str, split: str, count: int) -> Decoded | None:
    """Room for the pixels of `count` scans; None where the process may not take so much."""
    try:  # of what is not written to, as scans of other organs, nothing is taken
        return Decoded(*room(count))
    except MemoryError:
        _say_streamed(f"{split} of {source}", count, "this process may not take so much")
        return None


def _say_streamed(what: str, count: int, why: str) -> None:
    needed = count * BYTES / 1e9
    told = f"{what}: {count:,} scans, {needed:.1f} GB when decoded; {why}: they are decoded each time they are needed"
    print(told, flush=True)


def folds_of(scans: Any, folds: int) -> np.ndarray:
    """A fold for each scan, int (N,) in [0, folds): whole groups, evenly over each source's classes.

    Args:
      scans: `Scans`, or whatever else has the columns group, source and label (N,).
      folds: how many.

    Groups of one source whose first scan has the same label are dealt out in the order of a hash of their names: the
    same scans always fall into the same folds.
    """
    first = {group: row for row, group in reversed(list(enumerate(scans.group.tolist())))}
    strata: dict[tuple[str, int], list[str]] = {}
    for group in sorted(first, key=lambda name: hashlib.sha256(name.encode()).digest()):
        row = first[group]
        strata.setdefault((str(scans.source[row]), int(scans.label[row])), []).append(group)
    fold: dict[str, int] = {}
    for _, groups in sorted(strata.items()):  # dealt on where the last stratum ended, so that folds stay of one size
        fold |= {group: (len(fold) + i) % folds for i, group in enumerate(groups)}
    return np.array([fold[group] for group in scans.group.tolist()], np.int32)
