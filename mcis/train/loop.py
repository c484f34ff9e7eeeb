"""A training run: steps, a log, validation each epoch, the best variables kept, resumed where it stopped."""

import collections
import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mcis.checkpoints import checkpoint
from mcis.data.batches import WHOLE, ahead, balance, targets, training_batches
from mcis.data.dataset import Scans, public_names
from mcis.models.pretrained import import_state_dict, import_variables, read_state_dict
from mcis.ops.ood import fit_novelty
from mcis.organs import ORGANS
from mcis.tasks.config import LAST, Task
from mcis.tasks.table import task_to_json
from mcis.train import distributed, resume, run_record
from mcis.train.parallel import (
    AXIS,
    check_batch,
    make_mesh,
    parallel_evaluation_step,
    parallel_train_step,
    pmap_train_step,
    put,
    share_of,
)
from mcis.train.resume import Carried, Sums
from mcis.train.step import (
    MUST_BE_FINITE,
    TrainState,
    collect,
    create_state,
    make_evaluation_step,
    make_optimizer,
    make_train_step,
    scores,
)

BEST = checkpoint.BEST
LOG = "log.jsonl"
FAILED = "failed"
"""A folder with what a step was given whose loss was not finite."""
AHEAD = 4
"""Steps that may be on their way while an older one's loss is looked at."""


class Interrupted(Exception):
    """Training was asked to stop; what it had reached is saved."""


def _added(sums: Sums, measured: dict[str, tuple[Any, Any]]) -> Sums:
    """`sums` and a further step's (sum, count) pairs.

    One step after the other, in double precision: where a run was interrupted between them makes no difference.
    """
    found = {name: list(pair) for name, pair in sums.items()}
    for name, pair in jax.device_get(measured).items():
        total = found.setdefault(name, [0.0, 0.0])
        for i in (0, 1):
            total[i] += float(pair[i])
    return found


@contextlib.contextmanager
def _progress(title: str, total: int, done: int) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shown = Console().is_terminal  # of a bar a log file would get one cut-off line
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[status]}"), disable=not shown) as bar:
        row = bar.add_task(title, total=total, completed=done, status="")

        def report(**fields: Any) -> None:
            bar.update(row, **fields)
            if "status" in fields and not shown:  # it gets a line an epoch
                print(f"{title}: {fields['status']}", flush=True)

        yield report


def _check_whole(run_dir: pathlib.Path) -> None:
    """ValueError where the best weights or the checkpoints of a run that has begun are gone."""
    if not ((run_dir / LOG).exists() and (run_dir / LOG).stat().st_size > 0):
        return
    if not (checkpoint.present(run_dir / BEST) / checkpoint.MANIFEST).is_file():
        raise ValueError(
            f"{run_dir / BEST} is gone: the best weights of this run. Restore it, or start over with --fresh"
        )
    if not resume.there_are(run_dir):
        raise ValueError(
            f"{run_dir / resume.CHECKPOINTS} is empty or gone, so that this run cannot be resumed. Restore it, or "
            "start over with --fresh, which keeps the older run's weights"
        )


def _check_select(task: Task, scans: Scans, label: np.ndarray) -> None:
    """ValueError unless the validation scans tell the metric that chooses the epoch, as a perfect network would."""
    true = scans.area
    probs = np.eye(len(task.classes))[np.maximum(label, 0)]
    found = scores(task, {"probs": probs, "both": true, "predicted": true, "true": true}, scans, label)
    if task.select not in (LAST, *found):
        computable = ", ".join(name for name in task.metrics if name in found) or "none"
        raise ValueError(
            f"select={task.select!r} cannot be computed on these validation scans: none has what it needs (a lesion's "
            f"outline, a known label). Of those that choose an epoch they tell: {computable}"
        )


