"""Bundled weights: a folder with one weights folder per task, made by `mcis bundle` and read by the cascade."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mcis.checkpoints import checkpoint
from mcis.checkpoints.checkpoint import CheckpointError
from mcis.checkpoints.provenance import check_finished, differing_fields, merged_scans
from mcis.imaging.letterbox import INPUT_SIZE
from mcis.models.network import Network, Outputs
from mcis.ops.points import POINTS
from mcis.tasks.apply import MEMBERS, NETWORK
from mcis.tasks.config import Task
from mcis.tasks.table import TASKS, task_from_json

BUNDLED = pathlib.Path(__file__).parents[1] / "weights"
"""The bundle that is part of the package."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """One task's network or ensemble, ready to run.

    Attributes:
      task: the settings it was trained with; makes its network.
      variables: nested dicts of NumPy arrays, float32.
      manifest: contents of its manifest.json: classes, validation metrics, fingerprints of the scans it has used.
    """

    task: Task
    variables: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def networks(self) -> int:
        """The number of networks: 1, or an ensemble's number of members."""
        members = jax.tree.leaves(self.variables.get(MEMBERS, {}))
        return len(members[0]) if members else 1

    @property
    def half(self) -> bool:
        """Whether parameters are stored as float16."""
        return any(dtype == "float16" for dtype, _ in self.manifest["arrays"].values())


def load_weights(path: str | os.PathLike) -> Weights:
    """Read a run's folder or a weights folder.

    Raises:
      CheckpointError: the folder is neither or is damaged, or its arrays do not fit its network or are not finite.
    """
    folder = checkpoint.weights_folder(path)
    variables, manifest = checkpoint.load(folder)
    try:
        task = task_from_json(manifest["task"])
        _check_manifest(manifest, task)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / checkpoint.MANIFEST} does not describe weights of this version "
            f"({type(error).__name__}: {str(error)[:500]})"
        ) from None
    if folder.parent != BUNDLED:  # the tests have checked those; tracing five networks takes a second
        check_arrays(task, variables, folder)
    for name, value in checkpoint.flatten(variables).items():
        if not np.isfinite(value).all():
            raise CheckpointError(f"{folder}: array {name} is not finite; such weights are useless")
    return Weights(task, variables, manifest)


def check_arrays(task: Task, variables: dict[str, Any], folder: pathlib.Path) -> None:
    """CheckpointError unless the arrays fit the task's network, and what was fitted after training fits it too."""
    outputs, expected = _network_shapes(task.make_model(), task.channels)
    network = {name: tree for name, tree in variables.items() if name in NETWORK}
    if MEMBERS in variables:
        sizes = {value.shape[:1] for value in checkpoint.flatten(variables[MEMBERS]).values()}
        if network or len(sizes) != 1 or sizes <= {(), (0,)}:
            raise CheckpointError(f"{folder}: an ensemble's arrays must all have the same number of members, 1 or more")
        network = jax.tree.map(lambda value: value[0], variables[MEMBERS])
    checkpoint.check_shapes(network, expected, folder)
    fitted = {name: tree for name, tree in variables.items() if name not in (*NETWORK, MEMBERS)}
    for name in {"calibration", "novelty"} & set(fitted):
        if not isinstance(fitted[name], dict):
            raise CheckpointError(f"{folder}: {name} is a single array; it must be a dict of arrays")
    width = 0 if outputs.features is None else outputs.features.shape[1]
    checkpoint.check_shapes(fitted, _fitted_shapes(task, fitted, width), folder)


@functools.lru_cache(maxsize=32)  # tracing a network takes most of a second, and the runs of an ensemble share theirs
def _network_shapes(model: Network, channels: int) -> tuple[Outputs, dict[str, Any]]:
    """Shapes and dtypes of a network's outputs for one image, and of its variables."""
    image = jax.ShapeDtypeStruct((1, INPUT_SIZE, INPUT_SIZE, channels), "float32")
    return jax.eval_shape(model.init_with_output, jax.random.key(0), image)


def _fitted_shapes(task: Task, fitted: Mapping[str, Any], width: int) -> dict[str, Any]:
    """Shapes of what was fitted after training, for those parts that are present; features have `width` channels."""
    shape = jax.ShapeDtypeStruct
    number = shape((), "float32")
    wanted: dict[str, Any] = {}
    if "calibration" in fitted:
        wanted["calibration"] = {"slope": number} | ({"review": number} if "review" in fitted["calibration"] else {})
        if task.organ is not None and "points" in fitted["calibration"]:
            wanted["calibration"]["points"] = dict.fromkeys(POINTS, shape((len(task.classes),), "float32"))
        if task.organ is not None and "label_set" in fitted["calibration"]:
            wanted["calibration"]["label_set"] = shape((len(task.classes),), "float32")
    if task.segments and "outer" in fitted:
        wanted["outer"] = number
    if task.organ is None:
        wanted |= {name: number for name in ("threshold", "reach", "certain") if name in fitted}
        if "novelty" in fitted:
            organs = np.shape(fitted["novelty"].get("mean", ()))[:1] or (1,)  # one mean per organ it was trained on
            mean, whiten = shape((*organs, width), "float32"), shape((width, width), "float32")
            wanted["novelty"] = {"mean": mean, "whiten": whiten, "limit": number}
    return wanted


