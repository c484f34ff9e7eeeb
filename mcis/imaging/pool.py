"""Decode untrusted files in worker processes, so that a crash or hang cannot affect the caller. No JAX."""

import asyncio
import atexit
import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import pathlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

import mcis
from mcis import MAX_PIXELS
from mcis.files import from_json, parse_json
from mcis.imaging.formats import LoadedScan, failed, prepare
from mcis.imaging.geometry import SliceGeometry
from mcis.imaging.scan import Scan, ScanError, Statement
from mcis.imaging.worker import READY

COUNT = 2
"""Worker processes."""
CRASHED = "damaged: the process that read it crashed or was killed"
MAX_RESPONSE = 1 << 30
"""Bytes of a response: a fifth of it for an image; a segmentation may have many frames."""
MAX_HEADER = 1 << 24
"""Bytes of a response's header, which may list the content of an archive."""
GRACE = 2.0
"""Further seconds for a response that is already there, in case the caller's process was suspended meanwhile."""
STARTUP = 120.0
"""Seconds until a worker must be ready."""
PROGRAM = (
    "import os, runpy, sys; root, module = sys.argv[1:3]; "
    "sys.path[:] = [root, *(folder for folder in sys.path if os.path.abspath(folder) not in (root, os.getcwd()))]; "
    "runpy.run_module(module, run_name='__main__')"
)
"""Program of a worker: it imports the caller's mcis, and nothing from the current folder."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Header of a worker's response to "read": shape of the image, and the fields of Scan and SliceGeometry.

    `stated` has the organs of each Statement by its header.
    """

    shape: list[int]
    notes: list[str]
    spacing: list[float] | None = None
    aspect: float | None = None
    series: str | None = None
    position: float | None = None
    normal: list[float] | None = None
    stated: dict[str, list[str]] = dataclasses.field(default_factory=dict)


class WorkerError(ScanError):
    """A worker crashed on a request or took too long. The message does not name the file."""


class WorkerPool:
    """Processes of `mcis.imaging.worker`, started when needed, with one request each at a time.

    Args:
      count: number of processes.
      seconds: limit for a request; after these and GRACE its worker is killed, and the request fails.
      memory: bytes that a worker may allocate beyond those it has at its start.
      module: what the processes run.
    """

    def __init__(
        self, count: int = COUNT, seconds: float = 20.0, memory: int = 2 << 30, module: str = "mcis.imaging.worker"
    ):
        self.count, self.seconds, self.memory, self.module = count, seconds, memory, module
        self._idle: asyncio.Queue[asyncio.subprocess.Process | None] = asyncio.Queue()
        for _ in range(count):
            self._idle.put_nowait(None)

    async def request(
        self, operation: str, seconds: float | None = None, **arguments: Any
    ) -> tuple[dict[str, Any], bytes]:
        """Header and bytes that one of `worker.OPERATIONS` returns for some arguments, within `seconds`.

        Raises:
          ScanError: the operation failed or exceeded a limit, or the worker crashed.
          OSError: workers do not start.
        """
        process = await self._idle.get()
        try:
            if process is None or process.returncode is not None:
                process = await self._start()
            response = asyncio.ensure_future(_exchange(process, {"operation": operation, **arguments}))
            try:
                for timeout in (seconds or self.seconds, GRACE):
                    await asyncio.wait({response}, timeout=timeout)
                    if response.done():
                        return response.result()
                raise TimeoutError
            finally:
                response.cancel()
        except BaseException as error:
            if isinstance(error, ScanError):  # a regular response
                raise
            await _kill(process)  # also if the caller was cancelled: its response would remain in the pipe
            process = None
            if isinstance(error, TimeoutError):
                raise WorkerError(f"took longer than the {seconds or self.seconds:g} s allowed for reading") from None
            if isinstance(error, EOFError | ConnectionError | ValueError | KeyError | TypeError):  # no valid response
                raise WorkerError(CRASHED) from None
            raise
        finally:
            self._idle.put_nowait(process)

    async def read(self, path: str, frame: int | None) -> LoadedScan:
        """`formats.load` in a worker; exceeding a limit is an error of the result like any other."""
        try:
            header, data = await self.request("read", path=path, frame=frame or 0)
            scan = _scan(from_json(Header, json.dumps(header)), data)
        except WorkerError as error:
            return failed(path, frame, ScanError(f"{path}: {error}"))
        except ScanError as error:
            return failed(path, frame, error)
        except (TypeError, ValueError, IndexError):
            return failed(path, frame, ScanError(f"{path}: {CRASHED}"))
        return await asyncio.to_thread(prepare, path, frame, lambda: scan)

    async def _start(self) -> asyncio.subprocess.Process:
        root = str(pathlib.Path(mcis.__file__).parents[1])
        for _ in range(2):  # a SIGTERM to all processes may arrive before the worker can ignore it
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", PROGRAM, root, self.module, str(self.memory)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,  # decoders print content of files
                limit=MAX_HEADER,
                start_new_session=True,  # Ctrl-C reaches only the caller, which finishes its requests
            )
            assert process.stdout is not None
            ready = False
            try:
                async with asyncio.timeout(STARTUP):
                    ready = await process.stdout.readline() == READY
                if not ready:
                    async with asyncio.timeout(1):
                        await process.wait()  # it has ended by itself, or is about to
            except TimeoutError:
                pass
            finally:
                if not ready:
                    await _kill(process)
            if ready:
                return process
            if process.returncode != -signal.SIGTERM:
                break
        command = shlex.join((sys.executable, "-m", self.module, str(self.memory)))
        raise OSError(f"the process that reads scans does not start; run `{command}` to see why")

    async def close(self) -> None:
        """Wait for requests in progress and kill the processes."""
        for _ in range(self.count):
            await _kill(await self._idle.get())


