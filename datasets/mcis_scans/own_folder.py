"""The source `folder`, the user's own scans: `images/`, `masks/` (optional) and `labels.csv`."""

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mcis.imaging import formats, image_files, other_formats, search
from mcis.imaging.dicom.header import read_header
from mcis.imaging.geometry import digest
from mcis.imaging.nifti import header as nifti_header
from mcis.imaging.scan import ScanError
from mcis.organs import UNKNOWN, organ_named

from . import remarks, table
from .names import Names, name_of
from .own_labels import NO_ROW, TABLE, UNUSABLE, Label, Labels, read_labels, unmatched
from .own_masks import Masks, find_masks, read_masks
from .record import Item, Job, MakeMask, Rejection, Remark, empty, find_base, load

ONE_FRAME = (".png", ".jpg", ".jpeg", ".bmp")
"""Suffixes of files that need not be opened to be counted."""
WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def folder(root: pathlib.Path) -> Iterator[Item | Job]:
    """The user's own folder. `labels.csv` has the columns scan, label, patient; organ, frame and split are optional.

    Other columns become attributes (`own_columns`). A scan is any file that `mcis predict` reads. A row labels all
    frames of a file, or one: by the column `frame`, or as `name#12`, numbered from 0. An empty label is unknown; the
    column `organ` is then needed. Without a patient, the frames of a file and the files of a DICOM study are kept
    together, and so are near-duplicates. `own_masks` says which mask belongs to which scan. A scan whose class has no
    lesion needs no mask: its mask is empty.
    """
    every = image_files.files_in(root / "images", lambda path: True)
    scans = [pathlib.Path(path) for path in search.in_folder(root / "images").files]
    names = Names.of(scans, root / "images")
    rows = table.read(root / TABLE, ("scan", "label", "patient"), ("label", "patient"))
    labels: Labels = {}
    others = _other_files(every, scans, root / "images")
    if unmatched(rows, names, others) and rows.encoding == table.WINDOWS:
        yield Remark(TABLE, remarks.OTHER_ENCODING)
    yield from read_labels(rows, names, labels, others)
    for name, kind in others.items():
        yield Remark(f"images/{name}", remarks.OTHER_FORMAT if kind in other_formats.KINDS else remarks.PASSED_OVER)
    masks = read_masks(root / "masks", names)
    yield from masks.problems
    unlisted = [name for name in names.paths if name not in labels]
    used: set[pathlib.Path] = set()
    for name, own in labels.items():
        yield from _jobs(name, own, names, masks, used)
    yield from (Rejection(names.id_of(name), NO_ROW) for name in unlisted)
    yield from masks.left_over(used, names, labels)


def _jobs(
    name: str, own: Mapping[int | None, Label], names: Names, masks: Masks, used: set[pathlib.Path]
) -> Iterator[Item | Job]:
    """The jobs of a file: one for each frame that has a label."""
    (path,) = names.paths[name]
    count = 1 if path.name.lower().endswith(ONE_FRAME) else formats.format_of(path).count(path)
    header = _identifiers(path)
    series = _series(name, header, count)
    for frame, label in own.items():
        if frame is not None and frame >= count:
            reason = f"{TABLE} line {label.line}: has no frame {frame}; it has {count}, numbered from 0"
            yield Rejection(_id(names, name, frame), reason)
    left_out = unclear = False
    for frame in range(count):
        row = own.get(frame) or own.get(None)
        if row is None:
            left_out = True
        else:
            whole, number = own.get(frame) is None and count > 1, None if count == 1 else frame
            scan_id = _id(names, name, number)
            try:
                found = find_masks(masks, name, number, path, names, header)
            except ScanError as error:
                used |= masks.named_after(name, number)
                if row.label != UNUSABLE:
                    yield Rejection(scan_id, str(error))
                continue
            used |= set(found.files)
            if row.label == UNUSABLE:
                continue
            unclear |= whole and found.make is None and _is_lesion(row)
            yield _job(scan_id, path, row, number, series, whole, found.make, found.whole, found.joined)
    if unclear:
        yield Remark(names.id_of(name), remarks.WHOLE_VOLUME)
    if left_out and any(frame is not None and frame < count for frame in own):
        yield Remark(names.id_of(name), remarks.FRAMES_WITHOUT_ROW)


