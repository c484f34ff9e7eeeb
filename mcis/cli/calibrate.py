"""`mcis calibrate BUNDLE RUN...`: fit probabilities, rejection and review on fold runs."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Annotated

import tyro

from mcis.cli.common import SAID, Options, PathText, enable_compilation_cache, run


@dataclasses.dataclass(frozen=True)
class Calibrate(Options):
    """Calibrate a bundle: fit probabilities, rejection and review limits on the held-out scans of fold runs.

    Attributes:
      weights: folder of the bundle, whose manifests and weights are changed.
      runs: folders of the fold runs, of one task or of several: trained with `--fold=0/5 --select=last`, and so on.
      out: JSON file for the results; by default they are only printed and stored in the manifests of the bundle.
    """

    weights: tyro.conf.Positional[PathText] = tyro.MISSING
    runs: tyro.conf.Positional[tuple[PathText, ...]] = tyro.MISSING
    out: Annotated[PathText | None, SAID] = None


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0, or 2 when nothing was fitted."""
    return run("mcis calibrate", Calibrate, _main, argv)


def _main(options: Calibrate) -> int:
    from mcis.calibration.calibrate import calibrate
    from mcis.files import write_text

    enable_compilation_cache()
    text = json.dumps(calibrate(options.weights, options.runs, options.data_dir), indent=1)
    print(text)
    if options.out is not None:
        write_text(pathlib.Path(options.out), text + "\n")
    return 0
