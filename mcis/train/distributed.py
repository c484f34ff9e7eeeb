"""One training in several processes, on one host or many: how they join, and what they must agree on.

Every process runs the same program over the devices of all, feeds its own devices, and ends each step with the same
numbers; process 0 alone writes and prints. The folders of runs and of data must be the same for all of them.
"""

import collections
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

Step = Callable[[Any, Any], tuple[Any, Any]]
COLLECTIVE = re.compile(r"\b(Gloo|NCCL)\b")
"""In what XLA says where processes cannot compute together; it is a ValueError where that is seen before the device."""


class Lost(OSError):
    """Another process of this training is gone, or cannot be reached."""


def join(coordinator: str | None, processes: int | None, process: int | None, heartbeat: int) -> None:
    """Become one process of a training, before JAX has begun; nothing where there is one process only.

    Args:
      coordinator: HOST:PORT at which process 0 listens and the others find it.
      processes: how many there are.
      process: which one this is, from 0.
      heartbeat: seconds after which a process that says nothing counts as gone.

    Where none of the three is given, they are Slurm's if it has started this as one of several tasks of a step (srun):
    then each task has the one GPU of its number on its node, as JAX has it.

    Raises:
      ValueError: some of the three are given, not all; or they contradict each other.
      Lost: the others have not come.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(f"{', '.join(missing)} is missing: several processes need all of {', '.join(given)}")
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if missing and tasks < 2:
        return
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"--coordinator={coordinator}: HOST:PORT is needed")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"--process={process}: with --processes={processes} it is from 0 to {processes - 1}")
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours: `with_wishes` spreads it
    how = "slurm" if missing else "deactivate"
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method=how,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except jax.errors.JaxRuntimeError as error:
        raise Lost(f"the other processes have not been found: {str(error).splitlines()[0]}") from None
    if missing and jax.process_count() != tasks:
        raise ValueError(f"Slurm says that this step has {tasks} tasks, and {jax.process_count()} came")


def alone() -> bool:
    """Whether this is the only process."""
    return jax.process_count() == 1


def naming_the_lost(train: Callable[[], int]) -> Callable[[], int]:
    """`train`, whose error is Lost where a process it computes with is gone."""

    def named() -> int:
        try:
            return train()
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            if isinstance(error, ValueError) and not COLLECTIVE.search(str(error)):
                raise
            raise Lost(
                f"process {jax.process_index()} of {jax.process_count()} has lost another one, and stops; type the "
                f"same again, for each, to go on from the last checkpoint ({str(error).splitlines()[0][:200]})"
            ) from None

    return named


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def wait(where: str) -> None:
    """Go on when every process has come to `where`."""
    if not alone():
        multihost_utils.sync_global_devices(where)


def neighbours() -> int:
    """How many of the processes are on this machine, this one counted in; every process has to ask."""
    if alone():
        return 1
    name = int.from_bytes(hashlib.sha256(socket.gethostname().encode()).digest()[:4], "big")
    return int((multihost_utils.process_allgather(np.uint32(name)) == name).sum())


def check_alike(settings: dict[str, Any]) -> None:
    """ValueError in every process unless all of them have the same settings: JSON values."""
    if alone():
        return
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()
    all_of_them = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    others = [number for number, one in enumerate(all_of_them) if (one != all_of_them[0]).any()]
    if others:
        raise ValueError(
            f"process {', '.join(map(str, others))} of {jax.process_count()} has other settings, or other scans, than "
            "process 0: start all with the same command, of the same code, on the same data"
        )


def with_wishes(step: Step, axis_name: str | None = None) -> Step:
    """A step (state, (batch, wishes)) -> (state, (metrics, those of all)): bool (devices, W) -> (W,), what any wants.

    They travel in the step's own program, and after it: a second one with a collective could run before the step's here
    and after it there, and both would wait for ever. So could a collective of this one that nothing holds back until
    the loops are through in which the step sums.
    """

    def both(state: Any, given: tuple[Any, jax.Array]) -> tuple[Any, tuple[Any, jax.Array]]:
        batch, wishes = given
        state, metrics = step(state, batch)
        wanted, metrics = jax.lax.optimization_barrier((wishes.any(0).astype(jnp.int32), metrics))
        return state, (metrics, wanted if axis_name is None else jax.lax.pmax(wanted, axis_name))

    return both


def make_agreement(delay: int) -> Callable[[Sequence[bool], jax.Array], Sequence[bool]]:
    """A function that every process calls after each step with its wishes and `with_wishes`' of all.

    It tells all processes the same: a wish is granted `delay` calls later. By then the device has it anyway, while what
    it computes now would have to be waited for. Wishes on their way when one is granted are forgotten. One process
    gets what it wants at once.
    """
    waiting: collections.deque[jax.Array] = collections.deque()

    def agree(mine: Sequence[bool], of_all: jax.Array) -> Sequence[bool]:
        if alone():
            return mine
        waiting.append(of_all)
        if len(waiting) <= delay:
            return [False] * len(mine)
        granted = [bool(wish) for wish in np.asarray(waiting.popleft())]
        if any(granted):
            waiting.clear()
        return granted

    return agree
