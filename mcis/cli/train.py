"""Train one task: `python -m mcis.launch --task=segment_brain`, or `mcis train --task=segment_brain`.

Every field of the task is an option: `--sources=busi,busbra --model=unet --features=16 --size=128 --epochs=3`. An
unknown option fails and lists the options. A task may have a pretraining stage at another size (`--start.epochs` etc.),
which is stored as a run of its own in the run's folder. Changing --epochs removes this stage, unless --start.epochs is
given too. A --size up to that of the stage trains all its epochs at that size.
"""

import contextlib
import dataclasses
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from mcis.cli.common import (
    INTERRUPTED,
    Options,
    PathText,
    enable_compilation_cache,
    exit_status,
    parse_dataclass,
    stop_requested,
)
from mcis.inference.options import takes

if TYPE_CHECKING:
    from mcis.data.dataset import Scans
    from mcis.tasks.config import Task

STEPS_NEEDED = 2
"""Epochs of the router with another network, which has no frozen features to fit its head to."""
FOLDS = 5
"""The number of folds where none is given."""


@dataclasses.dataclass(frozen=True)
class TrainOptions(Options):
    """Where a run is stored and how it runs.

    Attributes:
      task: the task to train.
      runs_dir: folder of the runs.
      run: name of the run, a folder in runs_dir; by default the names of the task and the fold.
      fold: cross-validation: validate on this fold of the training and validation scans, and train on the others; 0/5
        to 4/5, or of another number of folds; 2 means 2/5. Together, the runs of all folds predict each scan with a
        network that was not trained on its patient or cluster. By default the run has no folds: it trains on the
        training scans and validates on the validation scans.
      seed: random seed of the initialisation, the data order and the augmentation.
      fresh: start over; an older run of that name is renamed, not overwritten.
      save_minutes: minutes between saves of the state within a long epoch.
      stream: decode scans each time they are needed, instead of keeping them in memory; by default only if they would
        take more than a third of the free memory.
      pmap: spread the batch over the devices by pmap; by default by jit over a mesh. Both give the same numbers.
      coordinator: HOST:PORT of process 0, for training in several processes; by default one process trains, or those of
        a Slurm step together.
      processes: number of processes; by default one, or those of the Slurm step.
      process: number of this process, from 0; by default 0, or its number in the Slurm step.
      heartbeat: seconds without a message after which a process counts as lost.
      init_from: weights to start from: "imagenet" (bundled weights of EfficientNet-Lite0), a state dict of torchvision,
        of efficientnet-lite-pytorch or of Buda's U-Net (.safetensors, .pth), a run, a weights folder, or "none". By
        default "imagenet" for a network of its published width that has these weights, "none" for others.
    """

    task: str = ""
    runs_dir: Annotated[PathText, tyro.conf.arg(metavar="DIR")] = "runs"
    run: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    fold: Annotated[str | None, takes("K/N")] = None
    seed: int = 0
    fresh: bool = False
    save_minutes: float = 10.0
    stream: Annotated[bool | None, takes("{True,False}")] = None
    pmap: bool = False
    coordinator: Annotated[str | None, takes("HOST:PORT")] = None
    processes: Annotated[int | None, takes("N")] = None
    process: Annotated[int | None, takes("K")] = None
    heartbeat: int = 100
    init_from: Annotated[PathText | None, takes("WEIGHTS")] = None


@dataclasses.dataclass(frozen=True)
class TaskName:
    """The option that decides which other options and defaults there are."""

    task: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status 0: complete; 75: stopped, to be resumed; 1: failed; 2: could not start."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_status("mcis train", lambda: run(*parse(words), shlex.join(["mcis", "train", *words])))


