"""`mcis calibrate BUNDLE RUN...`: fit probabilities, operating points, limits, label sets and outer outlines."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from mcis.cli.common import Options, PathText, enable_compilation_cache, run
from mcis.inference.options import takes


@dataclasses.dataclass(frozen=True)
class Calibrate(Options):
    """Calibrate a bundle on held-out scans of folds: probabilities, operating points, limits of rejection and review.

    Label sets and outer outlines, whose rate of errors is bounded, are fitted too.

    Attributes:
      weights: folder of the bundle, whose manifests and weights are changed.
      runs: folders of the fold runs, of one task or of several: trained with `--fold=0/5 --select=last`, and so on.
      out: JSON file for the results; by default they are only printed and stored in the manifests of the bundle.
    """

    weights: Annotated[PathText, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")] = tyro.MISSING
    runs: Annotated[tuple[PathText, ...], tyro.conf.Positional, takes("RUN...")] = tyro.MISSING
    out: Annotated[PathText | None, takes("FILE")] = None


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0, or 2 when nothing was fitted."""
    return run("mcis calibrate", Calibrate, _main, argv)


def _main(options: Calibrate) -> int:
    from mcis.calibration.calibrate import calibrate
    from mcis.calibration.operating_points import not_reached
    from mcis.calibration.uncertainty import sentences
    from mcis.files import write_text

    if not options.runs:
        raise ValueError("no fold runs given; name at least one after the bundle: mcis calibrate DIR RUN...")
    enable_compilation_cache()
    facts = calibrate(options.weights, options.runs, options.data_dir)
    text = json.dumps(facts, indent=1)
    print(text)
    for name, one in facts.items():
        for sentence in not_reached(one["operating_points"]) if "operating_points" in one else ():
            print(f"{name}, operating point {sentence}", file=sys.stderr)
        for sentence in sentences(one):
            print(f"{name}: {sentence}", file=sys.stderr)
    if options.out is not None:
        write_text(pathlib.Path(options.out), text + "\n")
    return 0
