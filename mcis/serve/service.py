"""From uploads to results: files saved to disk, read a few ahead, and predicted in batches that all requests share."""

import asyncio
import collections
import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shutil
import stat
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import numpy as np
from starlette.datastructures import UploadFile

from mcis.imaging import search
from mcis.imaging.archives import display_name, stored_names
from mcis.imaging.formats import LoadedScan
from mcis.imaging.image_files import encode_png
from mcis.imaging.letterbox import INPUT_SIZE
from mcis.imaging.nifti import header as nifti_header
from mcis.imaging.pool import WorkerPool
from mcis.imaging.scan import ScanError
from mcis.inference.predictor import BATCH, Predictor
from mcis.inference.result import Result
from mcis.report.finding import Finding
from mcis.report.volume import summarise
from mcis.serve.middleware import Limits, Rejected

AHEAD = 2 * BATCH
"""Scans of one request that are in progress at once; the others wait, so that a large request does not block others."""
PREFIX = "mcis-serve-"
"""Prefix of the temporary folders of servers."""
Passed = collections.Counter[str]
"""How many files of each kind hold no scan, as in `search.Found`."""
Disconnected = Callable[[], Awaitable[bool]]
"""Whether the client has disconnected: `Request.is_disconnected`."""


@dataclasses.dataclass(frozen=True)
class Upload:
    """An uploaded file.

    Attributes:
      name: the client's name of the file, for display only; never used as a path.
      path: the saved file, under a name that the server chose; None with an error.
      error: why the file cannot be read.
    """

    name: str
    path: str | None
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class ScanResult:
    """A scan of an upload as it was read, and its result."""

    upload: Upload
    loaded: LoadedScan
    result: Result


class Batches:
    """Predicts the waiting scans of all requests in shared batches. `run` must be running."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self._waiting: asyncio.Queue[tuple[LoadedScan, asyncio.Future[Result]]] = asyncio.Queue()
        self._heat_lock = asyncio.Lock()

    async def run(self) -> None:
        """Predict batches until cancelled. An error in a batch is raised to the requests with scans in it."""
        while True:
            group = [await self._waiting.get()]
            while len(group) < BATCH and not self._waiting.empty():
                group.append(self._waiting.get_nowait())
            scans = [loaded for loaded, _ in group]
            size = 1 if len(scans) == 1 else BATCH
            try:
                results = await asyncio.to_thread(lambda: list(self.predictor.results(scans, size)))  # noqa: B023
            except Exception as error:
                for _, future in group:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(group, results, strict=True):
                if not future.done():  # the request may have been cancelled
                    future.set_result(result)

    async def compile(self, size: int) -> None:
        """Compile the networks for batches of `size` scans."""
        await asyncio.to_thread(self.predictor.predict_batch, np.zeros((size, INPUT_SIZE, INPUT_SIZE, 3), np.uint8), ())

    async def predict(self, loaded: LoadedScan) -> Result:
        """The result of a scan, as part of the next batch."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((loaded, future))
        return await future

    async def heat(self, loaded: LoadedScan, finding: Finding) -> np.ndarray | None:
        """`Predictor.saliency_map`, one at a time: the first map of an organ compiles for about half a minute."""
        async with self._heat_lock:
            return await asyncio.to_thread(self.predictor.saliency_map, loaded, finding)


