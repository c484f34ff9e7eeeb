"""`make large`: many synthetic scans are built, trained on and looked at, with the memory that takes and the time.

Each step is a process of its own, whose peak of resident memory is told beside the scans that it got through in a
second; for two numbers of scans, so that one sees what grows with them. `mcis predict` runs as two shards side by side,
of which one gets SIGKILL half way and is gone on with; what is merged must have every scan once, in order. Its pictures
are links to a hundred files, and the network is a small router, so that files and reports are what is measured.

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
SMALL = ["--task=route", "--sources=phantom", "--size=32", "--features=4", "--batch_size=64", "--epochs=1"]
SHARDS = 2
MOST = 1.5
"""How much more memory the most scans may take than the fewest: what is known of each, not its pictures."""


def start(command: list[str]) -> tuple[subprocess.Popen, pathlib.Path]:
    """A command's process, and the file of what it says."""
    with tempfile.NamedTemporaryFile(delete=False) as said:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=said, stderr=subprocess.STDOUT)
    return process, pathlib.Path(said.name)


def peak(process: subprocess.Popen, said: pathlib.Path, wanted: int = 0) -> int:
    """Wait for a process; its peak of resident memory, MiB. SystemExit where it ends otherwise than `wanted`."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != wanted:
        raise SystemExit(f"{process.args} ended with {process.returncode}:\n{said.read_text()[-4000:]}")
    said.unlink()
    return usage.ru_maxrss >> 10


def measure(step: str, count: int, command: list[str]) -> dict:
    """Run a command; its scans a second and its peak of memory."""
    began = time.monotonic()
    mib = peak(*start(command))
    return told(step, count, time.monotonic() - began, mib)


def told(step: str, count: int, seconds: float, mib: int) -> dict:
    """A row of the table, printed as it comes."""
    row = {"step": step, "scans": count, "a second": round(count / seconds, 1), "MiB": mib}
    print(json.dumps(row), flush=True)
    return row


def predict(count: int, place: pathlib.Path, weights: pathlib.Path) -> list[dict]:
    """`mcis predict` over as many scans by shards, one of them killed half way, and `mcis merge`."""
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
    mib = [peak(*shards[0], wanted=-signal.SIGKILL)]
    shards[0] = start([*command, f"--shard=0/{SHARDS}"])
    mib += [peak(*shard) for shard in shards]
    rows = [
        told(f"mcis predict, {SHARDS} shards, one killed and gone on with", count, time.monotonic() - began, max(mib))
    ]
    rows.append(measure("mcis merge", count, ["mcis", "merge", str(out)]))
    with (out / "findings.jsonl").open() as lines:
        found = [json.loads(line)["scan"] for line in lines]
    if found != sorted(map(str, scans.iterdir())):
        raise SystemExit(f"{len(found)} findings of {count} scans are not each scan's once, in order")
    return rows


def main() -> None:
    """Measure, print, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scans", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--data_dir", help="where there is room: some 0.4 MB a scan; removed afterwards")
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
        raise SystemExit(f"memory grows with the scans: {', '.join(grown)}")


if __name__ == "__main__":
    main()
