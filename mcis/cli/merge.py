"""`mcis merge DIR`: one report of the shards that several `mcis predict --shard=K/N` have written."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from mcis.cli.common import PathText, run
from mcis.files import read_json
from mcis.report.finding import summary
from mcis.report.shards import merge


@dataclasses.dataclass(frozen=True)
class Merge:
    """Merge the shards of `mcis predict --shard=K/N` into one report; masks and overlays stay in the shards' folders.

    Attributes:
      out: the folder that was the --out of each shard.
      overwrite: replace an existing merged report.
    """

    out: Annotated[PathText, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    overwrite: bool = False


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0; 1 if a scan could not be read; 2 if nothing was done."""
    return run("mcis merge", Merge, _merge, argv)


def _merge(options: Merge) -> int:
    counts = merge(options.out, options.overwrite)
    print(summary(options.out, counts, read_json(pathlib.Path(options.out) / "run.json")["operating_point"]))
    if errors := counts["errors"]:
        print(f"scans that could not be read: {errors}; see `error` in findings.jsonl", file=sys.stderr)
    return 1 if errors else 0
