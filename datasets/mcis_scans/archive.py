"""Unpacking of untrusted zip files. Standard library only."""

import contextlib
import lzma
import os
import pathlib
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator

MAX_FILES = 200_000
MAX_BYTES = 32 << 30
MAX_NAME = 1000
MAX_RATIO = 200
"""Largest ratio of unpacked to packed size, for files above RATIO_FLOOR: small empty masks in TIFF exceed it."""
RATIO_FLOOR = 16 << 20
_CHUNK = 1 << 20
_CLUTTER = re.compile(r"(^|/)(__MACOSX(/|$)|\.DS_Store$|Thumbs\.db$)")


class ArchiveError(ValueError):
    """A zip that is damaged or not safe to unpack. The message names the entry and the fault."""


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder `path` itself, or a temporary folder with the content of the zip `path`.

    Raises:
      ArchiveError: there is no such file or folder; it is not a zip, damaged or unsafe. No unpacked file remains.
    """
    if path.is_dir():
        yield path
        return
    if not path.exists():
        raise ArchiveError(f"{path}: no such file or folder")
    if not path.is_file() or not zipfile.is_zipfile(path):  # reading a pipe would block
        raise ArchiveError(f"{path}: neither a folder nor a zip; unpack other archives first and give the folder")
    with tempfile.TemporaryDirectory(prefix="mcis-") as folder:
        extract(path, pathlib.Path(folder))
        yield pathlib.Path(folder)


def extract(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpack the zip `path` into the existing, empty `folder`.

    Before anything is written, all entries are checked: paths inside the folder, regular files and folders only, no
    name twice, not encrypted, sizes and ratios below the limits above, free disk space. Then the unpacked sizes are
    compared with the declared ones. ArchiveError where a check fails.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not _CLUTTER.search(entry.filename)]
            _check(path, entries, shutil.disk_usage(folder).free)
            made: set[str] = set()
            for entry in entries:
                _write(path, archive, entry, folder, made)
    except OSError as error:
        # errors of the system have a number: a name too long, a file and a folder of one name, a full disk
        advice = "unpack it yourself and give the folder" if error.errno else "download it again"
        raise ArchiveError(f"{path}: cannot be unpacked here ({error}); {advice}") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError, RuntimeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ArchiveError(f"{path}: cannot be unpacked ({what}); download it again") from error


def _check(path: pathlib.Path, entries: list[zipfile.ZipInfo], free: int) -> None:
    if len(entries) > MAX_FILES:
        raise ArchiveError(f"{path}: {len(entries)} entries; at most {MAX_FILES} are allowed")
    total, packed, seen = 0, 0, set()
    for entry in entries:
        # the zip may come from a system with other separators and with drive letters
        name = entry.filename.replace("\\", "/")
        if not 0 < len(name) <= MAX_NAME:
            raise ArchiveError(f"{path}: an entry's name has {len(name)} characters; 1 to {MAX_NAME} are allowed")
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/") or "\0" in name:
            raise ArchiveError(f"{path}: entry {entry.filename!r} points outside the folder; this zip is not safe")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            word = "a symbolic link" if kind == stat.S_IFLNK else "not a regular file"
            raise ArchiveError(f"{path}: entry {entry.filename!r} is {word}; only files and folders are allowed")
        if entry.flag_bits & 1:
            raise ArchiveError(f"{path}: entry {entry.filename!r} is encrypted; unpack it yourself and give the folder")
        if name.rstrip("/") in seen:
            raise ArchiveError(f"{path}: entry {entry.filename!r} occurs twice")
        seen.add(name.rstrip("/"))
        _check_ratio(path, entry.filename, entry.file_size, entry.compress_size)
        total, packed = total + entry.file_size, packed + entry.compress_size
    _check_ratio(path, "all together", total, packed)
    if total > min(MAX_BYTES, free):
        raise ArchiveError(
            f"{path}: would unpack to {total >> 20} MiB; at most {MAX_BYTES >> 20} MiB are allowed, "
            f"and {free >> 20} MiB are free on the disk"
        )


def _check_ratio(path: pathlib.Path, name: str, size: int, packed: int) -> None:
    if size > RATIO_FLOOR and size > MAX_RATIO * packed:
        raise ArchiveError(
            f"{path}: {name}: {packed} bytes unpack to {size}, more than {MAX_RATIO} times as many; "
            "this looks like a zip bomb"
        )


def _write(
    path: pathlib.Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: pathlib.Path, made: set[str]
) -> None:
    """Unpack an entry; `made` are the folders that are there, with strings as names: of many files, paths cost more."""
    target = os.path.join(folder, entry.filename.replace("\\", "/"))
    place = target.rstrip("/") if entry.is_dir() else os.path.dirname(target)
    if place not in made:
        os.makedirs(place, exist_ok=True)
        made.add(place)
    if entry.is_dir():
        return
    written = 0
    with archive.open(entry) as source, open(target, "xb") as file:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > entry.file_size:
                break
            file.write(chunk)
    if written != entry.file_size:
        raise ArchiveError(f"{path}: {entry.filename!r} does not hold the {entry.file_size} bytes that it declares")
