"""Where the pixels of prepared scans are: decoded in memory, or in TFDS's files until they are asked for. No JAX."""

import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import psutil

from mcis.imaging import image_files
from mcis.imaging.letterbox import INPUT_SIZE, Letterbox, letterbox, letterbox_mask

CGROUPS = pathlib.Path("/sys/fs/cgroup")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
THREADS = min(CORES, 16)
"""That read scans at once: OpenCV, which does most of it, holds no lock of Python's."""
BYTES = 4 * INPUT_SIZE**2
"""What the image and the mask of a scan take in memory."""


class Part(Protocol):
    """The pixels of some scans, laid into the canvas (`mcis.imaging.letterbox`)."""

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the scans with these numbers, int (M,): image uint8 (M, S, S, 3), mask uint8 {0,1} (M, S, S, 1)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
    """Pixels in memory: image uint8 (N, S, S, 3), mask uint8 {0,1} (N, S, S, 1)."""

    image: np.ndarray
    mask: np.ndarray

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Part."""
        return self.image[rows], self.mask[rows]


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Pixels of records with PNG bytes (`mcis.data.dataset.records`), which are read and decoded each time."""

    records: Sequence[dict[str, Any]]

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Part."""
        image, mask = room(len(rows))
        for k, row in enumerate(rows.tolist()):
            image[k], mask[k], _ = lay(record_of(self.records, row))
        return image, mask


@dataclasses.dataclass(frozen=True, eq=False)
class Pixels:
    """The pixels of N scans, each a number in one of the parts; taking some of them, or joining them, copies none.

    parts: where they are; part int (N,): which one of them; row int (N,): the number there.
    """

    parts: tuple[Part, ...]
    part: np.ndarray
    row: np.ndarray

    @staticmethod
    def of(part: Part, rows: np.ndarray) -> "Pixels":
        """The scans of one part that have these numbers, int (N,)."""
        return Pixels((part,), np.zeros(len(rows), np.int64), np.asarray(rows, np.int64))

    def __len__(self) -> int:
        """Number of scans."""
        return len(self.row)

    @property
    def stored(self) -> bool:
        """Whether any of them are decoded only when they are asked for."""
        return any(isinstance(part, Stored) for part in self.parts)

    def take(self, rows: np.ndarray) -> "Pixels":
        """Those of the given rows: an int index or a bool mask (N,)."""
        return Pixels(self.parts, self.part[rows], self.row[rows])

    @staticmethod
    def join(many: Sequence["Pixels"]) -> "Pixels":
        """One after the other."""
        before = np.cumsum([0, *(len(pixels.parts) for pixels in many)])
        part = np.concatenate([pixels.part + n for pixels, n in zip(many, before, strict=False)])
        return Pixels(
            tuple(p for pixels in many for p in pixels.parts), part, np.concatenate([pixels.row for pixels in many])
        )

    def read(self, rows: Any = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Of the given rows, by default all: image uint8 (M, S, S, 3), mask uint8 {0,1} (M, S, S, 1)."""
        part, row = self.part[rows], self.row[rows]
        here = np.unique(part)
        if len(here) == 1:
            return self.parts[here[0]].read(row)
        image, mask = room(len(row))
        for k in here:
            image[part == k], mask[part == k] = self.parts[k].read(row[part == k])
        return image, mask


def room(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Room for images uint8 (count, S, S, 3) and masks uint8 (count, S, S, 1); MemoryError where there is none."""
    size = INPUT_SIZE
    return np.empty((count, size, size, 3), np.uint8), np.empty((count, size, size, 1), np.uint8)


def record_of(records: Sequence[dict[str, Any]], row: int) -> dict[str, Any]:
    """One record; OSError where its file is damaged, which array_record tells in several ways."""
    try:
        return records[row]
    except (RuntimeError, TypeError, IndexError) as error:
        raise OSError(
            f"record {row} of a prepared set cannot be read ({error}); build it anew, with --overwrite"
        ) from None


def decode(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 (H, W, 3) RGB and mask uint8 {0,1} (H, W, 1) of a record, at the scan's own size."""
    image, mask = (image_files.decode(record[name], name).image for name in ("image", "mask"))
    return image, (mask[..., :1] > 0).astype(np.uint8)


def lay(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, Letterbox]:
    """Image and mask of a record, laid into the canvas, and how that was done."""
    image, mask = decode(record)
    square, geometry = letterbox(image)
    return square, letterbox_mask(mask, geometry), geometry


def free_memory(cgroups: pathlib.Path = CGROUPS, process: pathlib.Path = pathlib.Path("/proc/self/cgroup")) -> int:
    """Bytes that this process can still take: of the machine's, and of what its control groups leave it.

    A container or a Slurm job has less than the machine (Linux, cgroups of either version). Cached files count as free.
    """
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError):
        for line in process.read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if not controllers:
                free = min(free, _left(cgroups, own, "memory.max", "memory.current", "inactive_file"))
            elif "memory" in controllers.split(","):
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
                free = min(free, _left(cgroups / "memory", own, *names))
    return free


def _left(root: pathlib.Path, own: str, limit: str, used: str, cached: str) -> int:
    """What a control group, and those that it is in, leave; sys.maxsize where none has a limit."""
    left, folder = sys.maxsize, root / own.lstrip("/")
    for place in (folder, *folder.parents):
        if not place.is_relative_to(root):
            break
        with contextlib.suppress(OSError, ValueError):  # a controller that is not there, or "max"
            most = int((place / limit).read_text())
            stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
            left = min(left, max(most - int((place / used).read_text()) + int(stat.get(cached, 0)), 0))
    return left
