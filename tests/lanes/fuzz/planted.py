"""Readers with one fault each; `tests/test_fuzz.py` checks that the fuzzer finds these faults."""

import ctypes
import json
import pathlib
import time
from collections.abc import Callable

from tests.lanes.fuzz.mutations import BYTES, Tree
from tests.lanes.fuzz.target import Target


def seeds() -> list[Tree]:
    return [{"a.txt": b"good"}]


def sound(folder: pathlib.Path) -> str:
    from mcis.imaging import image_files

    return image_files.read(folder / "a.txt").image.dtype.name


def unhandled(folder: pathlib.Path) -> str:
    return {}["no such key"]


def not_ours(folder: pathlib.Path) -> str:
    return json.loads("no JSON")


def spins(folder: pathlib.Path) -> str:
    while len(list(folder.iterdir())) == 1:
        pass
    return "read"


def waits(folder: pathlib.Path) -> str:
    time.sleep(600)
    return "read"


def hogs(folder: pathlib.Path) -> str:
    return "read" if len(bytearray(96 << 20)) else ""


def claims(folder: pathlib.Path) -> str:
    return "read" if len(bytearray(1 << 50)) else ""


def crashes(folder: pathlib.Path) -> str:
    ctypes.string_at(0)
    return "read"


def strays(folder: pathlib.Path) -> str:
    (folder.parent / "stray").write_text("outside")
    return "read"


FAULTS = {unhandled: "exception", not_ours: "exception", spins: "hang", waits: "hang", hogs: "memory", claims: "memory"}
FAULTS |= {crashes: "crash", strays: "stray"}


def guarded(attempt: Callable[[pathlib.Path], str]) -> Target:
    """A target whose fault appears only on bad input, so that a child process starts without it."""

    def guard(folder: pathlib.Path) -> str:
        return "read" if (folder / "a.txt").read_bytes() == b"good" else attempt(folder)

    return Target(attempt.__name__, 2, seeds, BYTES, guard, (lambda: {"a.txt": b"bad"}, lambda: {"a.txt": b"good"}))


TARGETS = {"sound": Target("sound", 20, seeds, BYTES, sound)}
TARGETS |= {attempt.__name__: guarded(attempt) for attempt in FAULTS}
