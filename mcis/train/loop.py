"""A training run: steps, a log, validation after each epoch, the best variables kept; resumable at any step."""

import collections
import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import progress as bars
from rich.console import Console

from mcis.checkpoints import checkpoint, provenance
from mcis.checkpoints.checkpoint import BEST
from mcis.data.batches import ahead
from mcis.data.dataset import Scans
from mcis.ops.last_layer import fit_last_layer, group_weights
from mcis.ops.ood import fit_novelty
from mcis.organs import ORGANS
from mcis.tasks.config import LAST, Task
from mcis.tasks.table import task_to_json
from mcis.train import distributed, resume, run_record, step
from mcis.train.resume import Progress, Sums
from mcis.train.run_record import best_epoch
from mcis.train.setup import DEFAULTS, RunOptions, Setup, make_folder, set_up
from mcis.train.step import MUST_BE_FINITE, TrainState

FAILED = "failed"
"""Folder with the batch and the network of a step whose loss or gradient was not finite."""
AHEAD = 4
"""Number of steps that the host may start before it looks at the metrics of an older one."""


class Interrupted(Exception):
    """Training was asked to stop; its state is saved."""


def train(
    task: Task, train_scans: Scans, validation_scans: Scans, run_dir: pathlib.Path, options: RunOptions = DEFAULTS
) -> dict[str, Any]:
    """Train, or resume training, until the task's last epoch; returns the log line of the best epoch.

    The run's folder gets run.json and log.jsonl (`run_record`), checkpoints/ and checkpoints.json (`resume`), and
    best/, a weights folder with the averaged variables of the epoch with the best `task.select`.

    A run that is interrupted and resumed, by the same code on the same devices, ends with the same bits as one that is
    not: a step depends only on the state, which includes the step's number, and batches are functions of that number.

    Raises:
      ValueError: the folder holds a run with other settings or scans, or one with missing or damaged files;
        `task.select` cannot be computed on the validation scans; the batch does not divide among the devices; or
        another process has other settings.
      FloatingPointError: a loss or gradient is not finite; the last good checkpoint stays (see `FAILED`).
      Interrupted: `options.stop` returned True.
    """
    setup, state = set_up(task, train_scans, validation_scans, run_dir, options)
    make_folder(run_dir)  # after everything else was checked
    first = distributed.is_first()
    with resume.open_checkpoints(run_dir) as manager:
        state, history, sums, seconds = resume.restore(run_dir, manager, state, setup.settings)
        at = int(state.step)
        _report_session(setup, at, history)
        batches = ahead(setup.batches, train_scans, at)
        agree = distributed.make_agreement(AHEAD)
        epoch_start, last_save = time.monotonic() - seconds, time.monotonic()
        with _progress_bar(task.name, setup.steps, at) as show:
            while not setup.ended(at, history):
                stop = False
                if setup.steps:
                    state, sums, stop = _run_steps(setup, state, sums, batches, agree, last_save, show)
                at, line = int(state.step), None
                if at % setup.epoch_steps == 0:
                    line = _finish_epoch(setup, state, history, sums, time.monotonic() - epoch_start)
                    history, sums, epoch_start = [*history, line], {}, time.monotonic()
                progress = Progress(state, history, sums, time.monotonic() - epoch_start)
                resume.save(run_dir, manager, progress, setup.settings)
                if first:  # after the checkpoint: a crash in between must not leave an epoch in the log twice
                    run_record.write_log(run_dir, history)
                last_save = time.monotonic()
                if line is not None:
                    show(status=_status(task, history))
                    if first:
                        options.on_epoch(line, jax.device_get(state.ema))
                if stop and not setup.ended(at, history):
                    raise Interrupted(f"{run_dir} is saved after step {at} of {setup.steps}")
    if at < setup.steps:
        epoch, reason = at // setup.epoch_steps, f"{task.select} has not improved for {task.patience} epochs"
        print(f"{task.name}: early end after epoch {epoch}, {reason}", flush=True)
    best = best_epoch(task.select, history)
    assert best is not None  # a complete run has an epoch
    return best


