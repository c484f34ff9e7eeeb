"""A step on many devices, of one process or several: parameters are replicated, the batch is split evenly.

Each device runs the step on its part of the batch, and the step itself sums over all devices. So batch normalisation
and the gradient are those of the whole batch, and the numbers are the same for any number of devices, up to rounding.

XLA's partitioner is not used. It would sum each strip of a convolution's weight gradient (`mcis.ops.conv`) inside a
loop; CPU devices may reach that sum and others in different orders, and would wait for each other forever.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"
"""Name of the only axis, of the mesh and of pmap: the batch is split along it, and a step sums over it."""
WHOLE, SPLIT = PartitionSpec(), PartitionSpec(AXIS)
"""A copy on every device; split along the first axis."""


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh, by default over the devices of all processes; those of one process are adjacent."""
    devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def share_of(batch_size: int, mesh: Mesh) -> slice:
    """The rows of a batch that this process's devices compute."""
    rows = batch_size // mesh.size
    local = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    return slice(local[0] * rows, (local[-1] + 1) * rows)


def check_batch(batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """ValueError unless each of the batch's `parts` divides evenly among the devices."""
    divisor = mesh.size * parts
    if batch_size % divisor:
        what = f"{mesh.size} devices" + (f" in {parts} parts" if parts > 1 else "")
        raise ValueError(f"--batch_size={batch_size} does not divide among {what}: choose a multiple of {divisor}")


def put(tree: Any, mesh: Mesh) -> Any:
    """A pytree, the same in every process, copied to every device of the mesh."""
    whole = NamedSharding(mesh, WHOLE)
    if jax.process_count() == 1:
        return jax.device_put(tree, whole)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(whole, np.asarray(x)), tree)


def feed(rows: Any, mesh: Mesh) -> Any:
    """This process's rows of a batch, a pytree, put onto its devices: arrays of the whole batch."""
    split = NamedSharding(mesh, SPLIT)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), rows)


def parallel_train_step(step: Callable, mesh: Mesh) -> Callable:
    """Jit a train step over the mesh: (state, this process's rows of a batch) -> (state, metrics).

    The state's buffers are reused. `step` must sum over AXIS itself, unless the mesh has only one device.
    """
    return _over_mesh(step, mesh, WHOLE, donate_argnums=0)


def parallel_evaluation_step(step: Callable, mesh: Mesh) -> Callable:
    """Jit an evaluation step over the mesh: (variables, this process's rows of a batch) -> results of all rows."""
    return _over_mesh(step, mesh, SPLIT, out_shardings=NamedSharding(mesh, WHOLE))


def _over_mesh(step: Callable, mesh: Mesh, out_specs: PartitionSpec, **options: Any) -> Callable:
    # check_vma=False, because JAX would otherwise add sums of its own to the gradients of replicated parameters
    sharded = jax.shard_map(step, mesh=mesh, in_specs=(WHOLE, SPLIT), out_specs=out_specs, check_vma=False)
    compiled = jax.jit(sharded, **options)
    return lambda replicated, rows: compiled(replicated, feed(rows, mesh))


def pmap_train_step(step: Callable, mesh: Mesh) -> Callable:
    """The same as `parallel_train_step`, by pmap."""
    mapped = jax.pmap(
        step, AXIS, in_axes=(None, 0), out_axes=(None, None), donate_argnums=0, devices=list(mesh.devices.flat)
    )
    local, whole = len(mesh.local_devices), NamedSharding(mesh, WHOLE)

    def global_array(x: jax.Array) -> jax.Array:  # pmap returns arrays of this process's devices only
        return jax.make_array_from_single_device_arrays(x.shape, whole, [shard.data for shard in x.addressable_shards])

    def run(state: Any, rows: Any) -> Any:
        result = mapped(state, jax.tree.map(lambda x: x.reshape(local, -1, *x.shape[1:]), rows))
        return result if jax.process_count() == 1 else jax.tree.map(global_array, result)

    return run