def parse(argv: Sequence[str]) -> tuple[TrainOptions, "Task"]:
    """Options and Task of a command line.

    Raises:
      ValueError: there is no such task, or one of its fields is wrong.
      SystemExit: help was asked for, or an option is unknown.
    """
    from mcis.tasks.config import Pretraining, Task
    from mcis.tasks.table import TASKS, task_named

    chosen, rest = tyro.cli(TaskName, args=list(argv), return_unknown_args=True, add_help=False)
    if chosen.task is None:
        if {"-h", "--help"} & set(rest):
            print(f"usage: mcis train --task=NAME [options]\n\n{__doc__}\ntasks: {', '.join(TASKS)}")
            print("`mcis train --task=NAME --help` lists that task's options and defaults")
            raise SystemExit(0)
        raise ValueError(f"--task=NAME is needed. The tasks are {', '.join(TASKS)}")
    row = task_named(chosen.task)
    flat = tyro.conf.arg(name="")

    @dataclasses.dataclass(frozen=True)
    class Both:
        options: Annotated[TrainOptions, flat]
        task: Annotated[Task, flat]

    def parsed(default: Task) -> Both:
        return parse_dataclass(Both, argv, f"mcis train --task={row.name}", Both(TrainOptions(task=row.name), default))

    default, both = row, parsed(row)
    if both.task.model != row.model:
        # another network has its own width, and an encoder that is untrained, if any
        default = dataclasses.replace(default, features=0, encoder_rate=1.0, epochs=default.epochs or STEPS_NEEDED)
    without = dataclasses.replace(default, start=Pretraining())
    if both.task.epochs != row.epochs:  # the epochs given are then the whole training
        default = without
    elif row.size != both.task.size <= row.start.size and not parsed(without).task.start.epochs:
        default = dataclasses.replace(without, epochs=row.start.epochs + row.epochs)
    if default != row:
        both = parsed(default)
    return both.options, both.task.check()


def parse_fold(text: str) -> tuple[int, int]:
    """Number of a fold, from 0, and number of folds: "2/10" -> (2, 10), "2" -> (2, FOLDS). ValueError if wrong."""
    fold, _, folds = text.partition("/")
    try:
        found = int(fold), int(folds or FOLDS)
    except ValueError:
        found = 0, 0
    if not 0 <= found[0] < found[1] or found[1] < 2:
        raise ValueError(
            f"--fold={text}: it must be K/N, N of 2 or more and K from 0 to N - 1, as 0/5 to 4/5; K alone is K/{FOLDS}"
        )
    return found


def run(options: TrainOptions, task: "Task", command: str | None = None) -> int:
    """Train as one of the processes; `command` is the command line. Returns the exit status."""
    fold = None if options.fold is None else parse_fold(options.fold)
    name = options.run or task.name + (f"_fold{fold[0]}" if fold else "")
    if pathlib.PurePath(name).name != name or name.startswith("."):
        raise ValueError(f"--run={name}: it must be a name, not a path; --runs_dir says in which folder")
    run_dir = pathlib.Path(options.runs_dir) / name
    enable_compilation_cache()
    from mcis.train import distributed

    distributed.join(options.coordinator, options.processes, options.process, options.heartbeat)
    if distributed.alone():
        return _train(options, task, run_dir, fold, command)

    def train() -> int:
        with distributed.peer_errors():
            return _train(options, task, run_dir, fold, command)

    with open(os.devnull, "w") as null, contextlib.redirect_stdout(sys.stdout if distributed.is_first() else null):
        try:
            status = exit_status("mcis train", train)
        except Exception:  # an unexpected error must end this process too
            traceback.print_exc()
            status = 1
    if status not in (0, INTERRUPTED):
        os._exit(status)  # an orderly end would wait for the other processes, which wait for this one
    return status


