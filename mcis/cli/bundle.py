"""`mcis bundle RUN... --out DIR`: gather runs into a bundle of weights."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str]) -> int:
    """`mcis bundle RUN... --out DIR`."""
    import tyro

    from mcis.cli.common import exit_status, parse_dataclass

    @dataclasses.dataclass(frozen=True)
    class Bundle:
        """Gather the best weights of some runs into a set for `mcis predict --weights DIR`.

        Attributes:
          runs: run folders, one a task.
          out: folder to make.
          full: keep float32; the default halves the parameters to float16.
        """

        runs: tyro.conf.Positional[tuple[str, ...]]
        out: str
        full: bool = False

    options = parse_dataclass(Bundle, argv, "mcis bundle")
    return exit_status("mcis bundle", lambda: _main(options))


def _main(options: Any) -> int:
    from mcis.checkpoints.bundle import make_bundle
    from mcis.tasks.table import TASKS

    sizes = make_bundle(options.runs, options.out, half=not options.full)
    for name, size in sizes.items():
        print(f"{name:16s} {size / 1e6:6.2f} MB")
    print(f"{options.out}: {sum(sizes.values()) / 1e6:.2f} MB")
    missing = [name for name in TASKS if not (pathlib.Path(options.out) / name).exists()]
    if missing:
        print(f"not in the set: {', '.join(missing)}")
    return 0
