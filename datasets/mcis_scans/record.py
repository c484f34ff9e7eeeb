"""One scan of a source, or the reason why it is rejected, and how both are read from files. No TFDS."""

import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from mcis.imaging import formats, image_files, masks, scan
from mcis.imaging.modality import contradiction, sentence
from mcis.organs import UNKNOWN, UNSUPPORTED, organ_named

from . import table
from .remarks import BLANK, BLANK_FRAME, is_blank, is_inverted, of_mask
from .square_pixels import resize, square_size

MAX_DEPTH = 3
"""Number of folder levels below the given folder in which a source's own folder is searched."""


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """One scan.

    Attributes:
      scan_id: unique in its source: the path below the source's folder, without suffix.
      image: uint8 (H, W, 3), RGB, at the scan's own size, or larger if its pixels are not square.
      mask: uint8 {0,1} (H, W, 1), 1 = lesion; all zero where `has_mask` is False.
      has_mask: whether the mask is ground truth. An empty mask that is ground truth means that there is no lesion.
      organ: a name of `mcis.organs.ORGANS`, or UNSUPPORTED.
      label: index into the organ's classes, or UNKNOWN.
      patient: the patient, or None where the source names none.
      series: what the file says it belongs to (a DICOM study, a volume), or None; in place of an unknown patient.
      remarks: what somebody should look at, each a row of `remarks.REMARKS`.
      mask_notes: how its mask files were read, where 0 is not simply background.
      attributes: what the source states of it beyond that (`mcis.data.attributes`).
      split: the split that the user's table asks for; None where it asks for none.
    """

    scan_id: str
    image: np.ndarray
    mask: np.ndarray
    has_mask: bool
    organ: str
    label: int
    patient: str | None
    series: str | None = None
    remarks: tuple[str, ...] = ()
    mask_notes: tuple[str, ...] = ()
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Remark:
    """A file or scan that somebody should look at: `kind` is a row of `remarks.REMARKS`. It is counted in the audit."""

    scan_id: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A file that gives no record, and the reason. It is listed in the audit."""

    scan_id: str
    reason: str


Item = Record | Rejection | Remark
Job = Callable[[], Item]
"""A function that reads one scan. Jobs run at the same time; workers on other machines receive them pickled."""
MakeMask = Callable[[tuple[int, int]], np.ndarray | masks.Mask]
"""From the scan's (height, width) to its mask, uint8 {0,1} (H, W, 1), also with notes; ScanError where there is none.
No closure, as it is part of a Job."""


def done(job: Item | Job) -> Item:
    """The item, read if it is a job."""
    return job if isinstance(job, Item) else job()


def load(
    scan_id: str,
    image: pathlib.Path,
    make_mask: MakeMask | None,
    *,
    organ: str,
    label: int,
    patient: str | None,
    frame: int | None = None,
    series: str | None = None,
    without_lesion: int | None = None,
    remarks: Sequence[str] = (),
    published: bool = True,
    attributes: Mapping[str, str] | None = None,
    split: str | None = None,
) -> Item:
    """Read a scan from a file and make its mask; both get square pixels.

    Args:
      scan_id: see Record.
      image: a file of any format.
      make_mask: None where no mask is known.
      organ: see Record.
      label: see Record.
      patient: see Record.
      frame: frame of a file of several, from 0; None for a file of one.
      series: see Record.
      without_lesion: label that a scan of a lesion class gets if its mask is empty, as most slices of a volume with a
        lesion do; None where that is a contradiction.
      remarks: remarks that are known already.
      published: whether the source is published: others have the same scans, so a blank one stays.
      attributes: see Record; None for none.
      split: see Record.

    Returns:
      A Record; a Remark for a blank frame of several; or a Rejection where a file cannot be read or is blank, its
      header contradicts the organ, the mask has another size or is inverted, or mask and label contradict each other.
    """
    try:
        read = formats.read(image, frame or 0)
        size = (read.image.shape[0], read.image.shape[1])
        mask, mask_notes = _with_notes(empty(size) if make_mask is None else make_mask(size))
    except (scan.ScanError, OSError) as error:  # OSError: no permission, a failing disk
        return Rejection(scan_id, str(error).replace(f"{image}", image.name))
    if organ != UNSUPPORTED and (header := contradiction(read.stated, organ)) is not None:
        return Rejection(scan_id, f"is to be learned as {organ_named(organ).scan}, but {sentence(header)}")
    pixels, mask = resize(read.image, mask, square_size(size, formats.pixel_shape(read)[0]))
    blank = organ != UNSUPPORTED and is_blank(pixels)
    if blank and frame is not None:
        return Remark(scan_id, BLANK_FRAME)
    if blank and not published:
        return Rejection(scan_id, "a blank picture: all of its pixels have nearly the same value")
    if mask.any() and is_inverted(mask):
        reason = "its mask covers the picture up to the border and looks inverted; 0 must be background"
        return Rejection(scan_id, f"{reason}; invert it (black outside, white in the lesion). The scan is left out")
    if label != UNKNOWN and make_mask is not None:
        name, lesion = organ_named(organ).classes[label], organ_named(organ).is_lesion(label)
        if lesion and not mask.any():
            if without_lesion is None:
                return Rejection(
                    scan_id, f"labelled {name}, yet its mask is empty; leave the mask out if none is known"
                )
            label = without_lesion
        if not lesion and mask.any():
            return Rejection(scan_id, f"labelled {name}, yet its mask outlines a lesion; correct one of the two")
    found = (*remarks, *((BLANK,) if blank else ()), *(of_mask(pixels, mask) if mask.any() else ()))
    facts = (scan_id, pixels, mask, make_mask is not None, organ, label, patient, series, found, mask_notes)
    return Record(*facts, dict(attributes or {}), split)


def empty(size: tuple[int, int]) -> np.ndarray:
    """The mask of a scan without lesion: uint8 zeros (H, W, 1)."""
    return np.zeros((*size, 1), np.uint8)


def union_of(paths: Sequence[pathlib.Path]) -> MakeMask:
    """The union of mask files; ScanError names one that is missing, unreadable or of another size than the scan."""
    return functools.partial(_union, tuple(paths))


def joined(makers: Sequence[MakeMask]) -> MakeMask:
    """The union of masks."""
    return makers[0] if len(makers) == 1 else functools.partial(_joined, tuple(makers))


def _with_notes(made: np.ndarray | masks.Mask) -> masks.Mask:
    return made if isinstance(made, masks.Mask) else masks.Mask(made, ())


def _joined(makers: Sequence[MakeMask], size: tuple[int, int]) -> masks.Mask:
    made = [_with_notes(make(size)) for make in makers]
    lesion = np.any([one.lesion for one in made], axis=0).astype(np.uint8)
    return masks.Mask(lesion, tuple(note for one in made for note in one.notes))


def _union(paths: Sequence[pathlib.Path], size: tuple[int, int]) -> masks.Mask:
    if not paths:
        raise scan.ScanError("has no mask file")
    union, notes = empty(size), []
    for path in paths:
        if (count := image_files.count_frames(path)) > 1:
            raise scan.ScanError(f"mask {path.name} has {count} pages; a mask has one")
        mask, own_notes = read_mask(path)
        if mask.shape[:2] != size:
            sizes = [f"{width} x {height}" for height, width in (mask.shape[:2], size)]
            raise scan.ScanError(
                f"mask {path.name} is {sizes[0]} pixels, its scan {sizes[1]}; they must be equal; "
                "is it the mask of another picture? The scan is left out"
            )
        union |= mask
        notes += [f"mask {path.name}: {note}" for note in own_notes]
    return masks.Mask(union, tuple(notes))


def read_mask(path: pathlib.Path) -> masks.Mask:
    """Read a mask image by the rules of `masks.lesion_in`: all but 0 is lesion.

    Raises:
      ScanError: missing or unreadable.
    """
    if not path.is_file():
        raise scan.ScanError(f"mask {path.name} does not exist")
    try:
        return masks.read(path)
    except scan.ScanError as error:
        raise scan.ScanError(f"mask {str(error).replace(str(path), path.name)}") from None


def orphans(masks: Mapping[str, Sequence[pathlib.Path]], place: str) -> Iterator[Rejection]:
    """Rejections of the mask files that no image took."""
    for paths in masks.values():
        for path in paths:
            yield Rejection(f"{place}/{path.stem}", "a mask without its image")


def file_in(folder: pathlib.Path, written: str) -> pathlib.Path:
    """The file of that name in a folder; folders in what a table has written are ignored."""
    return folder / pathlib.PurePosixPath(written).name


def read_table(path: pathlib.Path, columns: Iterable[str]) -> list[Mapping[str, str]]:
    """Rows of a CSV file, as `table.read` gives them."""
    return [row.values for row in table.read(path, columns).rows]


def find_base(root: pathlib.Path, requires: Sequence[str]) -> pathlib.Path | None:
    """The shallowest folder, `root` or up to MAX_DEPTH below it, in which each pattern of `requires` has a match.

    A pattern may be several, separated by "|", of which one suffices. `root` may be the source's own folder,
    the one that it was unpacked into, or one with several sources.
    """
    level = [root]
    for _ in range(MAX_DEPTH + 1):
        for folder in level:
            if all(any(next(folder.glob(one), None) for one in pattern.split("|")) for pattern in requires):
                return folder
        # sorted, so that the choice does not depend on the file system
        below = itertools.chain.from_iterable(sorted(entry.path for entry in _folders(folder)) for folder in level)
        level = [pathlib.Path(path) for path in below]
    return None


def _folders(folder: pathlib.Path) -> list[os.DirEntry[str]]:
    """The folders in a folder, without hidden ones: there may be many files beside them."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))]
