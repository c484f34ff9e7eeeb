"""Scans that a build has read wait on disk, packed, until it is known which split each goes to.

So that memory holds no picture, however many there are, and so that several machines can read at once. A file of
pictures (array_record: image and mask of a scan, one after the other, as PNG) has a file of facts (JSON lines) beside
it, which appears when both are whole.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import pathlib
import uuid
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from array_record.python import array_record_module
from tensorflow_datasets.core import hashing

from mcis.data.storage import THREADS
from mcis.imaging import image_files, scan

from .record import Item, Job, Rejection, done

PREFIX = ".packed"
"""How the folder's name begins, beside a version that is being built; it goes when the build ends."""
OPTIONS = "group_size:1,uncompressed"
"""Each picture by itself; PNG is compressed already."""


@dataclasses.dataclass(frozen=True)
class Packed:
    """A Record whose image and mask are elsewhere: `file` has them from `place` on, of `size` bytes."""

    scan_id: str
    has_mask: bool
    organ: str
    label: int
    patient: str | None
    fingerprint: str
    size: int
    file: str
    place: int


Pictures = tuple[bytes, bytes]
"""Image and mask of a scan as PNG."""


class Writer:
    """A context manager that writes a file of pictures and one of facts into a folder; no facts where it fails."""

    def __init__(self, folder: pathlib.Path):
        """Into `folder`, under a name of its own."""
        self._name, self._folder, self._count = uuid.uuid4().hex, folder, 0
        self._facts: list[dict[str, Any]] = []

    def __enter__(self) -> "Writer":
        """Open the file of pictures."""
        self._pictures = array_record_module.ArrayRecordWriter(str(self._folder / self._name), OPTIONS)
        return self

    def add(self, number: int, item: Rejection | tuple[dict[str, Any], Pictures]) -> None:
        """Write what `pack` made of the source's item of this number."""
        if isinstance(item, Rejection):
            self._facts.append({"number": number, "rejection": vars(item)})
            return
        facts, pictures = item
        for picture in pictures:
            self._pictures.write(picture)
        place = {"size": sum(map(len, pictures)), "file": self._name, "place": self._count}
        self._facts.append({"number": number, "scan": facts | place})
        self._count += len(pictures)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close both files."""
        self._pictures.close()
        if kind is None:
            draft = self._folder / f"{self._name}.part"
            draft.write_text("".join(json.dumps(line) + "\n" for line in self._facts), encoding="utf-8")
            draft.replace(self._folder / f"{self._name}.jsonl")


def pack(job: Item | Job) -> Rejection | tuple[dict[str, Any], Pictures]:
    """Read a scan: what is known of it, and its pictures as they are stored; or why it is none."""
    item = done(job)
    if isinstance(item, Rejection):
        return item
    facts = {key: getattr(item, key) for key in ("scan_id", "has_mask", "organ", "label", "patient")}
    pictures = image_files.encode_png(item.image), image_files.encode_png(item.mask)
    return facts | {"fingerprint": scan.fingerprint(item.image)}, pictures


def pack_all(jobs: Sequence[Item | Job], folder: pathlib.Path, bar: Any = iter) -> None:
    """Read all scans into `folder`, by threads, in order, a few a thread ahead; `bar` shows how far it is."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool, Writer(folder) as writer:
        ahead = iter(jobs)
        for number in bar(range(len(jobs))):
            waiting += (pool.submit(pack, job) for job in itertools.islice(ahead, 4 * THREADS - len(waiting)))
            writer.add(number, waiting.popleft().result())


def facts(folder: pathlib.Path, count: int) -> list[Packed | Rejection]:
    """What was read into `folder` of a source's `count` items, in its order. OSError where some are not there."""
    found: dict[int, Packed | Rejection] = {}
    for file in sorted(folder.glob("*.jsonl")):  # an item that was read twice, as Beam may, is in two of them
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            if "scan" in line:
                found[line["number"]] = Packed(**line["scan"])
            else:  # of two readings the one that succeeded counts
                found.setdefault(line["number"], Rejection(**line["rejection"]))
    if missing := set(range(count)) - set(found):
        raise OSError(
            f"{folder}: {len(missing)} of {count} scans were read and have not come here; does every worker see this "
            "folder under the same path?"
        )
    return [found[number] for number in sorted(found)]


@functools.lru_cache(maxsize=64)
def _reader(file: pathlib.Path) -> Any:
    return array_record_module.ArrayRecordReader(str(file), "readahead_buffer_size:0")


def close() -> None:
    """Let go of the files of pictures."""
    _reader.cache_clear()


def pictures(packed: Packed, folder: pathlib.Path) -> Pictures:
    """Image and mask of a scan as PNG."""
    image, mask = _reader(folder / packed.file).read([packed.place, packed.place + 1])
    return image, mask


class Images(Sequence[np.ndarray]):
    """The images of scans, each decoded when it is asked for: uint8 (H, W, 3)."""

    def __init__(self, scans: Sequence[Packed], folder: pathlib.Path):
        """Of scans that wait in `folder`."""
        self._scans, self._folder = scans, folder

    def __len__(self) -> int:
        """Number of scans."""
        return len(self._scans)

    def __getitem__(self, index: Any) -> Any:
        """One image; no slices."""
        return image_files.decode(pictures(self._scans[index], self._folder)[0]).image


Placed = tuple[Packed, dict[str, Any]]
"""A scan, and its group, source and label."""

SHARD_BYTES = 128 << 20
"""Of a file of stored scans. TFDS holds as much in memory while it is written."""


def shards(split: str, rows: Sequence[Placed]) -> list[list[Placed]]:
    """The scans of a split in the order in which they are stored, a list for each file.

    The order is that of TFDS's hashes of their names, so that it tells nothing, and is the same wherever a set is
    built. TFDS, which would sort them itself, does so in memory, or with TensorFlow where there are many.
    """
    hasher = hashing.Hasher(split)
    ordered = sorted(rows, key=lambda row: hasher.hash_key(row[0].scan_id))
    count = -(-sum(packed.size for packed, _ in rows) // SHARD_BYTES)
    return [ordered[len(ordered) * i // count : len(ordered) * (i + 1) // count] for i in range(count)]


def examples(rows: Sequence[Placed], folder: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Scans as TFDS stores them, each under its name."""
    for packed, place in rows:
        image, mask = pictures(packed, folder)
        features = {key: getattr(packed, key) for key in ("scan_id", "has_mask", "organ", "fingerprint")}
        yield packed.scan_id, features | place | {"image": image, "mask": mask}
