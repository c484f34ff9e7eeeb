"""`mcis predict PATH... --out DIR`: the cascade over files, folders and globs, in bounded memory.

A broken scan becomes a finding with an error; the others go on.
"""

import dataclasses
import glob
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mcis.files import read_json
from mcis.imaging import formats
from mcis.imaging.geometry import digest
from mcis.inference.options import InferenceOptions
from mcis.inference.predictor import BATCH, load
from mcis.report import segmentations
from mcis.report.finding import ReportError, plain, read_findings, summary
from mcis.report.shards import parse_shard
from mcis.report.writer import ReportWriter


class Stopped(Exception):
    """The command was asked to stop."""


def expand(paths: Sequence[str]) -> list[str]:
    """The files that some paths mean: files as given, scans below folders, matches of globs; sorted within each.

    A path that does not exist, and a glob that nothing matches, stays in the list, so that it gets its error line.

    Raises:
      ValueError: nothing is left.
    """
    if not paths:
        raise ValueError("no scans given; name files, folders or globs")
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            found += [str(p) for p in formats.files_in(path)]
        elif not os.path.lexists(path) and glob.has_magic(path):
            found += [p for p in sorted(glob.glob(path, recursive=True)) if os.path.isfile(p)] or [path]
        else:
            found.append(path)
    if not found:
        looked_for = f"files named {', '.join(formats.SUFFIXES)}, and DICOM files without a suffix"
        raise ValueError(f"no pictures in {', '.join(paths)}; {looked_for} are looked for")
    return found


