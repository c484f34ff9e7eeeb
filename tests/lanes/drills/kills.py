"""`make drills`: a training killed a hundred times, and what became of it.

Real processes train on phantoms and get SIGKILL: at a random moment from outside, or while a file of a save is written
(`doomed.py`): of a checkpoint, of its hashes, of the best weights, of the log. Each run is typed again until it is
complete, and must end bit by bit where the run that nobody killed has ended: the weights, the log's figures, and the
state in its last checkpoint. Every other run starts at another size, in a run of its own.

    python tests/lanes/drills/kills.py --kills 100
"""

import argparse
import collections
import contextlib
import functools
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
from collections.abc import Callable

from mcis.checkpoints import checkpoint
from mcis.train import loop, resume, run_record
from mcis.train.tensorboard import BOARD

DOOMED = pathlib.Path(__file__).with_name("doomed.py")
KILLS_A_RUN = 5
OPTIONS = ["--task=segment_brain", "--sources=phantom", "--features=4", "--batch_size=4", "--model=light"]
OPTIONS += ["--save_minutes=0.01"]
RECIPES = {
    "at one size": ["--size=32", "--epochs=4"],
    "with a start at another": ["--size=64", "--epochs=2", "--start.size=32", "--start.epochs=2"],
}

# A kind of moment -> the pattern of the paths whose touching is followed by a kill, at one of the first so many times
# and within so many seconds.
MOMENTS = {
    "anywhere": ("", 0, 0.0),
    "a checkpoint is written": (f"*/{resume.CHECKPOINTS}/*tmp*", 20, 0.1),
    "its hashes are written": (f"*/.{resume.HASHES}.tmp", 6, 0.001),
    "the best weights are written": (f"*/.{loop.BEST}.tmp*", 6, 0.1),
    "the best weights are exchanged": (f"*/.{loop.BEST}.old", 4, 0.001),
    "the log is written": (f"*/.{loop.LOG}.tmp", 6, 0.001),
    "a session is written down": (f"*/.{run_record.RUN}.tmp", 2, 0.001),
    "TensorBoard is written": (f"*/{BOARD}/*", 4, 0.01),
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

    with ocp.CheckpointManager((run / resume.CHECKPOINTS).absolute()) as manager:
        args = ocp.args.Composite(state=ocp.args.StandardRestore())
        restored = manager.restore(manager.latest_step(), args=args).state
    leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in leaves}


def begin(run: pathlib.Path, data: pathlib.Path, recipe: list[str], *program: str) -> subprocess.Popen:
    """A training process, by default the command as it is typed."""
    command = [sys.executable, *(program or ("-m", "mcis.launch")), *OPTIONS, *recipe, f"--data_dir={data}"]
    command += [f"--runs_dir={run.parent}", f"--run={run.name}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def kill(begin: Callable[..., subprocess.Popen], moment: str, life: float, rng: random.Random) -> bool:
    """Begin a run and have it killed; whether it was. `life` is how long it lives unharmed, in seconds."""
    pattern, times, seconds = MOMENTS[moment]
    if pattern:
        late = rng.choice((0.0, rng.uniform(0.0, seconds)))
        process = begin(str(DOOMED), pattern, str(rng.randrange(times)), str(late))
    else:
        process = begin()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.0, life))
        process.kill()
    said, _ = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"a run that was gone on with broke off:\n{said.decode()}")
    return process.returncode != 0


def finish(begin: Callable[..., subprocess.Popen]) -> float:
    """Train until the end; seconds it took."""
    began, process = time.monotonic(), begin()
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run could not be gone on with:\n{said.decode()}")
    return time.monotonic() - began


def main() -> int:
    """Kill, go on, compare; exit status 0 where every run ended where it should have."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, counts, tried = random.Random(options.seed), collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory(prefix="mcis_drills_") as place:
        folder = pathlib.Path(place)
        truth, life = {}, {}
        for recipe, words in RECIPES.items():
            whole = folder / "runs" / "whole"
            undisturbed = functools.partial(begin, whole, folder / "data", words)
            finish(undisturbed)
            shutil.rmtree(whole)
            life[recipe] = finish(undisturbed)  # a second time, with compiled programs at hand
            truth[recipe] = checksum(whole)
            shutil.rmtree(whole)
        runs, equal = 0, 0
        while sum(counts.values()) < options.kills:
            run, recipe = folder / "runs" / f"run{runs}", list(RECIPES)[runs % len(RECIPES)]
            again = functools.partial(begin, run, folder / "data", RECIPES[recipe])
            for _ in range(min(KILLS_A_RUN, options.kills - sum(counts.values()))):
                fewest = min(counts[moment] for moment in MOMENTS)
                moment = rng.choice([moment for moment in MOMENTS if counts[moment] <= fewest + 1])
                tried[moment] += 1
                if not kill(again, moment, life[recipe], rng):  # it came to its end
                    if tried[moment] > 20 * (counts[moment] + 1):
                        raise SystemExit(f"a run is never killed while {moment}: does it still come by that?")
                    break
                counts[moment] += 1
            finish(again)
            found, runs = checksum(run), runs + 1
            same = found == truth[recipe]
            equal += same
            differing = [name for name in found if found[name] != truth[recipe][name]]
            told = "the same" if same else f"{differing} differ"
            print(f"{run.name}, {recipe}: {sum(counts.values())} kills so far, {told}", flush=True)
            shutil.rmtree(run)
    print("| killed while | times |\n|---|---|")
    for moment in MOMENTS:
        print(f"| {moment} | {counts[moment]} |")
    print(f"{sum(counts.values())} kills in {runs} runs; {equal} of {runs} ended where the run that nobody killed did")
    return 0 if equal == runs else 1


if __name__ == "__main__":
    sys.exit(main())
