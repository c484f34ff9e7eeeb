"""A set of weights: one weights folder a task, as `mcis bundle` makes it and the cascade takes it."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mcis.checkpoints import checkpoint
from mcis.imaging.letterbox import INPUT_SIZE
from mcis.tasks.apply import MEMBERS, NETWORK
from mcis.tasks.config import LAST, Task
from mcis.tasks.table import TASKS, task_from_json

BUNDLED = pathlib.Path(__file__).parents[1] / "weights"
"""The weights that come with the package."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """One task's network, ready to run.

    Attributes:
      task: what it was trained for and how; makes its network.
      variables: nested dicts of float32 NumPy arrays.
      manifest: what the weights folder says of itself: classes, validation figures, fingerprints of training scans.
    """

    task: Task
    variables: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def networks(self) -> int:
        """How many answer: 1, or an ensemble's number."""
        members = jax.tree.leaves(self.variables.get(MEMBERS, {}))
        return len(members[0]) if members else 1


def load_weights(path: str | os.PathLike) -> Weights:
    """Read a run or a weights folder.

    Raises:
      CheckpointError: it is none, is damaged, or its arrays are not those of its network.
    """
    folder = checkpoint.weights_folder(path)
    variables, manifest = checkpoint.load(folder)
    try:
        task = task_from_json(manifest["task"])
        _check_manifest(manifest, task)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise checkpoint.CheckpointError(
            f"{folder / checkpoint.MANIFEST} describes no weights of this version "
            f"({type(error).__name__}: {str(error)[:500]})"
        ) from None
    if folder.parent != BUNDLED:  # what ships was checked by the tests: tracing five networks takes a second
        check_arrays(task, variables, folder)
    for name, value in checkpoint.flatten(variables).items():
        if not np.isfinite(value).all():
            raise checkpoint.CheckpointError(f"{folder}: array {name} is not finite; such weights say nothing")
    return Weights(task, variables, manifest)


def check_arrays(task: Task, variables: dict[str, Any], folder: pathlib.Path) -> None:
    """CheckpointError unless the arrays are those of the task's network."""
    image = jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, task.channels), "float32")
    outputs, expected = jax.eval_shape(task.make_model().init_with_output, jax.random.key(0), image)
    network = {name: tree for name, tree in variables.items() if name in NETWORK}
    if MEMBERS in variables:
        members = {value.shape[:1] for value in checkpoint.flatten(variables[MEMBERS]).values()}
        if network or len(members) != 1 or members <= {(), (0,)}:
            raise checkpoint.CheckpointError(f"{folder}: an ensemble's arrays need one member at least, all as many")
        network = jax.tree.map(lambda value: value[0], variables[MEMBERS])
    checkpoint.check_shapes(network, expected, folder)
    fitted = {name: tree for name, tree in variables.items() if name not in (*NETWORK, MEMBERS)}
    for name in {"calibration", "novelty"} & set(fitted):
        if not isinstance(fitted[name], dict):
            raise checkpoint.CheckpointError(f"{folder}: {name} is one array; it must be several, by name")
    width = 0 if outputs.features is None else outputs.features.shape[1]
    checkpoint.check_shapes(fitted, _fitted_shapes(task, fitted, width), folder)


def _fitted_shapes(task: Task, fitted: Mapping[str, Any], width: int) -> dict[str, Any]:
    """The arrays that what was fitted after training must have, of the parts there are; `width` is the features'."""
    shape = jax.ShapeDtypeStruct
    number = shape((), "float32")
    wanted: dict[str, Any] = {}
    if "calibration" in fitted:
        wanted["calibration"] = {"slope": number} | ({"review": number} if "review" in fitted["calibration"] else {})
    if task.organ is None:
        wanted |= {name: number for name in ("threshold", "reach") if name in fitted}
        if "novelty" in fitted:
            known = np.shape(fitted["novelty"].get("mean", ()))[:1] or (1,)  # the organs that it was trained on
            mean, whiten = shape((*known, width), "float32"), shape((width, width), "float32")
            wanted["novelty"] = {"mean": mean, "whiten": whiten, "limit": number}
    return wanted


def _check_manifest(manifest: dict[str, Any], task: Task) -> None:
    """ValueError, KeyError or TypeError unless the manifest says what others read in it."""
    if not isinstance(manifest["versions"], dict):
        raise ValueError("versions must be a table")
    if manifest["classes"] != list(task.classes):
        raise ValueError(f"classes {manifest['classes']}; {task.name} has {list(task.classes)}")
    if type(manifest["epoch"]) is not int or not all(type(v) in (int, float) for v in manifest["validation"].values()):
        raise ValueError("epoch and validation figures must be numbers")
    for use in ("train", "validation"):
        listed = [*manifest["fingerprints"][use], *manifest.get("names", {}).get(use, ())]
        if not all(isinstance(name, str) for name in listed):
            raise ValueError(f"fingerprints and names of {use} must be texts")