def already(
    out: str | os.PathLike,
    scans: Sequence[tuple[str, int | None]],
    options: Mapping[str, Any],
    weights: Mapping[str, Any],
) -> int:
    """How many of the scans a report that is gone on with has findings of; 0 where there is none.

    Raises:
      ReportError: it is one of other scans, or was begun with other options or weights.
    """
    folder = pathlib.Path(out)
    lines = folder / "findings.jsonl"
    if not lines.exists() or next(read_findings(lines), None) is None:  # it was killed before its first line
        return 0
    try:
        run = read_json(folder / "run.json")
        before, same = dict(run["options"]), run["weights"] == json.loads(json.dumps(plain(weights)))
    except (OSError, ValueError, KeyError, TypeError):
        raise ReportError(f"{folder / 'run.json'} is missing or damaged; start over with --overwrite") from None
    if not same:
        raise ReportError(f"{out}: was begun with other weights; name another folder, or say --overwrite")
    ways = ("out", "resume", "overwrite")  # a folder may have been moved
    now = json.loads(json.dumps(dict(options)))
    if differing := [name for name in now if name not in ways and now[name] != before.get(name)]:
        told = ", ".join(f"{name}: {before.get(name)} -> {now[name]}" for name in differing)
        raise ReportError(f"{out}: was begun otherwise ({told}); repeat that, name another folder, or --overwrite it")
    count = 0
    for count, finding in enumerate(read_findings(folder / "findings.jsonl"), 1):
        if count > len(scans) or finding.scan != scans[count - 1][0]:
            raise ReportError(f"{out}: is of other scans, from line {count} on; name another folder")
    return count


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0, 1 when a scan could not be read or the run broke off, 2 when nothing was done.

    75 where it was asked to stop: with --resume it goes on.
    """
    import tyro

    from mcis.cli.common import exit_status, parse_dataclass

    @dataclasses.dataclass(frozen=True)
    class Predict:
        """Findings for scans: findings.jsonl, masks, overlays and a page. Research use, not a medical device.

        Attributes:
          paths: pictures, DICOM or NIfTI files, folders of them, or globs.
          out: folder for the findings; it must not hold a report already.
          weights: folder of a set of weights; by default those that come with mcis.
          asked: what the networks are asked.
          overwrite: replace the report that is in the folder.
          resume: go on with the report that is in the folder, if there is one, where it was interrupted.
          dicom_seg: write the masks of each DICOM series or file as DICOM SEG: "unnamed", which refers to the scans but
            says nothing of the patient, or "named", with name, number, birth date and sex as they are in the scans.
          shard: take the K-th, from 0, of N shares of the scans, into a folder of its own below --out; `mcis merge`
            makes one report of all.
        """

        paths: tyro.conf.Positional[tuple[str, ...]]
        out: str
        weights: str | None = None
        asked: tyro.conf.OmitArgPrefixes[InferenceOptions] = InferenceOptions()
        overwrite: bool = False
        resume: bool = False
        dicom_seg: Literal["unnamed", "named"] | None = None
        shard: str | None = None

    options = parse_dataclass(Predict, argv, "mcis predict")
    return exit_status("mcis predict", lambda: _main(options))


def _main(options: Any) -> int:
    asked = options.asked.check()
    shard = None if options.shard is None else parse_shard(options.shard)
    paths = expand(options.paths)
    if not any(map(os.path.lexists, paths)):
        raise ValueError(f"{', '.join(paths[:3])}: there is no such file or folder")
    if options.overwrite and options.resume:
        raise ValueError("--overwrite and --resume exclude each other")
    out, record = options.out, dataclasses.asdict(options)
    record |= record.pop("asked")
    if shard is not None:
        record |= {"scans": digest(*paths), "shard": f"{shard.index}/{shard.count}"}
        out, paths = str(shard.folder(out)), shard.share(paths)
    scans = list(formats.frames(paths))

    from mcis.cli.common import INTERRUPTED, asked_to_stop, enable_compilation_cache

    enable_compilation_cache()

    from rich.progress import track

    from mcis.checkpoints.checkpoint import versions

    predictor = load(options.weights, **dataclasses.asdict(asked))
    if predictor.lacking:
        print(f"these weights say nothing of: {', '.join(predictor.lacking)}; it stays unknown", file=sys.stderr)
    done = already(out, scans, record, predictor.weights_record) if options.resume else 0
    if done:
        print(f"{out}: goes on after {done} of {len(scans)} scans", file=sys.stderr)
    report = ReportWriter(
        out,
        record,
        versions=versions(),
        weights=predictor.weights_record,
        overwrite=options.overwrite,
        resume=options.resume,
    )
    if options.resume and report.counts["scans"] != done:
        raise ReportError(f"{out}: another process has written to this report just now")
    results = predictor.predict_all(scans[done:], 1 if len(scans) == 1 else BATCH)
    shown = track(results, "scans", total=len(scans) - done, disable=not sys.stderr.isatty())
    told, lacking = report.counts["errors"], 0
    try:
        with report, asked_to_stop() as stop:
            for result in shown:
                finding = report.add(result.finding, result.image, result.mask)
                if finding.error is not None and report.counts["errors"] <= told + 3:
                    said = finding.error if finding.scan in finding.error else f"{finding.scan}: {finding.error}"
                    print(said, file=sys.stderr)
                if stop() and report.counts["scans"] < len(scans):
                    raise Stopped
            named = None if options.dicom_seg is None else options.dicom_seg == "named"
            for series, reason in segmentations.write(out, named) if report.volumes else ():
                if reason is not None:
                    report.carry(series, notes=[reason])
                    lacking += 1
                    if lacking <= 3:
                        print(reason, file=sys.stderr)
                if stop():
                    raise Stopped
    except Stopped:
        print(f"{out}: stopped after {report.counts['scans']} of {len(scans)} scans; --resume goes on", file=sys.stderr)
        return INTERRUPTED
    print(summary(report.counts))
    page, lines = (os.path.join(out, name) for name in ("index.html", "findings.jsonl"))
    print(f"{page} shows the findings; {lines} holds them, one line a scan")
    if report.volumes:
        print(f"{os.path.join(out, 'volumes.jsonl')} sums slices up by volume")
    if options.dicom_seg and not any(pathlib.Path(out, "segmentations").glob("*.dcm")):
        print("no DICOM SEG was written: no DICOM file among the scans has a mask", file=sys.stderr)
    if errors := report.counts["errors"]:
        what = "scan" if errors == 1 else "scans"
        print(f"{errors} {what} could not be read: a line with `error` in findings.jsonl for each", file=sys.stderr)
    if lacking:
        print(f"volumes without a segmentation: {lacking}; `notes` in volumes.jsonl say why", file=sys.stderr)
    return 1 if errors or lacking else 0
