"""The source `folder`, the user's own scans: `images/`, `masks/` (optional) and `labels.csv`."""

import dataclasses
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
from mcis.organs import ORGAN_NAMES, ORGANS, UNKNOWN, organ_named

from . import own_columns, remarks, table
from .cells import patient_of
from .names import FRAME, Names, name_of
from .own_masks import Masks, find_masks, read_masks
from .record import Item, Job, MakeMask, Rejection, Remark, empty, find_base, load

TABLE = "labels.csv"
NO_ROW = f"has no row in {TABLE}; add one (its label may be empty)"
ONE_FRAME = (".png", ".jpg", ".jpeg", ".bmp")
"""Suffixes of files that need not be opened to be counted."""
WORKBOOKS = (".xlsx", ".xlsm", ".xls", ".ods", ".numbers")
IDENTIFIERS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@dataclasses.dataclass(frozen=True)
class Label:
    """What a row of the table says.

    Attributes:
      line: line of the row.
      organ: a name in ORGAN_NAMES.
      label: index into the organ's classes, or UNKNOWN.
      patient: None where the row names none.
      renamed: whether the row wrote another suffix or case than the file has.
      attributes: what its other columns say (`own_columns.py`).
      split: the split that it asks for, or None.
    """

    line: int
    organ: str
    label: int
    patient: str | None
    renamed: bool = False
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    split: str | None = None


Labels = dict[str, dict[int | None, Label]]
"""Name of a file -> frame, or None for all that have no row of their own -> what its row says."""


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
    if _lost(rows, names, others) and rows.encoding == table.WINDOWS:
        yield Remark(TABLE, remarks.OTHER_ENCODING)
    yield from _read_labels(rows, names, labels, others)
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


def _lost(rows: table.Table, names: Names, others: Mapping[str, str]) -> Sequence[str]:
    """The names in the table that fit no file. ValueError where the cause is one for all: the encoding, or the table's.

    Args:
      rows: the table.
      names: of the scans.
      others: see `_other_files`.
    """
    written = [row.values["scan"] for row in rows.rows if row.values["scan"]]
    lost = [one for one in written if not _files(one, "", names)[0] and _other_format(one, others) is None]
    if rows.encoding == table.WINDOWS and any(not one.isascii() for one in lost) and 2 * len(lost) > len(written):
        raise ValueError(
            f"{TABLE} is not in UTF-8, and {len(lost)} of its {len(written)} names fit no file, such as {lost[0]!r}; "
            f"save it as CSV UTF-8 ({table.ADVICE})"
        )
    if len(written) > 1 and len(lost) == len(written):
        there = f"images/ holds such as {min(names.paths)!r}" if names.paths else "images/ holds no scans"
        raise ValueError(
            f"no name in {TABLE} fits a file, such as {lost[0]!r} and {lost[1]!r}; {there}. The column scan has the "
            "path of each file below images/"
        )
    return lost


def _read_labels(
    rows: table.Table, names: Names, labels: Labels, others: Mapping[str, str]
) -> Iterator[Rejection | Remark]:
    """Fill `labels` with what the table says; yields rejections of rows that name no scan, or several.

    ValueError where the column split cannot be obeyed.
    """
    splits = own_columns.splits_of(rows.rows)
    attributes, problems = own_columns.attributes_of(rows.rows)
    yield from problems
    spellings: dict[str, list[str]] = {}
    read: list[tuple[str, str, int | None, Label]] = []
    for row in rows.rows:
        where = f"{TABLE} line {row.line}"
        try:
            name, frame, renamed = _find(row, names, others)
        except ValueError as error:
            yield Rejection(row.values["scan"], f"{where}: {error}")
            continue
        try:
            label = _label_of(row)
            patient, says_none = patient_of(row.values["patient"])
        except ValueError as error:
            yield Rejection(row.values["scan"], f"{where}: {error}")
            label, patient, says_none = Label(row.line, "", UNUSABLE, None), "", False
        if says_none:
            yield Remark(f"{row.values['scan']}: {row.values['patient']}", remarks.NO_PATIENT)
        written = spellings.setdefault(" ".join(patient.casefold().split()), [])
        written += [patient] if patient not in written else []
        label = dataclasses.replace(
            label,
            patient=written[0] or None,
            renamed=renamed,
            attributes=attributes[row.line],
            split=splits.get(row.line),
        )
        read.append((row.values["scan"], name, frame, label))
    own_columns.check_patients([(label.patient, label.split) for *_, label in read])
    exact = {name: label.line for _, name, _, label in reversed(read) if not label.renamed}
    for written_name, name, frame, label in read:
        where = f"{TABLE} line {label.line}"
        if label.renamed and name in exact:
            yield Rejection(
                written_name, f"{where}: {_no_file(written_name)}; {name} is there, but line {exact[name]} names it"
            )
            continue
        before = labels.setdefault(name, {}).setdefault(frame, label)
        if before is label:
            continue
        if UNUSABLE in (before.label, label.label):
            labels[name][frame] = dataclasses.replace(before, label=UNUSABLE)
        elif (before.organ, before.label) == (label.organ, label.label):
            yield Rejection(written_name, f"{where}: was named before, in line {before.line}")
        else:
            labels[name][frame] = dataclasses.replace(before, label=UNUSABLE)
            yield Rejection(written_name, f"{where}: labelled otherwise in line {before.line}, so it is left out")
    yield from (Remark(" = ".join(same), remarks.PATIENT_SPELLINGS) for same in spellings.values() if len(same) > 1)


