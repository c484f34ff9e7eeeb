"""Prepared data sets: TFDS's files -> scans, whose pixels are decoded in memory or stay in the files. No JAX.

The builder and this module share the feature schema alone. The builder is never imported, nor is TensorFlow.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mcis import paths
from mcis.data import storage
from mcis.data.storage import BYTES, THREADS, Part, Pixels, Record, free_memory
from mcis.names import no_such

DATASET = "mcis_scans"
SPLITS = ("train", "validation", "test")
LEFT_OUT = "left_out"
"""The split option's value for out-of-fold evaluation: each scan is scored by the run that held out its fold."""
UNSEEN = "unseen"
"""The split option's value for all scans of the sources that weights were trained without."""
CHUNK = 1024
"""Scans submitted to the loading threads at a time."""
PUBLISHED = ("busi", "busbra", "lgg", "br35h", "cheng", "healthy", "notumor", "uclm", "brest")
"""Sources whose scans keep their publisher's names: one name is one image, in every copy of the data set."""

OTHERS = {"breast": "busi", "brain": "lgg"}
"""Organ -> a published source with scans of all its classes in all splits."""

FOLLOWS = "@"
"""Prefix of a group that follows a near-duplicate's group of another source: "@br35h/cluster-0123456789abcdef"."""


class MissingData(ValueError):
    """Sources that are not prepared. The message names the commands that prepare them.

    Attributes:
      source: the name of the first, which may be that of no data set.
    """

    def __init__(self, source: str, message: str):
        super().__init__(message)
        self.source = source


@dataclasses.dataclass(frozen=True)
class Scans:
    """N letterboxed scans of one or several splits.

    pixels: images and masks. The other columns (N,): area int32 (pixels of the letterboxed mask), outline str (16 hex
    digits of that mask's SHA-256), has_mask bool, organ str, label int32 (index into the organ's classes, -1 unknown),
    group str (`group_name`), source str, scan_id str, fingerprint str, thumbnail bool
    (`Letterbox.thumbnail`).
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

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """All but the pixels, by name."""
        return {name: values for name, values in vars(self).items() if name != "pixels"}

    def take(self, rows: np.ndarray) -> "Scans":
        """The scans of the given rows: an int index or a bool mask (N,)."""
        return Scans(self.pixels.take(rows), **{name: values[rows] for name, values in self.columns.items()})

    @staticmethod
    def join(parts: Sequence["Scans"]) -> "Scans":
        """Concatenation."""
        columns = [part.columns for part in parts]
        joined = {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}
        return Scans(Pixels.join([part.pixels for part in parts]), **joined)


def data_folder(data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """The folder of prepared data: `data_dir`, else TFDS's folder ($TFDS_DATA_DIR or ~/tensorflow_datasets).

    Without a home folder in which that is, or could be made, it is in `paths.fallback()`. ValueError for an address.
    """
    for name, given in (("--data_dir", data_dir), ("$TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR"))):
        if given:
            return paths.local_path(given, name)
    home = paths.home()
    folder = None if home is None or not home.is_dir() else home / "tensorflow_datasets"
    if folder is not None and (folder.is_dir() or paths.writable(folder)):
        return folder
    return paths.fallback() / "tensorflow_datasets"


def versions_of(source: str, data_dir: str | os.PathLike | None = None) -> list[pathlib.Path]:
    """The folders of a source's prepared versions, oldest first."""
    folders = [info.parent for info in (data_folder(data_dir) / DATASET / source).glob("*/dataset_info.json")]
    return sorted(folders, key=lambda folder: tuple(int(n) for n in folder.name.split(".") if n.isdigit()))


def sources_in(data_dir: str | os.PathLike | None = None) -> list[pathlib.Path]:
    """The folders of the prepared sources in a data folder."""
    root = data_folder(data_dir) / DATASET
    return sorted({info.parent.parent for info in root.glob("*/*/dataset_info.json")})


