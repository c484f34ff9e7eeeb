"""`make drills`: a training killed a hundred times, and what became of it.

Real processes train on phantoms and get SIGKILL at a random moment, or at the very one at which a file of a save
appears: of a checkpoint, of its hashes, of the best weights, of the log. Each run is typed again until it is complete,
and must end bit by bit where the run that nobody killed has ended: the weights, the log's figures, and the state in its
last checkpoint.

    python tests/drills/kills.py --kills 100
"""

import argparse
import collections
import hashlib
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from mcis import checkpoint
from mcis.board import BOARD
from mcis.train import checkpoints, loop, record

EPOCHS = 4
KILLS_A_RUN = 5
OPTIONS = ["--task=segment_brain", "--sources=phantom", "--size=32", "--features=4", "--batch_size=4"]
OPTIONS += [f"--epochs={EPOCHS}", "--model=light", "--save_minutes=0.01"]

# A kind of moment -> the pattern of a file below the run's folder, at whose appearance the process is killed.
MOMENTS = {
    "anywhere": None,
    "a checkpoint is written": f"{checkpoints.CHECKPOINTS}/*tmp*",
    "its hashes are written": f".{checkpoints.HASHES}.tmp",
    "the best weights are written": f".{loop.BEST}.tmp",
    "the best weights are exchanged": f".{loop.BEST}.old",
    "the log is written": f".{loop.LOG}.tmp",
    "a session is written down": f".{record.RUN}.tmp",
    "TensorBoard is written": f"{BOARD}/*",
}


def checksum(run: pathlib.Path) -> dict[str, str]:
    """What a run has come to, without what tells time: best weights, figures of the log, files of the last state."""
    variables, _ = checkpoint.load(run / loop.BEST)
    weights = hashlib.sha256()
    for name, value in checkpoint.flatten(variables).items():
        weights.update(name.encode() + value.tobytes())
    lines = [json.loads(line) for line in (run / loop.LOG).read_text().splitlines()]
    figures = [{name: value for name, value in line.items() if not name.endswith("seconds")} for line in lines]
    state = hashlib.sha256()
    for name, value in last_state(run).items():
        state.update(name.encode() + value.tobytes())
    return {"weights": weights.hexdigest(), "log": json.dumps(figures), "state": state.hexdigest()}


def last_state(run: pathlib.Path) -> dict:
    """The arrays of a run's last checkpoint, by path."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager((run / checkpoints.CHECKPOINTS).absolute()) as manager:
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        restored = manager.restore(manager.latest_step(), args=args).state
    leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in leaves}


def start(run: pathlib.Path, data: pathlib.Path) -> subprocess.Popen:
    """A training process, which says nothing."""
    command = [sys.executable, "-m", "mcis.launch", *OPTIONS, f"--data_dir={data}", f"--runs_dir={run.parent}"]
    return subprocess.Popen([*command, f"--run={run.name}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def kill(run: pathlib.Path, data: pathlib.Path, moment: str, life: float, rng: random.Random) -> bool:
    """Start a run and kill it; whether it was alive then. `life` is how long it lives unharmed, in seconds."""
    process, pattern = start(run, data), MOMENTS[moment]
    until = time.monotonic() + (rng.uniform(0.0, life) if pattern is None else 2 * life)
    skipped = rng.randrange(3)  # not always the first of its kind
    there = False
    while process.poll() is None and time.monotonic() < until:
        found = pattern is not None and any(run.glob(pattern))
        if found and not there:
            if not skipped:
                break
            skipped -= 1
        there = found
        time.sleep(0.0005 if pattern else 0.02)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return alive


def finish(run: pathlib.Path, data: pathlib.Path) -> float:
    """Train until the end; seconds it took."""
    began, process = time.monotonic(), start(run, data)
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{run} could not be gone on with:\n{said.decode()}")
    return time.monotonic() - began


def main() -> int:
    """Kill, go on, compare; exit status 0 where every run ended where it should have."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, counts = random.Random(options.seed), collections.Counter()
    with tempfile.TemporaryDirectory(prefix="mcis_drills_") as place:
        folder = pathlib.Path(place)
        whole, data = folder / "runs" / "whole", folder / "data"
        finish(whole, data)
        shutil.rmtree(whole)
        life = finish(whole, data)  # a second time, with compiled programs at hand
        truth, runs, equal = checksum(whole), 0, 0
        while sum(counts.values()) < options.kills:
            run = folder / "runs" / f"run{runs}"
            for _ in range(min(KILLS_A_RUN, options.kills - sum(counts.values()))):
                moment = rng.choice(list(MOMENTS))
                if kill(run, data, moment, life, rng):
                    counts[moment] += 1
            finish(run, data)
            found, runs = checksum(run), runs + 1
            same = found == truth
            equal += same
            differing = [name for name in truth if found[name] != truth[name]]
            print(f"{run.name}: {sum(counts.values())} kills so far, {'the same' if same else differing}", flush=True)
            shutil.rmtree(run)
    print("| killed when | times |\n|---|---|")
    for moment in MOMENTS:
        print(f"| {moment} | {counts[moment]} |")
    print(f"{sum(counts.values())} kills in {runs} runs; {equal} of {runs} ended where the run that nobody killed did")
    return 0 if equal == runs else 1


if __name__ == "__main__":
    sys.exit(main())