@dataclasses.dataclass(frozen=True)
class Service:
    """What the routes use.

    Attributes:
      readers: processes that read files.
      batches: the predictor's batches.
      limits: limits of a request.
      root: folder for uploads.
    """

    readers: WorkerPool
    batches: Batches
    limits: Limits
    root: str

    def folder(self) -> tempfile.TemporaryDirectory:
        """A context manager: a temporary folder for the uploads of one request."""
        return tempfile.TemporaryDirectory(dir=self.root, ignore_cleanup_errors=True)

    async def save(self, files: Sequence[UploadFile], folder: str, passed: Passed | None = None) -> list[Upload]:
        """Save uploaded files in a folder, and unpack archives; count in `passed` their files that hold no scan."""
        uploads: list[Upload] = []
        passed = collections.Counter() if passed is None else passed
        size = self.limits.size
        stored = stored_names([file.filename or "" for file in files])
        for file, stored_name in zip(files, stored, strict=True):
            name = display_name(file.filename)
            path = os.path.join(folder, stored_name)
            await asyncio.to_thread(_copy, file.file, path)
            if not _is_archive(path):
                uploads.append(Upload(name, path))
                continue
            left, inner = self.limits.scans - len(uploads), tempfile.mkdtemp(dir=folder)
            try:
                header, _ = await self.readers.request("unpack", path=path, folder=inner, files=left, size=size)
            except ScanError as error:
                uploads.append(Upload(name, None, str(error)))
                continue
            unpacked = [Upload(display_name(f"{name}/{entry}"), at, why) for entry, at, why in header["entries"]]
            size -= sum(os.path.getsize(upload.path) for upload in unpacked if upload.path is not None)
            if not unpacked:
                inside = search.describe(header["passed"])
                uploads.append(Upload(name, None, f"the archive contains no scans{inside and '. '}{inside}"))
            uploads += unpacked
            passed.update(header["passed"])
            os.unlink(path)
        return [one for one in uploads if one.path is None or not nifti_header.is_second_of_pair(one.path)]

    async def results(
        self, uploads: Sequence[Upload], disconnected: Disconnected, passed: Passed | None = None
    ) -> AsyncGenerator[ScanResult]:
        """The results of all scans of uploads, in order, AHEAD of them in progress at once.

        DICOM objects that are no scans have no result if there are other uploads; `passed` counts them.

        Raises:
          Rejected: the client has disconnected.
        """
        waiting: collections.deque[asyncio.Task[ScanResult]] = collections.deque()
        try:
            async for upload, frame in self._scans(uploads, collections.Counter() if passed is None else passed):
                if await disconnected():
                    raise Rejected(499, "the client disconnected")
                waiting.append(asyncio.create_task(self.result(upload, frame)))
                if len(waiting) > AHEAD or waiting[0].done():
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()

    async def segmentations(
        self, uploads: Sequence[Upload], folder: str, named: bool, disconnected: Disconnected
    ) -> tuple[list[tuple[str, bytes]], list[str]]:
        """The masks of volumes with lesions as DICOM SEG and NIfTI files.

        Args:
          uploads: the saved files.
          folder: for temporary files.
          named: as for `dicom.seg.encode`.
          disconnected: as for `results`.

        Returns:
          (suffix, content) of each file, and an error per volume whose file could not be made.

        Raises:
          ScanError: there is no file: no lesions, neither DICOM nor NIfTI, or only errors.
        """
        findings: list[Finding] = []
        slices: dict[str, list[tuple[str, int, str | None, str | None]]] = {}  # series -> path, frame, organ, mask
        async with contextlib.aclosing(self.results(uploads, disconnected)) as results:
            async for one in results:
                finding, array = one.result.finding, one.result.mask
                findings.append(finding)
                if one.upload.path is None or finding.series is None or finding.error is not None:
                    continue
                mask = None
                if array is not None:
                    mask = os.path.join(folder, f"mask_{len(findings):06}.png")
                    await asyncio.to_thread(pathlib.Path(mask).write_bytes, encode_png(array * np.uint8(255)))
                slices.setdefault(finding.series, []).append((one.upload.path, finding.frame or 0, finding.organ, mask))
        files: list[tuple[str, bytes]] = []
        errors: list[str] = []
        for volume in summarise(findings):
            if not volume.lesion_slices:
                continue
            paths, frames, organs, masks = zip(*slices[volume.series], strict=True)
            masks = tuple(mask if organ == volume.organ else None for organ, mask in zip(organs, masks, strict=True))
            arguments = {"sources": paths, "frames": frames, "masks": masks, "organ": volume.organ, "named": named}
            try:
                header, content = await self.readers.request("segmentation", seconds=self.limits.seconds, **arguments)
            except ScanError as error:
                errors.append(_with_client_names(str(error), uploads))
                continue
            files.append((header["suffix"], content))
        if not files:
            unread = [f"{finding.scan}: {finding.error}" for finding in findings if finding.error is not None]
            raise ScanError(
                [*errors, *unread, "no lesions in these files, or the files are neither DICOM nor NIfTI"][0]
            )
        return files, errors

    async def _scans(self, uploads: Sequence[Upload], passed: Passed) -> AsyncIterator[tuple[Upload, int | None]]:
        """(upload, frame) of each scan; the frame is None where a file has a single one."""
        left = self.limits.scans
        for upload in uploads:
            count = 1
            if upload.path is not None:
                with contextlib.suppress(ScanError):  # reading the file reports the error
                    header, _ = await self.readers.request("frames", path=upload.path)
                    count, other = header["frames"], str(header["other"] or "")
                    if other.startswith("DICOM") and len(uploads) > 1:
                        passed[other] += 1
                        continue
            if count > left:
                yield Upload(upload.name, None, f"{count} frames; the limit is {self.limits.scans} per request"), None
                continue
            left -= count
            for frame in range(count):
                yield upload, None if count == 1 else frame

    async def result(self, upload: Upload, frame: int | None = None) -> ScanResult:
        """The result of one scan of an upload, by default of its first or only one."""
        if upload.path is None:
            loaded = LoadedScan(upload.name, None, error=upload.error)
        else:
            loaded = await self.readers.read(upload.path, frame)
            error = loaded.error and _with_client_names(loaded.error.replace(f"{upload.path}: ", ""), [upload])
            loaded = dataclasses.replace(loaded, path=upload.name, error=error)
        return ScanResult(upload, loaded, await self.batches.predict(loaded))


def _with_client_names(text: str, uploads: Sequence[Upload]) -> str:
    """A message with the paths of uploads replaced by the client's names."""
    for upload in uploads:
        text = text if upload.path is None else text.replace(upload.path, upload.name)
    return text


def _copy(source: Any, path: str) -> None:
    with open(path, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _is_archive(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


@contextlib.contextmanager
def upload_folder() -> Iterator[str]:
    """A temporary folder for the uploads of this server. Folders of servers that were killed are removed."""
    temporary = pathlib.Path(tempfile.gettempdir())
    for path in temporary.glob(f"{PREFIX}*/lock"):
        with contextlib.suppress(OSError), _locked(path, os.O_RDONLY):  # fails while its server is running
            shutil.rmtree(path.parent, ignore_errors=True)
    root = pathlib.Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
    try:
        with _locked(root / "lock", os.O_RDWR | os.O_CREAT):
            root = root.rename(temporary / root.name.lstrip("."))  # visible to other servers only once it is locked
            yield str(root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: pathlib.Path, flags: int) -> Iterator[None]:
    """Lock a file of this user. OSError for any other: any user can put a pipe or link into the temporary folder."""
    lock = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        status = os.fstat(lock)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
            raise OSError(f"{path}: not a lock file of this user")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)