def _train(
    options: TrainOptions, task: "Task", run_dir: pathlib.Path, fold: tuple[int, int] | None, command: str | None
) -> int:
    """Load the scans, train in this process, which is connected with the others, and print where the result is."""
    from mcis.tasks.config import LAST
    from mcis.tasks.table import task_named
    from mcis.train import distributed, loop, run_record
    from mcis.train.setup import STAGE
    from mcis.train.tensorboard import make_summary_writer

    init_from = _initial_weights(options.init_from, task)
    scans = _load(options, task, fold)
    print(
        f"{task.name}: {task.model} on {', '.join(task.sources)}: {len(scans[0])} scans to train, {len(scans[1])} to "
        "validate",
        flush=True,
    )
    if options.fresh and distributed.is_first() and run_dir.exists():
        print(f"{run_dir} moved to {_set_aside(run_dir)}")
    distributed.wait("fresh")
    if task_named(task.name).start.epochs and not task.start.epochs:
        print(f"{task.name}: no pretraining stage, {task.epochs} epochs at {task.size} px in all", flush=True)
    run_options = loop.RunOptions(
        seed=options.seed,
        fold=None if fold is None else "{}/{}".format(*fold),
        command=command,
        save_minutes=options.save_minutes,
        pmap=options.pmap,
    )

    def train(task: "Task", folder: pathlib.Path, init_from: pathlib.Path | None, stop: Callable[[], bool]) -> dict:
        writer = make_summary_writer(folder, task, scans[1])
        run = dataclasses.replace(run_options, init_from=init_from, stop=stop, on_epoch=writer)
        return loop.train(task, *scans, folder, run)

    stage = task.pretraining
    try:
        with stop_requested() as stop:
            if stage is not None:
                settings = run_record.settings_of(task, *scans, options.seed, run_options.fold)
                run_record.check_same_run(run_dir, settings, initial=False)  # before hours are spent on the stage
                then = f"then {task.epochs} at {task.size}"
                print(f"{task.name}: first {stage.epochs} epochs at {stage.size} px, {then}", flush=True)
                train(stage, run_dir / STAGE, init_from, stop)
                init_from = run_dir / STAGE
            best = train(task, run_dir, init_from, stop)
    except loop.Interrupted as interrupted:
        print(f"{task.name}: {interrupted}; run the same command again to resume", flush=True)
        return INTERRUPTED
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in best["validation"].items())
    chosen = "the last" if task.select == LAST else f"best by {task.select}"
    print(f"{task.name}: epoch {best['epoch']} of {task.epochs}, {chosen}: validation {metrics}")
    print(f"weights in {run_dir / loop.BEST}, log in {run_dir / run_record.LOG}")
    data_dir = "" if options.data_dir is None else f" --data_dir={shlex.quote(options.data_dir)}"
    print(f"score it once on held-out scans: mcis evaluate {shlex.quote(str(run_dir))} --split=test{data_dir}")
    return 0


def _initial_weights(init_from: str | None, task: "Task") -> pathlib.Path | None:
    """The file or folder that `--init_from` means.

    ValueError for "imagenet" if the network has no such weights, for "none" if the encoder is frozen, and for a path
    where there is nothing.
    """
    from mcis.models import model_named
    from mcis.models.pretrained import BUNDLED, IMAGENET, imagenet_weights

    if init_from is None:
        init_from = IMAGENET if task.model in BUNDLED and task.width == model_named(task.model).features else "none"
    if init_from == "none" and not task.encoder_rate:
        raise ValueError("encoder_rate=0 would freeze an encoder of random numbers; name its weights with --init_from")
    if init_from == IMAGENET:
        return imagenet_weights(task.model)
    if init_from == "none":
        return None
    if not pathlib.Path(init_from).exists():
        raise ValueError(
            f"--init_from={init_from}: no such state dict, run or weights folder; or one of imagenet, none"
        )
    return pathlib.Path(init_from)


def _load(options: TrainOptions, task: "Task", fold: tuple[int, int] | None) -> tuple["Scans", "Scans"]:
    """The scans to train on and to validate on. ValueError if the fold is empty or is everything."""
    from mcis.data import dataset
    from mcis.train import distributed

    if distributed.is_first() and "phantom" in task.sources and not dataset.versions_of("phantom", options.data_dir):
        from mcis.cli.build import build

        build("phantom", data_dir=options.data_dir)
    distributed.wait("data")
    processes = distributed.processes_here()
    train, validation = (
        dataset.load(task.sources, split, options.data_dir, task.organ, options.stream, processes)
        for split in ("train", "validation")
    )
    if fold is None:
        return train, validation
    both = dataset.Scans.join([train, validation])
    held_out = dataset.folds_of(both, fold[1]) == fold[0]
    if not held_out.any() or held_out.all():
        groups = len(set(both.group.tolist()))
        raise ValueError(f"--fold={options.fold}: this fold has no scan; there are {groups} patients or clusters")
    return both.take(~held_out), both.take(held_out)


def _set_aside(run_dir: pathlib.Path) -> pathlib.Path:
    """Move a run to a folder that `runs/*` does not match."""
    number, aside = 1, run_dir.with_name(".old")
    while (target := aside / f"{run_dir.name}.{number}").exists():
        number += 1
    aside.mkdir(exist_ok=True)
    return run_dir.rename(target)
