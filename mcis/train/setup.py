"""What is decided before the first step of a run: options, checks, initial weights, steps and batches."""

import dataclasses
import functools
import hashlib
import math
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mcis.checkpoints import checkpoint, provenance
from mcis.checkpoints.checkpoint import BEST
from mcis.data.batches import WHOLE, balance, targets, training_batches
from mcis.data.dataset import Scans, public_names
from mcis.models.pretrained import import_state_dict, import_variables, read_state_dict
from mcis.organs import organ_named
from mcis.tasks.config import LAST, Task
from mcis.train import distributed, parallel, resume, run_record, step
from mcis.train.run_record import LOG, stops_early
from mcis.train.step import TrainState

STAGE = "start"
"""The folder, in a run's folder, of its pretraining stage (progressive resizing)."""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a run starts, saves and ends, apart from its task.

    Attributes:
      seed: of initialisation, data order and augmentation.
      init_from: weights to start from: a state dict's file, a run's folder or a weights folder.
      fold: the validation fold, as "0/5"; only recorded.
      command: the command line, for the record.
      save_minutes: time between saves within an epoch; the end of an epoch is always saved.
      pmap: spread the steps by pmap, not by jit over a mesh.
      stop: called before each step; where it returns True, the state is saved after the step, and training stops.
      on_epoch: called by process 0 with the log line and the averaged variables of each epoch, once they are saved.
    """

    seed: int = 0
    init_from: pathlib.Path | None = None
    fold: str | None = None
    command: str | None = None
    save_minutes: float = math.inf
    pmap: bool = False
    stop: Callable[[], bool] = lambda: False
    on_epoch: Callable[[dict[str, Any], dict[str, Any]], None] = lambda line, variables: None


DEFAULTS = RunOptions()


@dataclasses.dataclass(frozen=True)
class Setup:
    """What stays the same while a run trains."""

    task: Task
    run_dir: pathlib.Path
    options: RunOptions
    train: tuple[Scans, np.ndarray]  # with their targets, int32 (N,)
    validation: tuple[Scans, np.ndarray]
    settings: dict[str, Any]  # those that define the run
    used: dict[str, dict[str, list[str]]]  # the scans that the run uses, for the manifest of its weights
    epoch_steps: int
    share: slice  # the rows of a batch that this process computes
    batches: Any  # step -> that share of its batch
    whole_batches: Any  # step -> its batch
    train_step: Callable
    evaluation_step: Callable

    @property
    def steps(self) -> int:
        """Number of steps of a complete run."""
        return self.epoch_steps * self.task.epochs

    def ended(self, at: int, history: list[dict[str, Any]]) -> bool:
        """Whether training has ended after step `at`: complete, or early for lack of improvement."""
        if not self.steps:  # a router's head is fitted without steps
            return bool(history)
        at_epoch_end = at % self.epoch_steps == 0
        return at == self.steps or (at_epoch_end and stops_early(self.task.select, self.task.patience, history))

    def evaluate(self, variables: dict[str, Any], scans: Scans, label: np.ndarray) -> dict[str, np.ndarray]:
        """Results of the evaluation step for all scans."""
        return step.collect(self.evaluation_step, variables, scans, label, self.task.batch_size, self.share)


def set_up(
    task: Task, train_scans: Scans, validation_scans: Scans, run_dir: pathlib.Path, options: RunOptions
) -> tuple[Setup, TrainState]:
    """Check everything that can be wrong before the folder is touched; make the steps and the initial state."""
    mesh, init_from = parallel.make_mesh(), options.init_from
    parallel.check_batch(task.batch_size, mesh, task.accumulate)
    settings = run_record.settings_of(task, train_scans, validation_scans, options.seed, options.fold)
    if init_from is not None:
        settings["init_from"] = _hash_of(init_from)
    run_record.check_same_run(run_dir, settings)
    _check_files(run_dir)
    distributed.check_same_settings(settings)
    train, validation = ((scans, targets(scans, task)) for scans in (train_scans, validation_scans))
    _check_select(task, *validation)
    share, epoch_steps = parallel.share_of(task.batch_size, mesh), math.ceil(len(train_scans) / task.batch_size)
    batches_of = functools.partial(
        training_batches,
        *train,
        *balance(train_scans, task),
        task.batch_size,
        options.seed,
        task.accumulate,
        transplant=task.transplant,
        crop=task.crop,
        lesion=organ_named(task.organ).lesion_classes if task.organ else (),
    )
    model, optimizer, train_step, evaluation_step = make_steps(task, mesh, epoch_steps * task.epochs, options.pmap)
    setup = Setup(
        task=task,
        run_dir=run_dir,
        options=options,
        train=train,
        validation=validation,
        settings=settings,
        used=used_scans(train_scans, validation_scans, init_from, run_dir),
        epoch_steps=epoch_steps,
        share=share,
        batches=batches_of(share),
        whole_batches=batches_of(WHOLE),
        train_step=train_step,
        evaluation_step=evaluation_step,
    )
    state = step.create_state(task, model, optimizer, options.seed, functools.partial(_with_weights, init_from))
    return setup, parallel.put(state, mesh)


def make_steps(task: Task, mesh: Mesh, steps: int, pmap: bool) -> tuple[Any, Any, Callable, Callable]:
    """The network, its optimizer, and the train and evaluation steps, jitted over the devices."""
    axis = parallel.AXIS if pmap or mesh.size > 1 else None
    model, optimizer = task.make_model(axis, train=True), step.make_optimizer(task, steps)
    train_step = distributed.with_control_flags(step.make_train_step(task, model, optimizer, axis), axis)
    spread = parallel.pmap_train_step if pmap else parallel.parallel_train_step
    evaluation_step = parallel.parallel_evaluation_step(step.make_evaluation_step(task), mesh)
    return model, optimizer, spread(train_step, mesh), evaluation_step


def _hash_of(path: pathlib.Path) -> str:
    """A hash of initial weights, in hex: of a folder's arrays, or of a state dict's file. ValueError if none exist."""
    folder = checkpoint.weights_folder(path) if path.is_dir() else path
    if folder.is_file():
        return hashlib.sha256(folder.read_bytes()).hexdigest()
    if not (folder / checkpoint.MANIFEST).is_file():
        raise ValueError(f"init_from={path}: no such state dict, run or weights folder")
    digest = hashlib.sha256()
    for name, value in checkpoint.flatten(checkpoint.load(folder)[0]).items():
        digest.update(repr((name, value.shape, value.dtype.str)).encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _with_weights(path: pathlib.Path | None, variables: dict[str, Any]) -> dict[str, Any]:
    """A network's variables with the numbers of initial weights; prints what was loaded. ValueError if none fit."""
    if path is None:
        return variables
    try:
        if path.is_dir():
            stored, _ = checkpoint.load(checkpoint.weights_folder(path))
            imported, report = import_variables(stored, variables)
        else:
            imported, report = import_state_dict(read_state_dict(path), variables)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    print(f"{path}: {report}", flush=True)
    return imported