def _report_session(setup: Setup, at: int, history: list[dict[str, Any]]) -> None:
    """Print where a resumed run stands, record the session, and set the log back to the restored checkpoint."""
    name, epoch_steps = setup.task.name, setup.epoch_steps
    ended = setup.ended(at, history)
    if at or ended:
        within = f", step {at} of {setup.steps}" if at % epoch_steps else ""
        where = "complete already" if ended else f"resumed after epoch {at // epoch_steps}{within}"
        print(f"{name}: {setup.run_dir} is {where}", flush=True)
    if not distributed.is_first():
        return
    run_record.write_log(setup.run_dir, history)
    if not ended:
        changed = run_record.add_session(setup.run_dir, setup.settings, at, setup.options.command)
        if changed:
            print(f"{name}: {', '.join(changed)} changed since the last session; results may not be bit-identical")


def _run_steps(
    setup: Setup,
    state: TrainState,
    sums: Sums,
    batches: Iterator[Any],
    agree: Callable[[Sequence[bool], jax.Array], Sequence[bool]],
    last_save: float,
    show: Callable[..., None],
) -> tuple[TrainState, Sums, bool]:
    """Train until the state is to be saved: at the end of an epoch, when asked to stop, or after `save_minutes`.

    Returns the state, the epoch's metrics so far, and whether to stop. Metrics are read AHEAD steps late, so that the
    device does not wait for the host.
    """
    at, options = int(state.step), setup.options
    pending: collections.deque[dict[str, tuple[Any, Any]]] = collections.deque()
    while True:
        flags = (options.stop(), time.monotonic() - last_save > 60 * options.save_minutes)
        inputs = next(batches), np.tile(flags, (jax.local_device_count(), 1))
        state, (metrics, any_flags) = setup.train_step(state, inputs)
        at += 1
        pending.append(metrics)
        show(completed=at)
        stop, save_due = agree(flags, any_flags)
        due = at % setup.epoch_steps == 0 or stop or save_due
        while pending and (due or len(pending) > AHEAD):
            if not all(math.isfinite(float(pending[0][name][0])) for name in MUST_BE_FINITE):
                raise FloatingPointError(_write_failure(setup, state))
            sums = _added(sums, pending.popleft())
        if due:
            return state, sums, stop


def _added(sums: Sums, metrics: dict[str, tuple[Any, Any]]) -> Sums:
    """`sums` plus a step's (sum, count) pairs; step by step and in float64, so an interruption makes no difference."""
    result = dict(sums)
    for name, pair in jax.device_get(metrics).items():
        result[name] = [total + float(value) for total, value in zip(sums.get(name, (0.0, 0.0)), pair, strict=True)]
    return result


def _write_failure(setup: Setup, state: TrainState) -> str:
    """Write the batch of the step that failed and the network before it; returns an error message."""
    failed, folder = int(state.failed), setup.run_dir / FAILED
    if distributed.is_first():
        folder.mkdir(exist_ok=True)
        variables = {"params": state.params, "batch_stats": state.batch_stats, "ema": state.ema}
        checkpoint.save(folder / "variables", variables, {"step": failed})
        np.savez(folder / "batch.npz", **setup.whole_batches[failed]._asdict())
    return (
        f"step {failed + 1}: its loss, gradient or update is not finite. The network before it is in "
        f"{folder / 'variables'}, its batch in {folder / 'batch.npz'}; the checkpoints in "
        f"{setup.run_dir / resume.CHECKPOINTS} are good. A lower --learning_rate or another --seed may avoid it"
    )


