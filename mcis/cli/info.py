"""`mcis info`: versions, devices, networks, tasks, prepared data and weights of this installation."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from mcis.cli.common import Options, PathText, run
from mcis.inference.options import takes


@dataclasses.dataclass(frozen=True)
class Info(Options):
    """Versions, devices, networks, tasks, prepared data and weights of this installation.

    Attributes:
      weights: folder of the bundle to describe; by default the bundled weights.
    """

    weights: Annotated[PathText | None, takes("DIR")] = None


def main(argv: Sequence[str]) -> int:
    """The command."""
    return run("mcis info", Info, info, argv)


def info(options: Info) -> int:
    """Print the information."""
    import jax

    import mcis
    from mcis.checkpoints import bundle, provenance
    from mcis.data import dataset
    from mcis.models import MODELS
    from mcis.tasks.table import TASKS

    print(mcis.NOTICE)
    print("versions:", ", ".join(f"{name} {version}" for name, version in provenance.versions().items()))
    print("devices:", ", ".join(str(device) for device in jax.devices()))
    print("networks:", ", ".join(MODELS))
    print("tasks:")
    for task in TASKS.values():
        print(f"  {task.name:16s} {task.model}, {task.width} features, at {task.size} px on {', '.join(task.sources)}")
    root = dataset.data_folder(options.data_dir)
    sources = sorted(path.name for path in dataset.sources_in(root))
    print(f"prepared data in {root}:{'' if sources else ' none' if root.is_dir() else ' there is no such folder'}")
    for source in sources:
        print(f"  {source:16s} {dataset.prepared(source, root)}")
    folder = options.weights or bundle.BUNDLED
    print(f"weights in {folder}:")
    for name, weights in bundle.load_bundle(folder).items():
        scores = ", ".join(f"{metric} {value:.3f}" for metric, value in weights.manifest["validation"].items())
        network = f"{weights.task.model} at {weights.task.size} px"
        print(f"  {name:16s} {network}, {_describe(weights)}, validation: {scores}")
    return 0


def _describe(weights: Any) -> str:
    """Ensemble size, epochs and calibration of a task's weights."""
    networks = "one network" if weights.networks == 1 else f"the mean of {weights.networks} networks"
    slope = weights.variables.get("calibration", {}).get("slope")
    start = weights.task.start
    pretraining = f" after {start.epochs} at {start.size} px" if start.epochs else ""
    calibration = "" if slope is None else f", calibrated (slope {slope:.2f})"
    return f"{networks}, epoch {weights.manifest['epoch']}{pretraining}{calibration}"
