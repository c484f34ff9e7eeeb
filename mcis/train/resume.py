"""The checkpoints of a run: everything that training needs to resume, saved regularly, with hashes of every file.

Orbax writes and restores each of them completely or not at all. It restores array data with a flipped bit without an
error, so the hashes of all files are stored when they are written, and compared before they are restored.
"""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from mcis.checkpoints import checkpoint, provenance
from mcis.files import write_text
from mcis.train import distributed
from mcis.train.run_record import differences
from mcis.train.step import TrainState

CHECKPOINTS = "checkpoints"
HASHES = "checkpoints.json"

Sums = dict[str, list[float]]
"""Metric -> [sum, count] over the steps of the unfinished epoch."""


class Progress(NamedTuple):
    """How far training has come.

    `state` is the state after the last step, `history` the log lines of finished epochs; `sums` and `seconds` are the
    metrics and the duration of the unfinished epoch.
    """

    state: TrainState
    history: list[dict[str, Any]]
    sums: Sums
    seconds: float


def open_checkpoints(run_dir: pathlib.Path) -> ocp.CheckpointManager:
    """Orbax's manager of a run's checkpoints, a context manager; it keeps the two newest."""
    distributed.wait("checkpoints")  # no process changes the folder before every process has checked it
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(2), cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(run_dir.absolute() / CHECKPOINTS, options=options)


def any_checkpoint(run_dir: pathlib.Path) -> bool:
    """Whether a run has checkpoints, intact or not."""
    return any(step.name.isdigit() for step in (run_dir / CHECKPOINTS).glob("*"))


def save(run_dir: pathlib.Path, manager: ocp.CheckpointManager, progress: Progress, settings: dict[str, Any]) -> None:
    """Write a checkpoint, with the settings and the code of its run, and the hashes of its files."""
    made = {"settings": settings, "versions": provenance.versions(), "revision": provenance.revision()}
    told = {"history": progress.history, "sums": progress.sums, "seconds": progress.seconds, "made": made}
    # from the host: Orbax would have each device write a slice of every array, which takes three times as long
    state = ocp.args.StandardSave(jax.device_get(progress.state))
    checkpoint.check_free_space(run_dir, progress.state)
    with checkpoint.disk_errors(run_dir):
        manager.save(int(progress.state.step), args=ocp.args.Composite(state=state, told=ocp.args.JsonSave(told)))
        store_hashes(run_dir, manager)


def restore(
    run_dir: pathlib.Path, manager: ocp.CheckpointManager, state: TrainState, settings: dict[str, Any]
) -> Progress:
    """The newest intact checkpoint; if there never was one, the given `state` and an empty history.

    A checkpoint without stored hashes is accepted: the process was killed before it could store them.

    Raises:
      ValueError: no checkpoint is intact, the hashes are damaged, or it belongs to a run with other settings.
    """
    if manager.latest_step() is None:
        return Progress(state, [], {}, 0.0)
    stored = _read_hashes(run_dir)
    damaged = []
    for step in sorted(manager.all_steps(), reverse=True):
        folder = run_dir / CHECKPOINTS / str(step)
        if stored.get(str(step)) not in (None, checkpoint.hashes(folder)):
            print(f"{folder} is damaged: its files have changed since they were written; it is skipped", flush=True)
            damaged.append(step)
            continue
        told = manager.restore(step, args=ocp.args.Composite(told=ocp.args.JsonRestore())).told
        if "made" not in told:
            raise ValueError(f"{folder} was written by an older version of mcis; start over with --fresh")
        if changed := differences(told.pop("made")["settings"], settings):
            raise ValueError(f"{folder} is a checkpoint of another run ({changed}); start over with --fresh")
        target = ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, state))
        restored = manager.restore(step, args=ocp.args.Composite(state=target))
        for later in damaged:  # training will write them again
            manager.delete(later)
        if damaged and distributed.is_first():
            _write_hashes(run_dir, {name: files for name, files in stored.items() if int(name) <= step})
        return Progress(restored.state, **told)
    raise ValueError(f"{run_dir / CHECKPOINTS} holds no intact checkpoint; start over with --fresh")


def store_hashes(run_dir: pathlib.Path, manager: ocp.CheckpointManager) -> None:
    """Store the hashes of a checkpoint's files once it is written; those of older checkpoints stay as they are."""
    manager.wait_until_finished()
    if not distributed.is_first():
        return
    stored, folder = _read_hashes(run_dir), run_dir / CHECKPOINTS
    steps = [str(step) for step in manager.all_steps()]
    _write_hashes(run_dir, {step: stored.get(step) or checkpoint.hashes(folder / step) for step in steps})


def _read_hashes(run_dir: pathlib.Path) -> dict[str, dict[str, str]]:
    """Step -> file -> hash, as stored."""
    file = run_dir / HASHES
    try:
        stored = json.loads(file.read_text()) if file.exists() else {}
        return {step: dict(files) for step, files in dict(stored).items()}
    except (ValueError, TypeError):
        raise ValueError(f"{file} is damaged; start over with --fresh, or restore it") from None


def _write_hashes(run_dir: pathlib.Path, hashes: dict[str, dict[str, str]]) -> None:
    write_text(run_dir / HASHES, json.dumps(hashes, indent=1) + "\n")