def train(
    task: Task,
    train_scans: Scans,
    validation_scans: Scans,
    run_dir: pathlib.Path,
    seed: int = 0,
    init_from: pathlib.Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    save_minutes: float = math.inf,
    fold: str | None = None,
    command: str | None = None,
    pmap: bool = False,
    watch: Callable[[dict[str, Any], dict[str, Any]], None] = lambda line, variables: None,
) -> dict:
    """Train, or go on training, until the task's last epoch.

    The run folder gets run.json (`record`), log.jsonl (one line an epoch), checkpoints/ (the whole state, to resume
    from), checkpoints.json (the hashes of its files) and best/ (a weights folder: the averaged variables of the epoch
    with the best `task.select`). With `init_from`, a state dict that `models.import_weights` reads, a run or a weights
    folder, a new run starts from those weights.

    A run that is interrupted and gone on with by the same code on the same devices ends, bit by bit, where one that
    never was does: a step depends on the state alone, in which its number is, and batches are functions of the number.

    Args:
      task: what is learned, and how.
      train_scans: to learn from.
      validation_scans: to score each epoch on.
      run_dir: the run's folder.
      seed: of initialisation, order and augmentation.
      init_from: weights to start from.
      stop: asked before each step: whether to save the state after it, and to stop.
      save_minutes: how often the state is saved within an epoch; it is at the end of each.
      fold: which one the validation scans are, to be written down.
      command: what was typed, likewise.
      pmap: spread the steps by pmap, not by jit over a mesh.
      watch: told each epoch's log line and averaged variables when they are saved, by process 0.

    Returns:
      The log line of the best epoch.

    Raises:
      ValueError: the folder holds a run with other settings or scans, or one whose best weights or checkpoints are
        gone or damaged; the validation scans do not tell `task.select`; the batch does not divide among the devices;
        or other processes have come with other settings.
      FloatingPointError: a step's loss or gradient is not finite; the last good checkpoint stays, and what that step
        was given is in the folder `FAILED`.
      Interrupted: `stop` said so.
    """
    mesh = make_mesh()
    check_batch(task.batch_size, mesh, task.accumulate)
    settings = run_record.settings_of(task, train_scans, validation_scans, seed, fold)
    if init_from is not None:
        settings["init_from"] = _fingerprint(init_from)
    run_record.check_same_run(run_dir, settings)
    _check_whole(run_dir)
    distributed.check_alike(settings)
    used = {
        "fingerprints": {
            "train": sorted(set(train_scans.fingerprint.tolist()) | _seen_by(init_from, "fingerprints")),
            "validation": sorted(set(validation_scans.fingerprint.tolist())),
        },
        "names": {
            "train": sorted(set(public_names(train_scans)) | _seen_by(init_from, "names")),
            "validation": public_names(validation_scans),
        },
    }
    per_epoch = math.ceil(len(train_scans) / task.batch_size)
    total = per_epoch * task.epochs

    label, validation_label = targets(train_scans, task), targets(validation_scans, task)
    _check_select(task, validation_scans, validation_label)
    cells = balance(train_scans, task)
    batches_of = functools.partial(training_batches, train_scans, label, *cells, task.batch_size, seed, task.accumulate)
    share = share_of(task.batch_size, mesh)
    batches = batches_of(share)
    optimizer = make_optimizer(task, total)
    axis = AXIS if pmap or mesh.size > 1 else None
    model = task.make_model(axis, train=True)
    start = (lambda variables: variables) if init_from is None else functools.partial(_start_from, init_from)
    state = put(create_state(task, model, optimizer, seed, start), mesh)
    spread = pmap_train_step if pmap else parallel_train_step
    step = spread(distributed.with_wishes(make_train_step(task, model, optimizer, axis), axis), mesh)
    evaluate = parallel_evaluation_step(make_evaluation_step(task), mesh)

    def fit_limits(results: dict[str, np.ndarray]) -> dict[str, Any]:
        """Of a router: what is near to the known scans it learned from, as far as the known validation scans lie."""
        if task.organ is not None:
            return {}
        known = label < len(ORGANS)
        seen = collect(evaluate, state.ema, train_scans.take(known), label[known], task.batch_size, share)
        held_out = results["features"][validation_label < len(ORGANS)]
        return {"novelty": fit_novelty(seen["features"], label[known], held_out)}

    def ended(step: int) -> bool:
        return step == total or (step % per_epoch == 0 and gives_up(task.select, task.patience, history))

    agree = distributed.make_agreement(AHEAD)
    writes = distributed.is_first()
    _take_folder(run_dir)  # all that could be wrong was checked
    with resume.open_checkpoints(run_dir) as manager:
        state, history, sums, seconds = resume.restore(run_dir, manager, state, settings)
        if writes:
            _write_log(run_dir, history)
        if int(state.step):
            reached = _where(int(state.step), per_epoch, total, ended(int(state.step)))
            print(f"{task.name}: {run_dir} is {reached}", flush=True)
        new = not ended(int(state.step))
        if writes and new and (other := run_record.add_session(run_dir, settings, int(state.step), command)):
            print(f"{task.name}: other {other} than before: the last bits may differ from here on", flush=True)
        started, saved = time.monotonic() - seconds, time.monotonic()
        waiting: collections.deque[dict[str, tuple[Any, Any]]] = collections.deque()
        with _progress(task.name, total, int(state.step)) as report:
            ready = ahead(batches, train_scans, int(state.step))
            for index in range(int(state.step), total):
                if ended(index):
                    back = f"{task.select} has not got better for {task.patience} epochs"
                    print(f"{task.name}: ends early after epoch {index // per_epoch}, {back}", flush=True)
                    break
                wishes = (stop(), time.monotonic() - saved > 60 * save_minutes)
                told = np.tile(np.array(wishes), (len(mesh.local_devices), 1))
                state, (measured, of_all) = step(state, (next(ready), told))
                waiting.append(measured)
                report(completed=index + 1)
                ends = (index + 1) % per_epoch == 0
                asked, late = agree(wishes, of_all)
                due = ends or asked or late
                while waiting and (due or len(waiting) > AHEAD):  # the device goes on while an older step is looked at
                    if not _finite(waiting[0]):
                        raise FloatingPointError(_write_failure(run_dir, state, batches_of))
                    sums = _added(sums, waiting.popleft())
                if not due:
                    continue
                if ends:
                    averages = {name: value / max(count, 1.0) for name, (value, count) in sums.items()}
                    trained = time.monotonic()
                    results = collect(evaluate, state.ema, validation_scans, validation_label, task.batch_size, share)
                    line: dict[str, Any] = {
                        "epoch": (index + 1) // per_epoch,
                        "step": index + 1,
                        "train": averages,
                        "validation": scores(task, results, validation_scans, validation_label),
                        "train_seconds": round(trained - started, 2),
                        "validation_seconds": round(time.monotonic() - trained, 2),
                    }
                    if kept(task.select, [*history, line]) is line:
                        kept_variables = state.ema | fit_limits(results)
                        if writes:
                            _save_best(run_dir, task, seed, kept_variables, line, used)
                    history, sums, started = [*history, line], {}, time.monotonic()
                carried = Carried(state, history, sums, time.monotonic() - started)
                resume.save(run_dir, manager, carried, settings)
                # the log follows the checkpoint: epochs that a crash took back are not in it twice
                if writes:
                    _write_log(run_dir, history)
                saved = time.monotonic()
                if ends:
                    report(status=_status(task, history))
                    if writes:
                        watch(line, jax.device_get(state.ema))
                if asked and not ended(index + 1):
                    raise Interrupted(f"{run_dir} is saved after step {index + 1} of {total}")
    best = kept(task.select, history)
    assert best is not None  # a complete run has an epoch
    return best


