"""`mcis predict PATH... --out DIR`: findings for files, folders and globs, in bounded memory.

An unreadable scan becomes a finding with an error; the others continue.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import tyro

from mcis.cli import inputs
from mcis.cli.common import PathText, run
from mcis.cli.inputs import Inputs
from mcis.files import read_json
from mcis.imaging import search
from mcis.imaging.geometry import digest
from mcis.inference.options import InferenceOptions, takes
from mcis.inference.predictor import BATCH, load
from mcis.names import no_such_path
from mcis.ops.points import BALANCED
from mcis.report import segmentations
from mcis.report.finding import ReportError, plain, read_findings, summary
from mcis.report.shards import parse_shard
from mcis.report.writer import ReportWriter


@dataclasses.dataclass(frozen=True)
class Predict:
    """Findings for scans: findings.jsonl, masks, overlays and a page. Research use, not a medical device.

    Attributes:
      paths: images, DICOM or NIfTI files, zip archives and DICOMDIR files, folders, or globs.
      out: folder for the report. If it contains a report already, --overwrite or --resume is needed.
      weights: folder of a bundle of weights; by default the bundled weights.
      inference: how the networks are run.
      overwrite: replace an existing report in the folder.
      resume: continue an interrupted report in the folder, if there is one.
      dicom_seg: masks of each DICOM series or file as DICOM SEG, by default none: "unnamed" refers to the scans and
        leaves everything about the patient empty; "named" copies name, number, birth date and sex, accession number,
        number, date and time of the study, and the referring physician.
      shard: K/N: predict only part K, from 0, of N parts of the scans, into a subfolder of --out; `mcis merge` makes
        one report of all parts. By default every scan is predicted.
    """

    paths: Annotated[tuple[PathText, ...], tyro.conf.Positional, takes("SCANS...")]
    out: Annotated[PathText, tyro.conf.arg(metavar="DIR")]
    weights: Annotated[PathText | None, takes("DIR")] = None
    inference: tyro.conf.OmitArgPrefixes[InferenceOptions] = InferenceOptions()
    overwrite: bool = False
    resume: bool = False
    dicom_seg: Annotated[Literal["unnamed", "named"] | None, takes("{unnamed,named}")] = None
    shard: Annotated[str | None, takes("K/N")] = None


class Stopped(Exception):
    """SIGTERM or SIGINT was received."""


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0; 1 if a scan could not be read or the run failed; 2 if nothing was done.

    75 if it was stopped by SIGTERM or SIGINT; --resume continues.
    """
    if not argv:
        print("mcis predict: give scans and a folder for the report: mcis predict SCANS --out FOLDER", file=sys.stderr)
        return 2
    return run("mcis predict", Predict, _predict, argv)


def finished(
    out: str | os.PathLike,
    scans: Sequence[tuple[str, int | None]],
    options: Mapping[str, Any],
    weights: Mapping[str, Any],
) -> int:
    """The number of scans whose findings are in the report that is resumed; 0 if there is no report.

    Raises:
      ReportError: the report is of other scans, options or weights.
    """
    folder = pathlib.Path(out)
    lines = folder / "findings.jsonl"
    if not lines.exists() or next(read_findings(lines), None) is None:  # killed before its first line
        return 0
    try:
        run = read_json(folder / "run.json")
        # a report from before there were operating points is of weights without them
        before = {"operating_point": BALANCED} | dict(run["options"])
        same_weights = run["weights"] == json.loads(json.dumps(plain(weights)))
    except (OSError, ValueError, KeyError, TypeError):
        raise ReportError(f"{folder / 'run.json'} is missing or damaged; start again with --overwrite") from None
    if not same_weights:
        raise ReportError(f"{out}: the report was started with other weights; use another folder or --overwrite")
    now = json.loads(json.dumps({k: v for k, v in options.items() if k not in ("out", "resume", "overwrite")}))
    if different := [name for name in now if now[name] != before.get(name)]:
        changes = ", ".join(f"{name}: {before.get(name)} -> {now[name]}" for name in different)
        advice = "repeat them, use another folder, or --overwrite"
        raise ReportError(f"{out}: the report was started with other options ({changes}); {advice}")
    count = 0
    for count, finding in enumerate(read_findings(lines), 1):
        if count > len(scans) or finding.scan != scans[count - 1][0]:
            raise ReportError(f"{out}: the report is of other scans, from line {count} on; use another folder")
    return count


