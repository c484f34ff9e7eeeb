"""From canvas to probabilities: a task's network, or an ensemble's, as training, evaluation and cascade use it."""

from collections.abc import Callable, Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mcis.models import Outputs
from mcis.ops.calibration import calibrated
from mcis.ops.crf import CRF, mean_field
from mcis.ops.image import DENOISE, EDGES, resize, standardise, to_float
from mcis.tasks import Task

NETWORK = ("params", "batch_stats")
"""Collections of variables that are the network's own."""
MEMBERS = "members"
"""The collection that holds an ensemble's networks; the mesh's axis over which they answer side by side."""
APART = "apart"
"""The collection that holds them as `place` lays them out."""


def member_mesh(several: Iterable[dict[str, Any]]) -> Mesh | None:
    """The CPU devices over which the networks of ensembles answer side by side; None for one after the other.

    A small network keeps one core of a CPU busy at batch 1 (docs/performance.md): where JAX has several devices on it
    (`command.one_device_a_core`), each takes some of the networks. A GPU is filled by one.

    Args:
      several: some tasks' variables.
    """
    count = max((len(leaf) for one in several for leaf in jax.tree.leaves(one.get(MEMBERS))), default=1)
    devices = jax.local_devices()[:count]
    if len(devices) < 2 or devices[0].platform != "cpu":
        return None
    return jax.make_mesh((len(devices),), (MEMBERS,), axis_types=(AxisType.Auto,), devices=devices)


def place(variables: dict[str, Any], mesh: Mesh | None = None) -> dict[str, Any]:
    """One task's variables on the devices of a mesh of `member_mesh`, or on the one there is, ready to answer fast.

    An ensemble's networks become arrays of their own, APART: {"rounds": of so many networks as there are devices, each
    with one more axis in front, which is divided among these; "share": float32 (rounds, devices), of the mean, 0 where
    a device has nothing left to do}. Cut out of MEMBERS in each call they would be copied.
    """
    size = 1 if mesh is None else mesh.size
    whole, along, across = (
        None if mesh is None else NamedSharding(mesh, PartitionSpec(*spec))
        for spec in ((), (MEMBERS,), (None, MEMBERS))
    )
    placed = jax.device_put({name: tree for name, tree in variables.items() if name != MEMBERS}, whole)
    if MEMBERS in variables:
        count = len(jax.tree.leaves(variables[MEMBERS])[0])
        order = np.arange(-(-count // size) * size).reshape(-1, size)
        rounds = [jax.tree.map(lambda x, k=k: x[np.minimum(k, count - 1)], variables[MEMBERS]) for k in order]
        share = ((order < count) / count).astype(np.float32)
        placed[APART] = {"rounds": jax.device_put(rounds, along), "share": jax.device_put(share, across)}
    return placed


def _side_by_side(answer: Callable[[Any], Any], apart: dict[str, Any], mesh: Mesh | None) -> Any:
    """The mean of what `place`'s networks answer, a tree of arrays."""

    def mine(apart):
        total = None
        for k, members in enumerate(apart["rounds"]):
            part = jax.tree.map(lambda x, k=k: x * apart["share"][k, 0], answer(jax.tree.map(lambda x: x[0], members)))
            total = part if total is None else jax.tree.map(jnp.add, total, part)
        return total if mesh is None else jax.lax.psum(total, MEMBERS)

    if mesh is None:
        return mine(apart)
    divided = {"rounds": PartitionSpec(MEMBERS), "share": PartitionSpec(None, MEMBERS)}
    return jax.shard_map(mine, mesh=mesh, in_specs=(divided,), out_specs=PartitionSpec(), check_vma=False)(apart)


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


def make_network(task: Task, mesh: Mesh | None = None) -> Callable[[dict, jax.Array], tuple[Outputs, jax.Array]]:
    """The task's network from canvas to probabilities at its own size, before any CRF.

    Args:
      task: whose network it is.
      mesh: of `member_mesh`, on which `place` has put the variables.

    Returns:
      function of (variables, uint8 (B, H, W, 3)) -> Outputs: mask probabilities float32 (B, size, size, 1), label
      probabilities (B, K), features (B, F), None where the network has no such head, and no mask from a classifier;
      and the prepared scans, float32 (B, size, size, 3) in [0, 1].

      Variables with MEMBERS are an ensemble's: each array there has one more axis in front, the members, and the answer
      is the mean of theirs. With "calibration" (`ops.calibration`), label probabilities are put through it.
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
            outputs = _side_by_side(answer, variables[APART], mesh)
        elif MEMBERS in variables:  # one after the other: compiled once, and in the memory of one
            outputs = jax.tree.map(lambda x: x.mean(0), jax.lax.map(answer, variables[MEMBERS]))
        else:
            outputs = answer({name: tree for name, tree in variables.items() if name in NETWORK})
        if outputs.label is not None and "calibration" in variables:
            outputs = outputs.replace(label=calibrated(outputs.label, variables["calibration"]))
        return outputs, prepared

    return network


def make_expert(task: Task, mesh: Mesh | None = None) -> Callable[[dict, jax.Array], Outputs]:
    """The task's network from canvas to canvas, as evaluation and cascade use it: with its CRF. Args as `make_network`.

    Returns:
      function of (variables, uint8 (B, H, W, 3)) -> Outputs of probabilities as `make_network`'s, the mask
      float32 (B, H, W, 1).
    """
    network = make_network(task, mesh)

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
