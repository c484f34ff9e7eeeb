"""`mcis calibrate WEIGHTS RUN...`: fit probabilities, rejection and review on fold runs."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0, or 2 when nothing was fitted."""
    import tyro

    from mcis.cli.common import Options, exit_status, parse_dataclass

    @dataclasses.dataclass(frozen=True)
    class Calibrate(Options):
        """Fit probabilities, refusal and review of a set of weights to the scans that its fold runs have left out.

        Attributes:
          weights: folder of the set, which is changed.
          runs: folders of the fold runs, of one task or of several: `--fold=0 --select=last`, and so on.
          out: JSON file for what was found; it is in the manifests too.
        """

        weights: tyro.conf.Positional[str] = tyro.MISSING
        runs: tyro.conf.Positional[tuple[str, ...]] = tyro.MISSING
        out: str | None = None

    options = parse_dataclass(Calibrate, argv, "mcis calibrate")
    return exit_status("mcis calibrate", lambda: _main(options))


def _main(options: Any) -> int:
    from mcis.calibration.calibrate import calibrate
    from mcis.checkpoints.checkpoint import write_text
    from mcis.cli.common import enable_compilation_cache

    enable_compilation_cache()
    facts = calibrate(options.weights, options.runs, options.data_dir)
    text = json.dumps(facts, indent=1)
    print(text)
    if options.out is not None:
        write_text(pathlib.Path(options.out), text + "\n")
    return 0