def _job(
    scan_id: str,
    path: pathlib.Path,
    row: Label,
    frame: int | None,
    series: str | None,
    whole: bool,
    mask: MakeMask | None,
    mask_of_all: bool,
    joined: bool,
) -> Job:
    """The job of a frame. `whole`: its row labels the whole file; `mask_of_all`: so does its mask outline all of it."""
    organ, lesion = organ_named(row.organ), _is_lesion(row)
    found = [remarks.OTHER_NAME] if row.renamed else []
    found += [remarks.JOINED_MASKS] if joined else []
    found += [remarks.NOT_OUTLINED] if mask is None and lesion and not whole else []
    if mask is None and row.label != UNKNOWN and not lesion:
        mask = empty
    healthy = [index for index in range(len(organ.classes)) if not organ.is_lesion(index)]
    return partial(
        load,
        scan_id,
        path,
        mask,
        organ=row.organ,
        label=row.label,
        patient=row.patient,
        frame=frame,
        series=series,
        without_lesion=healthy[0] if whole and mask_of_all and len(healthy) == 1 else None,
        remarks=tuple(found),
        published=False,
        attributes=row.attributes,
        split=row.split,
    )


def _is_lesion(row: Label) -> bool:
    return row.label >= 0 and organ_named(row.organ).is_lesion(row.label)


def _id(names: Names, name: str, frame: int | None) -> str:
    return names.id_of(name) if frame is None else f"{names.id_of(name)}#{frame}"


def _identifiers(path: pathlib.Path) -> Any:
    """The identifiers of a DICOM file, a pydicom Dataset; None for other files, and where it cannot be read."""
    if path.name.lower().endswith(ONE_FRAME) or formats.format_of(path).name != "DICOM":
        return None
    try:
        return read_header(path, IDENTIFIERS)
    except (ScanError, OSError):  # reading the scan reports the error
        return None


def _series(name: str, header: Any, count: int) -> str | None:
    """What a file belongs to: its DICOM study, else its series; a file of several frames, else, belongs to itself."""
    for keyword in IDENTIFIERS[:2]:
        if header is not None and header.get(keyword):
            return f"study {digest(str(header.get(keyword)))}"
    return f"file {name}" if count > 1 else None


def _other_files(every: Sequence[pathlib.Path], scans: Sequence[pathlib.Path], root: pathlib.Path) -> dict[str, str]:
    """Name of each file that is no scan -> its kind, as `search.no_scan` gives it."""
    taken = set(scans)
    others = [path for path in every if path not in taken and os.path.isfile(path)]
    others = [path for path in others if not nifti_header.is_second_of_pair(path)]
    return {name_of(path, root): search.no_scan(path) or "" for path in others}


def advice(root: pathlib.Path) -> str:
    """What to do with a folder that lacks its table or its scans; "" where neither is there."""
    if find_base(root, (TABLE,)) is not None:
        return f"{TABLE} found, images/ missing beside it: move the scans there"
    base = find_base(root, ("images",)) or root
    tables = sorted(path.name for path in base.iterdir() if path.suffix.lower() in WORKBOOKS)
    other = sorted(path.name for path in base.iterdir() if path.suffix.lower() == ".csv")
    if tables:
        return f"{tables[0]} found: save it as CSV, {TABLE} ({table.ADVICE})"
    if other:
        return f"{other[0]} found: call it {TABLE}, in small letters"
    return f"images/ found, {TABLE} missing beside it" if base is not root else ""