def _finish_epoch(
    setup: Setup, state: TrainState, history: list[dict[str, Any]], sums: Sums, train_seconds: float
) -> dict[str, Any]:
    """Validate the averaged variables, and keep them if they are the best so far. Returns the epoch's log line."""
    start, task = time.monotonic(), setup.task
    variables, features = state.ema, None
    if task.organ is None:  # the router's head and OOD score are fitted to features of its training scans
        features = setup.evaluate(variables, *setup.train)["features"]
        variables = _refit_head(setup, variables, features) if task.refit else variables
    results = setup.evaluate(variables, *setup.validation)
    line = {
        "epoch": int(state.step) // setup.epoch_steps,
        "step": int(state.step),
        "train": {name: value / max(count, 1.0) for name, (value, count) in sums.items()},
        "validation": step.scores(task, results, *setup.validation),
        "train_seconds": round(train_seconds, 2),
        "validation_seconds": round(time.monotonic() - start, 2),
    }
    if best_epoch(task.select, [*history, line]) is line:
        if features is not None:
            variables = variables | _fit_ood(setup, features, results)
        if distributed.is_first():
            _save_best(setup, jax.device_get(variables), line)
    return line


def _refit_head(setup: Setup, variables: dict[str, Any], features: np.ndarray) -> dict[str, Any]:
    """Variables whose label head is fitted to features of the training scans (`ops.last_layer`)."""
    scans, label = setup.train
    weight = group_weights(label, scans.source)
    kernel, bias = fit_last_layer(features, label, weight, setup.task.refit, len(setup.task.classes))
    head = {"label": {"dense": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}}
    return variables | {"params": variables["params"] | head}


def _fit_ood(setup: Setup, features: np.ndarray, results: dict[str, np.ndarray]) -> dict[str, Any]:
    """A router's OOD score, fitted to its training scans of known organs, with a limit from such validation scans."""
    (_, label), (_, validation_label) = setup.train, setup.validation
    known = label < len(ORGANS)
    held_out = results["features"][validation_label < len(ORGANS)]
    return {"novelty": fit_novelty(features[known], label[known], held_out)}


def _save_best(setup: Setup, variables: dict[str, Any], line: dict[str, Any]) -> None:
    """Write the run's best weights."""
    task, folder = setup.task, setup.run_dir / BEST
    manifest = {
        "task": task_to_json(task),
        "classes": list(task.classes),
        "seed": setup.options.seed,
        "epoch": line["epoch"],
        "validation": line["validation"],
        "trained": {"revision": provenance.revision(), "versions": provenance.versions()},
    } | setup.used
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no weights before, or damaged ones
        before = json.loads((checkpoint.present(folder) / checkpoint.MANIFEST).read_text())
        if before["task"]["crf"] != manifest["task"]["crf"]:
            print(f"{task.name}: `mcis tune` chose a CRF for weights that are now replaced: run it again", flush=True)
    checkpoint.save(folder, variables, manifest)


@contextlib.contextmanager
def _progress_bar(title: str, total: int, done: int) -> Iterator[Callable[..., None]]:
    """A function that shows `completed` steps and a `status`: as a bar in a terminal, otherwise a line per status."""
    terminal = Console().is_terminal
    times = (bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
    name, status = bars.TextColumn("{task.description}"), bars.TextColumn("{task.fields[status]}")
    with bars.Progress(name, bars.BarColumn(), *times, status, disable=not terminal) as bar:
        row = bar.add_task(title, total=total, completed=done, status="")

        def show(**fields: Any) -> None:
            bar.update(row, **fields)
            if "status" in fields and not terminal:
                print(f"{title}: {fields['status']}", flush=True)

        yield show


def _status(task: Task, history: list[dict[str, Any]]) -> str:
    """The latest epoch's metrics on one line."""
    if task.select == LAST:
        epoch, found = history[-1]["epoch"], history[-1]["validation"]
        return f"epoch {epoch}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items())
    values = [line["validation"][task.select] for line in history]
    return f"epoch {len(values)}: {task.select} {values[-1]:.3f}, best {max(values):.3f}"
