"""Files of strangers are read in processes of their own: what breaks a decoder, or keeps it, takes nobody with it."""

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
from typing import Any, NoReturn

import numpy as np

import mcis
from mcis import MAX_PIXELS
from mcis.files import from_json
from mcis.imaging.formats import Loaded, lay
from mcis.imaging.geometry import Place
from mcis.imaging.scan import Scan, ScanError
from mcis.imaging.worker import READY

COUNT = 2
"""Processes that read."""
BROKE = "damaged: what reads such files broke on it, or was killed"
MAX_ANSWER = 1 << 30
"""Bytes of an answer: a picture has a fifth of them, a segmentation may have many frames."""
GRACE = 2.0
"""Seconds for an answer that is there already, where it is the asking process that was stopped for long."""
STARTING = 120.0
"""Seconds until a process is ready."""
START = (
    "import runpy, sys; root, module = sys.argv[1:3]; sys.path[:0] = {root} - {*sys.path}; "
    "runpy.run_module(module, run_name='__main__')"
)
"""The program of a process: the mcis that asks, wherever it lies, and nothing of the folder that is the current one."""
HEADER = 1 << 24
"""Bytes of the longest header, which lists what was in an archive."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a reader says of a picture: the fields of a Scan and of its Place, and the pixels' shape."""

    shape: list[int]
    notes: list[str]
    spacing: list[float] | None = None
    series: str | None = None
    position: float | None = None
    normal: list[float] | None = None


class BrokenReader(ScanError):
    """What was asked of a reader broke it, or took too long; the message does not say which file it was."""


class Readers:
    """Processes of `mcis.imaging.worker`, each asked one thing at a time; they start when they are needed.

    Args:
      count: how many.
      seconds: after so many, and GRACE, a process that has not answered is killed, and what it was asked is an error.
      memory: bytes that each may take beyond what it has when it starts.
      module: what they run.
    """

    def __init__(
        self, count: int = COUNT, seconds: float = 20.0, memory: int = 2 << 30, module: str = "mcis.imaging.worker"
    ):
        self.seconds, self.memory, self.module = seconds, memory, module
        self._idle: asyncio.Queue[asyncio.subprocess.Process | None] = asyncio.Queue()
        for _ in range(count):
            self._idle.put_nowait(None)

    async def ask(self, operation: str, seconds: float | None = None, **arguments: Any) -> tuple[dict[str, Any], bytes]:
        """What one of `reader.OPERATIONS` gives for some arguments, within `seconds`: a header, and bytes.

        Raises:
          ScanError: it cannot be done, took too long or too much, or the process broke.
          OSError: the processes do not start.
        """
        process = await self._idle.get()
        try:
            if process is None or process.returncode is not None:
                process = await self._start()
            answer = asyncio.ensure_future(_exchange(process, {"operation": operation, **arguments}))
            try:
                for patience in (seconds or self.seconds, GRACE):
                    await asyncio.wait({answer}, timeout=patience)
                    if answer.done():
                        return answer.result()
                raise TimeoutError
            finally:
                answer.cancel()
        except TimeoutError:
            await _end(process)
            process = None
            raise BrokenReader(f"took longer to read than the {seconds or self.seconds:g} s that are allowed") from None
        except (EOFError, ConnectionError, json.JSONDecodeError, KeyError):
            await _end(process)
            process = None
            raise BrokenReader(BROKE) from None
        except ScanError:
            raise  # an answer like any other
        except BaseException:  # whoever asked has left, and would leave the answer in the pipe
            await _end(process)
            process = None
            raise
        finally:
            self._idle.put_nowait(process)

    async def read(self, path: str, frame: int | None) -> Loaded:
        """`reading.load`, but for the time and memory that it may take. What is wrong is an error of the result."""
        try:
            header, data = await self.ask("read", path=path, frame=frame or 0)
            found = _scan(from_json(Header, json.dumps(header)), data)
        except BrokenReader as error:
            failed = ScanError(f"{path}: {error}")
        except ScanError as error:
            failed = error
        except (TypeError, ValueError, IndexError):
            failed = ScanError(f"{path}: {BROKE}")
        else:
            return await asyncio.to_thread(lay, path, frame, lambda: found)
        return lay(path, frame, lambda: _raise(failed))

    async def _start(self) -> asyncio.subprocess.Process:
        for _ in range(2):  # SIGTERM to all processes may come before this one is able to ignore it
            process = await self._started()
            if process.returncode is None:
                return process
            if process.returncode != -signal.SIGTERM:
                break
        by_hand = shlex.join((sys.executable, "-m", self.module, str(self.memory)))
        raise OSError(f"what reads scans does not start: `{by_hand}` says why")

    async def _started(self) -> asyncio.subprocess.Process:
        """A process that is ready, or has ended."""
        pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL  # decoders quote files in what they print
        root = str(pathlib.Path(mcis.__file__).parents[1])
        command = (sys.executable, "-P", "-c", START, root, self.module, str(self.memory))
        # A session of its own, for Ctrl-C is of the asking process, which finishes what it has in hand.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=none, limit=HEADER, start_new_session=True
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(STARTING):
                if await process.stdout.readline() == READY:
                    return process
        except TimeoutError:
            pass
        except BaseException:
            await _end(process)
            raise
        with contextlib.suppress(TimeoutError):  # it has ended by itself, or is about to
            await asyncio.wait_for(process.wait(), 1)
        await _end(process)
        return process

    async def close(self) -> None:
        """End the processes."""
        while not self._idle.empty():
            await _end(self._idle.get_nowait())


