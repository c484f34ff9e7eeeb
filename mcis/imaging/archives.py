"""Unpack the scans of zip archives, within limits; names in an archive are never used as paths. No JAX."""

import os
import pathlib
import stat
import zipfile
from collections.abc import Sequence
from typing import Any

from mcis.imaging import formats, search
from mcis.imaging.nifti import header as nifti_header
from mcis.imaging.scan import ScanError

MAX_FILES = 1 << 12
"""Files of an archive."""
MAX_BYTES = 1 << 30
"""Bytes of all files of an archive, unpacked."""
MAX_NAME = 300
"""Characters of a displayed name that are kept."""
ENCRYPTED = 1
"""Flag of an entry of an archive."""
HEADERS, VOXELS = (".hdr", ".hdr.gz"), (".img", ".img.gz")
"""Suffixes of the two files of a NIfTI pair."""


def unpack(path: str, folder: str, files: int = MAX_FILES, size: int = MAX_BYTES) -> dict[str, Any]:
    """Unpack the scans of a zip archive into a folder as numbered files.

    Args:
      path: the archive.
      folder: the target.
      files: most entries that the archive may have.
      size: most bytes that all unpacked files together may have.

    Returns:
      {"entries": [[name in the archive, path, null], ...], "passed": {kind: number}}; of an entry that was not unpacked
      [name, null, reason]. `passed` counts entries that hold no scan, by `search.no_scan`.

    Raises:
      ScanError: it is no archive, damaged or has too many files.
    """
    entries: list[list[str | None]] = []
    passed: dict[str, int] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)]
            names = stored_names([info.filename for info in infos])
            voxels: list[tuple[str, str]] = []  # their header may follow
            if infos and all(info.flag_bits & ENCRYPTED for info in infos):
                raise ScanError("protected by a password; unpack it with the password and give the folder")
            if len(infos) == 1 and infos[0].filename.lower().endswith(".zip"):
                inner = display_name(infos[0].filename)
                raise ScanError(f"holds another zip archive, {inner}; unpack that one and give the folder")
            if len(infos) > files:
                raise ScanError(f"an archive of {len(infos)} files; at most {files} are read at once")
            for info, name in zip(infos, names, strict=True):
                if stat.S_ISLNK(info.external_attr >> 16):
                    continue
                target = os.path.join(folder, name)
                error = _check_entry(info, size) or _unpack_entry(archive, info, target, size)
                if error is not None:
                    entries.append([info.filename, None, error])
                    continue
                if name.endswith(VOXELS) and {name.split(".")[0] + end for end in HEADERS} & {*names}:
                    voxels.append((info.filename, target))
                elif not _passed_over(info.filename, target, passed):
                    entries.append([info.filename, target, None])
                else:
                    continue
                size -= os.path.getsize(target)
            for original, target in voxels:
                if not nifti_header.is_second_of_pair(target) and not _passed_over(original, target, passed):
                    entries.append([original, target, None])
    except ScanError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise ScanError(f"not an archive, or damaged ({type(error).__name__})") from None
    return {"entries": entries, "passed": passed}


def stored_names(names: Sequence[str]) -> list[str]:
    """Names under which files of others are stored: a number and the suffix. Both files of a NIfTI pair get one number.

    >>> stored_names(["a/x.hdr", "a/x.png", "b/x.img", "a/X.IMG", "a/x.img", "y"])
    ['000000.hdr', '000001.png', '000002.img', '000003.img', '000000.img', '000005']
    """
    numbers: dict[str, int] = {}
    stored: dict[str, None] = {}
    for number, name in enumerate(names):
        end = next((end for end in HEADERS + VOXELS if name.lower().endswith(end)), None)
        first = number if end is None else numbers.setdefault(name[: -len(end)], number)
        end = suffix_of(name) if end is None else end
        twice = f"{first:06}{end}" in stored
        stored[f"{number if twice else first:06}{end}"] = None
    return list(stored)


def _passed_over(name: str, path: str, passed: dict[str, int]) -> bool:
    """Whether a file that was called `name` holds no scan; it is removed then, and counted."""
    if (kind := search.no_scan(path, name)) is None:
        return False
    os.unlink(path)
    passed[kind] = passed.get(kind, 0) + 1
    return True


def _hidden(name: str) -> bool:
    return any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))


def _check_entry(info: zipfile.ZipInfo, size: int) -> str | None:
    """Why an entry cannot be unpacked; None if it can."""
    if info.flag_bits & ENCRYPTED:
        return "protected by a password; unpack it with the password and give the folder"
    if info.filename.lower().endswith(".zip"):
        return "a zip archive in another; unpack that one and give the folder"
    if info.file_size > size:
        return "too large, alone or with the files before it; make the archive smaller"
    return None


def _unpack_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: str, size: int) -> str | None:
    """Unpack an entry of at most `size` bytes; returns the error, if any, and leaves no file then."""
    try:
        with archive.open(info) as packed, open(target, "wb") as file:
            while piece := packed.read(1 << 16):
                size -= len(piece)  # the size stated in the archive may be wrong
                if size < 0:
                    break
                file.write(piece)
        error = "larger than the archive says" if size < 0 else None
    except Exception as problem:  # zlib, lzma and bz2 have their own types
        error = f"cannot be unpacked ({type(problem).__name__})"
    if error is not None:
        pathlib.Path(target).unlink(missing_ok=True)
    return error


def suffix_of(name: str) -> str:
    """The suffix in `formats.SUFFIXES` that a file name has, lower case; "" if it has none."""
    return max((suffix for suffix in formats.SUFFIXES if name.lower().endswith(suffix)), key=len, default="")


def display_name(name: str | None) -> str:
    """A file name of others without unprintable characters, at most MAX_NAME characters."""
    printable = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name or "")
    return printable[-MAX_NAME:] or "upload"