def _take_folder(run_dir: pathlib.Path) -> None:
    """Make the run's folder; OSError where it cannot be written to."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(run_dir, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        why = f"{error.strerror}; name a folder for runs that can be written to with --runs_dir"
        raise OSError(error.errno, why, str(run_dir)) from None


def gives_up(select: str, patience: int, history: list[dict[str, Any]]) -> bool:
    """Whether the best of the epochs so far lies a task's `patience` back."""
    best = kept(select, history)
    return patience > 0 and best is not None and history[-1]["epoch"] - best["epoch"] >= patience


def _where(step: int, per_epoch: int, total: int, ended: bool) -> str:
    """What a run that is not at its beginning has reached, in words."""
    if ended:
        return "complete already"
    return f"resumed after epoch {step // per_epoch}" + (f", step {step} of {total}" if step % per_epoch else "")


def _write_log(run_dir: pathlib.Path, history: list[dict[str, Any]]) -> None:
    checkpoint.write_text(run_dir / LOG, "".join(json.dumps(line) + "\n" for line in history))


def _finite(measured: dict[str, tuple[Any, Any]]) -> bool:
    return all(math.isfinite(float(measured[name][0])) for name in MUST_BE_FINITE)


def _write_failure(run_dir: pathlib.Path, state: TrainState, batches_of: Callable[[slice], Any]) -> str:
    """Write down what the step was given that failed, the state before it and its whole batch; says where."""
    step, folder = int(state.failed), run_dir / FAILED
    if distributed.is_first():
        folder.mkdir(exist_ok=True)
        variables = {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}
        checkpoint.save(folder / "variables", variables, {"step": step})
        np.savez(folder / "batch.npz", **batches_of(WHOLE)[step]._asdict())
    return (
        f"step {step + 1}: its loss, gradient or update is not finite. The network before it is in "
        f"{folder / 'variables'}, its batch in {folder / 'batch.npz'}; the checkpoints in "
        f"{run_dir / resume.CHECKPOINTS} are good. A lower --learning_rate, or another --seed, avoids it"
    )


