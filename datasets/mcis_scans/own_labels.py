"""The table of one's own scans, `labels.csv`: which file, frame, organ, class and patient each row names."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from mcis.imaging import other_formats
from mcis.organs import ORGAN_NAMES, ORGANS, UNKNOWN, organ_named

from . import own_columns, remarks, table
from .cells import patient_of
from .names import FRAME, Names
from .record import Rejection, Remark

TABLE = "labels.csv"
NO_ROW = f"has no row in {TABLE}; add one (its label may be empty)"


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


def unmatched(rows: table.Table, names: Names, others: Mapping[str, str]) -> Sequence[str]:
    """The names in the table that fit no file. ValueError where the cause is one for all: the encoding, or the table's.

    Args:
      rows: the table.
      names: of the scans.
      others: name of each file that is no scan -> its kind, as `search.no_scan` gives it.
    """
    written = [row.values["scan"] for row in rows.rows if row.values["scan"]]
    loose = [one for one in written if not _files(one, "", names)[0] and _other_format(one, others) is None]
    if rows.encoding == table.WINDOWS and any(not one.isascii() for one in loose) and 2 * len(loose) > len(written):
        raise ValueError(
            f"{TABLE} is not in UTF-8, and {len(loose)} of its {len(written)} names fit no file, such as {loose[0]!r}; "
            f"save it as CSV UTF-8 ({table.ADVICE})"
        )
    if len(written) > 1 and len(loose) == len(written):
        there = f"images/ holds such as {min(names.paths)!r}" if names.paths else "images/ holds no scans"
        raise ValueError(
            f"no name in {TABLE} fits a file, such as {loose[0]!r} and {loose[1]!r}; {there}. The column scan has the "
            "path of each file below images/"
        )
    return loose


def read_labels(
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
