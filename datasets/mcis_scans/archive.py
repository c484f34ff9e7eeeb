"""Unpack a downloaded zip without trusting it. Standard library only."""

import contextlib
import lzma
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
"""Unpacked over packed size. Empty masks in plain TIFF pack 800 times, so single files count from RATIO_FLOOR on."""
RATIO_FLOOR = 16 << 20
_CHUNK = 1 << 20
_CLUTTER = re.compile(r"(^|/)(__MACOSX(/|$)|\.DS_Store$|Thumbs\.db$)")


class ArchiveError(ValueError):
    """A zip that is damaged or not safe to unpack; the message names the entry and what is wrong with it."""


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder with the content of `path`: itself if it is a folder; a zip is unpacked to one that goes on leaving.

    Raises:
      ArchiveError: no such file or folder; not a zip, damaged or unsafe. Nothing of it stays.
    """
    if path.is_dir():
        yield path
        return
    if not path.exists():
        raise ArchiveError(f"{path}: no such file or folder")
    if not path.is_file() or not zipfile.is_zipfile(path):  # a pipe would block
        raise ArchiveError(f"{path}: neither a folder nor a zip; unpack other archives first and give the folder")
    with tempfile.TemporaryDirectory(prefix="mcis-") as folder:
        extract(path, pathlib.Path(folder))
        yield pathlib.Path(folder)


def extract(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Unpack the zip `path` into the existing, empty `folder`.

    Every entry is checked before the first is written: paths inside the folder, plain files and folders only, no name
    twice, not encrypted, sizes and ratios below the limits above, room on the disk. The sizes that an archive
    declares are then held against what really comes out of it.

    Raises:
      ArchiveError: see the class.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not _CLUTTER.search(entry.filename)]
            _check(path, entries, shutil.disk_usage(folder).free)
            for entry in entries:
                _write(path, archive, entry, folder)
    except OSError as error:
        # the system's own have a number: a name too long for the disk, a file and a folder of one name, no room
        advice = "unpack it yourself, give the folder" if error.errno else "fetch it again"
        raise ArchiveError(f"{path}: cannot be unpacked here ({error}); {advice}") from error
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError, RuntimeError) as error:
        raise ArchiveError(f"{path}: cannot be unpacked ({type(error).__name__}: {error}); fetch it again") from error


def _check(path: pathlib.Path, entries: list[zipfile.ZipInfo], free: int) -> None:
    if len(entries) > MAX_FILES:
        raise ArchiveError(f"{path}: {len(entries)} entries; at most {MAX_FILES} are unpacked")
    total, packed, seen = 0, 0, set()
    for entry in entries:
        # Both separators, and drive letters: an archive may have been made to be unpacked elsewhere.
        name = entry.filename.replace("\\", "/")
        if not 0 < len(name) <= MAX_NAME:
            raise ArchiveError(f"{path}: an entry's name has {len(name)} characters; 1 to {MAX_NAME} are unpacked")
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in name.split("/") or "\0" in name:
            raise ArchiveError(f"{path}: entry {entry.filename!r} points outside the folder; this zip is not safe")
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            word = "a symbolic link" if kind == stat.S_IFLNK else "no plain file"
            raise ArchiveError(f"{path}: entry {entry.filename!r} is {word}; only files and folders are unpacked")
        if entry.flag_bits & 1:
            raise ArchiveError(f"{path}: entry {entry.filename!r} is encrypted; unpack it yourself, give the folder")
        if name.rstrip("/") in seen:
            raise ArchiveError(f"{path}: entry {entry.filename!r} occurs twice; which one counts cannot be told")
        seen.add(name.rstrip("/"))
        _check_ratio(path, entry.filename, entry.file_size, entry.compress_size)
        total, packed = total + entry.file_size, packed + entry.compress_size
    _check_ratio(path, "all together", total, packed)
    if total > min(MAX_BYTES, free):
        raise ArchiveError(
            f"{path}: would unpack to {total >> 20} MiB; at most {MAX_BYTES >> 20} MiB are unpacked, "
            f"and {free >> 20} MiB are free on the disk"
        )


def _check_ratio(path: pathlib.Path, name: str, size: int, packed: int) -> None:
    if size > RATIO_FLOOR and size > MAX_RATIO * packed:
        raise ArchiveError(
            f"{path}: {name}: {packed} bytes unpack to {size}, more than {MAX_RATIO} times as many; "
            "this looks like a zip bomb"
        )


def _write(path: pathlib.Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: pathlib.Path) -> None:
    target = folder / entry.filename.replace("\\", "/")
    if entry.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with archive.open(entry) as source, target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > entry.file_size:
                break
            file.write(chunk)
    if written != entry.file_size:
        raise ArchiveError(f"{path}: {entry.filename!r} does not hold the {entry.file_size} bytes that it declares")