def read_all(scans: Iterable[tuple[str, int | None]], ahead: int, **options: Any) -> Iterator[LoadedScan]:
    """Read scans in worker processes, in order, some ahead of the caller; for callers that are not asynchronous.

    Args:
      scans: (path, frame) of each, as from `formats.frames`.
      ahead: most scans that are being read or wait for the caller.
      options: of WorkerPool.
    """
    pool, loop = WorkerPool(**options), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="workers", daemon=True)
    thread.start()
    waiting: collections.deque[concurrent.futures.Future[LoadedScan]] = collections.deque()

    def close() -> None:
        atexit.unregister(close)
        if loop.is_closed():
            return
        for future in waiting:
            future.cancel()
        asyncio.run_coroutine_threadsafe(pool.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    atexit.register(close)  # a generator may be closed only after threads have ended
    try:
        for path, frame in scans:
            waiting.append(asyncio.run_coroutine_threadsafe(pool.read(path, frame), loop))
            if len(waiting) > ahead:
                yield waiting[0].result()
                waiting.popleft()
        while waiting:
            yield waiting[0].result()
            waiting.popleft()
    finally:
        close()


async def _exchange(process: asyncio.subprocess.Process, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    await process.stdin.drain()
    try:
        line = await process.stdout.readline()
    except ValueError:  # longer than MAX_HEADER
        raise EOFError from None
    if not line.endswith(b"\n"):
        raise EOFError
    header = parse_json(line)
    if "error" in header:
        error = ScanError(header["error"])
        error.series = header.get("series")
        raise error
    size = header.pop("bytes")
    if not isinstance(size, int) or not 0 <= size <= MAX_RESPONSE:
        raise EOFError
    return header, await process.stdout.readexactly(size)


def _scan(header: Header, data: bytes) -> Scan:
    """The Scan of a worker's response. ValueError if the response is invalid: workers are not trusted."""
    if any(side < 1 for side in header.shape) or math.prod(header.shape[:2]) > MAX_PIXELS or header.shape[2:] != [3]:
        raise ValueError("not an image")
    image = np.frombuffer(data, np.uint8).reshape(header.shape).copy()  # writable
    normal = None if header.normal is None else (header.normal[0], header.normal[1], header.normal[2])
    geometry = None if header.series is None else SliceGeometry(header.series, header.position, normal)
    spacing = None if header.spacing is None else (header.spacing[0], header.spacing[1])
    stated = tuple(Statement(said, tuple(organs)) for said, organs in header.stated.items())
    return Scan(image, tuple(header.notes), spacing, geometry, stated, header.aspect)


async def _kill(process: asyncio.subprocess.Process | None) -> None:
    """Kill a process and wait for its end."""
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
