"""`mcis merge DIR`: one report of the shards that several `mcis predict --shard=K/N` have written."""

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

from mcis.report.finding import summary
from mcis.report.shards import merge


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0, 1 when a scan could not be read, 2 when nothing was done."""
    import tyro

    from mcis.cli.common import exit_status, parse_dataclass

    @dataclasses.dataclass(frozen=True)
    class Merge:
        """One report of what `mcis predict --shard=K/N` has found; masks and overlays stay in the shards' folders.

        Attributes:
          out: the folder that was given to each as --out.
          overwrite: replace the report that is there.
        """

        out: tyro.conf.Positional[str]
        overwrite: bool = False

    options = parse_dataclass(Merge, argv, "mcis merge")
    return exit_status("mcis merge", lambda: _main(options))


def _main(options: Any) -> int:
    counts = merge(options.out, options.overwrite)
    print(summary(counts))
    page, lines = (os.path.join(options.out, name) for name in ("index.html", "findings.jsonl"))
    print(f"{page} shows the findings; {lines} holds them, one line a scan")
    if counts["errors"]:
        print(f"{counts['errors']} scans could not be read: lines with `error` in findings.jsonl", file=sys.stderr)
    return 1 if counts["errors"] else 0
