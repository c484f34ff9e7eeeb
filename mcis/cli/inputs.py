"""The files of a command line: folders, globs, zip archives and DICOMDIR files, and what was passed over in them."""

import asyncio
import collections
import contextlib
import dataclasses
import glob
import os
import tempfile
from collections.abc import Iterator, Sequence

from mcis.imaging import archives, formats, search
from mcis.imaging.geometry import digest
from mcis.imaging.pool import WorkerPool
from mcis.imaging.scan import ScanError
from mcis.report.finding import Finding

SECONDS = 600.0
"""Time limit for unpacking one archive."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The scans of some paths.

    Attributes:
      files: names for findings, in order; of a file in an archive "archive.zip/name inside".
      paths: where a file is, by its name, if it is elsewhere: unpacked for the time of the run.
      errors: why a file cannot be read, by its name.
      passed: how many files of each kind hold no scan, as in `search.Found`.
    """

    files: tuple[str, ...]
    paths: dict[str, str] = dataclasses.field(default_factory=dict)
    errors: dict[str, str] = dataclasses.field(default_factory=dict)
    passed: dict[str, int] = dataclasses.field(default_factory=dict)

    def scans(self, files: Sequence[str]) -> list[tuple[str, int | None]]:
        """(name, frame) of every frame of some of the files, like `formats.frames`."""
        scans: list[tuple[str, int | None]] = []
        for name in files:
            frames = [(name, None)] if name in self.errors else formats.frames(self.paths.get(name, name))
            scans += [(name, frame) for _, frame in frames]
        return scans

    def named(self, finding: Finding, name: str) -> Finding:
        """A finding about a file by its name, instead of by where it is."""
        path, error = self.paths.get(name, name), self.errors.get(name, finding.error)
        if path == name:
            return dataclasses.replace(finding, error=error)
        error = None if error is None else error.replace(path, name)
        series = digest(name) if finding.series == digest(path) else finding.series  # as of a NIfTI volume
        return dataclasses.replace(finding, scan=name, error=error, series=series)


@contextlib.contextmanager
def expanded(paths: Sequence[str]) -> Iterator[Inputs]:
    """The scans of some paths: files as given, scans in folders, archives and DICOMDIR files, matches of globs.

    They are sorted within each path. DICOM objects that are no scans are passed over, unless nothing else is given. A
    path that does not exist and a glob without a match are kept, and give a finding with an error. Archives are
    unpacked into a temporary folder until the context ends.

    Raises:
      ValueError: there are no scans.
    """
    if not paths:
        raise ValueError("no scans given; name files, folders or globs")
    files: list[str] = []
    inside: dict[str, str] = {}
    errors: dict[str, str] = {}
    passed, aside, others = collections.Counter[str](), collections.Counter[str](), list[str]()
    with contextlib.ExitStack() as stack:
        for path in paths:
            if not os.path.lexists(path) and glob.has_magic(path):
                matches = [match for match in sorted(glob.glob(path, recursive=True)) if os.path.isfile(match)]
                given = [match for match in matches if not _is_other_object(match, passed)] or [path]
                given = given if given != [path] or not matches else []
            else:
                given = [path]
            for one in given:
                if os.path.isdir(one):
                    found = search.in_folder(one)
                elif search.is_directory_file(one):
                    found = _listed(one)
                elif search.is_archive(one):
                    folder = stack.enter_context(
                        tempfile.TemporaryDirectory(prefix="mcis-", ignore_cleanup_errors=True)
                    )
                    found = _unpacked(one, folder, inside, errors)
                elif _is_other_object(one, aside):
                    others.append(one)
                    continue
                else:
                    found = search.Found([one], collections.Counter())
                files += found.files
                passed += found.passed
        if files:
            passed += aside
        files = files or others  # named alone, such an object is an error
        if not files:
            text = f"no scans in {', '.join(paths)}; mcis reads DICOM, NIfTI, PNG, JPEG, TIFF and BMP"
            raise ValueError(f"{text}. {search.describe(passed)}" if passed else text)
        yield Inputs(tuple(files), inside, errors, dict(passed))


def _is_other_object(path: str, passed: collections.Counter[str]) -> bool:
    """Whether a file is a DICOM object that is no scan; counts it."""
    kind = search.no_scan(path)
    if kind is None or not kind.startswith(search.DICOM_OBJECT):
        return False
    passed[kind] += 1
    return True


def _listed(path: str) -> search.Found:
    """What a DICOMDIR lists; itself, if it cannot be read."""
    try:
        return search.listed(path)
    except (ScanError, OSError):
        return search.Found([path], collections.Counter())


def _unpacked(path: str, folder: str, inside: dict[str, str], errors: dict[str, str]) -> search.Found:
    """The scans of an archive, unpacked by a worker process."""

    async def unpack() -> dict:
        pool = WorkerPool(1)
        try:
            arguments = {"path": path, "folder": folder, "files": archives.MAX_FILES, "size": archives.MAX_BYTES}
            return (await pool.request("unpack", SECONDS, **arguments))[0]
        finally:
            await pool.close()

    try:
        header = asyncio.run(unpack())
        entries = [(str(name), target, error) for name, target, error in header["entries"]]
        passed = collections.Counter({str(kind): int(count) for kind, count in header["passed"].items()})
    except (ScanError, ValueError, TypeError, AttributeError) as problem:
        errors[path] = f"{path}: {problem}"
        return search.Found([path], collections.Counter())
    files = []
    for name, target, error in entries:
        shown = archives.display_name(f"{path}/{name}")
        while shown in inside or shown in errors:  # two entries of one name
            shown += "+"
        files.append(shown)
        if error is None and isinstance(target, str):
            inside[shown] = target
        else:
            errors[shown] = f"{shown}: {error}"
    return search.Found(sorted(files), passed)