def load_bundle(path: str | os.PathLike = BUNDLED) -> dict[str, Weights]:
    """Read a set of weights: task name -> Weights.

    Raises:
      CheckpointError: the folder holds none, or one of them is damaged or of another task than its name says.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise checkpoint.CheckpointError(f"{path}: no such folder of weights")
    found = {name: load_weights(path / name) for name in TASKS if checkpoint.present(path / name).is_dir()}
    for name, weights in found.items():
        if weights.task.name != name:
            raise checkpoint.CheckpointError(f"{path / name} holds weights of {weights.task.name}; rename the folder")
    if not found:
        alone = checkpoint.is_weights_folder(checkpoint.weights_folder(path))
        what = "is one task's run, no set of weights" if alone else "holds no weights"
        raise checkpoint.CheckpointError(
            f"{path} {what}: `mcis bundle RUN... --out DIR` makes a set, a folder a task, of {', '.join(TASKS)}"
        )
    return found


def first_networks(found: Mapping[str, Weights], count: int | None) -> dict[str, Weights]:
    """A set of whose ensembles the first networks alone answer, at most `count` of each; None for all.

    Raises:
      ValueError: no task of the set has as many.
    """
    largest = max(one.networks for one in found.values())
    if count is not None and count > largest:
        raise ValueError(f"--members={count}: 1 to {largest} is needed, more have none of {', '.join(found)}")
    return {
        name: one
        if count is None or MEMBERS not in one.variables
        else dataclasses.replace(
            one, variables=one.variables | {MEMBERS: jax.tree.map(lambda x: x[:count], one.variables[MEMBERS])}
        )
        for name, one in found.items()
    }


def make_bundle(runs: Sequence[str | os.PathLike], out: str | os.PathLike, half: bool = True) -> dict[str, int]:
    """Gather the best weights of some runs into a set; at least one, one for each task.

    Args:
      runs: run or weights folders.
      out: folder to make; weights that stand there under a task's name are replaced.
      half: store parameters as float16.

    Returns:
      task name -> bytes on disk.

    Raises:
      CheckpointError: a run has no usable weights.
      ValueError: there are no runs, an unfinished one that was to keep its last epoch, or some of the same task that
        make no ensemble; or what stands at `out` is no set of weights.
    """
    if not runs:
        raise ValueError("no runs given; name at least one run folder")
    out = pathlib.Path(out)
    loaded: dict[str, list[Weights]] = {}
    for run in runs:
        weights = load_weights(run)
        check_finished(run, weights.manifest)
        loaded.setdefault(weights.task.name, []).append(weights)
    for name in loaded:
        there = out / name
        if there.exists() and not checkpoint.is_weights_folder(there):
            raise ValueError(f"{there} is there and holds no weights that could be replaced; name another --out")
    sizes = {}
    for name, members in loaded.items():
        weights = members[0] if len(members) == 1 else ensemble(members)
        checkpoint.save(out / name, weights.variables, weights.manifest, half=half)
        sizes[name] = sum(p.stat().st_size for p in (out / name).rglob("*") if p.is_file())
    return sizes


def check_finished(run: str | os.PathLike, manifest: Mapping[str, Any]) -> None:
    """ValueError where weights that were to be of the last epoch are of an earlier one."""
    task, epoch = manifest["task"], manifest["epoch"]
    if task["select"] == LAST and epoch < task["epochs"]:
        raise ValueError(f"{run} is unfinished, at epoch {epoch} of {task['epochs']}; train it to its end")


def ensemble(members: Sequence[Weights]) -> Weights:
    """Networks of one task as one, whose answer is the mean of theirs; it has seen what any of them has.

    Raises:
      ValueError: they differ in more than their seeds and scans, are ensembles, or are routers, whose notion of a
        foreign scan is each one's own.
    """
    first = members[0]
    if first.task.organ is None:
        raise ValueError(f"a second run of {first.task.name}: a set has one router")
    for other in members[1:]:
        ours, theirs = vars(first.task), vars(other.task)
        if differing := [name for name in ours if ours[name] != theirs[name]]:
            raise ValueError(
                f"runs of {first.task.name} make an ensemble only where they agree in {', '.join(differing)}"
            )
    if any(MEMBERS in member.variables for member in members):
        raise ValueError(f"{first.task.name}: an ensemble cannot be a member of another; name the runs it was made of")
    networks = [{name: m.variables[name] for name in NETWORK if name in m.variables} for m in members]
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *networks)
    figures = [member.manifest["validation"] for member in members]
    manifest = {name: value for name, value in first.manifest.items() if name != "calibration"}  # a member's own
    manifest |= {
        "epoch": max(member.manifest["epoch"] for member in members),
        "seeds": [member.manifest.get("seed") for member in members],
        "trained": [member.manifest.get("trained") for member in members],
        "validation": {name: float(np.mean([f[name] for f in figures])) for name in figures[0]},
    } | {by: _seen(members, by) for by in ("fingerprints", "names")}
    return Weights(first.task, {MEMBERS: stacked}, manifest)


def _seen(members: Sequence[Weights], by: str) -> dict[str, list[str]]:
    """What some networks have used scans for, by fingerprint or name: what one was trained on, all were."""
    train, validation = (
        {name for member in members for name in member.manifest.get(by, {}).get(use, ())}
        for use in ("train", "validation")
    )
    return {"train": sorted(train), "validation": sorted(validation - train)}
