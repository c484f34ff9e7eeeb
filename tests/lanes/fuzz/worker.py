"""Child process of `fuzz.py`: makes inputs of one target by number, tries each and reports the outcome.

    python -m tests.lanes.fuzz.worker MODULE TARGET SEED SCRATCH MEBIBYTES

It reads one number per line and writes "start", just before the input is tried, and then a line of JSON. The parent
kills this process if that line does not come, and its exit status tells whether a decoder crashed.
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
"""Address space as a multiple of the allowed memory: allocated pages that are not used cost nothing."""


def typed(error: BaseException) -> bool:
    """Whether an error is an intended one: a ValueError raised by mcis or its data sets, or an OSError with a file.

    A ValueError counts if a `raise` statement in mcis or mcis_datasets raised it, not a library.
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
    """Reset VmHWM."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def tried(target: Any, folder: pathlib.Path, most: int) -> dict[str, Any]:
    """Outcome of one input: "word", CPU "seconds", "MiB"; after a failure also "failure" and the details, "told"."""
    forget_peak()
    before, start = memory("VmRSS"), time.process_time()
    outcome: dict[str, Any] = {}
    try:
        outcome["word"] = target.attempt(folder)
    except MemoryError:
        outcome |= {"word": "MemoryError", "failure": "memory", "told": traceback.format_exc(limit=-6)}
    except BaseException as error:
        outcome["word"], message = type(error).__name__, str(error)
        if not typed(error):
            outcome |= {"failure": "exception", "told": traceback.format_exc(limit=-8)}
        elif "allocate" in message or "nsufficient memory" in message:
            outcome |= {"failure": "memory", "told": message}
        elif len(message) > 20_000 or "Traceback" in message:
            outcome |= {"failure": "message", "told": message[:2000]}
    outcome |= {"seconds": time.process_time() - start, "MiB": max(0, memory("VmHWM") - before) >> 20}
    if outcome["MiB"] > most and "failure" not in outcome:
        outcome |= {"failure": "memory", "told": f"{outcome['MiB']} MiB, after which: {outcome['word']}"}
    return outcome


def listed(folder: pathlib.Path) -> set[str]:
    """Every path below a folder, without following links."""
    return {os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)}


def serve(module: ModuleType, name: str, seed: int, scratch: pathlib.Path, most: int) -> None:
    from tests.lanes.fuzz.mutations import write_tree
    from tests.lanes.fuzz.target import make

    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print
    target = module.TARGETS[name]
    whole = target.seeds()
    case = scratch / "a" / "b" / "case"
    for place in (case.parent, scratch / "cwd", scratch / "tmp", scratch / "home"):
        place.mkdir(parents=True, exist_ok=True)
    os.chdir(scratch / "cwd")
    tempfile.tempdir = os.environ["TMPDIR"] = str(scratch / "tmp")
    os.environ["HOME"] = str(scratch / "home")
    for tree in whole:  # so that imports and caches count for no input
        case.mkdir()
        write_tree(tree, case)
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
        write_tree(tree, case)
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
