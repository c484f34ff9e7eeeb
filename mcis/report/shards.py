"""Findings by many processes: each takes a share of the scans into a folder of its own, and one report is made of them.

```bash
mcis predict SCANS --out found --shard=0/100 --resume       and so on to 99/100, in any order, anywhere
mcis merge found
```
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mcis.files import read_json, read_lines
from mcis.report.finding import Finding, ReportError, read_findings
from mcis.report.volume import Volume
from mcis.report.writer import NONE, ReportWriter, file_name

FOLDER = re.compile(r"shard_([0-9]+)_of_([0-9]+)")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A share of the scans: the `index`-th, from 0, of `count` runs of neighbours as equal as can be."""

    index: int
    count: int

    def folder(self, out: str | os.PathLike) -> pathlib.Path:
        """Where its report is, below the folder of all."""
        width = len(str(self.count))
        return pathlib.Path(out) / f"shard_{self.index:0{width}}_of_{self.count}"

    def share(self, paths: Sequence[str]) -> list[str]:
        """Its part of the files."""
        start, end = (len(paths) * i // self.count for i in (self.index, self.index + 1))
        return list(paths[start:end])


def parse_shard(text: str) -> Shard:
    """A shard of "K/N". ValueError where there is none such."""
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise ValueError(f"--shard={text}: K/N is needed, K from 0 to N - 1, as 0/100 to 99/100")
    return Shard(int(found[1]), int(found[2]))


def shards_in(out: str | os.PathLike) -> dict[Shard, pathlib.Path]:
    """The shards below a folder, in order."""
    named = ((FOLDER.fullmatch(path.name), path) for path in pathlib.Path(out).glob("shard_*_of_*"))
    found = {Shard(int(name[1]), int(name[2])): path for name, path in named if name}
    return dict(sorted(found.items(), key=lambda pair: (pair[0].count, pair[0].index)))


def merge(out: str | os.PathLike, overwrite: bool = False) -> dict[str, Any]:
    """One report of a folder's shards: findings in the order of the scans, pictures where the shards have them.

    Returns:
      what was counted, `ReportWriter.counts`.

    Raises:
      ValueError: a shard is missing, is not complete, or is one of other scans, options or weights.
      ReportError: there is a report already.
    """
    shards = shards_in(out)
    runs = {shard: _run(path) for shard, path in shards.items()}
    _check(out, runs)
    if not overwrite and (pathlib.Path(out) / "findings.jsonl").exists():
        raise ValueError(f"{out}: was merged before; --overwrite does it again")
    first = next(iter(runs.values()))
    options = {name: value for name, value in first["options"].items() if name != "shard"}
    versions = first["versions"]
    with ReportWriter(
        out, options | {"merged": len(shards)}, versions=versions, weights=first["weights"], overwrite=overwrite
    ) as report:
        for path in shards.values():
            for finding, picture in _written(path):
                report.append(finding, picture)
            for series, paths, notes in _segmentations(path):
                report.carry(series, paths, notes)
    return report.counts


def _run(path: pathlib.Path) -> dict[str, Any]:
    """What a shard says of itself; nothing where its findings are not as many as it says."""
    try:
        run = dict(read_json(path / "run.json"))
        there = sum(1 for _ in read_findings(path / "findings.jsonl"))
        tables = isinstance(run["options"], dict) and isinstance(run["versions"], dict)
        return run if tables and run["counts"]["scans"] == there else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _check(out: str | os.PathLike, runs: dict[Shard, dict[str, Any]]) -> None:
    if not runs:
        raise ValueError(f"{out}: no shards there; `mcis predict --shard=K/N --out {out}` makes them")
    counts = sorted({shard.count for shard in runs})
    if len(counts) > 1:
        raise ValueError(f"{out}: shards of {' and of '.join(map(str, counts))}; remove those that do not belong there")
    wanting = [i for i in range(counts[0]) if runs.get(Shard(i, counts[0]), {}).get("status") != "complete"]
    if wanting:
        listed = ",".join(map(str, wanting))
        raise ValueError(
            f"{out}: {len(wanting)} of {counts[0]} shards are missing or not complete ({listed}): do these again, with "
            f"--resume they go on where they were (MCIS_SHARDS={counts[0]} sbatch --array={listed} ...)"
        )
    for shard, run in runs.items():
        if run["options"].get("shard") != f"{shard.index}/{shard.count}":
            raise ValueError(f"{shard.folder(out)} holds shard {run['options'].get('shard')}: it was moved or renamed")
    first, *others = runs
    for name, usual in _common(runs[first]).items():
        if odd := [shard.index for shard in others if _common(runs[shard]).get(name) != usual]:
            listed = ",".join(map(str, odd[:50]))
            raise ValueError(f"{out}: shards {listed} differ from shard {first.index} in their {name}; do these again")


def _common(run: dict[str, Any]) -> dict[str, Any]:
    """What shards of one report have in common, by what it is called."""
    options = {k: v for k, v in run.get("options", {}).items() if k not in ("shard", "out", "resume", "overwrite")}
    scans = {"scans": options.pop("scans", None), "weights": run.get("weights"), "versions": run.get("versions")}
    return scans | {f"option {name}": value for name, value in options.items()}


def _written(path: pathlib.Path) -> Iterator[tuple[Finding, str | None]]:
    """The findings of a shard and their overlays, as paths below the folder above it."""
    for index, finding in enumerate(read_findings(path / "findings.jsonl")):
        picture = f"overlays/{file_name(index, finding.scan)}.jpg"
        if finding.mask is not None:
            finding = dataclasses.replace(finding, mask=f"{path.name}/{finding.mask}")
        yield finding, f"{path.name}/{picture}" if (path / picture).is_file() else None


def _segmentations(path: pathlib.Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Where a shard's segmentations are, as paths below the folder above it, or notes that say why there is none."""
    if not (path / "volumes.jsonl").exists():
        return
    for volume in read_lines(path / "volumes.jsonl", Volume, ReportError):
        paths = [f"{path.name}/{one}" for one in volume.segmentations]
        notes = [note for note in volume.notes if note.startswith(NONE)]
        if paths or notes:
            yield volume.series, paths, notes
