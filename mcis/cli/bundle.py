"""`mcis bundle RUN... --out DIR`: gather runs into a bundle of weights."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated

import tyro

from mcis.cli.common import PathText, run
from mcis.inference.options import takes


@dataclasses.dataclass(frozen=True)
class BundleOptions:
    """Gather the best weights of some runs into a bundle for `mcis predict --weights DIR`.

    Attributes:
      runs: run folders; several of one task become an ensemble.
      out: folder to make.
      full: keep float32; by default parameters are stored as float16.
    """

    runs: Annotated[tuple[PathText, ...], tyro.conf.Positional, takes("RUN...")]
    out: Annotated[PathText, tyro.conf.arg(metavar="DIR")]
    full: bool = False


def main(argv: Sequence[str]) -> int:
    """The command."""
    return run("mcis bundle", BundleOptions, bundle, argv)


def bundle(options: BundleOptions) -> int:
    """Make the bundle and print its sizes."""
    from mcis.checkpoints.bundle import make_bundle
    from mcis.tasks.table import TASKS

    sizes = make_bundle(options.runs, options.out, half=not options.full)
    for name, size in sizes.items():
        print(f"{name:16s} {size / 1e6:6.2f} MB")
    print(f"{options.out}: {sum(sizes.values()) / 1e6:.2f} MB")
    missing = [name for name in TASKS if not (pathlib.Path(options.out) / name).exists()]
    if missing:
        print(f"not in the bundle: {', '.join(missing)}")
    return 0
