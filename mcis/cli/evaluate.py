"""`mcis evaluate RUN --split=test`: metrics with intervals, as figures (report.json) and as a page (report.html).

```bash
mcis evaluate runs/segment_breast --split=validation
mcis evaluate runs/segment_breast_fold? --split=left_out    # each of the fold runs on the scans it has left out
mcis evaluate mcis/weights --folder my_scans/ --out my_report/
```
"""

import contextlib
import dataclasses
import datetime
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

PAGE = "report.html"
MANY = 1000
"""Pictures in a folder from which on reading them takes so long that it is said."""


def print_report(found: dict[str, Any]) -> None:
    """The report as a table on standard output."""
    from rich.table import Table

    from mcis.cli.common import print_table
    from mcis.evaluation.descriptions import scans_scored, uses_seen
    from mcis.ops.metrics import with_interval

    def cell(metric: dict[str, float | None] | None, sign: str = "") -> str:
        return "" if metric is None else with_interval(metric, sign)

    table = Table(title=f"{found['task']}, {scans_scored(found)}: value [95 % interval by group]")
    sources = found["sources"]
    table.add_column("metric")
    for name, part in sources.items():
        table.add_column(f"{name}\n{part['scans']} scans\n{part['groups']} groups", justify="right")
    against = found.get("against", {}).get("metrics", {})
    if against:
        table.add_column(f"all, less {found['against']['report']}", justify="right")
    for name in dict.fromkeys(name for part in sources.values() for name in part["metrics"]):
        cells = [cell(part["metrics"].get(name)) for part in sources.values()]
        table.add_row(name, *cells, *([cell(against.get(name), "+")] if against else []))
    print_table(table)
    if seen := uses_seen(found.get("audit", {})):
        print(f"some of these scans {seen}: these are no figures of strangers' scans; the audit says how many")


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0, or 2 when nothing was scored."""
    import tyro

    from mcis.cli.common import Options, exit_status, parse_dataclass
    from mcis.tasks.config import Names

    @dataclasses.dataclass(frozen=True)
    class Evaluate(Options):
        """Score a run's best weights, per source and together, with 95 % bootstrap intervals by group.

        Attributes:
          runs: a run's folder, or a weights folder; a set of weights, which is scored as one cascade; or fold runs of
            one task, each of which answers the scans that it has left out.
          split: train, validation or test, at which to look once, at the end; or left_out, what runs that kept their
            last epoch have left out.
          sources: prepared data sets to score; by default those the task was trained on.
          folder: score all scans of a folder of one's own instead (images/, masks/, labels.csv, as for
            `mcis build folder`). It is prepared in a temporary place, and nothing is left there.
          crf: use the CRF that `mcis tune` kept with the weights.
          heat: draw where the classifiers look on the scans of the gallery, and check on so many lesion scans whether
            that is the lesion; a second or two each on a CPU. 0 leaves both out.
          against: the folder, or its report.json, of another run's evaluation of the same scans, to say how much higher
            each figure is.
          out: folder for report.json and report.html; by default evaluation_<split>[_no_crf] in the run's folder. A
            weights folder, whose files are sealed, a set and several runs get none.
        """

        runs: tyro.conf.Positional[tuple[str, ...]] = tyro.MISSING
        split: str = "test"
        sources: Names = ()
        folder: str | None = None
        crf: bool = True
        heat: int = 40
        against: str | None = None
        out: str | None = None

    options = parse_dataclass(Evaluate, argv, "mcis evaluate")
    return exit_status("mcis evaluate", lambda: _main(options))


def _main(options: Any) -> int:
    from mcis.cli.common import check_extra, enable_compilation_cache

    check_extra("evaluation", "matplotlib", "sklearn")
    from mcis.data.dataset import LEFT_OUT
    from mcis.evaluation.evaluator import check_all_unseen, load_folds, load_subject, score
    from mcis.evaluation.metrics import compare_reports, read_report, report

    _check(options)
    out = _place(options)
    other = None if options.against is None else read_report(options.against)
    enable_compilation_cache()
    subject: Any
    if options.split == LEFT_OUT:
        subject = load_folds(options.runs, options.crf)
    else:
        subject = load_subject(options.runs[0], options.crf)
    with _prepared(options, subject) as (records, facts):
        if options.folder or options.split == "test":
            check_all_unseen(records, subject.manifests)
        rows = score(subject, records)
        found = report(subject.task, rows, options.split) | facts | _facts(options.runs, subject, rows)
        if other is not None:
            found["against"] = {"report": options.against, "metrics": compare_reports(found, other)}
        print_report(found)
        if out is None:
            print("--out=DIR keeps these figures, with a page that shows them")
        else:
            _write(out, found, rows, subject, records, options.heat)
            print(f"{out / PAGE} shows it, report.json beside it holds the same figures")
    return 0


def _check(options: Any) -> None:
    """ValueError where the options do not go together or name what is not there."""
    from mcis.data.dataset import LEFT_OUT, SPLITS

    if not options.runs:
        raise ValueError("name a run's folder, a weights folder or a set of weights to score")
    if len(options.runs) > 1 and options.split != LEFT_OUT:
        raise ValueError(f"several runs are scored as folds, on what each has left out: --split={LEFT_OUT}")
    if options.folder is not None:
        if options.sources or options.data_dir or options.split != "test":
            raise ValueError("--folder scores all scans of that folder; leave --sources, --split and --data_dir away")
        if not pathlib.Path(options.folder).is_dir():
            raise ValueError(f"--folder={options.folder}: no such folder")
    if options.heat < 0:
        raise ValueError(f"--heat={options.heat}: a number of scans, 0 or more, is needed")
    if options.split not in (*SPLITS, LEFT_OUT):
        raise ValueError(f"no split {options.split!r}; there are: {', '.join((*SPLITS, LEFT_OUT))}")
    for run in options.runs:
        if not pathlib.Path(run).is_dir():
            raise ValueError(f"{run}: no such folder; name a run's, or a weights folder")


def _place(options: Any) -> pathlib.Path | None:
    """The folder to write, asked before the work is done; None where none was named and there is none by default."""
    from mcis.checkpoints.checkpoint import is_weights_folder
    from mcis.evaluation.evaluator import is_set

    run = pathlib.Path(options.runs[0])
    if not options.out and (len(options.runs) > 1 or is_weights_folder(run) or is_set(run)):
        return None
    folder = [f"folder_{_name(options.folder)}"] if options.folder else [options.split, *options.sources]
    asked = [*folder, *([] if options.crf else ["no_crf"])]  # figures of other scans stay
    out = pathlib.Path(options.out or run / f"evaluation_{'_'.join(asked)}")
    # a weights folder lists its files, and a further one would spoil it
    if any(map(is_weights_folder, (out.resolve(), *out.resolve().parents))):
        raise ValueError(f"--out={out} lies in a weights folder, which takes no further files; name another place")
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"--out={out} cannot be written: a folder is needed, and {above} is none that can be written")
    return out


def _name(folder: str) -> str:
    return pathlib.Path(folder).resolve().name


@contextlib.contextmanager
def _prepared(options: Any, subject: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The records to score, and what a report says of where they are from."""
    from mcis.data.dataset import LEFT_OUT, SPLITS, prepared
    from mcis.data.records import read_records
    from mcis.evaluation.evaluator import read_left_out
    from mcis.imaging.image_files import files_in

    if options.split == LEFT_OUT:
        sources = options.sources or subject.sources(options.data_dir)
        records, every = read_left_out(subject, sources, options.data_dir)
        yield records, {"left_out": {"runs": len(subject.runs), "scans": len(records), "of": every}}
        return
    if options.folder is None:
        sources = options.sources or subject.sources(options.data_dir)
        yield read_records(sources, (options.split,), options.data_dir, subject.organ), {}
        return
    from mcis.cli.build import build

    with tempfile.TemporaryDirectory(prefix="mcis_") as place:
        if len(files_in(options.folder)) > MANY:
            print(f"reading {options.folder}; the search for near-duplicates takes minutes", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):  # what it says of splits and its place is not to the point here
            build("folder", from_=options.folder, data_dir=place, progress=False)
        audit = json.loads((prepared("folder", place) / "audit.json").read_text(encoding="utf-8"))
        for one in audit["rejections"]:
            print(f"not scored: {one['scan']}: {one['reason']}")
        facts = {"name": _name(options.folder), "rejected": audit["rejections"]}
        facts["contradictions"] = len(audit["contradictions"])
        records = read_records(("folder",), SPLITS, place, subject.organ)
        yield records, {"split": "all", "folder": facts}


