"""From canvas to probabilities: a task's network, or an ensemble's, as training, evaluation and cascade use it."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp

from mcis.models import Outputs
from mcis.ops.calibration import calibrated
from mcis.ops.crf import CRF, mean_field
from mcis.ops.image import DENOISE, EDGES, resize, standardise, to_float
from mcis.tasks.config import Task

NETWORK = ("params", "batch_stats")
"""Collections of variables that are the network's own."""
MEMBERS = "members"
"""The collection that holds an ensemble's networks: arrays with one more axis in front."""
APART = "apart"
"""The collection that holds them as `place` lays them out."""


def place(variables: dict[str, Any]) -> dict[str, Any]:
    """One task's variables on the device, ready to answer fast: an ensemble's networks as arrays of their own, APART.

    Cut out of MEMBERS in each call they would be copied.
    """
    placed = {name: tree for name, tree in variables.items() if name != MEMBERS}
    if MEMBERS in variables:
        count = len(jax.tree.leaves(variables[MEMBERS])[0])
        placed[APART] = [jax.tree.map(lambda x, k=k: x[k], variables[MEMBERS]) for k in range(count)]
    return jax.device_put(placed)


def prepare(image: jax.Array, size: int, denoise: str = "none") -> jax.Array:
    """Scans as augmentation takes them: uint8 (B, H, W, 3) -> float32 (B, size, size, 3), [0, 1]."""
    small = resize(to_float(image), (size, size))
    remove = DENOISE[denoise]
    return small if remove is None else remove(small)


def present(image: jax.Array, edges: str = "none", each_channel: bool = False) -> jax.Array:
    """Prepared scans as networks take them: standardised, with an edge map if asked, which is standardised as well.

    Float32 (B, S, S, 3) in [0, 1] -> float32 (B, S, S, 3 or 4).
    """
    draw = EDGES[edges]
    scans = standardise(image, each_channel)
    return scans if draw is None else jnp.concatenate([scans, standardise(draw(image))], -1)


def make_network(task: Task) -> Callable[[dict, jax.Array], tuple[Outputs, jax.Array]]:
    """The task's network from canvas to probabilities at its own size, before any CRF.

    Args:
      task: whose network it is.

    Returns:
      function of (variables, uint8 (B, H, W, 3)) -> Outputs: mask probabilities float32 (B, size, size, 1), label
      probabilities (B, K), features (B, F), None where the network has no such head, and no mask from a classifier;
      and the prepared scans, float32 (B, size, size, 3) in [0, 1].

      Variables with MEMBERS, or APART of `place`, are an ensemble's: the answer is the mean of theirs. With
      "calibration" (`ops.calibration`), label probabilities are put through it.
    """
    model = task.make_model()

    def network(variables, image):
        prepared = prepare(image, task.size, task.denoise)
        shown = present(prepared, task.edges, task.each_channel)

        def answer(member):
            outputs = cast(Outputs, model.apply(member, shown, train=False))
            # a classifier's coarse mask only tells it where to look
            mask = jax.nn.sigmoid(outputs.mask) if task.segments and outputs.mask is not None else None
            label = None if outputs.label is None else jax.nn.softmax(outputs.label)
            return Outputs(mask, label, outputs.features)

        if APART in variables:
            several = [answer(member) for member in variables[APART]]
            outputs = jax.tree.map(lambda *each: sum(each) / len(each), *several)
        elif MEMBERS in variables:  # one after the other: compiled once, and in the memory of one
            outputs = jax.tree.map(lambda x: x.mean(0), jax.lax.map(answer, variables[MEMBERS]))
        else:
            outputs = answer({name: tree for name, tree in variables.items() if name in NETWORK})
        if outputs.label is not None and "calibration" in variables:
            outputs = outputs.replace(label=calibrated(outputs.label, variables["calibration"]))
        return outputs, prepared

    return network


def make_expert(task: Task) -> Callable[[dict, jax.Array], Outputs]:
    """The task's network from canvas to canvas, as evaluation and cascade use it: with its CRF. Args as `make_network`.

    Returns:
      function of (variables, uint8 (B, H, W, 3)) -> Outputs of probabilities as `make_network`'s, the mask
      float32 (B, H, W, 1).
    """
    network = make_network(task)

    def expert(variables, image):
        outputs, prepared = network(variables, image)
        if outputs.mask is None:
            return outputs
        mask = on_canvas(outputs.mask, prepared, task.crf, image.shape[1:3])
        return Outputs(mask, outputs.label, outputs.features)

    return expert


def on_canvas(mask: jax.Array, prepared: jax.Array, crf: CRF, size: tuple[int, int]) -> jax.Array:
    """Mask probabilities (B, s, s, 1) through the CRF and resized: float32 (B, *size, 1)."""
    return resize(mean_field(mask, prepared, crf), size)
