"""TensorBoard: a run's curves, and examples of what its network outlines, epoch by epoch.

    tensorboard --logdir runs

It is written without TensorFlow, and read by the tensorboard that the user has.
"""

import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from mcis.data.dataset import Scans
from mcis.imaging.overlay import overlay
from mcis.ops.metrics import MASK_THRESHOLD
from mcis.tasks.apply import make_expert
from mcis.tasks.config import Task
from mcis.train.step import make_schedule

BOARD = "tensorboard"
"""A run's folder of event files."""
EXAMPLES = 4

Watch = Callable[[dict[str, Any], dict[str, Any]], None]
"""What is told each epoch's log line and variables."""


def make_board(run_dir: pathlib.Path, task: Task, scans: Scans) -> Watch:
    """A function that writes an epoch's figures, its learning rate and some examples into the run's BOARD.

    An epoch that is trained again, after a crash, takes back what was written of it and of later ones.

    Args:
      run_dir: the run's folder.
      task: what it learns.
      scans: to validate on; of a segmenter EXAMPLES of them are shown, their outline at the left, the network's at the
        right, evenly chosen among those with a lesion.
    """
    import jax

    images, masks = scans.pixels.read(_examples(task, scans))
    expert = jax.jit(make_expert(task))

    def write(line: dict[str, Any], variables: dict[str, Any]) -> None:
        step, rate = line["step"], make_schedule(task, line["step"] // line["epoch"] * task.epochs)
        values = {f"{part}/{name}": value for part in ("train", "validation") for name, value in line[part].items()}
        # a file an epoch, for only closing one writes all of it; its name tells seconds, which does not suffice
        name = f".{os.getpid()}.{time.time_ns()}"
        with SummaryWriter(str(run_dir / BOARD), purge_step=step, filename_suffix=name) as writer:
            for name, value in (values | {"learning_rate": float(rate(step))}).items():
                writer.add_scalar(name, value, step)
            if len(images):
                found = np.asarray(expert(variables, images).mask) > MASK_THRESHOLD
                for k, (image, true, mask) in enumerate(zip(images, masks, found, strict=True)):
                    pair = [overlay(image, one[..., 0].astype(np.uint8)) for one in (true, mask)]
                    writer.add_image(f"examples/{k}", np.concatenate(pair, 1), step, dataformats="HWC")

    return write


def _examples(task: Task, scans: Scans) -> np.ndarray:
    """Rows of the scans that are shown."""
    if not task.segments:
        return np.zeros(0, int)
    lesion = np.flatnonzero(scans.has_mask & (scans.area > 0))
    return lesion[np.unique(np.linspace(0, len(lesion) - 1, min(EXAMPLES, len(lesion))).astype(int))]