def _facts(runs: Sequence[str], subject: Any, rows: Any) -> dict[str, Any]:
    """What a report says of itself: where it is from, and whether the weights have seen what they were scored on."""
    import numpy as np

    import mcis
    from mcis.checkpoints.checkpoint import versions

    fingerprints = rows["fingerprint"].tolist()
    return {
        "notice": mcis.NOTICE,
        "run": ", ".join(runs),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions() | {"numpy": np.__version__},
        "weights": subject.facts(),
        "audit": {
            "scans": len(fingerprints),
            "fingerprints": len(set(fingerprints)),
            "groups": len(set(rows["group"].tolist())),
            "networks": subject.seen(fingerprints),
        },
    }


def _write(out: pathlib.Path, found: dict[str, Any], rows: Any, subject: Any, records: Any, heat: int) -> None:
    """Write report.json, then the page; the scans of its gallery go through the network again, and only these."""
    from mcis.checkpoints.checkpoint import write_text
    from mcis.evaluation import gallery, page
    from mcis.evaluation.evaluator import look
    from mcis.evaluation.metrics import REPORT
    from mcis.evaluation.pointing_game import check, make_heat

    chosen = gallery.choose(rows, found["task"])
    found["gallery"] = {
        title: [f"{rows['source'][at]}/{rows['scan_id'][at]}" for at in index] for title, index in chosen.items()
    }
    map_of = make_heat(subject) if heat else None
    if map_of is not None:
        found["heat"] = check(map_of, records, rows, heat)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / REPORT, json.dumps(found, indent=1, allow_nan=False) + "\n")
    cards = []
    shown = [(title, at) for title, index in chosen.items() for at in index]
    for (title, at), seen in zip(shown, look(subject, records, [at for _, at in shown]), strict=True):
        caption = gallery.caption(rows, at, found["task"], found["classes"])
        cards.append(page.Card(title, gallery.picture(*seen), caption))
        said = gallery.said_label(rows, at)
        if map_of is not None and title in gallery.EXPLAINED and (drawn := map_of(records[at], said)) is not None:
            cards.append(page.Card(title, gallery.heat_picture(seen.image, drawn), [("looks at", "above")]))
    write_text(out / PAGE, page.page(found, rows, cards))
