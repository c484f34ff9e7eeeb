"""`make fuzz`: thousands of bad inputs. Each must be read, or rejected with an error that says what is wrong.

Child processes (`worker.py`) try the inputs. This process kills a child that uses more than SECONDS of CPU time on an
input or is idle for that long, and tells crashes from the exit status. Failures are stored in ./fuzz, each with its
input and the command that repeats it.

    python -m tests.lanes.fuzz.fuzz                                   all
    python -m tests.lanes.fuzz.fuzz --target dicom --only 1234        one input again
    python -m tests.lanes.fuzz.fuzz --seed 1 --inputs 20000           other inputs, 20000 per target
"""

import argparse
import collections
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

ROOT = pathlib.Path(__file__).parents[3]
SECONDS, MEBIBYTES = 5.0, 1024
TARGETS = "tests.lanes.fuzz.targets"
REQUESTS = "requests"
"""A target that is not in that table: `tests/lanes/fuzz/requests.py` sends requests to a real server."""
POLL = 0.25
STARTING = 300.0
"""Seconds for a child to import and read the valid inputs once, or to make a bad input."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits for one input."""

    seconds: float = SECONDS
    mebibytes: int = MEBIBYTES


class Child:
    """A child process for one target."""

    def __init__(self, module: str, name: str, seed: int, limits: Limits):
        self.limits, self.heard = limits, b""
        self.scratch = tempfile.mkdtemp(prefix="mcis-fuzz-")
        command = [sys.executable, "-m", "tests.lanes.fuzz.worker", module, name, str(seed), self.scratch]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": "1", "OPENCV_LOG_LEVEL": "SILENT"}
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*command, str(limits.mebibytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
            cwd=ROOT,
            env=environment,
        )

    def line(self, seconds: float) -> str:
        """The next line; "" if none comes within that time or the child has ended."""
        until = time.perf_counter() + seconds
        while b"\n" not in self.heard:
            left = until - time.perf_counter()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                return ""
            if not (piece := os.read(self.process.stdout.fileno(), 1 << 16)):  # type: ignore[union-attr]
                return ""
            self.heard += piece
        line, _, self.heard = self.heard.partition(b"\n")
        return line.decode()

    def tries(self, number: int) -> dict[str, Any]:
        """Outcome of one input; after a hang or a crash the child is gone."""
        try:
            self.process.stdin.write(b"%d\n" % number)  # type: ignore[union-attr]
        except BrokenPipeError:
            return self.ended(number, "before the input", 0.0)
        if self.line(STARTING) != "start":
            return self.ended(number, "while the input was made", 0.0)
        begun = self.used()
        waits, last = 0, begun
        while not (reply := self.line(POLL)) and self.alive:
            used, state = self.used(), self.state()
            waits = waits + 1 if used - last < POLL / 100 and state not in "RD" else 0
            if used - begun > self.limits.seconds or waits * POLL >= self.limits.seconds:
                break
            last = used
        return json.loads(reply) if reply else self.ended(number, "", max(self.used() - begun, waits * POLL))

    def used(self) -> float:
        """CPU seconds of the child; 0 if it has ended."""
        try:
            times = psutil.Process(self.process.pid).cpu_times()
            return times.user + times.system
        except psutil.Error:
            return 0.0

    def state(self) -> str:
        """State letter of the child in Linux; R is running or waiting for the CPU."""
        try:
            return pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return "X"

    def ended(self, number: int, when: str, seconds: float) -> dict[str, Any]:
        hangs = self.process.poll() is None and seconds >= self.limits.seconds
        if hangs:  # to print where
            self.process.send_signal(signal.SIGABRT)
        self.close()
        code = self.process.returncode
        word = "hang" if hangs else f"{signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        self.errors.seek(0)
        details = (
            f"{when} " + self.errors.read().rpartition("Fatal Python error")[2].partition("Extension modules")[0][:6000]
        )
        return {
            "number": number,
            "word": word,
            "failure": "hang" if hangs else "crash",
            "told": details,
            "seconds": seconds,
            "MiB": 0,
        }

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        try:
            self.process.stdin.close()  # type: ignore[union-attr]
            self.process.wait(2)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)


