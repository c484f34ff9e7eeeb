"""From uploads to results: kept on disk, read a few ahead, answered in batches that all requests share."""

import asyncio
import collections
import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import numpy as np
from starlette.datastructures import UploadFile

from mcis.imaging import image_files
from mcis.imaging.formats import LoadedScan
from mcis.imaging.letterbox import INPUT_SIZE
from mcis.imaging.pool import WorkerPool
from mcis.imaging.scan import ScanError
from mcis.imaging.worker import suffix_of
from mcis.inference.predictor import BATCH, Predictor, Result
from mcis.report.finding import Finding
from mcis.report.volume import summarise
from mcis.serve.middleware import Limits, Refused

AHEAD = 2 * BATCH
"""Scans of one request that are read and asked at once; the others wait, so that a large request holds up no small."""
NAME = 300
"""Characters of an upload's name that are given back."""


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file that came.

    Attributes:
      name: the client's, for the client; it is no path here.
      path: where it lies, under a name of ours; None where it is an error.
      error: why it cannot be read.
    """

    name: str
    path: str | None
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Answered:
    """A scan of an upload, as it was read, and its result."""

    upload: Upload
    loaded: LoadedScan
    result: Result


def label_of(name: str | None) -> str:
    """A client's name for a file, printable and not too long."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in name or "")
    return shown[-NAME:] or "upload"


Gone = Callable[[], Awaitable[bool]]
"""Whether who asked has left: `Request.is_disconnected`."""


class Batches:
    """One predictor for all requests: what waits is answered together. `run` has to be running."""

    def __init__(self, predictor: Predictor):
        self.predictor = predictor
        self._waiting: asyncio.Queue[tuple[LoadedScan, asyncio.Future[Result]]] = asyncio.Queue()
        self._map = asyncio.Lock()

    async def run(self) -> None:
        """Answer until cancelled; a batch that breaks is an error of those who asked."""
        while True:
            group = [await self._waiting.get()]
            while len(group) < BATCH and not self._waiting.empty():
                group.append(self._waiting.get_nowait())
            scans = [loaded for loaded, _ in group]
            size = 1 if len(scans) == 1 else BATCH
            try:
                results = await asyncio.to_thread(lambda: list(self.predictor.results(scans, size)))  # noqa: B023
            except Exception as error:
                for _, answer in group:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), result in zip(group, results, strict=True):
                if not answer.done():  # who asked may have left
                    answer.set_result(result)

    async def warm(self, size: int) -> None:
        """Compile the networks for batches of that size."""
        await asyncio.to_thread(self.predictor.predict_batch, np.zeros((size, INPUT_SIZE, INPUT_SIZE, 3), np.uint8), ())

    async def ask(self, loaded: LoadedScan) -> Result:
        """The result of a scan that was read."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((loaded, answer))
        return await answer

    async def heat(self, loaded: LoadedScan, finding: Finding) -> np.ndarray | None:
        """`Predictor.saliency_map`, one at a time, next to the batches: an organ's first compiles for half a minute."""
        async with self._map:
            return await asyncio.to_thread(self.predictor.saliency_map, loaded, finding)


