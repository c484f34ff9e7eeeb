"""One step over many devices: jit over a mesh, parameters replicated, batch sharded along its first axis.

Under jit with shardings the program is written as for one device: batch normalisation sees the whole batch and the
gradient is that of the whole batch, whatever the number of devices.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh named "data" over `devices`, by default all."""
    devices = list(devices or jax.devices())
    return jax.make_mesh((len(devices),), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """Split along the first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def parallel_train_step(step: Callable, mesh: Mesh) -> Callable:
    """Jit a train step (state, batch) -> (state, metrics) over the mesh; the state's buffers are reused."""
    whole, split = replicated(mesh), sharded(mesh)
    return jax.jit(step, in_shardings=(whole, split), out_shardings=(whole, whole), donate_argnums=0)


def parallel_evaluation_step(step: Callable, mesh: Mesh) -> Callable:
    """Jit an evaluation step (variables, batch) -> per-scan results over the mesh."""
    return jax.jit(step, in_shardings=(replicated(mesh), sharded(mesh)), out_shardings=replicated(mesh))


def check_batch(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """ValueError unless the batch, or each of the parts it is taken in, divides evenly among the devices."""
    least = mesh.size * parts
    if batch_size % least:
        what = f"{mesh.size} devices" + (f" in {parts} parts" if parts > 1 else "")
        raise ValueError(f"--batch_size={batch_size} does not divide among {what}: choose a multiple of {least}")


def put(tree: Any, mesh: Mesh) -> Any:
    """A pytree copied to every device of the mesh."""
    return jax.device_put(tree, replicated(mesh))
