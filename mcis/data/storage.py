"""The pixels of prepared scans: decoded in memory, or decoded from TFDS's files at each access. No JAX."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil

from mcis.imaging import image_files
from mcis.imaging.letterbox import INPUT_SIZE, Letterbox, letterbox, letterbox_mask

CGROUPS = pathlib.Path("/sys/fs/cgroup")
CGROUP_FILES = {
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "v2": ("memory.max", "memory.current", "inactive_file"),
}
"""File with the limit, file with the use, and the line of memory.stat with the cached files."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
THREADS = min(CORES, 16)
"""Threads that decode scans at the same time. OpenCV does most of the work and releases Python's lock."""
BYTES = 4 * INPUT_SIZE**2
"""Memory of one scan's letterboxed image and mask."""

Record = Mapping[str, Any]
"""A stored scan, as `mcis.data.dataset.records` gives it: image and mask are PNG bytes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Records and, unless they are decoded at each access, their `allocate`d letterboxed images and masks."""

    records: Sequence[Record]
    decoded: tuple[np.ndarray, np.ndarray] | None

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (M, S, S, 3) and masks uint8 {0,1} (M, S, S, 1) of these rows, int (M,)."""
        if self.decoded is not None:
            return self.decoded[0][rows], self.decoded[1][rows]
        image, mask = allocate(len(rows))
        for k, row in enumerate(rows.tolist()):
            image[k], mask[k], _ = decode_letterboxed(read_record(self.records, row))
        return image, mask


@dataclasses.dataclass(frozen=True, eq=False)
class Pixels:
    """The pixels of N scans: each scan's part int (N,) and row in it int (N,). Selecting scans copies no pixels."""

    parts: tuple[Part, ...]
    part: np.ndarray
    row: np.ndarray

    @property
    def streamed(self) -> bool:
        """Whether some scans are decoded at each access."""
        return any(part.decoded is None for part in self.parts)

    def take(self, rows: np.ndarray) -> "Pixels":
        """Selected scans: an int index or a bool mask (N,)."""
        return Pixels(self.parts, self.part[rows], self.row[rows])

    @staticmethod
    def join(many: Sequence["Pixels"]) -> "Pixels":
        """Concatenation."""
        offsets = np.cumsum([0, *(len(pixels.parts) for pixels in many[:-1])])
        part = np.concatenate([pixels.part + offset for pixels, offset in zip(many, offsets, strict=True)])
        parts = tuple(part for pixels in many for part in pixels.parts)
        return Pixels(parts, part, np.concatenate([pixels.row for pixels in many]))

    def read(self, rows: Any = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 (M, S, S, 3) and masks uint8 {0,1} (M, S, S, 1) of the given rows, by default of all."""
        part, row = self.part[rows], self.row[rows]
        used = np.unique(part)
        if len(used) == 1:
            return self.parts[used[0]].read(row)
        image, mask = allocate(len(row))
        for k in used:
            image[part == k], mask[part == k] = self.parts[k].read(row[part == k])
        return image, mask


def allocate(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Empty images uint8 (count, S, S, 3) and masks uint8 (count, S, S, 1). MemoryError where there is no memory."""
    shape = (count, INPUT_SIZE, INPUT_SIZE)
    return np.empty((*shape, 3), np.uint8), np.empty((*shape, 1), np.uint8)


def read_record(records: Sequence[Record], row: int) -> Record:
    """One record. OSError where its file is damaged, for which array_record raises several other errors."""
    try:
        return records[row]
    except (RuntimeError, TypeError, IndexError) as error:
        raise OSError(
            f"record {row} of a prepared set cannot be read ({error}); build the set again, with --overwrite"
        ) from None


def decode(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 (H, W, 3) RGB and mask uint8 {0,1} (H, W, 1) of a record, at the scan's own size."""
    image, mask = (image_files.decode(record[name], name).image for name in ("image", "mask"))
    return image, (mask[..., :1] > 0).astype(np.uint8)


def decode_letterboxed(record: Record) -> tuple[np.ndarray, np.ndarray, Letterbox]:
    """Letterboxed image uint8 (S, S, 3) and mask uint8 {0,1} (S, S, 1) of a record, and the letterbox."""
    image, mask = decode(record)
    square, geometry = letterbox(image)
    return square, letterbox_mask(mask, geometry), geometry


def free_memory(cgroups: pathlib.Path = CGROUPS, process: pathlib.Path = pathlib.Path("/proc/self/cgroup")) -> int:
    """Bytes that this process can still take: the machine's free memory, limited by the process's control groups.

    A container or a Slurm job may use less than the machine has (Linux, cgroups v1 and v2). Cached files count as free.
    """
    free, groups = psutil.virtual_memory().available, []
    with contextlib.suppress(OSError):
        groups = [line.split(":", 2)[1:] for line in process.read_text().splitlines()]
    for controllers, group in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        limit, used, cached = CGROUP_FILES["v1" if controllers else "v2"]
        folder = root / group.lstrip("/")
        for place in (folder, *folder.parents):
            if place.is_relative_to(root):
                with contextlib.suppress(OSError, ValueError):  # no memory controller here, or the limit is "max"
                    taken = int((place / used).read_text())
                    stat = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
                    left = int((place / limit).read_text()) - taken + int(stat.get(cached, 0))
                    free = max(min(free, left), 0)
    return free
