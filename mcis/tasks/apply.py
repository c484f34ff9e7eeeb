"""A task's network, or an ensemble's, from scans to probabilities: for training, evaluation and the cascade."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mcis.models import Outputs
from mcis.ops.calibration import calibrated
from mcis.ops.crf import CRF, mean_field
from mcis.ops.image import DENOISE, EDGES, resize, standardise, to_float
from mcis.tasks.config import Task

NETWORK = ("params", "batch_stats")
"""Collections of variables that a network itself has."""
MEMBERS = "members"
"""The collection of an ensemble's networks, stacked: arrays with one more axis in front."""
UNSTACKED = "unstacked"
"""The collection of an ensemble's networks as a list, made by `place`."""


def place(variables: dict[str, Any]) -> dict[str, Any]:
    """One task's variables on the device, ready for inference. An ensemble's networks become UNSTACKED arrays.

    Slices of MEMBERS would be copied in each call.
    """
    placed = {name: tree for name, tree in variables.items() if name != MEMBERS}
    if MEMBERS in variables:
        count = len(jax.tree.leaves(variables[MEMBERS])[0])
        placed[UNSTACKED] = [jax.tree.map(lambda x, k=k: x[k], variables[MEMBERS]) for k in range(count)]
    return jax.device_put(placed)


def prepare(image: jax.Array, size: int, denoise: str = "none") -> jax.Array:
    """Scans at a size, without noise: uint8 (B, H, W, 3) -> float32 (B, size, size, 3) in [0, 1].

    The size is the network's, or in training that of the canvas which is augmented (`train.step.CANVAS`).
    """
    resized = resize(to_float(image), (size, size))
    remove_noise = DENOISE[denoise]
    return resized if remove_noise is None else remove_noise(resized)


def present(
    image: jax.Array, edges: str = "none", each_channel: bool = False, inside: bool = False, grey: bool = False
) -> jax.Array:
    """The network's input: prepared scans, standardised, with a standardised edge map as a further channel if any.

    Float32 (B, S, S, 3) in [0, 1] -> float32 (B, S, S, 3 or 4). With `grey` every channel is the mean of the three.
    """
    if grey:
        image = jnp.broadcast_to(image.mean(-1, keepdims=True), image.shape)
    edge_map = EDGES[edges]
    scans = standardise(image, each_channel, inside)
    return scans if edge_map is None else jnp.concatenate([scans, standardise(edge_map(image))], -1)


def make_network(task: Task) -> Callable[[dict, jax.Array], tuple[Outputs, jax.Array]]:
    """The task's network from scans to probabilities at its own size, before any CRF.

    Returns:
      function of (variables, uint8 (B, H, W, 3)) -> Outputs: mask probabilities float32 (B, size, size, 1), label
      probabilities (B, K), features (B, F), None where the network has no such head, and no mask for a classifier;
      and the prepared scans, float32 (B, size, size, 3) in [0, 1].

      Variables with MEMBERS or UNSTACKED are an ensemble's: the outputs are the mean of its networks'. With
      "calibration" (`ops.calibration`), the label probabilities are calibrated.
    """
    model = task.make_model()

    def network(variables, image):
        prepared = prepare(image, task.size, task.denoise)
        shown = present(prepared, task.edges, task.each_channel, task.inside, task.grey)

        def apply(member):
            outputs: Any = model.apply(member, shown, train=False)
            # a classifier's coarse mask serves its attention alone
            mask = jax.nn.sigmoid(outputs.mask) if task.segments and outputs.mask is not None else None
            logits = outputs.label
            if logits is not None and task.transplant:  # logit adjustment (Menon et al. 2021)
                logits = logits - jnp.asarray([task.excess])
            label = None if logits is None else jax.nn.softmax(logits)
            return Outputs(mask, label, outputs.features)

        if UNSTACKED in variables:
            several = [apply(member) for member in variables[UNSTACKED]]
            outputs = jax.tree.map(lambda *each: sum(each) / len(each), *several)
        elif MEMBERS in variables:  # sequentially: compiled once, with the memory of one network
            outputs = jax.tree.map(lambda x: x.mean(0), jax.lax.map(apply, variables[MEMBERS]))
        else:
            outputs = apply({name: tree for name, tree in variables.items() if name in NETWORK})
        if outputs.label is not None and "calibration" in variables:
            outputs = outputs.replace(label=calibrated(outputs.label, variables["calibration"]))
        return outputs, prepared

    return network


def make_expert(task: Task) -> Callable[[dict, jax.Array], Outputs]:
    """The task's network with its CRF: `make_network`'s function, whose masks have the scans' size (B, H, W, 1)."""
    network = make_network(task)

    def expert(variables, image):
        outputs, prepared = network(variables, image)
        if outputs.mask is None:
            return outputs
        mask = refined_mask(outputs.mask, prepared, task.crf, image.shape[1:3])
        return Outputs(mask, outputs.label, outputs.features)

    return expert


def refined_mask(mask: jax.Array, prepared: jax.Array, crf: CRF, size: tuple[int, int]) -> jax.Array:
    """Mask probabilities (B, s, s, 1) of prepared scans (B, s, s, 3), through the CRF and resized: (B, *size, 1)."""
    return resize(mean_field(mask, prepared, crf), size)
