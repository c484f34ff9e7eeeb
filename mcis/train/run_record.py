"""Which run a folder holds, and how it came about: run.json.

A run is its settings: a task, a seed, scans, and the weights it began with. A folder whose run has others is not gone
on with. Each time training begins, or goes on, a session is added: the command and where it was typed, the revision of
the code, versions, devices. With the same data it takes no more to repeat the run, but for changes to the code that no
revision has, which are only marked.
"""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np

from mcis.checkpoints import checkpoint
from mcis.data.dataset import Scans
from mcis.tasks.config import Task
from mcis.tasks.table import task_to_json, with_defaults

RUN = "run.json"


def settings_of(task: Task, train_scans: Scans, validation_scans: Scans, seed: int, fold: str | None) -> dict[str, Any]:
    """What a run must have in common with one that it goes on with, but for the weights it began with: JSON values."""
    scans = {"train": _digest(train_scans), "validation": _digest(validation_scans)}
    return {"seed": seed, "fold": fold, "data": scans} | task_to_json(task)


def _digest(scans: Scans) -> str:
    """What is learned from some scans, in 16 hex digits: which pictures, in which order, with which answers."""
    digest = hashlib.sha256()
    for column in (scans.fingerprint, scans.group, scans.organ, scans.label, scans.has_mask, scans.outline):
        digest.update(repr((column.shape, column.dtype.str)).encode() + np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In which settings two runs differ, in words; "" where they do not. Fields younger than `before` had defaults."""
    before = with_defaults(before)
    changed = [
        f"{k}: {_short(before.get(k))} -> {_short(now.get(k))}"
        for k in now.keys() | before.keys()
        if before.get(k) != now.get(k)
    ]
    return "; ".join(sorted(changed))


def _short(value: Any) -> str:
    """A setting in a message; of a hash the first digits."""
    text = repr(value)
    return f"{text[:13]}...'" if isinstance(value, str) and len(value) == 64 else text


def read(run_dir: pathlib.Path) -> dict[str, Any] | None:
    """{"settings", "sessions": [...]} of a run's folder; None where none has begun in it, as in a folder of findings.

    Raises:
      ValueError: the file is damaged.
    """
    file = run_dir / RUN
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict) and not {"settings", "sessions"} & set(found):
            return None
        return {"settings": dict(found["settings"]), "sessions": list(found["sessions"])}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{file} is damaged; start over with --fresh, or restore it") from None


FURTHER = ("jaxlib", "optax", "grain", "numpy", "opencv-python-headless")
"""Packages, beside those of `checkpoint.versions`, on which a step, an order or a pixel depends."""
ALIKE = ("revision", "versions", "devices", "processes")
"""What two sessions must have in common to compute the same bits."""


def add_session(run_dir: pathlib.Path, settings: dict[str, Any], step: int, command: str | None) -> str:
    """Write down that training begins, or goes on, after some step.

    Returns:
      in what of ALIKE this session differs from the one before, in words; "" where in nothing.
    """
    further = {name: importlib.metadata.version(name) for name in FURTHER}
    session = {
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": command,
        "folder": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "XLA_", "TFDS_", "CUDA_VISIBLE"))},
        "revision": checkpoint.revision(),
        "versions": checkpoint.versions() | further,
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "system": f"{platform.platform()}, {platform.processor() or platform.machine()}",
    }
    before = read(run_dir)
    sessions = [*(before["sessions"] if before else ()), session]
    checkpoint.write_text(run_dir / RUN, json.dumps({"settings": settings, "sessions": sessions}, indent=1) + "\n")
    if len(sessions) == 1:
        return ""
    return ", ".join(name for name in ALIKE if sessions[-2].get(name) != session[name])


def check_same_run(run_dir: pathlib.Path, now: dict[str, Any], start: bool = True) -> None:
    """ValueError where a folder holds a run of other settings.

    Args:
      run_dir: the run's folder, which need not be there.
      now: `settings_of`, and "init_from" where there are weights to start from.
      start: whether these are compared as well.
    """
    if (found := read(run_dir)) is None:
        return
    before = found["settings"]
    if not start:
        before.pop("init_from", None)
    if changed := differences(before, now):
        raise ValueError(
            f"{run_dir} holds a run with other settings ({changed}). Repeat them to resume it, name another run with "
            "--run=NAME, or start over with --fresh"
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Attributes:
      path: the folder.
      settings: its task's fields, seed and data, as run.json has them.
      sessions: when and how it was begun and gone on with.
      epochs: the log's lines.
    """

    path: pathlib.Path
    settings: dict[str, Any]
    sessions: list[dict[str, Any]]
    epochs: list[dict[str, Any]]

    @property
    def kept(self) -> dict[str, Any] | None:
        """The log's line of the epoch whose weights are kept."""
        from mcis.train.loop import kept

        return kept(self.settings["select"], self.epochs)

    @property
    def state(self) -> str:
        """How far it is."""
        from mcis.train.loop import gives_up

        early = gives_up(self.settings["select"], self.settings["patience"], self.epochs)
        return f"{len(self.epochs)}/{self.settings['epochs']}{', early end' if early else ''}"

    @property
    def minutes(self) -> float:
        """How long it has trained and validated, without its start at another size."""
        return sum(line["train_seconds"] + line["validation_seconds"] for line in self.epochs) / 60


def read_run(path: pathlib.Path) -> Run | None:
    """A run's folder; None where it is none. A damaged one is a ValueError."""
    from mcis.tasks.config import Task
    from mcis.tasks.table import task_from_json, with_defaults
    from mcis.train import run_record
    from mcis.train.loop import LOG

    if (found := run_record.read(path)) is None:
        return None
    lines = (path / LOG).read_text(encoding="utf-8").splitlines() if (path / LOG).exists() else []
    try:
        run = Run(path, with_defaults(found["settings"]), found["sessions"], [json.loads(line) for line in lines])
        task_from_json({field.name: run.settings[field.name] for field in dataclasses.fields(Task)})
        _ = run.minutes, run.state, run.kept  # all that is shown is there
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {run_record.RUN} or {LOG} is damaged ({type(error).__name__}: {error})") from None
    return run
