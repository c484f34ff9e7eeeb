"""`mcis info`: versions, devices, tasks, networks, prepared data and weights, as this installation sees them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from mcis.cli.common import Options, exit_status, parse_dataclass
from mcis.data.dataset import data_folder


def main(argv: Sequence[str]) -> int:
    """The command."""

    @dataclasses.dataclass(frozen=True)
    class Info(Options):
        """Versions, devices, tasks, networks, prepared data and weights.

        Attributes:
          weights: a set of weights to describe; by default those that come with mcis.
        """

        weights: str | None = None

    options = parse_dataclass(Info, argv, "mcis info")
    return exit_status("mcis info", lambda: _main(options))


def _main(options: Any) -> int:
    import jax

    import mcis
    from mcis.checkpoints import bundle, checkpoint
    from mcis.data import dataset
    from mcis.models import MODELS
    from mcis.tasks.table import TASKS

    print(mcis.NOTICE)
    print("versions:", ", ".join(f"{name} {version}" for name, version in checkpoint.versions().items()))
    print("devices:", ", ".join(str(device) for device in jax.devices()))
    print("networks:", ", ".join(MODELS))
    print("tasks:")
    for task in TASKS.values():
        print(f"  {task.name:16s} {task.model} {task.width} at {task.size} px on {', '.join(task.sources)}")
    root = data_folder(options.data_dir)
    print(f"prepared data in {root}:")
    for source in sorted(path.name for path in dataset.sources_in(root)):
        print(f"  {source:16s} {dataset.prepared(source, root)}")
    print(f"weights in {options.weights or bundle.BUNDLED}:")
    for name, one in bundle.load_bundle(options.weights or bundle.BUNDLED).items():
        figures = ", ".join(f"{k} {v:.3f}" for k, v in one.manifest["validation"].items())
        print(f"  {name:16s} {one.task.model} at {one.task.size} px, {_made(one)}, validation: {figures}")
    return 0


def _made(weights: Any) -> str:
    """How many networks weights are, and how their probabilities are changed, in words."""
    said = "one network" if weights.networks == 1 else f"the mean of {weights.networks} networks"
    slope = weights.variables.get("calibration", {}).get("slope")
    start = weights.task.start
    before = f" after {start.epochs} at {start.size} px" if start.epochs else ""
    calibrated = "" if slope is None else f", calibrated (slope {slope:.2f})"
    return f"{said}, epoch {weights.manifest['epoch']}{before}{calibrated}"