def prepared(source: str, data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """The folder of the newest prepared version of a source.

    Raises:
      MissingData: there is none. The message gives the command that builds it.
    """
    versions = versions_of(source, data_dir)
    if versions:
        return versions[-1]
    raise _missing((source,), data_dir)


def _missing(sources: Sequence[str], data_dir: str | os.PathLike | None) -> MissingData:
    """The error for sources that are not prepared, with the commands that build them."""
    root = data_folder(data_dir)
    names = f"source {sources[0]!r} is" if len(sources) == 1 else f"sources {', '.join(map(repr, sources))} are"
    there = ", ".join(folder.name for folder in sources_in(root)) or "none"
    commands = (
        f"    mcis build {source}{'' if source == 'phantom' else ' --from <folder or zip>'}"
        f"{'' if data_dir is None else f' --data_dir={data_dir}'}\n"
        for source in sources
    )
    return MissingData(
        sources[0],
        f"{names} not prepared in {root} (prepared there: {there}). Build with\n{''.join(commands)}"
        "or name the folder of the prepared data with --data_dir. `mcis build --help` lists the sources"
        f"{'' if 'phantom' in sources else '; `--sources=phantom` needs no data'}",
    )


def records(source: str, split: str, data_dir: str | os.PathLike | None = None) -> Sequence[dict[str, Any]]:
    """Random access to the records of a split. Image and mask are the stored PNG bytes.

    Raises:
      MissingData: the source is not prepared.
      ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(no_such("split", split, SPLITS))
    import tensorflow_datasets as tfds  # takes a second, which `mcis build --help` need not wait

    paths.allow_unnamed_owners()
    builder = tfds.builder_from_directory(prepared(source, data_dir))
    if split not in builder.info.splits or builder.info.splits[split].num_examples == 0:
        return []
    skip = {"image": tfds.decode.SkipDecoding(), "mask": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split, decoders=skip)


def group_name(source: str, stored: str) -> str:
    """The name of a group among all sources: "<source>/<group>", of the source whose group it is.

    >>> group_name("busbra", "12"), group_name("cheng", "@br35h/cluster-0123456789abcdef")
    ('busbra/12', 'br35h/cluster-0123456789abcdef')
    """
    return stored[len(FOLLOWS) :] if source in PUBLISHED and stored.startswith(FOLLOWS) else f"{source}/{stored}"


def public_name(source: str, scan_id: str) -> str | None:
    """Twelve hex digits for a published scan's name; None for a source whose names are not unique beyond its folder.

    A copy of the scan in another size or format has another fingerprint and the same public name.
    """
    return hashlib.sha256(f"{source}/{scan_id}".encode()).hexdigest()[:12] if source in PUBLISHED else None


def public_names(scans: Scans) -> list[str]:
    """The `public_name`s of the scans that have one, sorted, each once."""
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
    """Load a split of prepared sources, in stored order; of one organ if `organ` names it.

    With `stream`, pixels stay in the files and are decoded at each access; without, they are decoded once, into memory.
    With None, they stay in the files where all would take more than a third of the free memory, which is printed. (The
    two splits of a training then leave four ninths of it.) `neighbours` processes on this machine share that memory.

    Raises:
      MissingData: a source is not prepared.
      ValueError: no source has such a scan in this split.
    """
    if missing := [source for source in sources if not versions_of(source, data_dir)]:
        raise _missing(missing, data_dir)
    stored = {source: records(source, split, data_dir) for source in sources}
    if stream is None:
        count, free = sum(map(len, stored.values())), free_memory() // neighbours
        stream = count * BYTES > free // 3
        if stream:
            share = " for each process" if neighbours > 1 else ""
            _print_streamed(split, count, f"{free / 1e9:.1f} GB are free{share}")
    loaded = [_load(source, split, stored[source], organ, stream) for source in stored]
    if not any(loaded):
        kind = "scans" if organ is None else f"{organ} scans"
        raise ValueError(f"split {split!r} of {', '.join(sources)} holds no {kind}{_advice(sources, organ)}")
    return Scans.join([scans for scans in loaded if scans])


def _advice(sources: Sequence[str], organ: str | None) -> str:
    """What to do about an empty split: a published source has none, so that only one of another organ is named."""
    other = OTHERS.get(organ or "", next(iter(OTHERS.values())))
    added = f"--sources={','.join([*sources, other])}"
    if all(source in PUBLISHED for source in sources):
        return "" if other in sources else f"; name a source that has some, as in {added}"
    return f"; add patients, or train with another data set too ({added})"


def _load(source: str, split: str, stored: Sequence[Record], organ: str | None, stream: bool) -> Scans | None:
    """The scans of one source; None where it has none."""
    decoded = None
    if not stream:
        try:  # the system gives memory to written pages alone: scans of other organs take none
            decoded = storage.allocate(len(stored))
        except MemoryError:
            _print_streamed(f"{split} of {source}", len(stored), "this process may not take so much")

    def read(number: int) -> dict[str, Any] | None:
        record = storage.read_record(stored, number)
        if organ not in (None, text(record["organ"])):
            return None
        image, mask, geometry = storage.decode_letterboxed(record)
        if decoded is not None:
            decoded[0][number], decoded[1][number] = image, mask
        return {
            "number": number,
            "area": np.int32(mask.sum()),
            "outline": hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:16],
            "has_mask": np.bool_(record["has_mask"]),
            "organ": text(record["organ"]),
            "label": np.int32(record["label"]),
            "group": group_name(text(record["source"]), text(record["group"])),
            "source": text(record["source"]),
            "scan_id": text(record["scan_id"]),
            "fingerprint": text(record["fingerprint"]),
            "thumbnail": np.bool_(geometry.thumbnail),
        }

    numbers = range(len(stored))
    chunks = (numbers[start : start + CHUNK] for start in range(0, len(stored), CHUNK))
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        rows = [row for chunk in chunks for row in pool.map(read, chunk) if row is not None]
    if not rows:
        return None
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    number = columns.pop("number")
    return Scans(Pixels((Part(stored, decoded),), np.zeros_like(number), number), **columns)


def _print_streamed(what: str, count: int, why: str) -> None:
    needed = count * BYTES / 1e9
    print(f"{what}: {count:,} scans, {needed:.1f} GB when decoded; {why}: they are decoded at each access", flush=True)


def folds_of(scans: Any, folds: int) -> np.ndarray:
    """The cross-validation fold of each scan, int (N,) in [0, folds): groups stay whole, folds have similar sizes.

    `scans` has the columns group, source and label (N,). Groups of one source whose first scan has the same label are
    spread evenly over the folds, in the order of a hash of their names: the same scans always get the same folds.
    """
    first = {group: row for row, group in reversed(list(enumerate(scans.group.tolist())))}
    strata: dict[tuple[str, int], list[str]] = {}
    for group in sorted(first, key=lambda name: hashlib.sha256(name.encode()).digest()):
        row = first[group]
        strata.setdefault((str(scans.source[row]), int(scans.label[row])), []).append(group)
    # Each stratum continues at the fold after the last one of the stratum before, so that folds stay of one size.
    ordered = [group for _, groups in sorted(strata.items()) for group in groups]
    fold = {group: number % folds for number, group in enumerate(ordered)}
    return np.array([fold[group] for group in scans.group.tolist()], np.int32)