@dataclasses.dataclass(frozen=True)
class Asking:
    """What the routes need: readers, the predictor's batches, and limits.

    Attributes:
      readers: processes that read.
      batches: of the predictor.
      limits: of a request.
      root: folder of this server's uploads.
    """

    readers: WorkerPool
    batches: Batches
    limits: Limits
    root: str

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """A folder for one request's uploads, gone with all that is in it when the request ends."""
        with tempfile.TemporaryDirectory(dir=self.root, ignore_cleanup_errors=True) as folder:
            yield folder

    async def keep(self, files: Sequence[UploadFile], folder: str) -> list[Upload]:
        """Bring what came into the folder, archives unpacked."""
        kept: list[Upload] = []
        size = self.limits.size
        for file in files:
            name = label_of(file.filename)
            path = os.path.join(folder, f"{len(kept):06}{suffix_of(name)}")
            await asyncio.to_thread(_copy, file.file, path)
            if not _is_archive(path):
                kept.append(Upload(name, path))
                continue
            left, inner = self.limits.scans - len(kept), tempfile.mkdtemp(dir=folder)
            try:
                header, _ = await self.readers.request("unpack", path=path, folder=inner, files=left, size=size)
            except ScanError as error:
                kept.append(Upload(name, None, str(error)))
                continue
            inside = [Upload(label_of(f"{name}/{entry}"), at, why) for entry, at, why in header["entries"]]
            size -= sum(os.path.getsize(one.path) for one in inside if one.path is not None)
            kept += inside or [Upload(name, None, "an archive without scans")]
            os.unlink(path)
        return kept

    async def results(self, uploads: Sequence[Upload], gone: Gone) -> AsyncGenerator[Answered]:
        """The results of all scans of uploads, in order; each is read and asked while those before it still are.

        Args:
          uploads: of `keep`.
          gone: whether who asked has left, whereupon the rest is not answered.

        Raises:
          Refused: whoever asked has left.
        """
        waiting: collections.deque[asyncio.Task[Answered]] = collections.deque()
        try:
            async for upload, frame in self._scans(uploads):
                if await gone():
                    raise Refused(499, "nobody is there any more")
                waiting.append(asyncio.create_task(self.result(upload, frame)))
                if len(waiting) > AHEAD or waiting[0].done():
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()

    async def segmentations(
        self, uploads: Sequence[Upload], folder: str, named: bool, gone: Gone
    ) -> tuple[list[tuple[str, bytes]], list[str]]:
        """The masks of volumes as files of their formats: (suffix, bytes) of each that has lesions; and what failed.

        Args:
          uploads: of `keep`.
          folder: for masks meanwhile.
          named: as for `dicom_seg.encode`.
          gone: as for `results`.

        Raises:
          ScanError: there is none: nothing was outlined, or on nothing that is DICOM or NIfTI, or all failed.
        """
        findings: list[Finding] = []
        places: dict[str, list[tuple[str, int, str | None, str | None]]] = {}  # by series: path, frame, organ, mask
        async with contextlib.aclosing(self.results(uploads, gone)) as answers:
            async for answer in answers:
                finding, outlined = answer.result.finding, answer.result.mask
                findings.append(finding)
                if answer.upload.path is None or finding.series is None or finding.error is not None:
                    continue
                mask = None
                if outlined is not None:
                    mask = os.path.join(folder, f"mask_{len(findings):06}.png")
                    await asyncio.to_thread(_write_mask, mask, outlined)
                slices = places.setdefault(finding.series, [])
                slices.append((answer.upload.path, finding.frame or 0, finding.organ, mask))
        made: list[tuple[str, bytes]] = []
        failed: list[str] = []
        for volume in summarise(findings):
            if not volume.lesion_slices:
                continue
            paths, frames, organs, masks = zip(*places[volume.series], strict=True)
            own = [mask if organ == volume.organ else None for organ, mask in zip(organs, masks, strict=True)]
            asked = {"sources": paths, "frames": frames, "masks": own, "organ": volume.organ, "named": named}
            try:
                header, data = await self.readers.request("segmentation", seconds=self.limits.seconds, **asked)
            except ScanError as error:
                failed.append(_in_their_names(str(error), uploads))
                continue
            made.append((header["suffix"], data))
        if not made:
            errors = (f"{finding.scan}: {finding.error}" for finding in findings if finding.error is not None)
            why = "no lesions were outlined on these files, or they are no DICOM or NIfTI"
            raise ScanError(next(iter(failed), next(errors, why)))
        return made, failed

    async def _scans(self, uploads: Sequence[Upload]) -> AsyncIterator[tuple[Upload, int | None]]:
        left = self.limits.scans
        for upload in uploads:
            count = 1
            if upload.path is not None:
                with contextlib.suppress(ScanError):  # reading it says why
                    count = (await self.readers.request("frames", path=upload.path))[0]["frames"]
            if count > left:
                yield Upload(upload.name, None, f"{count} frames; at most {self.limits.scans} are read at once"), None
                continue
            left -= count
            for frame in range(count):
                yield upload, None if count == 1 else frame

    async def result(self, upload: Upload, frame: int | None = None) -> Answered:
        """The result of one scan of an upload, by default the first or only one."""
        if upload.path is None:
            loaded = LoadedScan(upload.name, None, error=upload.error)
        else:
            found = await self.readers.read(upload.path, frame)
            error = found.error and _in_their_names(found.error.replace(f"{upload.path}: ", ""), [upload])
            loaded = dataclasses.replace(found, path=upload.name, error=error)
        return Answered(upload, loaded, await self.batches.ask(loaded))


def _in_their_names(text: str, uploads: Sequence[Upload]) -> str:
    """A message that names files as their client does."""
    for upload in uploads:
        text = text if upload.path is None else text.replace(upload.path, upload.name)
    return text


def _write_mask(path: str, mask: np.ndarray) -> None:
    with open(path, "wb") as file:
        file.write(image_files.encode_png(mask * np.uint8(255)))


def _copy(source: Any, path: str) -> None:
    with open(path, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _is_archive(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
