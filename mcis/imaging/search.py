"""Find the scans in a folder, by content where the suffix is unknown; count the files that are not scans. No JAX."""

import collections
import os
import pathlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mcis.imaging import formats, headers, image_files, other_formats
from mcis.imaging.dicom import file as dicom_file
from mcis.imaging.dicom import reader as dicom_reader
from mcis.imaging.nifti import header as nifti_header
from mcis.imaging.scan import ScanError

REPORT_FILES = ("findings.jsonl", "volumes.jsonl", "run.json", "index.html")
"""Files of a report of `mcis predict`, which may lie beside scans."""
DICOM_OBJECT = "DICOM "
ARCHIVE, NO_SUFFIX = "zip archive", "without a suffix"
MAX_NAMED = 12
"""Kinds of files that a message names."""


class Found(NamedTuple):
    """Files that may be scans, and how many of each kind were passed over: without a scan, or in a format not read.

    A kind is a suffix, ARCHIVE, NO_SUFFIX, "DICOMDIR", DICOM_OBJECT and a modality, or a key of `other_formats.KINDS`.
    """

    files: list[str]
    passed: collections.Counter[str]


def no_scan(path: str | os.PathLike, name: str | None = None) -> str | None:
    """The kind of a file that holds no scan or is in a format that is not read, as in `Found`; None for others.

    Args:
      path: the file.
      name: its name, if it is stored under another.
    """
    name = os.path.basename(os.fspath(path) if name is None else name).lower()
    if name.endswith(image_files.SUFFIXES):
        return None
    head = formats.head_of(path)
    if formats.is_by_content(head):
        other = dicom_reader.survey(path).other
        return other if other in (None, "DICOMDIR") else f"{DICOM_OBJECT}{other}"
    unreadable = os.path.isdir(path) or (os.path.isfile(path) and not os.access(path, os.R_OK))
    named_alike = name.endswith(".hdr") and nifti_header.is_other_header(head)
    if unreadable or (name.endswith(formats.SUFFIXES) and not named_alike):  # reading it reports the error
        return None
    if (other := other_formats.kind_of(name, head)) is not None:
        return other
    suffix = pathlib.PurePath(name).suffix[:12]
    nameless = not suffix.strip(".0123456789")  # "IM.0001" has no suffix that says anything
    if nameless and (_is_picture(head) or (os.path.islink(path) and not os.path.exists(path))):
        return None
    return ARCHIVE if head.startswith(other_formats.ZIP) and not other_formats.is_office(head) else suffix or NO_SUFFIX


def _is_picture(head: bytes) -> bool:
    """Whether the first bytes of a file without a suffix are those of a picture; two bytes of a BMP may be text."""
    return headers.is_image(head) and (not head.startswith(b"BM") or head[6:10] == bytes(4))


def in_folder(folder: str | os.PathLike) -> Found:
    """The scans below a folder, sorted by path; hidden files and the files of reports are neither found nor counted."""
    return among(path for path in image_files.files_in(folder, lambda path: not _of_report(path)))


def among(paths: Iterable[str | os.PathLike]) -> Found:
    """The scans among some files."""
    files, passed = [], collections.Counter[str]()
    for path in paths:
        if nifti_header.is_second_of_pair(path):  # read with its header
            continue
        kind = no_scan(path)
        if kind is None:
            files.append(os.fspath(path))
        else:
            passed[kind] += 1
    return Found(files, passed)


def _of_report(path: pathlib.Path) -> bool:
    return path.name in REPORT_FILES and all((path.parent / name).is_file() for name in ("findings.jsonl", "run.json"))


def is_directory_file(path: str | os.PathLike) -> bool:
    """Whether a file is a DICOMDIR, by its content."""
    return dicom_reader.survey(path).other == "DICOMDIR"