def read_all(scans: Iterable[tuple[str, int | None]], ahead: int, **options: Any) -> Iterator[Loaded]:
    """Read scans in order, a few ahead, in processes of their own; for who is not asynchronous.

    Args:
      scans: (path, frame) of each, as `reading.frames` gives them.
      ahead: how many are read, or wait to be taken, at once.
      options: of Readers.
    """
    with contextlib.closing(_Background(options)) as background:
        waiting: collections.deque[concurrent.futures.Future[Loaded]] = collections.deque()
        for path, frame in scans:
            waiting.append(background.read(path, frame))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Background:
    """Readers that are asked from a thread of their own."""

    def __init__(self, options: dict[str, Any]):
        self.readers, self.tasks = Readers(**options), set[asyncio.Task[Any]]()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="readers", daemon=True)
        self.thread.start()
        # of a generator that nobody has ended: at its own end, which is later, no thread runs any more
        atexit.register(self.close)

    def read(self, path: str, frame: int | None) -> concurrent.futures.Future[Loaded]:
        return asyncio.run_coroutine_threadsafe(self._read(path, frame), self.loop)

    async def _read(self, path: str, frame: int | None) -> Loaded:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return await self.readers.read(path, frame)

    def close(self) -> None:
        """End what is still read, for nobody waits for it any more, then the processes, then the thread."""
        atexit.unregister(self.close)
        if self.loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._leave(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _leave(self) -> None:
        tasks = list(self.tasks)  # not all of the loop's: asyncio has its own, without which it waits for ever
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.readers.close()


async def _exchange(process: asyncio.subprocess.Process, question: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question).encode() + b"\n")
    await process.stdin.drain()
    try:
        line = await process.stdout.readline()
    except ValueError:  # longer than HEADER
        raise EOFError from None
    if not line.endswith(b"\n"):
        raise EOFError
    header = json.loads(line)
    if "error" in header:
        error = ScanError(header["error"])
        error.series = header.get("series")
        raise error
    size = header.pop("bytes")
    if not isinstance(size, int) or not 0 <= size <= MAX_ANSWER:
        raise EOFError
    return header, await process.stdout.readexactly(size)


def _scan(header: Header, data: bytes) -> Scan:
    """The Scan of a reader's answer; ValueError where it is none."""
    if any(side < 1 for side in header.shape) or math.prod(header.shape[:2]) > MAX_PIXELS or header.shape[2:] != [3]:
        raise ValueError("no picture")
    image = np.frombuffer(data, np.uint8).reshape(header.shape).copy()  # to be written to, as others are
    normal = None if header.normal is None else (header.normal[0], header.normal[1], header.normal[2])
    place = None if header.series is None else Place(header.series, header.position, normal)
    spacing = None if header.spacing is None else (header.spacing[0], header.spacing[1])
    return Scan(image, tuple(header.notes), spacing, place)


def _raise(error: ScanError) -> NoReturn:
    raise error


async def _end(process: asyncio.subprocess.Process | None) -> None:
    """Kill a process, and wait until it is gone."""
    if process is not None and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
