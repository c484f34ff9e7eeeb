"""What a run's folder records about it: run.json, its settings and sessions, and log.jsonl, a line per epoch.

A run is defined by its settings: task, seed, scans and initial weights. A folder whose run has other settings is not
resumed. Each time training starts or resumes, a session is added: command, folder, git revision, versions, devices.
With the same data that is enough to repeat the run, except for uncommitted changes of the code, which are only flagged.
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

from mcis.checkpoints import provenance
from mcis.data.dataset import Scans
from mcis.files import write_text
from mcis.tasks.config import LAST, Task
from mcis.tasks.table import task_from_json, task_to_json, with_defaults

RUN = "run.json"
LOG = "log.jsonl"
FURTHER = ("jaxlib", "optax", "grain", "numpy", "opencv-python-headless")
"""Packages, in addition to those of `provenance.versions`, that a result depends on."""
SAME_BITS = ("revision", "versions", "devices", "processes")
"""Entries of a session that must not change if results are to be bit-identical."""


def settings_of(task: Task, train_scans: Scans, validation_scans: Scans, seed: int, fold: str | None) -> dict[str, Any]:
    """The settings that define a run, but for its initial weights: JSON values."""
    scans = {"train": _digest(train_scans), "validation": _digest(validation_scans)}
    return {"seed": seed, "fold": fold, "data": scans} | task_to_json(task)


def _digest(scans: Scans) -> str:
    """A hash of the scans, their order and their targets: 16 hex digits."""
    digest = hashlib.sha256()
    for column in (scans.fingerprint, scans.group, scans.organ, scans.label, scans.has_mask, scans.outline):
        digest.update(repr((column.shape, column.dtype.str)).encode() + np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()[:16]


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The settings in which two runs differ, as text; "" if none. A field that `before` lacks had its default."""
    before = with_defaults(before)
    changed = sorted(name for name in now.keys() | before.keys() if before.get(name) != now.get(name))
    return "; ".join(f"{name}: {_short(before.get(name))} -> {_short(now.get(name))}" for name in changed)


def _short(value: Any) -> str:
    """A setting as text; a hash is cut after its first digits."""
    return f"'{value[:12]}...'" if isinstance(value, str) and len(value) == 64 else repr(value)


def read(run_dir: pathlib.Path) -> dict[str, Any] | None:
    """{"settings", "sessions": [...]} of a run's folder; None if no run has started there.

    Raises:
      ValueError: the file is damaged.
    """
    file = run_dir / RUN
    if not file.exists():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict) and not {"settings", "sessions"} & set(found):
            return None  # `mcis predict` writes a file of that name too
        return {"settings": dict(found["settings"]), "sessions": list(found["sessions"])}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{file} is damaged; start over with --fresh, or restore it") from None


def add_session(run_dir: pathlib.Path, settings: dict[str, Any], step: int, command: str | None) -> list[str]:
    """Record that training starts or resumes after `step` steps; returns which of SAME_BITS have changed since."""
    session = {
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": command,
        "folder": os.getcwd(),
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("JAX_", "XLA_", "TFDS_", "CUDA_VISIBLE"))},
        "revision": provenance.revision(),
        "versions": provenance.versions() | {name: importlib.metadata.version(name) for name in FURTHER},
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "processes": jax.process_count(),
        "system": f"{platform.platform()}, {platform.processor() or platform.machine()}",
    }
    record = read(run_dir)
    sessions = [*(record["sessions"] if record else ()), session]
    write_text(run_dir / RUN, json.dumps({"settings": settings, "sessions": sessions}, indent=1) + "\n")
    return [name for name in SAME_BITS if len(sessions) > 1 and sessions[-2].get(name) != session[name]]


def check_same_run(run_dir: pathlib.Path, settings: dict[str, Any], initial: bool = True) -> None:
    """ValueError if a folder holds a run with other settings.

    Args:
      run_dir: the run's folder; it need not exist.
      settings: `settings_of`, and "init_from" if there are initial weights.
      initial: whether the initial weights are compared too.
    """
    if (record := read(run_dir)) is None:
        return
    if not initial:
        record["settings"].pop("init_from", None)
    if changed := differences(record["settings"], settings):
        raise ValueError(
            f"{run_dir} holds a run with other settings ({changed}). Repeat them to resume it, name another run with "
            "--run=NAME, or start over with --fresh"
        )


def write_log(run_dir: pathlib.Path, history: list[dict[str, Any]]) -> None:
    """Write a run's log, a line per epoch."""
    write_text(run_dir / LOG, "".join(json.dumps(line) + "\n" for line in history))


def best_epoch(select: str, history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The log line of the epoch whose weights are kept, the first of equals; None before the first epoch."""
    return max(history, key=lambda line: line["epoch"] if select == LAST else line["validation"][select], default=None)


def stops_early(select: str, patience: int, history: list[dict[str, Any]]) -> bool:
    """Whether the best epoch is `patience` or more epochs ago; never with a patience of 0."""
    best = best_epoch(select, history)
    return patience > 0 and best is not None and history[-1]["epoch"] - best["epoch"] >= patience


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its folder records it.

    Attributes:
      path: the folder.
      settings: fields of its task, seed and data, as in run.json.
      sessions: when and how it was started and resumed.
      epochs: lines of its log.
    """

    path: pathlib.Path
    settings: dict[str, Any]
    sessions: list[dict[str, Any]]
    epochs: list[dict[str, Any]]

    @property
    def kept(self) -> dict[str, Any] | None:
        """The log line of the epoch whose weights are kept."""
        return best_epoch(self.settings["select"], self.epochs)

    @property
    def state(self) -> str:
        """The number of finished epochs, as text."""
        early = stops_early(self.settings["select"], self.settings["patience"], self.epochs)
        return f"{len(self.epochs)}/{self.settings['epochs'] or 1}{', early end' if early else ''}"

    @property
    def minutes(self) -> float:
        """Time spent in training and validation, without a pretraining stage."""
        return sum(line["train_seconds"] + line["validation_seconds"] for line in self.epochs) / 60


def read_run(path: pathlib.Path) -> Run | None:
    """The run in a folder; None if there is none. ValueError if its record or log is damaged."""
    if (record := read(path)) is None:
        return None
    try:
        lines = (path / LOG).read_text(encoding="utf-8").splitlines() if (path / LOG).exists() else []
        run = Run(path, with_defaults(record["settings"]), record["sessions"], [json.loads(line) for line in lines])
        task_from_json({field.name: run.settings[field.name] for field in dataclasses.fields(Task)})
        _ = run.minutes, run.state, run.kept  # raises if a figure is missing
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {RUN} or {LOG} is damaged ({type(error).__name__}: {error})") from None
    return run
