"""The console command `mcis`. Only what a command needs is imported, when it is called."""

import importlib
import sys
from collections.abc import Sequence

import mcis
from mcis.cli.common import exit_status

COMMANDS = {
    "train": ("mcis.cli.train", "train one task (the same as python -m mcis.launch)"),
    "build": ("mcis.cli.build", "prepare a data set from its download"),
    "runs": ("mcis.cli.runs", "what runs have reached, side by side, and in what they differ"),
    "bundle": ("mcis.cli.bundle", "gather runs into a set of weights"),
    "predict": ("mcis.cli.predict", "findings for scans: JSON, masks, overlays, a page"),
    "serve": ("mcis.cli.serve", "a page to drop scans on, and a REST API"),
    "merge": ("mcis.cli.merge", "one report of what several processes have found, each of a share of the scans"),
    "export": ("mcis.cli.export", "weights as one file that runs without mcis: StableHLO or ONNX"),
    "evaluate": ("mcis.cli.evaluate", "score a run on a held-out split, with intervals"),
    "shortcuts": ("mcis.cli.shortcuts", "how much of a task can be read off its scans' frames alone"),
    "tune": ("mcis.cli.tune", "choose a segmentation run's CRF on validation"),
    "calibrate": ("mcis.cli.calibrate", "fit probabilities, refusal and review on folds"),
    "info": ("mcis.cli.info", "versions, devices, tasks, data and weights"),
}


def usage() -> str:
    """The help text."""
    rows = "\n".join(f"  {name:10s} {summary}" for name, (_, summary) in COMMANDS.items())
    return (
        f"usage: mcis COMMAND [options]\n\n{mcis.__doc__}\n\n{rows}\n\n"
        "  --version  the version\n\n`mcis COMMAND --help` lists a command's options.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, by default the process's own. Returns the exit status."""
    process, argv = argv is None, list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        return exit_status("mcis", lambda: _say(usage()))
    if argv[0] == "--version":
        return exit_status("mcis", lambda: _say(f"mcis {mcis.__version__}\n"))
    if argv[0] not in COMMANDS:
        print(f"mcis: no command {argv[0]!r}; there are: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if process:
        from mcis.cli.common import keep_memory

        keep_memory()
    return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])


def _say(text: str) -> int:
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
