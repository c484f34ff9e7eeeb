"""The console command `mcis`. A command's module is imported only when that command is called."""

import importlib
import sys
from collections.abc import Sequence

import mcis
from mcis.cli.common import exit_status, keep_memory
from mcis.names import no_such
from mcis.paths import forget_current_folder

COMMANDS = {
    "train": "train one task",
    "build": "prepare a data set from its download or from your own folder",
    "runs": "compare training runs",
    "bundle": "combine runs into a bundle of weights",
    "predict": "predict findings for scans: JSON, masks, overlays and a report page",
    "serve": "serve a web page and a REST API for scans",
    "merge": "merge the reports of shards into one report",
    "export": "export weights as one file that runs without mcis: StableHLO or ONNX",
    "evaluate": "score a run on a held-out split, with confidence intervals",
    "shortcuts": "measure how well image metadata alone predicts a task's labels",
    "tune": "choose the conditional random field (CRF) of a segmentation run",
    "calibrate": "calibrate a bundle: probabilities, rejection and review limits, from fold runs",
    "info": "show versions, devices, tasks, prepared data and weights",
}
"""Command, which is also the name of its module in mcis.cli -> summary."""


def usage() -> str:
    """The help text."""
    rows = "\n".join(f"  {name:10s} {summary}" for name, summary in COMMANDS.items())
    return (
        f"usage: mcis COMMAND [options]\n\n{mcis.__doc__}\n\n{rows}\n\n"
        "  --version  show the version\n\n`mcis COMMAND --help` lists the options of a command.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, by default that of the process's command line. Returns the exit status."""
    if argv is None:
        forget_current_folder()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return exit_status("mcis", lambda: _print(usage()))
    if arguments[0] == "--version":
        return exit_status("mcis", lambda: _print(f"mcis {mcis.__version__}\n"))
    if arguments[0] not in COMMANDS:
        print(f"mcis: {no_such('command', arguments[0], COMMANDS)}", file=sys.stderr)
        return 2
    if argv is None:
        keep_memory()
    return importlib.import_module(f"mcis.cli.{arguments[0]}").main(arguments[1:])


def _print(text: str) -> int:
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