def listed(path: str | os.PathLike) -> Found:
    """The images that a DICOMDIR lists, in its order; a missing file is listed, so that reading it reports an error.

    Raises:
      ScanError: it cannot be read, or lists files outside its folder.
    """
    file = dicom_file.parse(os.fspath(path), ("DirectoryRecordSequence",))
    files, passed = [], collections.Counter[str]()
    with dicom_file.safe_errors(path):
        for record in file.header.get("DirectoryRecordSequence") or ():
            parts = record.get("ReferencedFileID")
            if not parts:
                continue
            parts = [parts] if isinstance(parts, str) else [str(part) for part in parts]
            target = _beside(pathlib.Path(path).parent, parts)
            kind = no_scan(target) if target.is_file() else None
            if kind is None:
                files.append(str(target))
            else:
                passed[kind] += 1
    if not files and not passed:
        raise ScanError(f"{path}: a DICOMDIR that lists no files; give the folder with the scans instead")
    return Found(files, passed)


def _beside(folder: pathlib.Path, parts: Sequence[str]) -> pathlib.Path:
    """The file of a DICOMDIR's record: file systems of discs differ in upper and lower case."""
    for part in parts:
        if not part or part in (".", "..") or "/" in part or "\0" in part:
            raise ScanError(f"{folder}: its DICOMDIR lists a file outside; give the folder with the scans instead")
        if not (folder / part).exists() and folder.is_dir():
            part = next((name for name in sorted(os.listdir(folder)) if name.lower() == part.lower()), part)
        folder /= part
    return folder


def is_archive(path: str | os.PathLike) -> bool:
    """Whether a file is a zip archive and no office document, by its first bytes."""
    head = formats.head_of(path)
    return head.startswith(other_formats.ZIP) and not other_formats.is_office(head) and zipfile.is_zipfile(path)


def describe(passed: Mapping[str, int]) -> str:
    """What was passed over, as a sentence; "" if nothing was.

    >>> describe({".txt": 4, "DICOM SR": 1, "DICOM PR": 1, "DICOMDIR": 1})
    'Passed over 7 files that hold no scan: 4 .txt, 2 DICOM objects that are no scans (PR, SR), DICOMDIR'
    >>> describe({".mha": 2, ".gif": 1})
    'Passed over 3 files in formats that are not read: 2 .mha (MetaImage), 1 .gif (GIF); convert to NIfTI, DICOM or PNG'
    """
    other = {kind: count for kind, count in passed.items() if kind in other_formats.KINDS}
    held = {kind: count for kind, count in passed.items() if kind not in other}
    parts = []
    if held:
        total = sum(held.values())
        parts.append(f"{total} file{'s' * (total > 1)} that hold{'s' * (total == 1)} no scan: {_kinds(held)}")
    if other:
        listed = [f"{count} {other_formats.named(kind)}" for kind, count in _most_first(other)]
        total = sum(other.values())
        files = "1 file in a format that is" if total == 1 else f"{total} files in formats that are"
        parts.append(f"{files} not read: {', '.join(listed)}; {other_formats.CONVERT}")
    return f"Passed over {'; and '.join(parts)}" if parts else ""


def _most_first(kinds: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(kinds.items(), key=lambda one: (-one[1], one[0]))


def _kinds(passed: Mapping[str, int]) -> str:
    """Kinds without a scan, with their numbers."""
    objects = sorted(kind for kind in passed if kind.startswith(DICOM_OBJECT))
    parts = [
        f"{count} {kind}" if kind.startswith(".") else kind if count == 1 else f"{count} {kind}"
        for kind, count in _most_first(passed)
        if kind not in objects and kind != ARCHIVE
    ]
    parts[MAX_NAMED:] = [f"{len(parts) - MAX_NAMED} other kinds"] if len(parts) > MAX_NAMED else []
    if objects:
        number = sum(passed[kind] for kind in objects)
        modalities = ", ".join(kind.removeprefix(DICOM_OBJECT) for kind in objects)
        text = "DICOM object that is no scan" if number == 1 else "DICOM objects that are no scans"
        parts.insert(1, f"{number} {text} ({modalities})")
    if archives := passed.get(ARCHIVE):
        it = "it" if archives == 1 else "them"
        parts.append(f"{archives} zip archive{'s' * (archives > 1)}, not opened: give {it} on the command line")
    return ", ".join(parts)
