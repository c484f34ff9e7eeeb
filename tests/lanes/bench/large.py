"""`make large`: memory and speed of building, training and predicting with many synthetic scans.

Each step runs in its own process; its scans per second and its peak resident memory are reported for two numbers of
scans, which shows what grows with them. `mcis predict` runs as two parallel shards, of which one is killed by SIGKILL
half way and resumed; the merged report must have every scan once, in order. The scans are links to a hundred files and
the network is a small router, so that files and reports dominate.

    python tests/lanes/bench/large.py --scans 10000 100000 --data_dir /somewhere/with/40/GB
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from mcis.imaging.phantom import write_examples
from mcis.organs import ORGANS

CLASSES = sum(len(organ.classes) for organ in ORGANS)
SMALL = ["--task=route", "--model=cnn", "--features=4", "--size=32"]
SMALL += ["--sources=phantom", "--batch_size=64", "--epochs=1"]
SHARDS = 2
MOST = 1.5
"""Allowed ratio of peak memory between the largest and the smallest number of scans: metadata may grow, pixels not."""


def start(command: list[str]) -> tuple[subprocess.Popen, pathlib.Path]:
    """A command's process, and the file of its output."""
    with tempfile.NamedTemporaryFile(delete=False) as output:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=output, stderr=subprocess.STDOUT)
    return process, pathlib.Path(output.name)


def peak(process: subprocess.Popen, output: pathlib.Path, expected: int = 0) -> int:
    """Wait for a process; returns its peak resident memory in MiB. SystemExit unless its status is `expected`."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected:
        raise SystemExit(f"{process.args} ended with {process.returncode}:\n{output.read_text()[-4000:]}")
    output.unlink()
    return usage.ru_maxrss >> 10


def measure(step: str, count: int, command: list[str]) -> dict:
    """Run a command; returns its row of the table."""
    began = time.monotonic()
    mib = peak(*start(command))
    return report(step, count, time.monotonic() - began, mib)


def report(step: str, count: int, seconds: float, mib: int) -> dict:
    """A row of the table, which is also printed."""
    row = {"step": step, "scans": count, "a second": round(count / seconds, 1), "MiB": mib}
    print(json.dumps(row), flush=True)
    return row


def predict(count: int, place: pathlib.Path, weights: pathlib.Path) -> list[dict]:
    """Rows of `mcis predict` over `count` scans in shards, one of them killed half way, and of `mcis merge`."""
    scans, out = place / "scans", place / "found"
    examples = write_examples(place / "examples", per_class=100 // CLASSES)
    scans.mkdir()
    for number in range(count):
        path = examples[number % len(examples)]
        (scans / f"{number:07d}{path.suffix}").symlink_to(path)
    command = ["mcis", "predict", str(scans), f"--out={out}", f"--weights={weights}", "--task=route", "--resume"]
    began = time.monotonic()
    shards = [start([*command, f"--shard={i}/{SHARDS}"]) for i in range(SHARDS)]
    findings = out / f"shard_0_of_{SHARDS}" / "findings.jsonl"
    while not findings.exists() or sum(1 for _ in findings.open("rb")) < count // SHARDS // 2:
        time.sleep(0.1)
        if shards[0][0].poll() is not None:
            shards[1][0].kill()
            raise SystemExit(f"the first shard ended early:\n{shards[0][1].read_text()[-4000:]}")
    shards[0][0].send_signal(signal.SIGKILL)
    mib = [peak(*shards[0], expected=-signal.SIGKILL)]
    shards[0] = start([*command, f"--shard=0/{SHARDS}"])
    mib += [peak(*shard) for shard in shards]
    step = f"mcis predict, {SHARDS} shards, one killed and resumed"
    rows = [report(step, count, time.monotonic() - began, max(mib))]
    rows.append(measure("mcis merge", count, ["mcis", "merge", str(out)]))
    with (out / "findings.jsonl").open() as lines:
        found = [json.loads(line)["scan"] for line in lines]
    if found != sorted(map(str, scans.iterdir())):
        raise SystemExit(f"the {len(found)} findings are not one for each of the {count} scans, in order")
    return rows


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scans", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--data_dir", help="folder for temporary files: about 0.4 MB a scan; removed afterwards")
    parser.add_argument("--out", default="bench/large.json")
    options = parser.parse_args()
    rows = []
    for count in options.scans:
        with tempfile.TemporaryDirectory(dir=options.data_dir) as folder:
            place = pathlib.Path(folder)
            data, runs, weights = place / "data", place / "runs", place / "weights"
            where = [f"--data_dir={data}"]
            build = ["mcis", "build", "phantom", f"--per_class={count // CLASSES}", *where]
            rows.append(measure("mcis build", count, build))
            train = ["mcis.launch", *SMALL, "--stream=True", f"--runs_dir={runs}", *where]
            rows.append(measure("mcis train, scans in their files, 1 epoch", count, train))
            shutil.rmtree(data)
            peak(*start(["mcis", "bundle", str(runs / "route"), f"--out={weights}"]))
            rows += predict(count, place, weights)
    file = pathlib.Path(options.out)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows, indent=1) + "\n")
    print("| step | scans | scans a second | peak memory, MiB |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['step']} | {row['scans']:,} | {row['a second']} | {row['MiB']} |")
    few, many = (
        {row["step"]: row["MiB"] for row in rows if row["scans"] == count}
        for count in (options.scans[0], options.scans[-1])
    )
    if grown := [step for step, mib in many.items() if mib > MOST * few[step]]:
        raise SystemExit(f"peak memory grows with the number of scans: {', '.join(grown)}")


if __name__ == "__main__":
    main()
