"""One step over many devices, of one process or of several: parameters replicated, the batch in equal shares.

Every device runs the step on its share, and the step itself says what is summed over all: batch normalisation sees
the whole batch and the gradient is that of the whole batch, whatever the number of devices; the same numbers, but for
the last bits. Nothing is left to XLA's partitioner: it would sum each strip of a convolution's weight gradient by
itself (`mcis.ops.conv`), within a loop, and a CPU's devices, which come by a loop's sums and by others in any order,
would wait for each other for ever.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"
"""The mesh's only axis, and pmap's: along it a batch is shared out, and a step sums over it."""


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over `devices`, by default all of all processes, those of a process side by side."""
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
    """Split along the first axis."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def share_of(batch_size: int, mesh: Mesh) -> slice:
    """The rows of a batch that are for this process's devices."""
    each = batch_size // mesh.size
    mine = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return slice(mine[0] * each, (mine[-1] + 1) * each)


def make_feed(mesh: Mesh) -> Callable[[Any], Any]:
    """A function that puts this process's rows of a batch, a pytree, onto its devices: the whole batch's arrays."""
    split = sharded(mesh)
    return lambda mine: jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), mine)


def parallel_train_step(step: Callable, mesh: Mesh) -> Callable:
    """Jit a train step (state, batch) -> (state, metrics) over the mesh; the state's buffers are reused.

    It takes the rows of this process. `step` is one that sums over AXIS itself, or any where the mesh has one device.
    """
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    # unchecked: JAX would else add sums of its own to the gradients of what every device has
    each = jax.shard_map(step, mesh=mesh, in_specs=(whole, split), out_specs=(whole, whole), check_vma=False)
    over_mesh = jax.jit(each, donate_argnums=0)
    feed = make_feed(mesh)
    return lambda state, mine: over_mesh(state, feed(mine))


def pmap_train_step(step: Callable, mesh: Mesh) -> Callable:
    """Like `parallel_train_step` by pmap; `step` is one that sums over AXIS itself."""
    over_devices = jax.pmap(
        step, AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=0, devices=list(mesh.devices.flat)
    )
    here, whole = len(mesh.local_devices), replicated(mesh)

    def stacked(x: np.ndarray) -> np.ndarray:
        return x.reshape(here, -1, *x.shape[1:])

    def of_all(x: jax.Array) -> jax.Array:  # pmap gives an array of this process's devices
        return jax.make_array_from_single_device_arrays(x.shape, whole, [shard.data for shard in x.addressable_shards])

    def over_mesh(state: Any, mine: Any) -> Any:
        after = over_devices(state, jax.tree.map(stacked, mine))
        return after if jax.process_count() == 1 else jax.tree.map(of_all, after)

    return over_mesh


def parallel_evaluation_step(step: Callable, mesh: Mesh) -> Callable:
    """Jit an evaluation step (variables, batch) -> per-scan results over the mesh.

    It takes the rows of this process, and gives the results of all.
    """
    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    each = jax.shard_map(step, mesh=mesh, in_specs=(whole, split), out_specs=split, check_vma=False)
    over_mesh = jax.jit(each, out_shardings=replicated(mesh))
    feed = make_feed(mesh)
    return lambda variables, mine: over_mesh(variables, feed(mine))


def check_batch(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """ValueError unless the batch, or each of the parts it is taken in, divides evenly among the devices."""
    least = mesh.size * parts
    if batch_size % least:
        what = f"{mesh.size} devices" + (f" in {parts} parts" if parts > 1 else "")
        raise ValueError(f"--batch_size={batch_size} does not divide among {what}: choose a multiple of {least}")


def put(tree: Any, mesh: Mesh) -> Any:
    """A pytree, the same in every process, copied to every device of the mesh."""
    whole = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, whole)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(whole, np.asarray(x)), tree)