def _predict(options: Predict) -> int:
    options.inference.check()  # before archives are unpacked
    with inputs.expanded(options.paths) as found:
        return _predict_files(options, found)


def _predict_files(options: Predict, found: Inputs) -> int:
    inference = options.inference.check()
    paths: Sequence[str] = found.files
    if not any(path not in found.errors and os.path.lexists(found.paths.get(path, path)) for path in paths):
        raise ValueError("\n".join(found.errors.get(path) or no_such_path(path) for path in paths[:3]))
    shard = None if options.shard is None else parse_shard(options.shard)
    if options.overwrite and options.resume:
        raise ValueError("--overwrite and --resume exclude each other")
    out, record = options.out, dataclasses.asdict(options)
    record |= record.pop("inference")
    if shard is not None:
        record |= {"scans": digest(*paths), "shard": f"{shard.index}/{shard.count}"}
        out, paths = str(shard.folder(out)), shard.share(paths)
    scans = found.scans(paths)
    if found.passed:
        print(search.describe(found.passed), file=sys.stderr)

    from mcis.cli.common import INTERRUPTED, enable_compilation_cache, stop_requested

    enable_compilation_cache()

    from rich.progress import track

    from mcis.checkpoints.checkpoint import versions

    predictor = load(options.weights, **dataclasses.asdict(inference))
    if predictor.lacking:
        print(f"these weights do not predict: {', '.join(predictor.lacking)}; it stays unknown", file=sys.stderr)
    done = finished(out, scans, record, predictor.weights_record) if options.resume else 0
    if done:
        print(f"{out}: continues after {done} of {len(scans)} scans", file=sys.stderr)
    passed = {"files": sum(found.passed.values()), "kinds": found.passed}
    flags = {"overwrite": options.overwrite, "resume": options.resume}
    report = ReportWriter(
        out,
        record,
        versions=versions(),
        weights=predictor.weights_record,
        passed_over=passed,
        operating_point=predictor.operating_point,
        **flags,
    )
    if options.resume and report.counts["scans"] != done:
        raise ReportError(f"{out}: another process has just written to this report")
    places = [(found.paths.get(name, name), frame) for name, frame in scans[done:]]
    results = predictor.predict_all(places, 1 if len(scans) == 1 else BATCH)
    tracked = track(results, "scans", total=len(scans) - done, disable=not sys.stderr.isatty())
    errors = failed = 0
    try:
        with report, stop_requested() as stop:
            for (name, _), result in zip(scans[done:], tracked, strict=True):
                one = found.named(result.finding, name)
                finding = report.add(one, result.image, result.mask, result.outer)
                if finding.error is not None:
                    errors += 1
                    if errors <= 3:
                        known = finding.scan in finding.error
                        print(finding.error if known else f"{finding.scan}: {finding.error}", file=sys.stderr)
                if stop() and report.counts["scans"] < len(scans):
                    raise Stopped
            named = None if options.dicom_seg is None else options.dicom_seg == "named"
            for series, note in segmentations.write(out, named, paths=found.paths) if report.volumes else ():
                if note is not None:
                    report.add_segmentations(series, notes=[note])
                    failed += 1
                    if failed <= 3:
                        print(note, file=sys.stderr)
                if stop():
                    raise Stopped
    except Stopped:
        count = report.counts["scans"]
        print(f"{out}: stopped after {count} of {len(scans)} scans; --resume continues", file=sys.stderr)
        return INTERRUPTED
    print(summary(out, report.counts, predictor.operating_point))
    if report.volumes:
        print(f"{os.path.join(out, 'volumes.jsonl')} has one volume per line")
    if options.dicom_seg and not any(pathlib.Path(out, "segmentations").glob("*.dcm")):
        print("no DICOM SEG was written: no DICOM file has a mask", file=sys.stderr)
    if errors := report.counts["errors"]:
        print(f"scans that could not be read: {errors}; see `error` in findings.jsonl", file=sys.stderr)
    if failed:
        print(f"volumes without a segmentation: {failed}; see `notes` in volumes.jsonl", file=sys.stderr)
    return 1 if errors or failed else 0
