"""TensorBoard: a run's curves, and examples of its network's masks, epoch by epoch: `tensorboard --logdir runs`.

The files are written without TensorFlow; the user needs to install tensorboard to read them.
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

FOLDER = "tensorboard"
"""A run's folder of event files."""
EXAMPLES = 4
"""Number of scans that are shown."""


def make_summary_writer(
    run_dir: pathlib.Path, task: Task, scans: Scans
) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """A function of an epoch's log line and variables that writes its metrics, learning rate and example masks.

    When an epoch is trained again after a crash, what was written of it and of later ones is taken back.

    Args:
      run_dir: the run's folder; events go into its FOLDER.
      task: what is trained.
      scans: to validate on; for a segmenter EXAMPLES of those with a lesion are shown, with the true mask on the left
        and the predicted one on the right.
    """
    import jax

    images, masks = scans.pixels.read(_examples(task, scans))
    expert = jax.jit(make_expert(task))

    def write(line: dict[str, Any], variables: dict[str, Any]) -> None:
        step, rate = line["step"], make_schedule(task, line["step"] // max(line["epoch"], 1) * task.epochs)
        values = {f"{split}/{name}": value for split in ("train", "validation") for name, value in line[split].items()}
        # a file per epoch, because only closing one writes all of it; the default name is only unique within a second
        suffix = f".{os.getpid()}.{time.time_ns()}"
        with SummaryWriter(str(run_dir / FOLDER), purge_step=step, filename_suffix=suffix) as writer:
            for name, value in (values | {"learning_rate": float(rate(step))}).items():
                writer.add_scalar(name, value, step)
            if len(images):
                predicted = np.asarray(expert(variables, images).mask) > MASK_THRESHOLD
                for k, (image, *pair) in enumerate(zip(images, masks, predicted, strict=True)):
                    shown = [overlay(image, mask[..., 0].astype(np.uint8)) for mask in pair]
                    writer.add_image(f"examples/{k}", np.concatenate(shown, 1), step, dataformats="HWC")

    return write


def _examples(task: Task, scans: Scans) -> np.ndarray:
    """Rows of the scans that are shown, evenly spread over those with a lesion."""
    if not task.segments:
        return np.zeros(0, int)
    lesion = np.flatnonzero(scans.has_mask & (scans.area > 0))
    return lesion[np.unique(np.linspace(0, len(lesion) - 1, min(EXAMPLES, len(lesion))).astype(int))]
