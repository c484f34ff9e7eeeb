"""`mcis predict PATH... --out DIR`: the cascade over files, folders and globs, in bounded memory.

A broken scan becomes a finding with an error; the others go on.
"""

import collections
import concurrent.futures
import dataclasses
import glob
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mcis import scan
from mcis.finding import Finding, ReportError, plain, read_findings, summary
from mcis.ops.metrics import MASK_THRESHOLD
from mcis.organs import ORGAN_NAMES, ORGANS, UNKNOWN, UNSUPPORTED, organ_named
from mcis.report import ReportWriter
from mcis.shards import digest, parse_shard


class Stopped(Exception):
    """The command was asked to stop."""


BATCH = 8
"""Scans the cascade takes at once when there is more than one."""


def expand(paths: Sequence[str]) -> list[str]:
    """The files that some paths mean: files as given, pictures below folders, matches of globs; sorted within each.

    A path that does not exist stays in the list, so that it gets its error line.

    Raises:
      ValueError: nothing is left.
    """
    if not paths:
        raise ValueError("no scans given; name files, folders or globs")
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            found += [str(p) for p in scan.pictures(path)]
        elif not os.path.lexists(path) and glob.has_magic(path):
            found += [str(p) for p in sorted(glob.glob(path, recursive=True)) if os.path.isfile(p)]
        else:
            found.append(path)
    if not found:
        raise ValueError(f"no pictures in {', '.join(paths)}; files named {', '.join(scan.SUFFIXES)} are looked for")
    return found


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A scan on its way: what was read and laid into the canvas, or why not."""

    path: str
    frame: int | None
    image: np.ndarray | None = None
    square: np.ndarray | None = None
    geometry: scan.Fit | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None


def load(path: str, frame: int | None) -> Loaded:
    """Read one scan and lay it into the canvas; an error becomes text."""
    try:
        read = scan.read(path, frame or 0)
        square, geometry = scan.fit(read.image)
        return Loaded(path, frame, read.image, square, geometry, read.notes)
    except (scan.ScanError, OSError, MemoryError) as error:
        message = str(error) or type(error).__name__
        return Loaded(path, None, error=message if frame is None else f"frame {frame}: {message}")


def frames(paths: Iterable[str]) -> Iterator[tuple[str, int | None]]:
    """(path, frame) of every picture: frame is None for a file that holds one, else counted from 0."""
    for path in paths:
        count = scan.count_frames(path)
        yield from ((path, None if count == 1 else frame) for frame in range(count))


def load_all(scans: Iterable[tuple[str, int | None]], ahead: int = 2 * BATCH) -> Iterator[Loaded]:
    """Read scans in order, a few ahead in threads (OpenCV decodes outside Python's lock)."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting: collections.deque = collections.deque()
        for path, frame in scans:
            waiting.append(pool.submit(load, path, frame))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def finding_of(
    loaded: Loaded, row: Mapping[str, np.ndarray], thumbnails: bool = False
) -> tuple[Finding, np.ndarray | None]:
    """A scan's finding and its mask, uint8 {0,1} (H, W) on the scan's own grid, None where not segmented.

    Args:
      loaded: the scan.
      row: the fields of a `cascade.Prediction` for this one scan.
      thumbnails: whether those are refused, whatever the row says.
    """
    asked = not math.isnan(float(row["organ_prob"]))
    probability = float(row["organ_prob"]) if asked else None
    index, notes = int(row["organ"]), list(loaded.notes) or None
    if loaded.geometry is not None and loaded.geometry.thumbnail:
        wide, high = loaded.geometry.box[2:]
        reason = f"a thumbnail: {wide} x {high} pixels of content, {scan.MIN_CONTENT} along one side are needed"
        if thumbnails:
            return Finding(loaded.path, loaded.frame, UNSUPPORTED, probability, reason=reason, notes=notes), None
        notes = [*(notes or ()), reason]
    if index >= len(ORGANS):
        like = f"most like {ORGANS[int(row['choice'])].scan}, probability {probability:.6f}"
        if (times := float(row["novelty"])) > 1:
            reason = f"unlike the scans the router learned from, {times:.2f} times the distance allowed ({like})"
        else:
            reason = f"the router is unsure: {like}, {row['needed']:.6f} is needed"
        return Finding(loaded.path, loaded.frame, UNSUPPORTED, probability, reason=reason, notes=notes), None
    organ, label = ORGANS[index], int(row["label"])
    finding = Finding(loaded.path, loaded.frame, organ.name, probability, notes=notes)
    if label != UNKNOWN:
        probs = dict(zip(organ.classes, map(float, row["label_probs"]), strict=False))
        finding = dataclasses.replace(finding, label=organ.classes[label], label_probs=probs)
    if not math.isnan(confidence := float(row["confidence"])):
        review = None if row["review"] == UNKNOWN else bool(row["review"])
        finding = dataclasses.replace(finding, confidence=confidence, review=review)
    if not row["segmented"] or loaded.geometry is None:
        return finding, None
    mask = (scan.unfit(row["mask"][..., 0], loaded.geometry) > MASK_THRESHOLD).astype(np.uint8)
    if label != UNKNOWN and organ.is_lesion(label) and not mask.any():
        found_none = f"called {organ.classes[label]}, but no lesion could be outlined"
        finding = dataclasses.replace(finding, notes=[*(notes or ()), found_none])
    return finding, mask


def run(
    scans: Iterable[tuple[str, int | None]],
    predict: Callable[[np.ndarray], Any],
    batch_size: int,
    thumbnails: bool = False,
) -> Iterator[tuple[Loaded, Finding, np.ndarray | None]]:
    """Findings of scans, in order.

    Args:
      scans: (path, frame) of each, as `frames` gives them.
      predict: uint8 (batch_size, S, S, 3) -> a `cascade.Prediction` of arrays.
      batch_size: scans at once; the last batch is filled up with black squares.
      thumbnails: whether thumbnails are refused.

    Yields:
      the scan as loaded, its finding, and its mask on its own grid or None.
    """

    def flush(group: list[Loaded]):
        good = [loaded for loaded in group if loaded.error is None]
        if good:
            batch = np.zeros((batch_size, scan.CANVAS, scan.CANVAS, 3), np.uint8)
            for i, loaded in enumerate(good):
                batch[i] = loaded.square  # type: ignore[assignment]  # a scan without an error has a square
            prediction = predict(batch)
            fields = {f.name: np.asarray(getattr(prediction, f.name)) for f in dataclasses.fields(prediction)}
        rows = iter(range(len(good)))
        for loaded in group:
            if loaded.error is not None:
                yield loaded, Finding(loaded.path, loaded.frame, error=loaded.error), None
            else:
                at = next(rows)
                yield loaded, *finding_of(loaded, {name: value[at] for name, value in fields.items()}, thumbnails)

    group: list[Loaded] = []
    for loaded in load_all(scans):
        group.append(loaded)
        if sum(item.error is None for item in group) == batch_size or len(group) == 4 * batch_size:
            yield from flush(group)
            group = []
    yield from flush(group)


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
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        before, same = dict(run["options"]), run["weights"] == json.loads(json.dumps(plain(weights)))
    except (OSError, ValueError, KeyError, TypeError):
        raise ReportError(f"{folder / 'run.json'} is missing or damaged; start over with --overwrite") from None
    if not same:
        raise ReportError(f"{out}: was begun with other weights; name another folder, or say --overwrite")
    ways = ("out", "resume", "overwrite")  # a folder may have been moved
    now = json.loads(json.dumps(dict(options)))
    if differing := [name for name in now if name not in ways and now[name] != before.get(name)]:
        told = ", ".join(f"{name}: {before.get(name)} -> {now[name]}" for name in differing)
        raise ReportError(f"{out}: was begun otherwise ({told}); repeat that, or name another folder")
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

    from mcis.command import exit_status, parse_dataclass

    @dataclasses.dataclass(frozen=True)
    class Predict:
        """Findings for scans: findings.jsonl, masks, overlays and a page. Research use, not a medical device.

        Attributes:
          paths: pictures, folders of pictures, or globs.
          out: folder for the findings; it must not hold a report already.
          weights: folder of a set of weights; by default those that come with mcis.
          organ: every scan is of this organ; the router is not asked.
          task: run this task's network alone on every scan.
          threshold: the router's smallest probability; below it a scan is unsupported. By default the one
            that was fitted with the weights.
          novelty: call a scan unsupported as well that is unlike all the router learned from, however sure it is, or a
            thumbnail.
          members: take so many networks of each ensemble, the first ones: fewer are faster, and somewhat worse.
          overwrite: replace the report that is in the folder.
          resume: go on with the report that is in the folder, if there is one, where it was interrupted.
          shard: take the K-th, from 0, of N shares of the scans, into a folder of its own below --out; `mcis merge`
            makes one report of all.
        """

        paths: tyro.conf.Positional[tuple[str, ...]]
        out: str
        weights: str | None = None
        organ: str | None = None
        task: str | None = None
        threshold: float | None = None
        novelty: bool = True
        members: int | None = None
        overwrite: bool = False
        resume: bool = False
        shard: str | None = None

    options = parse_dataclass(Predict, argv, "mcis predict")
    return exit_status("mcis predict", lambda: _main(options))


def _main(options: Any) -> int:
    if options.organ is not None:
        organ_named(options.organ)
    if options.organ and options.task:
        raise ValueError("--organ and --task exclude each other: --task names one network, whatever the organ")
    if (options.organ or options.task) and (options.threshold is not None or not options.novelty):
        raise ValueError("--threshold and --no-novelty are of the router, which --organ and --task leave out")
    if options.threshold is not None and not 0.0 <= options.threshold <= 1.0:
        raise ValueError(f"--threshold={options.threshold}: a probability in [0, 1] is needed")
    if options.members is not None and options.members < 1:
        raise ValueError(f"--members={options.members}: 1 network or more is needed")
    shard = None if options.shard is None else parse_shard(options.shard)
    paths = expand(options.paths)
    if not any(map(os.path.lexists, paths)):
        raise ValueError(f"{', '.join(paths[:3])}: there is no such file or folder")
    if options.overwrite and options.resume:
        raise ValueError("--overwrite and --resume exclude each other")
    out, asked = options.out, dataclasses.asdict(options)
    if shard is not None:
        asked |= {"scans": digest(paths), "shard": f"{shard.index}/{shard.count}"}
        out, paths = str(shard.folder(out)), shard.share(paths)
    scans = list(frames(paths))

    from mcis.command import INTERRUPTED, asked_to_stop, enable_compilation_cache

    enable_compilation_cache()
    import jax
    from rich.progress import track

    from mcis import cascade
    from mcis.bundle import SHIPPED, load_bundle
    from mcis.checkpoint import versions
    from mcis.experts import first_members, place
    from mcis.tasks import task_named

    weights = load_bundle(options.weights or SHIPPED)
    experts = {name: one.task for name, one in weights.items()}
    if options.task:
        task_named(options.task)
        if options.task not in experts:
            raise ValueError(f"these weights have no {options.task}; they have: {', '.join(experts)}")
        function = cascade.make_single(experts[options.task])
    else:
        organ = None if options.organ is None else ORGAN_NAMES.index(options.organ)
        settings = cascade.Settings(organ, novelty=options.novelty)
        if options.threshold is not None:
            settings = dataclasses.replace(settings, threshold=options.threshold)
        function = cascade.make_predict(experts, settings)
        answered = {"label": cascade.label_experts(experts), "mask": cascade.mask_experts(experts)}
        possible = range(len(ORGAN_NAMES)) if organ is None else (organ,)
        lacking = [f"{ORGAN_NAMES[at]} {what}" for what, by in answered.items() for at in possible if at not in by]
        if lacking:
            print(f"these weights say nothing of: {', '.join(lacking)}; it stays unknown", file=sys.stderr)
    variables = {name: first_members(one.variables, options.members) for name, one in weights.items()}
    batch_size = 1 if len(scans) == 1 else BATCH
    # one scan is there sooner than an ensemble's networks are compiled one by one
    variables = {name: jax.device_put(one) if batch_size == 1 else place(one) for name, one in variables.items()}
    compiled = jax.jit(function)
    facts = ("epoch", "validation", "versions", "files")
    described = {
        "folder": str(options.weights or "shipped"),
        "tasks": {name: {fact: one.manifest[fact] for fact in facts} for name, one in weights.items()},
    }
    done = already(out, scans, asked, described) if options.resume else 0
    if done:
        print(f"{out}: goes on after {done} of {len(scans)} scans", file=sys.stderr)
    report = ReportWriter(
        out,
        asked,
        versions=versions(),
        weights=described,
        overwrite=options.overwrite,
        resume=options.resume,
    )
    if options.resume and report.counts["scans"] != done:
        raise ReportError(f"{out}: another process has written to this report just now")
    refuse = options.novelty and options.task is None and options.organ is None
    results = run(scans[done:], lambda batch: jax.device_get(compiled(variables, batch)), batch_size, refuse)
    shown = track(results, "scans", total=len(scans) - done, disable=not sys.stderr.isatty())
    told = report.counts["errors"]
    try:
        with report, asked_to_stop() as stop:
            for loaded, finding, mask in shown:
                report.add(finding, loaded.image, mask)
                if finding.error is not None and report.counts["errors"] <= told + 3:
                    said = finding.error if loaded.path in finding.error else f"{loaded.path}: {finding.error}"
                    print(said, file=sys.stderr)
                if stop() and report.counts["scans"] < len(scans):
                    raise Stopped
    except Stopped:
        print(f"{out}: stopped after {report.counts['scans']} of {len(scans)} scans; --resume goes on", file=sys.stderr)
        return INTERRUPTED
    print(summary(report.counts))
    page, lines = (os.path.join(out, name) for name in ("index.html", "findings.jsonl"))
    print(f"{page} shows the findings; {lines} holds them, one line a scan")
    if errors := report.counts["errors"]:
        what = "scan" if errors == 1 else "scans"
        print(f"{errors} {what} could not be read: a line with `error` in findings.jsonl for each", file=sys.stderr)
    return 1 if errors else 0
