"""The child of `fuzz.py`: makes inputs of one target by their numbers, tries each, and says what came of it.

    python -m tests.lanes.fuzz.worker MODULE TARGET SEED SCRATCH MEBIBYTES

A number comes in on a line; out go "start", just before the input is tried, and a line of JSON. Whoever reads them
kills this process where the second does not come, and learns from its exit what a decoder did to it.
"""

import dis
import importlib
import json
import os
import pathlib
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any

OWN = ("mcis", "mcis_datasets")
STRAYS = ("/tmp/mcis-fuzz-stray", "/tmp/stray")
HEADROOM = 4
"""How much more address space a process has than it may take memory: claims that nobody touches cost nothing."""


def typed(error: BaseException) -> bool:
    """Whether an error is one of ours for bad input, or the file system's with its number and file.

    Ours is a ValueError that a `raise` in mcis or its data sets has raised, and no library.
    """
    if isinstance(error, OSError):
        return error.errno is not None and error.filename is not None
    if not isinstance(error, ValueError) or isinstance(error, UnicodeError | json.JSONDecodeError):
        return False
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or last.tb_frame.f_globals.get("__name__", "").split(".")[0] not in OWN:
        return False
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def memory(field: str) -> int:
    """VmHWM, VmRSS or VmSize of this process, in bytes."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) << 10


def forget_peak() -> None:
    """Let VmHWM begin anew."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def tried(target: Any, folder: pathlib.Path, most: int) -> dict[str, Any]:
    """What came of one input: a "word", "seconds" of the processor, "MiB"; and where it failed "failure" and "told"."""
    forget_peak()
    before, start = memory("VmRSS"), time.process_time()
    outcome: dict[str, Any] = {}
    try:
        outcome["word"] = target.attempt(folder)
    except MemoryError:
        outcome |= {"word": "MemoryError", "failure": "memory", "told": traceback.format_exc(limit=-6)}
    except BaseException as error:
        outcome["word"], said = type(error).__name__, str(error)
        if not typed(error):
            outcome |= {"failure": "exception", "told": traceback.format_exc(limit=-8)}
        elif "allocate" in said or "nsufficient memory" in said:
            outcome |= {"failure": "memory", "told": said}
        elif len(said) > 20_000 or "Traceback" in said:
            outcome |= {"failure": "message", "told": said[:2000]}
    outcome |= {"seconds": time.process_time() - start, "MiB": max(0, memory("VmHWM") - before) >> 20}
    if outcome["MiB"] > most and "failure" not in outcome:
        outcome |= {"failure": "memory", "told": f"{outcome['MiB']} MiB, after which: {outcome['word']}"}
    return outcome


def listed(folder: pathlib.Path) -> set[str]:
    """Every path below a folder, links not followed."""
    return {os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)}


def serve(module: ModuleType, name: str, seed: int, scratch: pathlib.Path, most: int) -> None:
    from tests.lanes.fuzz.mutations import lay
    from tests.lanes.fuzz.target import make

    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply
    target = module.TARGETS[name]
    whole = target.seeds()
    case = scratch / "a" / "b" / "case"
    for place in (case.parent, scratch / "cwd", scratch / "tmp", scratch / "home"):
        place.mkdir(parents=True, exist_ok=True)
    os.chdir(scratch / "cwd")
    tempfile.tempdir = os.environ["TMPDIR"] = str(scratch / "tmp")
    os.environ["HOME"] = str(scratch / "home")
    for tree in whole:  # what is imported and cached only once counts for no input
        case.mkdir()
        lay(tree, case)
        try:
            target.attempt(case)
        except Exception as error:
            if not typed(error):
                traceback.print_exc()
        shutil.rmtree(case)
    room = memory("VmSize") + HEADROOM * (most << 20)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    kept = listed(scratch)
    for line in sys.stdin:
        number = int(line)
        case.mkdir()
        tree = make(target, whole, seed, number)
        lay(tree, case)
        laid = listed(case)
        del tree
        replies.write("start\n")
        outcome = tried(target, case, most)
        there = listed(case)
        strays = sorted(listed(scratch) - kept - there - {str(case)}) + [
            path for path in STRAYS if os.path.lexists(path)
        ]
        if not target.writes:
            strays += sorted(there ^ laid)
        if strays and "failure" not in outcome:
            outcome |= {"failure": "stray", "told": "\n".join(strays)}
        for path in strays:
            shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else pathlib.Path(path).unlink(
                missing_ok=True
            )
        shutil.rmtree(case)
        replies.write(json.dumps({"number": number} | outcome) + "\n")


def main(argv: Sequence[str]) -> None:
    module, name, seed, scratch, most = argv
    serve(importlib.import_module(module), name, int(seed), pathlib.Path(scratch), int(most))


if __name__ == "__main__":
    main(sys.argv[1:])
