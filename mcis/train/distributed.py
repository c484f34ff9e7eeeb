"""One training in several processes, on one host or many: how they connect, and what they must agree on.

Every process runs the same program over the devices of all processes, feeds its own devices, and ends each step with
the same numbers. Only process 0 writes and prints. All processes need the same folders of runs and data.
"""

import collections
import contextlib
import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

Step = Callable[[Any, Any], tuple[Any, Any]]
COLLECTIVE = re.compile(r"\b(Gloo|NCCL)\b")
"""Matches a ValueError of XLA that says that the connection between processes failed."""


class Lost(OSError):
    """Another process of this training has ended or cannot be reached."""


def join(coordinator: str | None, processes: int | None, process: int | None, heartbeat: int) -> None:
    """Connect this process with the others; must be called before JAX is used. Does nothing for a single process.

    Where none of the first three is given, Slurm's are used if it started this process as one of several tasks of a
    step (srun). Each task then uses the GPU whose number is the task's number on its node.

    Args:
      coordinator: HOST:PORT at which process 0 listens.
      processes: number of processes.
      process: number of this one, from 0.
      heartbeat: seconds without a message after which a process counts as lost.

    Raises:
      ValueError: only some of the first three are given, or they contradict each other.
      Lost: the other processes cannot be reached.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(f"{', '.join(missing)} is missing: several processes need all of {', '.join(given)}")
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if missing and tasks < 2:
        return
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"--coordinator={coordinator}: it must be HOST:PORT")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"--process={process}: with --processes={processes} it must be 0 to {processes - 1}")
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is handled by `with_control_flags`
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            cluster_detection_method="slurm" if missing else "deactivate",
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except jax.errors.JaxRuntimeError as error:
        raise Lost(f"the other processes cannot be reached: {str(error).splitlines()[0]}") from None
    if missing and jax.process_count() != tasks:
        raise ValueError(f"Slurm started {tasks} tasks in this step, but {jax.process_count()} connected")


def alone() -> bool:
    """Whether there is only one process."""
    return jax.process_count() == 1


def is_first() -> bool:
    """Whether this is process 0, which writes and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """Turn the errors by which JAX reports that another process is gone into Lost."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if isinstance(error, ValueError) and not COLLECTIVE.search(str(error)):
            raise
        raise Lost(
            f"process {jax.process_index()} of {jax.process_count()} has lost another one and stops; run the same "
            f"command again in each, to resume from the last checkpoint ({str(error).splitlines()[0][:200]})"
        ) from None


def wait(where: str) -> None:
    """Wait until every process has reached `where`."""
    if not alone():
        multihost_utils.sync_global_devices(where)


def processes_here() -> int:
    """Number of processes on this machine. Every process must call it."""
    if alone():
        return 1
    name = int.from_bytes(hashlib.sha256(socket.gethostname().encode()).digest()[:4], "big")
    return int((multihost_utils.process_allgather(np.uint32(name)) == name).sum())


def check_same_settings(settings: dict[str, Any]) -> None:
    """ValueError in every process unless all of them have the same settings (JSON values)."""
    if alone():
        return
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()
    digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
    others = [number for number, other in enumerate(digests) if (other != digests[0]).any()]
    if others:
        raise ValueError(
            f"process {', '.join(map(str, others))} of {jax.process_count()} has other settings or scans than process "
            "0: start all with the same command, code and data"
        )


def with_control_flags(step: Step, axis_name: str | None = None) -> Step:
    """Add control flags to a step: (state, (batch, flags)) -> (state, (metrics, those flags that any process has set)).

    Flags are bool (devices, F) on the way in and int32 (F,) on the way out. They are reduced in the step's own program,
    because processes might run a second program and the step's in different orders and then wait for each other
    forever. The barrier puts the reduction after the sums inside the step's loops, for the same reason.
    """

    def flagged(state: Any, inputs: tuple[Any, jax.Array]) -> tuple[Any, tuple[Any, jax.Array]]:
        batch, flags = inputs
        state, metrics = step(state, batch)
        any_flag, metrics = jax.lax.optimization_barrier((flags.any(0).astype(jnp.int32), metrics))
        return state, (metrics, any_flag if axis_name is None else jax.lax.pmax(any_flag, axis_name))

    return flagged


def make_agreement(delay: int) -> Callable[[Sequence[bool], jax.Array], Sequence[bool]]:
    """A function of (this process's flags, `with_control_flags`' result) that returns the same flags in every process.

    Every process calls it after each step. A flag takes effect `delay` calls after it was set: the result of an older
    step is available without waiting for the device. When one takes effect, flags set meanwhile are dropped. A single
    process gets its own flags back at once.
    """
    pending: collections.deque[jax.Array] = collections.deque()

    def agree(own_flags: Sequence[bool], any_flags: jax.Array) -> Sequence[bool]:
        if alone():
            return own_flags
        pending.append(any_flags)
        if len(pending) <= delay:
            return [False] * len(own_flags)
        agreed = [bool(flag) for flag in np.asarray(pending.popleft())]
        if any(agreed):
            pending.clear()
        return agreed

    return agree
