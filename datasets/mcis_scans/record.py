"""One scan of a source, or the reason why it is rejected, and how both are read from files. No TFDS."""

import csv
import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mcis.imaging import image_files, masks, scan
from mcis.organs import UNKNOWN, organ_named

MAX_DEPTH = 3
"""Number of folder levels below the given folder in which a source's own folder is searched."""


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One scan.

    Attributes:
      scan_id: unique in its source: the path below the source's folder, without suffix.
      image: uint8 (H, W, 3), RGB, at the scan's own size.
      mask: uint8 {0,1} (H, W, 1), 1 = lesion; all zero where `has_mask` is False.
      has_mask: whether the mask is ground truth. An empty mask that is ground truth means that there is no lesion.
      organ: a name of `mcis.organs.ORGANS`, or UNSUPPORTED.
      label: index into the organ's classes, or UNKNOWN.
      patient: the patient, or None where the source names none.
    """

    scan_id: str
    image: np.ndarray
    mask: np.ndarray
    has_mask: bool
    organ: str
    label: int
    patient: str | None


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A file that gives no record, and the reason. It is listed in the audit."""

    scan_id: str
    reason: str


Item = Record | Rejection
Job = Callable[[], Item]
"""A function that reads one scan. Jobs run at the same time; workers on other machines receive them pickled."""
MakeMask = Callable[[tuple[int, int]], np.ndarray]
"""From the scan's (height, width) to its mask, uint8 {0,1} (H, W, 1); ScanError where there is none. No closure, as it
is part of a Job."""


def done(job: Item | Job) -> Item:
    """The item, read if it is a job."""
    return job if isinstance(job, Record | Rejection) else job()


def load(
    scan_id: str, image: pathlib.Path, make_mask: MakeMask | None, *, organ: str, label: int, patient: str | None
) -> Item:
    """Read the image file of a scan and make its mask; None where no mask is known.

    Returns:
      A Record; or a Rejection where a file cannot be read, the mask has another size, or mask and label contradict
      each other.
    """
    try:
        pixels = image_files.read(image).image
        size = pixels.shape[:2]
        mask = empty(size) if make_mask is None else make_mask(size)
    except (scan.ScanError, OSError) as error:  # OSError: no permission, a failing disk
        return Rejection(scan_id, str(error).replace(f"{image}", image.name))
    if label != UNKNOWN and make_mask is not None:
        name, lesion = organ_named(organ).classes[label], organ_named(organ).is_lesion(label)
        if lesion and not mask.any():
            return Rejection(scan_id, f"labelled {name}, yet its mask is empty; leave the mask out if none is known")
        if not lesion and mask.any():
            return Rejection(scan_id, f"labelled {name}, yet its mask outlines a lesion; correct one of the two")
    return Record(scan_id, pixels, mask, make_mask is not None, organ, label, patient)


def empty(size: tuple[int, int]) -> np.ndarray:
    """The mask of a scan without lesion: uint8 zeros (H, W, 1)."""
    return np.zeros((*size, 1), np.uint8)


def union_of(paths: Sequence[pathlib.Path]) -> MakeMask:
    """The union of mask files; ScanError names one that is missing, unreadable or of another size than the scan."""
    return functools.partial(_union, tuple(paths))


def _union(paths: Sequence[pathlib.Path], size: tuple[int, int]) -> np.ndarray:
    if not paths:
        raise scan.ScanError("has no mask file")
    union = empty(size)
    for path in paths:
        mask = read_mask(path)
        if mask.shape[:2] != size:
            sizes = [f"{width} x {height}" for height, width in (mask.shape[:2], size)]
            raise scan.ScanError(f"mask {path.name} is {sizes[0]} pixels, its scan {sizes[1]}; they must be equal")
        union |= mask
    return union


def read_mask(path: pathlib.Path) -> np.ndarray:
    """Read a mask image, uint8 {0,1} (H, W, 1), by the rules of `masks.lesion_in`: all but 0 is lesion.

    Raises:
      ScanError: missing or unreadable.
    """
    if not path.is_file():
        raise scan.ScanError(f"mask {path.name} does not exist")
    try:
        return masks.read(path).lesion
    except scan.ScanError as error:
        raise scan.ScanError(f"mask {str(error).replace(str(path), path.name)}") from None


def read_table(path: pathlib.Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a CSV file, values stripped; ValueError where it is unreadable or lacks one of `columns`."""
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise ValueError(f"{path}: not a regular file; a CSV file in UTF-8 is needed")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as a CSV file in UTF-8 ({error})") from error
    missing = [name for name in columns if name not in names]
    if missing:
        raise ValueError(f"{path}: has no column {', '.join(missing)}; it has: {', '.join(names) or 'none'}")
    return rows


def find_base(root: pathlib.Path, requires: Sequence[str]) -> pathlib.Path | None:
    """The shallowest folder, `root` or up to MAX_DEPTH below it, in which each pattern of `requires` has a match.

    `root` may be the source's own folder, the one that it was unpacked into, or one with several sources.
    """
    level = [root]
    for _ in range(MAX_DEPTH + 1):
        for folder in level:
            if all(next(folder.glob(pattern), None) for pattern in requires):
                return folder
        # sorted, so that the choice does not depend on the file system
        below = itertools.chain.from_iterable(sorted(folder.iterdir()) for folder in level)
        level = [path for path in below if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]
    return None
