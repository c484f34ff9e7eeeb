"""Times of a training step over several virtual devices of one CPU, and of the training loop; used by bench.py.

    python tests/lanes/bench/devices.py DEVICES ROUNDS

Prints a JSON object of milliseconds a step: "plain", the jitted step on one device with its batch in place; "jit" and
"pmap", the step as training runs it, with the batch fed from the host; "loop", the wall-clock time of `mcis train`
without validation, from its log, which saves after each epoch of about thirty steps. The difference from "plain" is the
cost of distributing the step and of the loop.
"""

import dataclasses
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={sys.argv[1]} " + os.environ.get("XLA_FLAGS", "")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from mcis.cli.build import build
from mcis.cli.common import keep_memory
from mcis.data import batches, dataset
from mcis.tasks.config import Pretraining
from mcis.tasks.table import TASKS
from mcis.train import distributed, loop, parallel, run_record, step

STEPS = 5
"""Steps a turn, so that the device computes while the host prepares the next step, as in training."""
TASK = dataclasses.replace(
    TASKS["segment_breast"], sources=("phantom",), size=128, batch_size=16, start=Pretraining(), epochs=3
)


def turns(spread, axis, mesh, batch):
    """A function that runs STEPS steps and returns the milliseconds of one."""
    model, optimizer = TASK.make_model(axis, train=True), step.make_optimizer(TASK, 100)
    state = step.create_state(TASK, model, optimizer, 0)
    plain = step.make_train_step(TASK, model, optimizer, axis)
    if spread is None:
        one, given = jax.jit(plain, donate_argnums=0), jax.device_put(batch, jax.devices()[0])
    else:
        one = spread(distributed.with_control_flags(plain, axis), mesh)
        given, state = (batch, np.zeros((mesh.size, 2), bool)), parallel.put(state, mesh)
    reached = [state]

    def run():
        began = time.perf_counter()
        for _ in range(STEPS):
            reached[0], _ = one(reached[0], given)
        jax.block_until_ready(reached[0].params)
        return 1e3 * (time.perf_counter() - began) / STEPS

    return run


def main():
    """Measure in turns and print."""
    keep_memory()
    rounds, mesh = int(sys.argv[2]), parallel.make_mesh()
    with tempfile.TemporaryDirectory() as folder:
        build("phantom", data_dir=folder, per_class=250, progress=False)
        scans = [dataset.load(("phantom",), split, folder, "breast") for split in ("train", "validation")]
        label = batches.targets(scans[0], TASK)
        batch = batches.training_batches(scans[0], label, *batches.balance(scans[0], TASK), TASK.batch_size, 0)[0]
        axis = parallel.AXIS if mesh.size > 1 else None
        sides = {
            "plain": turns(None, None, mesh, batch),
            "jit": turns(parallel.parallel_train_step, axis, mesh, batch),
            "pmap": turns(parallel.pmap_train_step, parallel.AXIS, mesh, batch),
        }
        times = {name: [run() for _ in range(2)] and [] for name, run in sides.items()}
        for _ in range(rounds):
            for name, run in sides.items():
                times[name].append(run())
        found = {name: statistics.median(values) for name, values in times.items()}
        run_dir = pathlib.Path(folder) / "run"
        loop.train(TASK, *scans, run_dir)
        lines = [json.loads(line) for line in (run_dir / run_record.LOG).read_text().splitlines()]
        per_epoch = lines[0]["step"]
        found["loop"] = statistics.median(1e3 * line["train_seconds"] / per_epoch for line in lines[1:])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
