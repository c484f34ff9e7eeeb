"""Staging: scans that a build has read wait in files until it is known which split each goes to.

So no image stays in memory, and several machines can read at once. Each reader writes one array_record file, with three
records a scan: its facts as JSON, its image and its mask as PNG. The file gets its final name when it is complete.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import pathlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from array_record.python import array_record_module
from tensorflow_datasets.core import hashing

from mcis.data.attributes import to_text
from mcis.data.storage import THREADS
from mcis.imaging import image_files, scan

from .record import Item, Job, Rejection, Remark, done

PREFIX = ".staged"
"""Prefix of the staging folder's name. The folder lies next to the version that is built, and goes with the build."""
SUFFIX = ".scans"
OPTIONS = "group_size:1,uncompressed"
"""Each record can be read by itself. PNG is compressed already."""
SHARD_BYTES = 128 << 20
"""Size of a file of a prepared set. TFDS holds as much in memory while it writes one."""


@dataclasses.dataclass(frozen=True)
class Staged:
    """A record (`record.Record`) whose image and mask are staged: in `file`, after the facts at index `place`.

    size: bytes of the two PNGs. outline: 16 hex digits of SHA-256 over the mask; "" where it is empty.
    """

    scan_id: str
    has_mask: bool
    organ: str
    label: int
    patient: str | None
    fingerprint: str
    size: int
    file: str
    place: int
    series: str | None = None
    remarks: Sequence[str] = ()
    mask_notes: Sequence[str] = ()
    outline: str = ""
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: str | None = None


Images = tuple[bytes, bytes]
"""Image and mask of a scan as PNG."""
Packed = tuple[dict[str, Any], Images]
"""Facts and images of a scan."""


def pack(job: Item | Job) -> Packed:
    """Read a scan. Where it is rejected or only remarked, the facts say why, and the images are empty."""
    item = done(job)
    if isinstance(item, Remark):
        return {"remark": dataclasses.asdict(item)}, (b"", b"")
    if isinstance(item, Rejection):
        return {"rejection": dataclasses.asdict(item)}, (b"", b"")
    images = image_files.encode_png(item.image), image_files.encode_png(item.mask)
    facts = {"scan_id": item.scan_id, "has_mask": item.has_mask, "organ": item.organ, "label": item.label}
    facts |= {"patient": item.patient, "fingerprint": scan.fingerprint(item.image), "size": sum(map(len, images))}
    facts |= {"series": item.series, "remarks": item.remarks, "mask_notes": item.mask_notes}
    facts |= {"attributes": item.attributes, "split": item.split}
    facts["outline"] = scan.fingerprint(item.mask) if item.mask.any() else ""
    return {"scan": facts}, images


@contextlib.contextmanager
def writer(folder: pathlib.Path) -> Iterator[Callable[[int, Packed], None]]:
    """Open a new file in `folder`: gives a function that adds a packed item of the source, with its number."""
    draft = folder / uuid.uuid4().hex
    file = array_record_module.ArrayRecordWriter(str(draft), OPTIONS)

    def add(number: int, packed: Packed) -> None:
        facts, images = packed
        for record in (json.dumps(facts | {"number": number}).encode(), *images):
            file.write(record)

    try:
        yield add
    finally:
        file.close()
    draft.rename(draft.with_suffix(SUFFIX))


def stage_all(jobs: Sequence[Item | Job], folder: pathlib.Path, bar: Any = iter) -> None:
    """Read all scans into `folder`, in order, by threads that read a few scans ahead; `bar` shows the progress."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool, writer(folder) as add:
        ahead = iter(jobs)
        for number in bar(range(len(jobs))):
            waiting += (pool.submit(pack, job) for job in itertools.islice(ahead, 4 * THREADS - len(waiting)))
            add(number, waiting.popleft().result())


def read_all(folder: pathlib.Path, count: int) -> list[Staged | Rejection | Remark]:
    """What was staged of a source's `count` items, in its order. OSError where some are missing."""
    items: dict[int, Staged | Rejection | Remark] = {}
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        reader = _reader(file)
        places = range(0, reader.num_records(), 3)
        for place, facts in zip(places, map(json.loads, reader.read(list(places))), strict=True):
            if "scan" in facts:
                items[facts["number"]] = Staged(**facts["scan"], file=file.name, place=place)
            elif "remark" in facts:
                items.setdefault(facts["number"], Remark(**facts["remark"]))
            else:  # Beam may read an item twice; a reading that succeeded counts
                items.setdefault(facts["number"], Rejection(**facts["rejection"]))
    if missing := set(range(count)) - set(items):
        raise OSError(
            f"{folder}: {len(missing)} of {count} scans are missing after all were read; every worker must see this "
            "folder under the same path"
        )
    return [items[number] for number in sorted(items)]


@functools.lru_cache(maxsize=64)
def _reader(file: pathlib.Path) -> Any:
    return array_record_module.ArrayRecordReader(str(file), "readahead_buffer_size:0")


def close() -> None:
    """Close the files that are open for reading."""
    _reader.cache_clear()


def images_of(staged: Staged, folder: pathlib.Path) -> Images:
    """Image and mask of a scan as PNG."""
    image, mask = _reader(folder / staged.file).read([staged.place + 1, staged.place + 2])
    return image, mask


Placed = tuple[Staged, dict[str, Any]]
"""A scan, and its group, source and label."""


def shards(split: str, rows: Sequence[Placed]) -> list[list[Placed]]:
    """The scans of a split in the order in which they are stored, one list for each file.

    The order is that of TFDS's hashes of their names: it carries no information, and is the same on every machine.
    TFDS itself would sort them in memory, or with TensorFlow where they are many.
    """
    hasher = hashing.Hasher(split)
    ordered = sorted(rows, key=lambda row: hasher.hash_key(row[0].scan_id))
    count = -(-sum(staged.size for staged, _ in rows) // SHARD_BYTES)
    return [ordered[len(ordered) * i // count : len(ordered) * (i + 1) // count] for i in range(count)]


def examples(rows: Sequence[Placed], folder: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Scans as TFDS stores them, each with its name as the key."""
    for staged, place in rows:
        image, mask = images_of(staged, folder)
        features = {"scan_id": staged.scan_id, "has_mask": staged.has_mask, "organ": staged.organ}
        features |= {"fingerprint": staged.fingerprint, "image": image, "mask": mask}
        features["attributes"] = to_text(staged.attributes)
        yield staged.scan_id, features | place
