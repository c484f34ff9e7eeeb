"""Where weights come from: the code that trained them, and the scans that they have used."""

import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import mcis
from mcis.tasks.config import LAST, Task

PACKAGES = {"jax": "jax", "flax": "flax", "orbax": "orbax-checkpoint"}


class LeakError(ValueError):
    """Scans to be scored as a test were used in training."""


def versions() -> dict[str, str]:
    """Versions of the software that determines a result."""
    own = {"mcis": mcis.__version__, "python": platform.python_version()}
    return own | {name: importlib.metadata.version(package) for name, package in PACKAGES.items()}


@functools.cache
def revision() -> str | None:
    """The git revision of the running code, followed by "+" if tracked files were changed since.

    Where git cannot tell (installed code, no git, a repository of another user) it is $MCIS_REVISION, which a container
    image sets, or None.
    """
    here = pathlib.Path(__file__).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(here), *words]  # a commit may be under way
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=environment)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", pathlib.Path(__file__).name)  # fails in a repository that is not ours
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("MCIS_REVISION") or None


def uses(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The splits that weights have used: "train", and "validation" unless it only monitored the training.

    Validation scans are used where they choose the epoch (any `select` but the last epoch) or a CRF, and where the
    router's OOD limit or what `mcis calibrate` writes is fitted to them.
    """
    task = manifest["task"]
    monitored = task["select"] == LAST and not task.get("crf", {}).get("steps") and task["name"] != "route"
    return ("train",) if monitored and "calibration" not in manifest else ("train", "validation")


def inherited_uses(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The splits that the arrays of a network have used. What was fitted later is not passed on to another run."""
    return uses({name: value for name, value in manifest.items() if name != "calibration"})


def scans_of(manifest: Mapping[str, Any], by: str, *splits: str) -> set[str]:
    """The scans of some splits in a manifest, by "fingerprints" or "names". Weights older than names have none."""
    return {scan for split in splits for scan in manifest.get(by, {}).get(split, ())}


def merged_scans(manifests: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """An ensemble's "fingerprints" and "names": a scan that one member was trained on counts as "train" for all."""
    found = {}
    for by in ("fingerprints", "names"):
        train, validation = (
            {scan for manifest in manifests for scan in scans_of(manifest, by, split)}
            for split in ("train", "validation")
        )
        found[by] = {"train": sorted(train), "validation": sorted(validation - train)}
    return found


def check_unseen(fingerprints: Sequence[str], names: Sequence[str | None], manifest: Mapping[str, Any]) -> None:
    """LeakError if weights have used any of the scans to be tested.

    Args:
      fingerprints: hashes of the scans' contents; a copy of another size has another one.
      names: `dataset.public_name` of each scan, the same for every copy.
      manifest: of the weights.
    """
    for use in uses(manifest):
        used, used_names = scans_of(manifest, "fingerprints", use), scans_of(manifest, "names", use)
        pairs = zip(fingerprints, names, strict=True)
        seen = [fingerprint for fingerprint, name in pairs if fingerprint in used or name in used_names]
        if seen:
            raise LeakError(
                f"{len(seen)} of the {len(fingerprints)} scans were used for {use} of these weights, or copies of them "
                f"were (fingerprint {min(seen)}, ...), so the score would be biased. Score another split, or retrain "
                "without them"
            )


def leaks(fingerprints: Sequence[str], manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Task name -> use (`uses`) -> {"used": number of scans used, "scored": how many of these are scored}."""
    scored = set(fingerprints)
    found: dict[str, dict[str, Any]] = {}
    for name, manifest in manifests.items():
        used = {use: scans_of(manifest, "fingerprints", use) for use in uses(manifest)}
        found[name] = {use: {"used": len(scans), "scored": len(scans & scored)} for use, scans in used.items()}
    return found


def check_finished(run: str | os.PathLike, manifest: Mapping[str, Any]) -> None:
    """ValueError if weights that are to be those of the last epoch are of an earlier one."""
    task, epoch = manifest["task"], manifest["epoch"]
    if task["select"] == LAST and epoch < task["epochs"]:
        raise ValueError(f"{run} is unfinished, at epoch {epoch} of {task['epochs']}; train it to its end")


def differing_fields(task: Task, other: Task) -> list[str]:
    """Names of the fields in which two tasks differ."""
    return [name for name, value in vars(task).items() if value != vars(other)[name]]


def check_fold(run: str | os.PathLike, task: Task, manifest: Mapping[str, Any]) -> None:
    """ValueError unless a run is a fold: finished, and its validation scans neither trained nor chose its weights."""
    if task.select != LAST:
        raise ValueError(
            f"{run}: its epoch was chosen by {task.select} on its held-out scans, which are therefore no test; "
            f"train folds with --select={LAST}"
        )
    check_finished(run, manifest)
    held_out = scans_of(manifest, "fingerprints", "validation")
    if not held_out:
        raise ValueError(f"{run} has no held-out scans: it is an ensemble, or was trained on all scans")
    for by in ("fingerprints", "names"):  # a copy of another size has the same name alone
        if overlap := scans_of(manifest, by, "validation") & scans_of(manifest, by, "train"):
            raise LeakError(f"{run} was trained on {len(overlap)} of the scans that it lists as held out, or on copies")


def check_folds(runs: Sequence[tuple[str, Task, Mapping[str, Any]]]) -> None:
    """ValueError unless runs are folds of one task: the same settings but for the CRF, and disjoint held-out scans.

    Args:
      runs: path, task and manifest of each.
    """
    first, first_task, _ = runs[0]
    taken: set[str] = set()
    for run, task, manifest in runs:
        check_fold(run, task, manifest)
        if differing := [name for name in differing_fields(task, first_task) if name != "crf"]:
            raise ValueError(
                f"{run} was trained with other settings than {first}: {', '.join(differing)}; folds differ only in "
                "their scans"
            )
        held_out = scans_of(manifest, "fingerprints", "validation")
        if held_out & taken:
            raise ValueError(f"{run} holds out scans that another run holds out as well; name each fold once")
        taken |= held_out
