"""Reports by many processes: each writes a shard of the scans into a folder of its own; `merge` makes one report.

```bash
mcis predict SCANS --out found --shard=0/100 --resume       and so on to 99/100, in any order, on any machine
mcis merge found
```
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from mcis.files import read_json, read_lines
from mcis.report.finding import ReportError, read_findings
from mcis.report.volume import Volume
from mcis.report.writer import NO_SEGMENTATION, ReportWriter, overlay_path


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index`, from 0, of `count` contiguous parts of the scans, of nearly equal size."""

    index: int
    count: int

    def folder(self, out: str | os.PathLike) -> pathlib.Path:
        """Its report's folder, inside the folder of the merged report."""
        width = len(str(self.count))
        return pathlib.Path(out) / f"shard_{self.index:0{width}}_of_{self.count}"

    def share(self, paths: Sequence[str]) -> list[str]:
        """Its part of the files."""
        start, end = (len(paths) * i // self.count for i in (self.index, self.index + 1))
        return list(paths[start:end])


def parse_shard(text: str) -> Shard:
    """The shard "K/N". Raises ValueError for any other text."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise ValueError(f"--shard={text}: must be K/N, with K from 0 to N - 1, as 0/100 to 99/100")
    return Shard(int(match[1]), int(match[2]))


def shards_in(out: str | os.PathLike) -> dict[Shard, pathlib.Path]:
    """The shards in a folder, in order."""
    matches = ((re.fullmatch(r"shard_([0-9]+)_of_([0-9]+)", p.name), p) for p in pathlib.Path(out).glob("shard_*_of_*"))
    shards = {Shard(int(match[1]), int(match[2])): path for match, path in matches if match}
    return dict(sorted(shards.items(), key=lambda pair: (pair[0].count, pair[0].index)))


def merge(out: str | os.PathLike, overwrite: bool = False) -> dict[str, Any]:
    """Write one report of all shards in a folder: findings in the order of the scans; images stay in the shards.

    Returns:
      `ReportWriter.counts`.

    Raises:
      ValueError: a shard is missing or incomplete, or the shards differ in scans, options or weights.
      ReportError: the folder has a report already.
    """
    shards = shards_in(out)
    runs = {shard: _read_run(path) for shard, path in shards.items()}
    _check(out, runs)
    if not overwrite and (pathlib.Path(out) / "findings.jsonl").exists():
        raise ValueError(f"{out}: the shards were merged before; use --overwrite to merge them again")
    first = next(iter(runs.values()))
    options = {name: value for name, value in first["options"].items() if name != "shard"} | {"merged": len(shards)}
    with ReportWriter(
        out,
        options,
        versions=first["versions"],
        weights=first["weights"],
        passed_over=first.get("passed_over"),
        operating_point=first.get("operating_point"),
        overwrite=overwrite,
    ) as report:
        for path in shards.values():
            _append(report, path)
    return report.counts


def _append(report: ReportWriter, path: pathlib.Path) -> None:
    """Add a shard's findings, and the segmentations of its volumes or why there are none; paths lead into the shard."""
    for index, finding in enumerate(read_findings(path / "findings.jsonl")):
        overlay = overlay_path(index, finding.scan)
        if finding.mask is not None:
            finding = dataclasses.replace(finding, mask=f"{path.name}/{finding.mask}")
        report.append(finding, f"{path.name}/{overlay}" if (path / overlay).is_file() else None)
    if (path / "volumes.jsonl").exists():
        for volume in read_lines(path / "volumes.jsonl", Volume, ReportError):
            paths = [f"{path.name}/{segmentation}" for segmentation in volume.segmentations]
            notes = [note for note in volume.notes if note.startswith(NO_SEGMENTATION)]
            report.add_segmentations(volume.series, paths, notes)


def _read_run(path: pathlib.Path) -> dict[str, Any]:
    """A shard's run.json; {} if it is missing, damaged, or counts other than the findings in the folder."""
    try:
        run = dict(read_json(path / "run.json"))
        findings = sum(1 for _ in read_findings(path / "findings.jsonl"))
        tables = (run["options"], run["versions"], run.get("passed_over") or {})
        return run if all(isinstance(table, dict) for table in tables) and run["counts"]["scans"] == findings else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _check(out: str | os.PathLike, runs: dict[Shard, dict[str, Any]]) -> None:
    """Raise ValueError unless the shards are all there, complete, and of the same scans, options and weights."""
    if not runs:
        raise ValueError(f"{out}: no shards in this folder; `mcis predict --shard=K/N --out {out}` makes them")
    counts = sorted({shard.count for shard in runs})
    if len(counts) > 1:
        raise ValueError(f"{out}: shards of {' and of '.join(map(str, counts))}; remove those of other runs")
    incomplete = [i for i in range(counts[0]) if runs.get(Shard(i, counts[0]), {}).get("status") != "complete"]
    if incomplete:
        indices = ",".join(map(str, incomplete))
        raise ValueError(
            f"{out}: {len(incomplete)} of {counts[0]} shards are missing or incomplete ({indices}): run these again; "
            f"--resume continues each where it stopped (MCIS_SHARDS={counts[0]} sbatch --array={indices} ...)"
        )
    for shard, run in runs.items():
        if run["options"].get("shard") != f"{shard.index}/{shard.count}":
            raise ValueError(f"{shard.folder(out)} was moved or renamed: it is shard {run['options'].get('shard')}")
    first, *others = runs
    for name, value in _shared_values(runs[first]).items():
        if different := [shard.index for shard in others if _shared_values(runs[shard]).get(name) != value]:
            indices = ",".join(map(str, different[:50]))
            raise ValueError(f"{out}: shards {indices} differ from shard {first.index} in {name}; run these again")


def _shared_values(run: dict[str, Any]) -> dict[str, Any]:
    """The values that must be equal in all shards, by the name that a message uses."""
    options = {k: v for k, v in run.get("options", {}).items() if k not in ("shard", "out", "resume", "overwrite")}
    values = {"scans": options.pop("scans", None), "weights": run.get("weights"), "versions": run.get("versions")}
    return values | {f"option {name}": value for name, value in options.items()}
