"""Train one task: `python -m mcis.launch --task=segment_brain`, or `mcis train --task=segment_brain`.

Every field of the task can be overridden: `--sources=busi,busbra --model=unet --features=16 --size=128 --epochs=3`.
Unknown names fail and list what there is. A task may start at another size (`--start.epochs` and so on), in a run of
its own below the run's folder; where another --size or --epochs is given it does not, unless that is asked for too.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

START = "start"
"""A run's folder of the run that its task starts with."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command: exit status 0 when training is complete, else 75, 1 or 2.

    75: it was asked to stop, and goes on when the same is typed again; 1: it broke off; 2: it could not start.
    """
    from mcis.cli.common import exit_status

    words = list(sys.argv[1:] if argv is None else argv)

    def train() -> int:
        options, task = parse(words)
        return run(options, task, shlex.join(["mcis", "train", *words]))

    return exit_status("mcis train", train)


def run(options: Any, task: Any, command: str | None = None) -> int:
    """Load the scans, train, and say where the result is; `command` is what was typed."""
    from mcis.cli.common import INTERRUPTED, enable_compilation_cache, exit_status

    fold = None if options.fold is None else parse_fold(options.fold)
    name = options.run or task.name + (f"_fold{fold[0]}" if fold else "")
    if pathlib.PurePath(name).name != name or name.startswith("."):
        raise ValueError(f"--run={name}: a name is needed, not a path; --runs_dir says in which folder")
    run_dir = pathlib.Path(options.runs_dir) / name

    enable_compilation_cache()
    from mcis.train import distributed

    distributed.join(options.coordinator, options.processes, options.process, options.heartbeat)
    train = functools.partial(_train, options, task, run_dir, fold, command)
    if distributed.alone():
        return train()
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(sys.stdout if distributed.is_first() else nowhere),
    ):
        try:
            status = exit_status("mcis train", distributed.naming_the_lost(train))
        except Exception:  # a bug, or what nobody has thought of
            traceback.print_exc()
            status = 1
    if status not in (0, INTERRUPTED):
        os._exit(status)  # at once: an orderly end would wait for the others, and they for this process
    return status


def _train(options: Any, task: Any, run_dir: pathlib.Path, fold: tuple[int, int] | None, command: str | None) -> int:
    """Train in this process, which has met the others."""
    from mcis.cli.common import INTERRUPTED, asked_to_stop
    from mcis.data import dataset
    from mcis.tasks.config import LAST
    from mcis.tasks.table import task_named
    from mcis.train import distributed, loop, run_record
    from mcis.train.tensorboard import make_board

    if distributed.is_first():
        ensure_phantom(task.sources, options.data_dir)
    distributed.wait("data")
    splits = ("train", "validation")
    neighbours = distributed.neighbours()
    to_train, to_validate = (
        dataset.load(task.sources, split, options.data_dir, task.organ, options.stream, neighbours) for split in splits
    )
    if fold is not None:
        both = dataset.Scans.join([to_train, to_validate])
        held_out = dataset.folds_of(both, fold[1]) == fold[0]
        to_train, to_validate = both.take(~held_out), both.take(held_out)
        if not (held_out.any() and (~held_out).any()):
            groups = len(set(both.group.tolist()))
            raise ValueError(f"--fold={options.fold}: no scan is in that fold; there are {groups} groups to deal out")
    counts = f"{len(to_train)} scans to train, {len(to_validate)} to validate"
    print(f"{task.name}: {task.model} on {', '.join(task.sources)}: {counts}", flush=True)
    if options.fresh and distributed.is_first() and run_dir.exists():
        print(f"{run_dir} moved to {_set_aside(run_dir)}")
    distributed.wait("fresh")
    if task_named(task.name).start.epochs and not task.start.epochs:
        print(f"{task.name}: no start at another size, {task.epochs} epochs at {task.size} px in all", flush=True)
    of_fold = None if fold is None else "{}/{}".format(*fold)
    start = options.init_from
    further = {"save_minutes": options.save_minutes, "command": command, "fold": of_fold, "pmap": options.pmap}
    try:
        with asked_to_stop() as further["stop"]:
            if (first := task.pretraining) is not None:
                settings = run_record.settings_of(task, to_train, to_validate, options.seed, of_fold)
                run_record.check_same_run(run_dir, settings, start=False)  # before hours go into its start
                then = f"then {task.epochs} at {task.size}"
                print(f"{task.name}: first {first.epochs} epochs at {first.size} px, {then}", flush=True)
                board = make_board(run_dir / START, first, to_validate)
                loop.train(first, to_train, to_validate, run_dir / START, options.seed, start, watch=board, **further)
                start = run_dir / START
            board = make_board(run_dir, task, to_validate)
            best = loop.train(task, to_train, to_validate, run_dir, options.seed, start, watch=board, **further)
    except loop.Interrupted as interrupted:
        print(f"{task.name}: {interrupted}; type the same again to go on", flush=True)
        return INTERRUPTED
    figures = ", ".join(f"{name} {value:.3f}" for name, value in best["validation"].items())
    chosen = "the last" if task.select == LAST else f"best by {task.select}"
    print(f"{task.name}: epoch {best['epoch']} of {task.epochs}, {chosen}: validation {figures}")
    print(f"weights in {run_dir / loop.BEST}, log in {run_dir / loop.LOG}")
    where = "" if options.data_dir is None else f" --data_dir={shlex.quote(options.data_dir)}"
    print(f"score it once on held-out scans: mcis evaluate {shlex.quote(str(run_dir))} --split=test{where}")
    return 0


def parse(argv: Sequence[str]):
    """Options and Task of a command line; exits with a message where it is wrong."""
    import tyro

    from mcis.cli.common import Options, parse_dataclass
    from mcis.files import expand_user
    from mcis.tasks.config import Pretraining, Task
    from mcis.tasks.table import TASKS, task_named

    @dataclasses.dataclass(frozen=True)
    class Run(Options):
        """Where a run lives and how it starts.

        Attributes:
          runs_dir: folder of the runs.
          run: name of the run, a folder in runs_dir; by default the task's name, and that of the fold.
          fold: train on the training and validation scans but those of this fold, and validate on it: 0/5 to 4/5, or of
            another number of folds; 2 is 2/5. The folds together give every scan an answer from a network that has not
            seen its group.
          seed: of the initialisation, the data order and the augmentation.
          fresh: start over; an older run of that name is moved aside, not overwritten.
          save_minutes: how often the state is saved within an epoch that takes longer.
          stream: whether scans are decoded each time they are needed, and not kept in memory; by default where they
            would take more than a third of what is free.
          pmap: spread the batch over the devices by pmap; by default by jit over a mesh. Both give the same numbers.
          coordinator: HOST:PORT of process 0, where several processes train together; tasks of a Slurm step find each
            other by themselves.
          processes: how many there are.
          process: which one this is, from 0.
          heartbeat: seconds after which a process of which nothing is heard counts as gone.
          init_from: start from these weights: a state dict of torchvision or of Buda's U-Net (.safetensors, .pth), a
            run, or a weights folder.
        """

        runs_dir: str = "runs"
        run: str = ""
        fold: str | None = None
        seed: int = 0
        fresh: bool = False
        save_minutes: float = 10.0
        stream: bool | None = None
        pmap: bool = False
        coordinator: str | None = None
        processes: int | None = None
        process: int | None = None
        heartbeat: int = 100
        init_from: pathlib.Path | None = None

    name, rest = _take("--task", argv)
    if name is None:
        if {"-h", "--help"} & set(argv):
            print(f"usage: mcis train --task=NAME [options]\n\n{__doc__}\ntasks: {', '.join(TASKS)}")
            print("`mcis train --task=NAME --help` lists that task's options and defaults")
            raise SystemExit(0)
        raise ValueError(f"--task=NAME is needed; there are: {', '.join(TASKS)}")
    task = task_named(name)
    if (_take("--model", rest)[0] or task.model) != task.model:
        task = dataclasses.replace(task, features=0)  # the row's width is its own network's
    flat = tyro.conf.arg(name="")
    asked = {option: _take(option, rest)[0] for option in ("--size", "--epochs")}
    if any(value not in (None, str(vars(task)[option[2:]])) for option, value in asked.items()):
        task = dataclasses.replace(task, start=Pretraining())  # so long and so large is all of it
    fields = [("run", Annotated[Run, flat]), ("task", Annotated[Task, flat])]
    both = dataclasses.make_dataclass("Train", fields, frozen=True)
    parsed = parse_dataclass(both, rest, prog=f"mcis train --task={name}", default=both(Run(), task))
    start = parsed.run.init_from
    return dataclasses.replace(parsed.run, init_from=start and expand_user(start)), parsed.task.check()


FOLDS = 5
"""How many where that is not said."""


def parse_fold(text: str) -> tuple[int, int]:
    """A fold, counted from 0, and how many there are, of "2/5" or of "2", of FOLDS. ValueError where there is none.

    >>> parse_fold("2/10"), parse_fold("2")
    ((2, 10), (2, 5))
    """
    fold, _, folds = text.partition("/")
    try:
        found = int(fold), int(folds or FOLDS)
    except ValueError:
        found = 0, 0
    if not 0 <= found[0] < found[1] or found[1] < 2:
        raise ValueError(
            f"--fold={text}: K/N is needed, N of 2 or more and K from 0 to N - 1, as 0/5 to 4/5; K alone is K/{FOLDS}"
        )
    return found


def _take(option: str, argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """An option's value, the last one where it is given twice, and the other arguments."""
    rest, value, words = [], None, iter(argv)
    for word in words:
        if word == option:
            value = next(words, None)
        elif word.startswith(f"{option}="):
            value = word.removeprefix(f"{option}=")
        else:
            rest.append(word)
    return value, rest


def _set_aside(run_dir: pathlib.Path) -> pathlib.Path:
    """Move a run to where `runs/*` does not meet it."""
    number, aside = 1, run_dir.with_name(".old")
    while (target := aside / f"{run_dir.name}.{number}").exists():
        number += 1
    aside.mkdir(exist_ok=True)
    return run_dir.rename(target)


def ensure_phantom(sources: Sequence[str], data_dir: str | None) -> None:
    """Build the phantom data set if it is asked for and not there."""
    from mcis.data import dataset

    if "phantom" in sources and not dataset.versions_of("phantom", data_dir):
        from mcis.cli.build import build

        build("phantom", data_dir=data_dir)