def used_scans(
    train: Scans, validation: Scans, init_from: pathlib.Path | None, run_dir: pathlib.Path
) -> dict[str, dict[str, list[str]]]:
    """Fingerprints and names for the manifest. Scans that the initial weights have used count as trained on.

    Those of a state dict are unknown. What `mcis calibrate` fitted is not passed on. A run's own pretraining stage has
    used only its training scans: its last epoch is kept, and a router's OOD limit, fitted to the validation scans, is
    not passed on.
    """
    manifest: dict[str, Any] = {}
    splits: tuple[str, ...] = ()
    if init_from is not None and init_from.is_dir():
        manifest = checkpoint.read_manifest(checkpoint.weights_folder(init_from))
        splits = ("train",) if init_from == run_dir / STAGE else provenance.inherited_uses(manifest)
    found = {}
    for by, of in (("fingerprints", lambda scans: scans.fingerprint.tolist()), ("names", public_names)):
        trained = {*of(train)} | provenance.scans_of(manifest, by, *splits)
        found[by] = {"train": sorted(trained), "validation": sorted({*of(validation)})}
    return found


def _check_files(run_dir: pathlib.Path) -> None:
    """ValueError if the best weights or the checkpoints of a run with finished epochs are missing."""
    if not (run_dir / LOG).exists() or not (run_dir / LOG).stat().st_size:
        return
    best = (checkpoint.present(run_dir / BEST) / checkpoint.MANIFEST).is_file()
    for name, there in ((BEST, best), (resume.CHECKPOINTS, resume.any_checkpoint(run_dir))):
        if not there:
            raise ValueError(
                f"{run_dir / name} is missing or empty, so this run cannot be resumed. Restore it, or start over with "
                "--fresh, which moves the older run aside"
            )


def _check_select(task: Task, scans: Scans, label: np.ndarray) -> None:
    """ValueError unless `task.select` can be computed on the validation scans; tried with perfect predictions."""
    true, probs = scans.area, np.eye(len(task.classes))[np.maximum(label, 0)]
    found = step.scores(task, {"probs": probs, "both": true, "predicted": true, "true": true}, scans, label)
    if task.select not in (LAST, *found):
        computable = ", ".join(name for name in task.metrics if name in found) or "none"
        raise ValueError(
            f"select={task.select!r} cannot be computed on these validation scans: none has the lesion outline or the "
            f"known label that it needs. Metrics that can be computed: {computable}"
        )


def make_folder(run_dir: pathlib.Path) -> None:
    """Make a run's folder; OSError if it cannot be written to."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir):
            pass
    except OSError as error:
        message = f"{error.strerror}; name a folder for runs that can be written to with --runs_dir"
        raise OSError(error.errno, message, str(run_dir)) from None
