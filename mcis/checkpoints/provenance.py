"""Which runs are folds: each can answer for strangers the scans that it has left out."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mcis.evaluation.results import LeakError
from mcis.tasks.config import LAST, Task


def check_fold(run: str | os.PathLike, task: Task, manifest: Mapping[str, Any]) -> None:
    """ValueError unless what a run has left out are strangers to it: it was neither trained nor chosen by them."""
    from mcis.checkpoints.bundle import check_finished

    if task.select != LAST:
        raise ValueError(
            f"{run}: its epoch was chosen by {task.select} on the scans it left out, which therefore are no strangers "
            f"to it; train the folds with --select={LAST}"
        )
    check_finished(run, manifest)
    mine = set(manifest["fingerprints"]["validation"])
    if not mine:
        raise ValueError(f"{run} has left no scan out: it is an ensemble, or was trained on all")
    if overlap := mine & set(manifest["fingerprints"]["train"]):
        raise LeakError(f"{run} was trained on {len(overlap)} of the scans that it says it has left out")


def check_folds(runs: Sequence[tuple[str, Task, Mapping[str, Any]]]) -> None:
    """ValueError unless runs are folds of one task: each is one, of the same settings, and no two left out the same.

    Args:
      runs: each one's path, task and manifest. A CRF, which is chosen afterwards, may differ.
    """
    first, like, _ = runs[0]
    taken: set[str] = set()
    for run, task, manifest in runs:
        check_fold(run, task, manifest)
        ours, theirs = vars(task), vars(like)
        if differing := ", ".join(name for name in ours if name != "crf" and ours[name] != theirs[name]):
            raise ValueError(f"{run} was trained otherwise than {first}, in {differing}; folds differ in their scans")
        mine = set(manifest["fingerprints"]["validation"])
        if mine & taken:
            raise ValueError(f"{run} has left out scans that another of the runs left out; name each fold once")
        taken |= mine