def _check_manifest(manifest: dict[str, Any], task: Task) -> None:
    """ValueError, KeyError or TypeError if an entry of the manifest is missing or has another type."""
    if not isinstance(manifest["versions"], dict):
        raise ValueError("versions must be a table")
    if manifest["classes"] != list(task.classes):
        raise ValueError(f"classes {manifest['classes']}; {task.name} has {list(task.classes)}")
    if type(manifest["epoch"]) is not int or not all(type(v) in (int, float) for v in manifest["validation"].values()):
        raise ValueError("epoch and validation metrics must be numbers")
    for split in ("train", "validation"):
        listed = [*manifest["fingerprints"][split], *manifest.get("names", {}).get(split, ())]
        if not all(isinstance(name, str) for name in listed):
            raise ValueError(f"fingerprints and names of {split} must be strings")


def load_bundle(path: str | os.PathLike = BUNDLED) -> dict[str, Weights]:
    """Read a bundle: task name -> Weights.

    Raises:
      CheckpointError: the folder holds no weights, or damaged ones, or those of another task than its name says.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder of weights; `mcis bundle RUN... --out DIR` makes one")
    found = {name: load_weights(path / name) for name in TASKS if checkpoint.present(path / name).is_dir()}
    for name, weights in found.items():
        if weights.task.name != name:
            raise CheckpointError(f"{path / name} holds weights of {weights.task.name}; rename the folder")
    if not found:
        single = checkpoint.is_weights_folder(checkpoint.weights_folder(path))
        what = "is the run of a single task, not a bundle" if single else "holds no weights"
        raise CheckpointError(
            f"{path} {what}: `mcis bundle RUN... --out DIR` makes a bundle, with one folder for each of "
            f"{', '.join(TASKS)}"
        )
    return found


def first_networks(bundle: Mapping[str, Weights], count: int | None) -> dict[str, Weights]:
    """A bundle with only the first `count` networks of each ensemble; None for all.

    Raises:
      ValueError: no ensemble has that many.
    """
    largest = max(weights.networks for weights in bundle.values())
    if count is not None and count > largest:
        if largest == 1:
            raise ValueError(f"--members={count}: these weights have no ensemble; leave the option out")
        raise ValueError(f"--members={count}: it must be 1 to {largest}, the largest ensemble of {', '.join(bundle)}")
    found = dict(bundle)
    for name, weights in bundle.items():
        if count is not None and MEMBERS in weights.variables:
            members = jax.tree.map(lambda x: x[:count], weights.variables[MEMBERS])
            found[name] = dataclasses.replace(weights, variables=weights.variables | {MEMBERS: members})
    return found


def make_bundle(runs: Sequence[str | os.PathLike], out: str | os.PathLike, half: bool = True) -> dict[str, int]:
    """Gather the best weights of some runs into a bundle; several runs of one task become an ensemble.

    Args:
      runs: run folders or weights folders.
      out: the folder to make; weights in it are replaced task by task.
      half: store parameters as float16.

    Returns:
      task name -> bytes on disk.

    Raises:
      CheckpointError: a run has no usable weights.
      ValueError: no runs are given, one is unfinished, runs of one task make no ensemble, or `out` holds something
        other than weights.
    """
    if not runs:
        raise ValueError("no runs given; name at least one run folder")
    out = pathlib.Path(out)
    by_task: dict[str, list[Weights]] = {}
    for run in runs:
        weights = load_weights(run)
        check_finished(run, weights.manifest)
        by_task.setdefault(weights.task.name, []).append(weights)
    for name in by_task:
        if (out / name).exists() and not checkpoint.is_weights_folder(out / name):
            raise ValueError(f"{out / name} exists and is not a weights folder; choose another --out")
    sizes = {}
    for name, members in by_task.items():
        weights = members[0] if len(members) == 1 else ensemble(members)
        checkpoint.save(out / name, weights.variables, weights.manifest, half=half)
        sizes[name] = sum(path.stat().st_size for path in (out / name).rglob("*") if path.is_file())
    return sizes


def ensemble(members: Sequence[Weights]) -> Weights:
    """Several networks of one task as one, which predicts their mean.

    Raises:
      ValueError: they differ in more than their seeds and scans, are ensembles themselves, or are routers, each of
        which has its own OOD limit.
    """
    first = members[0]
    if first.task.organ is None:
        raise ValueError(f"a second run of {first.task.name}: a bundle has only one router")
    for other in members[1:]:
        if differing := differing_fields(first.task, other.task):
            raise ValueError(f"runs of {first.task.name} make an ensemble only with the same {', '.join(differing)}")
    if any(MEMBERS in member.variables for member in members):
        raise ValueError(f"{first.task.name}: an ensemble cannot be a member of another; name the runs it was made of")
    networks = [{name: m.variables[name] for name in NETWORK if name in m.variables} for m in members]
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *networks)
    metrics = [member.manifest["validation"] for member in members]
    manifest = {name: value for name, value in first.manifest.items() if name != "calibration"}  # fitted to one member
    manifest |= {
        "epoch": max(member.manifest["epoch"] for member in members),
        "seeds": [member.manifest.get("seed") for member in members],
        "trained": [member.manifest.get("trained") for member in members],
        "validation": {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]},
    }
    return Weights(first.task, {MEMBERS: stacked}, manifest | merged_scans([member.manifest for member in members]))
