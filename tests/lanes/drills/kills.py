"""`make drills`: trainings that are killed a hundred times must end with the bits of one that was not killed.

Real processes train on phantoms and get SIGKILL, at a random moment or while a file is written (`doomed.py`): a
checkpoint, its hashes, the best weights, the log. Each run is started again until it is complete, and is then compared
with an undisturbed one: the weights, the log but for durations, and the state in the last checkpoint. Every other run
has a pretraining stage at another size.

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
from mcis.train import resume, run_record, tensorboard

DOOMED = pathlib.Path(__file__).with_name("doomed.py")
KILLS_A_RUN = 5
OPTIONS = ["--task=segment_brain", "--sources=phantom", "--features=4", "--batch_size=4", "--model=light"]
OPTIONS += ["--save_minutes=0.01"]
RECIPES = {
    "at one size": ["--size=32", "--epochs=4"],
    "with a pretraining stage": ["--size=64", "--epochs=2", "--start.size=32", "--start.epochs=2"],
}

# A kind of moment -> the pattern of paths, the number of operations on them of which one is chosen, and the largest
# delay in seconds after which the process is killed.
MOMENTS = {
    "anywhere": ("", 0, 0.0),
    "a checkpoint is written": (f"*/{resume.CHECKPOINTS}/*tmp*", 20, 0.1),
    "its hashes are written": (f"*/.{resume.HASHES}.*.tmp", 6, 0.001),
    "the best weights are written": (f"*/.{checkpoint.BEST}.tmp*", 6, 0.1),
    "the best weights are exchanged": (f"*/.{checkpoint.BEST}.old", 4, 0.001),
    "the log is written": (f"*/.{run_record.LOG}.*.tmp", 6, 0.001),
    "a session is written down": (f"*/.{run_record.RUN}.*.tmp", 2, 0.001),
    "TensorBoard is written": (f"*/{tensorboard.FOLDER}/*", 4, 0.01),
}


def checksum(run: pathlib.Path) -> dict[str, str]:
    """Hashes of a run's best weights and of its last state, and its log without durations."""
    variables, _ = checkpoint.load(run / checkpoint.BEST)
    weights = hashlib.sha256()
    for name, value in checkpoint.flatten(variables).items():
        weights.update(name.encode() + value.tobytes())
    lines = [json.loads(line) for line in (run / run_record.LOG).read_text().splitlines()]
    metrics = [{name: value for name, value in line.items() if not name.endswith("seconds")} for line in lines]
    state = hashlib.sha256()
    for name, value in last_state(run).items():
        state.update(name.encode() + value.tobytes())
    return {"weights": weights.hexdigest(), "log": json.dumps(metrics), "state": state.hexdigest()}


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
    """Start a training process, by default the command itself."""
    command = [sys.executable, *(program or ("-m", "mcis.launch")), *OPTIONS, *recipe, f"--data_dir={data}"]
    command += [f"--runs_dir={run.parent}", f"--run={run.name}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def kill(begin: Callable[..., subprocess.Popen], moment: str, life: float, rng: random.Random) -> bool:
    """Start a run and kill it; returns whether it was killed. `life` is its duration in seconds when it is not."""
    pattern, times, seconds = MOMENTS[moment]
    if pattern:
        delay = rng.choice((0.0, rng.uniform(0.0, seconds)))
        process = begin(str(DOOMED), pattern, str(rng.randrange(times)), str(delay))
    else:
        process = begin()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.0, life))
        process.kill()
    printed, _ = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"a resumed run failed:\n{printed.decode()}")
    return process.returncode != 0


def finish(begin: Callable[..., subprocess.Popen]) -> float:
    """Train to the end; returns the duration in seconds."""
    began, process = time.monotonic(), begin()
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run could not be resumed:\n{printed.decode()}")
    return time.monotonic() - began


def main() -> int:
    """Kill, resume, compare; exit status 0 if every run ended as the undisturbed one."""
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
            life[recipe] = finish(undisturbed)  # the second time, programs are compiled already
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
                if not kill(again, moment, life[recipe], rng):  # it was complete before
                    if tried[moment] > 20 * (counts[moment] + 1):
                        raise SystemExit(f"no run was killed while {moment}: does that still happen?")
                    break
                counts[moment] += 1
            finish(again)
            found, runs = checksum(run), runs + 1
            same = found == truth[recipe]
            equal += same
            differing = [name for name in found if found[name] != truth[recipe][name]]
            result = "the same" if same else f"{differing} differ"
            print(f"{run.name}, {recipe}: {sum(counts.values())} kills so far, {result}", flush=True)
            shutil.rmtree(run)
    print("| killed while | times |\n|---|---|")
    for moment in MOMENTS:
        print(f"| {moment} | {counts[moment]} |")
    print(f"{sum(counts.values())} kills in {runs} runs; {equal} of {runs} ended with the bits of an undisturbed run")
    return 0 if equal == runs else 1


if __name__ == "__main__":
    sys.exit(main())
