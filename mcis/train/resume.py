"""The checkpoints of a run: all that training carries, written now and then, sealed by hashes, resumed from.

Orbax writes and restores them, each whole or not at all. It restores array data with a flipped bit without an error, so
that the hashes of every file are written down when it is written, and compared before it is restored.
"""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from mcis.checkpoints import checkpoint
from mcis.train import distributed
from mcis.train.run_record import differences
from mcis.train.step import TrainState

CHECKPOINTS = "checkpoints"
HASHES = "checkpoints.json"

Sums = dict[str, list[float]]
"""A metric's name -> its sum and count over the steps of an epoch so far."""


class Carried(NamedTuple):
    """All that training carries.

    The state; the log's lines of finished epochs; of the epoch that is not finished the sums and seconds so far.
    """

    state: TrainState
    history: list[dict[str, Any]]
    sums: Sums
    seconds: float


def open_checkpoints(run_dir: pathlib.Path) -> ocp.CheckpointManager:
    """Orbax's manager of a run's checkpoints, of which the two newest are kept; a context manager."""
    distributed.wait("checkpoints")  # what every process had to look at before, none of them changes
    options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
    return ocp.CheckpointManager(run_dir.absolute() / CHECKPOINTS, options=options)


def there_are(run_dir: pathlib.Path) -> bool:
    """Whether a run has checkpoints, whole or not."""
    return any(step.name.isdigit() for step in (run_dir / CHECKPOINTS).glob("*"))


def save(run_dir: pathlib.Path, manager: ocp.CheckpointManager, carried: Carried, settings: dict[str, Any]) -> None:
    """Write a checkpoint, which says of which run it is and what made it, and the hashes of its files."""
    made = {"settings": settings, "versions": checkpoint.versions(), "revision": checkpoint.revision()}
    told = {"history": carried.history, "sums": carried.sums, "seconds": carried.seconds, "made": made}
    # from the host: every device has the same, of which Orbax would have each write a slice, at three times the cost
    args = ocp.args.Composite(state=ocp.args.StandardSave(jax.device_get(carried.state)), told=ocp.args.JsonSave(told))
    checkpoint.check_room(run_dir, carried.state)
    with checkpoint.writing(run_dir):
        manager.save(int(carried.state.step), args=args)
        seal(run_dir, manager)


def restore(
    run_dir: pathlib.Path, manager: ocp.CheckpointManager, state: TrainState, settings: dict[str, Any]
) -> Carried:
    """What the newest checkpoint that is whole holds; `state` and nothing else where there never was one.

    One that was not sealed yet, because the process was killed just then, is taken as it is.

    Raises:
      ValueError: none of them is whole, the hashes are damaged, or it is of a run with other settings.
    """
    if manager.latest_step() is None:
        return Carried(state, [], {}, 0.0)
    sealed = _sealed(run_dir)
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    damaged = []
    for step in sorted(manager.all_steps(), reverse=True):
        folder = run_dir / CHECKPOINTS / str(step)
        if sealed.get(str(step)) not in (None, checkpoint.hashes(folder)):
            print(f"{folder} is damaged: its files are not those that were written; it is left out", flush=True)
            damaged.append(step)
            continue
        told = manager.restore(step, args=ocp.args.Composite(told=ocp.args.JsonRestore())).told
        if "made" not in told:
            raise ValueError(f"{folder} was written by an older version of mcis; start over with --fresh")
        if changed := differences(told.pop("made")["settings"], settings):
            raise ValueError(f"{folder} is a checkpoint of another run ({changed}); start over with --fresh")
        restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))
        for later in damaged:  # it is written anew, and sealed anew
            manager.delete(later)
        if damaged and distributed.is_first():
            _write_sealed(run_dir, {name: names for name, names in sealed.items() if int(name) <= step})
        return Carried(restored.state, **told)
    raise ValueError(f"{run_dir / CHECKPOINTS} holds no checkpoint that is whole; start over with --fresh")


def seal(run_dir: pathlib.Path, manager: ocp.CheckpointManager) -> None:
    """Write down the hashes of a checkpoint when it is written: later ones would be of what it has become."""
    manager.wait_until_finished()
    if not distributed.is_first():
        return
    before, folder = _sealed(run_dir), run_dir / CHECKPOINTS
    steps = [str(step) for step in manager.all_steps()]
    _write_sealed(run_dir, {step: before.get(step) or checkpoint.hashes(folder / step) for step in steps})


def _sealed(run_dir: pathlib.Path) -> dict[str, dict[str, str]]:
    """Step -> the hashes of its checkpoint's files, as they were written down."""
    file = run_dir / HASHES
    try:
        found = json.loads(file.read_text()) if file.exists() else {}
        return {step: dict(names) for step, names in dict(found).items()}
    except (ValueError, TypeError):
        raise ValueError(f"{file} is damaged; start over with --fresh, or restore it") from None


def _write_sealed(run_dir: pathlib.Path, sealed: dict[str, dict[str, str]]) -> None:
    checkpoint.write_text(run_dir / HASHES, json.dumps(sealed, indent=1) + "\n")
