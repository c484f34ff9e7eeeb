"""Which runs are folds: each can answer for strangers the scans that it has left out."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mcis.tasks.config import LAST, Task


class LeakError(ValueError):
    """Scans to be scored as a test were seen in training."""


def uses(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """What weights have used scans for: "train", and "validation" unless these have only watched.

    They have chosen the epoch where not simply the last one was kept, and the CRF where there is one; a router's limit
    of novelty is theirs, and so is whatever `mcis calibrate` has fitted.
    """
    task = manifest["task"]
    watched = task["select"] == LAST and not task.get("crf", {}).get("steps") and task["name"] != "route"
    return ("train",) if watched and "calibration" not in manifest else ("train", "validation")


def check_unseen(fingerprints: Sequence[str], names: Sequence[str | None], manifest: Mapping[str, Any]) -> None:
    """LeakError if weights have used any of the scans to be tested.

    Args:
      fingerprints: of the scans' contents, which a copy of another size changes.
      names: `data.public_name` of each, which no copy changes.
      manifest: of the weights; one of weights older than names has none.
    """
    for use in uses(manifest):
        used, called = set(manifest["fingerprints"][use]), set(manifest.get("names", {}).get(use, ()))
        pairs = zip(fingerprints, names, strict=True)
        seen = [fingerprint for fingerprint, name in pairs if fingerprint in used or name in called]
        if seen:
            raise LeakError(
                f"{len(seen)} of the {len(fingerprints)} scans were used for {use} of these weights, or copies of them "
                f"(fingerprint {min(seen)}, ...): this is no test. Score another split, or retrain without them"
            )


def leaks(fingerprints: Sequence[str], manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """How many of the scored scans' contents each network has seen: task name -> use, of `uses` -> counts.

    Each use says `used`, how many contents there were, and `scored`, how many of the scored ones are among them.
    """
    scored = set(fingerprints)
    return {
        name: {
            use: {
                "used": len(set(manifest["fingerprints"][use])),
                "scored": len(scored & {*manifest["fingerprints"][use]}),
            }
            for use in uses(manifest)
        }
        for name, manifest in manifests.items()
    }


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