def kept(select: str, history: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The log's line of the epoch whose weights are kept, the first of the best; None before the first epoch."""
    return max(history, key=lambda line: line["epoch"] if select == LAST else line["validation"][select], default=None)


def _start_from(file: pathlib.Path, variables: dict[str, Any]) -> dict[str, Any]:
    """Variables with the numbers of a state dict or of a weights folder; says what was loaded."""
    given = checkpoint.load(checkpoint.weights_folder(file))[0] if file.is_dir() else read_state_dict(file)
    try:
        imported, report = (import_variables if file.is_dir() else import_state_dict)(given, variables)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    print(f"{file}: {report}", flush=True)
    return imported


def _seen_by(start: pathlib.Path | None, by: str) -> set[str]:
    """Fingerprints, or names, of the scans that the weights to start from have learned from, or were chosen by.

    A state dict of others does not say.
    """
    if start is None or not start.is_dir():
        return set()
    _, manifest = checkpoint.load(checkpoint.weights_folder(start))
    uses = ("train",) if manifest["task"]["select"] == LAST else ("train", "validation")
    return {name for use in uses for name in manifest.get(by, {}).get(use, ())}


def _fingerprint(start: pathlib.Path) -> str:
    """Hash of the weights to start from, in hex: of a folder's arrays or of a state dict's file; ValueError if none."""
    folder = checkpoint.weights_folder(start) if start.is_dir() else start
    if not ((folder / checkpoint.MANIFEST).is_file() or folder.is_file()):
        raise ValueError(f"init_from={start}: no such state dict, run or weights folder")
    if folder.is_file():
        return hashlib.sha256(folder.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for name, value in checkpoint.flatten(checkpoint.load(folder)[0]).items():
        digest.update(repr((name, value.shape, value.dtype.str)).encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _save_best(run_dir, task, seed, variables, line, used) -> None:
    manifest = {
        "task": task_to_json(task),
        "classes": list(task.classes),
        "seed": seed,
        "epoch": line["epoch"],
        "validation": line["validation"],
        "trained": {"revision": checkpoint.revision(), "versions": checkpoint.versions()},
    } | used
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none before, or of no use
        before = json.loads((checkpoint.present(run_dir / BEST) / checkpoint.MANIFEST).read_text())
        if before["task"]["crf"] != manifest["task"]["crf"]:
            print(f"{task.name}: `mcis tune` chose a CRF for weights that are replaced now: tune again", flush=True)
    checkpoint.save(run_dir / BEST, jax.device_get(variables), manifest)


def _status(task: Task, history: list[dict]) -> str:
    if task.select == LAST:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in history[-1]["validation"].items())
        return f"epoch {len(history)}: {figures}"
    values = [line["validation"][task.select] for line in history]
    return f"epoch {len(values)}: {task.select} {values[-1]:.3f}, best {max(values):.3f}"