def try_all(
    module: str, name: str, numbers: Sequence[int], seed: int, limits: Limits, jobs: int
) -> list[dict[str, Any]]:
    """Outcomes of inputs of a target."""
    left, lock, found = iter(numbers), threading.Lock(), []

    def work() -> None:
        child = None
        for number in _shared(left, lock):
            child = child if child is not None and child.alive else Child(module, name, seed, limits)
            found.append(outcome := child.tries(number))
            if "failure" in outcome:
                last = outcome["told"].strip().splitlines()[-1:] or [""]
                summary = f"{outcome['failure']}: {outcome['word']} {outcome['seconds']:.1f} s: {last[0][:200]}"
                print(f"  {name} {number}: {summary}", file=sys.stderr, flush=True)
        if child is not None:
            child.close()

    threads = [threading.Thread(target=work) for _ in range(min(jobs, len(numbers)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(found, key=lambda outcome: outcome["number"])


def _shared(left: Iterator[int], lock: threading.Lock) -> Iterator[int]:
    while True:
        with lock:
            number = next(left, None)
        if number is None:
            return
        yield number


def keep(out: pathlib.Path, module: str, name: str, seed: int, outcome: dict[str, Any]) -> None:
    """Store the input of a failure, its outcome, and how to repeat it."""
    from tests.lanes.fuzz.mutations import write_tree
    from tests.lanes.fuzz.target import make

    target = importlib.import_module(module).TARGETS[name]
    folder = out / name / str(outcome["number"])
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "input").mkdir(parents=True)
    write_tree(make(target, _seeds_of(module, name), seed, outcome["number"]), (folder / "input").absolute())
    again = f'make fuzz FUZZ="--target {name} --seed {seed} --only {outcome["number"]}"'
    (folder / "failure.json").write_text(json.dumps(outcome | {"seed": seed, "again": again}, indent=1) + "\n")


@functools.lru_cache(maxsize=1)
def _seeds_of(module: str, name: str) -> Sequence[Any]:
    return importlib.import_module(module).TARGETS[name].seeds()


def row(name: str, outcomes: Sequence[dict[str, Any]]) -> str:
    """A row of the printed table."""
    words = collections.Counter(outcome["word"] for outcome in outcomes if "failure" not in outcome)
    read = words.pop("read", 0)
    rejected = ", ".join(f"{word} {count}" for word, count in words.most_common())
    seconds, most = max(o["seconds"] for o in outcomes), max(o["MiB"] for o in outcomes)
    failures = sum("failure" in o for o in outcomes)
    return f"| {name} | {len(outcomes)} | {read} | {rejected} | {seconds:.2f} | {most} | {failures} |"


def try_requests(options: argparse.Namespace) -> int:
    """Send bad requests to a real server; returns the number of failures."""
    from tests.lanes.fuzz.requests import INPUTS, fuzz

    counts, wrong, slowest, gained = fuzz(options.only or range(options.inputs or INPUTS), options.seed)
    for failure in wrong:
        print(f"  {REQUESTS} {failure}", file=sys.stderr)
    rejected = ", ".join(f"{word} {count}" for word, count in sorted(counts.items()) if word != "200")
    read = counts.get("200", 0)
    print(
        f"| {REQUESTS} | {sum(counts.values())} | {read} | {rejected} | {slowest:.2f} | {gained:.0f} | {len(wrong)} |"
    )
    return len(wrong)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="make fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--module", default=TARGETS, help="module with TARGETS")
    parser.add_argument("--target", nargs="*", help="names of the targets to try")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the inputs to try")
    parser.add_argument("--inputs", type=int, help="number of inputs per target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=SECONDS, help="CPU time limit per input")
    parser.add_argument("--mebibytes", type=int, default=MEBIBYTES, help="memory limit per input")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("fuzz"), help="folder for failures")
    options = parser.parse_args(argv)
    options.out.mkdir(exist_ok=True)
    targets, limits, failed = (
        importlib.import_module(options.module).TARGETS,
        Limits(options.seconds, options.mebibytes),
        0,
    )
    print(
        "| target | inputs | read | rejected | slowest, s | largest, MiB | failures |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    every = [*targets, REQUESTS] if options.module == TARGETS else [*targets]
    for name in options.target or every:
        if name == REQUESTS:
            failed += try_requests(options)
            continue
        if not options.only:
            shutil.rmtree(options.out / name, ignore_errors=True)
        numbers = options.only or range(options.inputs or targets[name].inputs)
        _seeds_of(options.module, name)  # so that they are made only once
        outcomes = try_all(options.module, name, numbers, options.seed, limits, options.jobs)
        print(row(name, outcomes), flush=True)
        for outcome in outcomes:
            if "failure" in outcome:
                keep(options.out, options.module, name, options.seed, outcome)
                failed += 1
    if failed:
        print(f"{failed} failures, stored in {options.out}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