UNUSABLE = -2
"""In place of a label that is wrong, or of several: the scan is left out."""


def _find(row: table.Row, names: Names, others: Mapping[str, str]) -> tuple[str, int | None, bool]:
    """The file and the frame that a row names, and whether under another name. ValueError unless there is just one."""
    written, frame = row.values["scan"], row.values.get("frame", "")
    if not written:
        raise ValueError("names no scan")
    found, renamed, frame = _files(written, frame, names)
    if not found:
        raise ValueError(_why_not_found(written, others))
    if len(found) > 1:
        raise ValueError(f"may be {' or '.join(found)}; write the whole name, with its suffix")
    if len(names.paths[found[0]]) > 1:
        raise ValueError("two files have this name, which differ in how its accents are encoded; rename one")
    if frame and not (frame.isascii() and frame.isdigit()):
        raise ValueError(f"frame {frame!r}; a number from 0 on is needed, or nothing for all frames")
    return found[0], int(frame) if frame else None, renamed


def _files(written: str, frame: str, names: Names) -> tuple[Sequence[str], bool, str]:
    """The files that a name may mean, whether under another name, and the frame, which the name may have at its end."""
    found, renamed = names.find(written)
    numbered = FRAME.fullmatch(written)
    if not found and numbered and not frame:
        return *names.find(numbered[1]), numbered[2]
    return found, renamed, frame


def _tidy(written: str) -> str:
    return written.replace("\\", "/").removeprefix("./").removeprefix("images/")


def _other_format(written: str, others: Mapping[str, str]) -> str | None:
    """The kind of the file in a format that is not read which a name means, with or without suffix; None for others."""
    named = ((kind, (name, name[: -len(pathlib.PurePath(name).suffix)])) for name, kind in others.items())
    return next((kind for kind, both in named if kind in other_formats.KINDS and _tidy(written) in both), None)


def _why_not_found(written: str, others: Mapping[str, str]) -> str:
    """Why a name means no scan."""
    if (kind := _other_format(written, others)) is not None:
        return f"is in a format that is not read, {other_formats.named(kind)}; {other_formats.CONVERT}"
    return f"{_no_file(written)}; correct the name or remove the row"


def _no_file(written: str) -> str:
    return f"there is no file images/{_tidy(written)}"


def _label_of(row: table.Row) -> Label:
    """Organ and label of a row. ValueError where there are no such."""
    written, organ = row.values["label"], row.values.get("organ", "").lower()
    label = "_".join(written.lower().replace("-", " ").replace("_", " ").split())
    organ_of = {name: one.name for one in ORGANS for name in one.classes}
    if label and label not in organ_of:
        allowed = "; ".join(f"{o.name}: {', '.join(o.classes)}" for o in ORGANS)
        raise ValueError(f"there is no label {written!r}; the labels are {allowed}")
    organ = organ or organ_of.get(label, "")
    if organ not in ORGAN_NAMES or (label and organ_of[label] != organ):
        allowed = "; ".join(f"{o.name} ({', '.join(o.classes)})" for o in ORGANS)
        raise ValueError(f"organ {organ!r} with label {label!r}; allowed: {allowed}")
    return Label(row.line, organ, organ_named(organ).classes.index(label) if label else UNKNOWN, None)


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
