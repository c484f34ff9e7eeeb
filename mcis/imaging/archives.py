"""Unpack the scans of zip archives, within limits; names in an archive are never used as paths. No JAX."""

import os
import pathlib
import stat
import zipfile
from typing import Any

from mcis.imaging import formats, search
from mcis.imaging.scan import ScanError

MAX_FILES = 1 << 12
"""Files of an archive."""
MAX_BYTES = 1 << 30
"""Bytes of all files of an archive, unpacked."""
MAX_NAME = 300
"""Characters of a displayed name that are kept."""


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
            if len(infos) > files:
                raise ScanError(f"an archive of {len(infos)} files; at most {files} are read at once")
            for info in infos:
                if stat.S_ISLNK(info.external_attr >> 16):
                    continue
                target = os.path.join(folder, f"{len(entries):06}{suffix_of(info.filename)}")
                error = _check_entry(info, size) or _unpack_entry(archive, info, target, size)
                if error is None and (kind := search.no_scan(target, info.filename)) is not None:
                    os.unlink(target)
                    passed[kind] = passed.get(kind, 0) + 1
                    continue
                if error is None:
                    size -= os.path.getsize(target)
                entries.append([info.filename, None if error else target, error])
    except ScanError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise ScanError(f"not an archive, or damaged ({type(error).__name__})") from None
    return {"entries": entries, "passed": passed}


def _hidden(name: str) -> bool:
    return any(part == "__MACOSX" or (part.startswith(".") and part.strip(".")) for part in name.split("/"))


def _check_entry(info: zipfile.ZipInfo, size: int) -> str | None:
    """Why an entry cannot be unpacked; None if it can."""
    if info.flag_bits & 1:
        return "encrypted; unpack it first"
    if info.filename.lower().endswith(".zip"):
        return "an archive in an archive; unpack it first"
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
