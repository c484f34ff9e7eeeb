"""`mcis evaluate RUN --split=test`: metrics with intervals, as numbers (report.json) and as a page (report.html).

```bash
mcis evaluate runs/segment_breast --split=validation
mcis evaluate runs/segment_breast_fold? --split=left_out    # each of the fold runs on its held-out scans
mcis evaluate runs/without_*/weights --split=unseen         # each of the bundles on the sources it was trained without
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
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from mcis.cli.common import Options, PathText, check_extra, enable_compilation_cache, print_table, run
from mcis.inference.options import choice, takes
from mcis.names import no_such, no_such_path
from mcis.ops.points import BALANCED, POINTS

if TYPE_CHECKING:
    from mcis.data.records import Records
    from mcis.evaluation.evaluator import Evaluator
    from mcis.inference.rows import Rows

PAGE = "report.html"
MANY = 1000
"""Number of images in a folder above which the command announces that reading them takes long."""


@dataclasses.dataclass(frozen=True)
class Evaluate(Options):
    """Score the best weights of a run, per source and together, with 95 % bootstrap intervals by group.

    Attributes:
      runs: a run's folder or a weights folder; a bundle, which is scored as one cascade; or several, each of which is
        scored on scans of its own: fold runs on those that they held out, others on the sources they were trained
        without.
      split: train, validation, test, left_out or unseen. Use test only once, at the end. left_out are the scans that
        fold runs held out; these runs must have kept their last epoch. unseen are all scans of the prepared data sets
        that the networks were trained without, but for near-duplicates of training scans.
      sources: prepared data sets to score, separated by commas; by default those the task was trained on.
      folder: folder of your own scans to score instead (images/, masks/, labels.csv, as for `mcis build folder`). They
        are prepared in a temporary folder, which is removed. By default prepared data are scored.
      crf: use the CRF that `mcis tune` kept with the weights.
      by: attributes of the scans, separated by commas, such as site,birads: the main metrics for each of their values,
        in the report and as tables. By default all attributes of 2 to 20 values, in the report alone.
      operating_point: the bundle's trade-off between sensitivity and specificity: balanced, sensitive or specific.
        Single networks and folds are scored by their most probable class.
      heat: number of lesion scans on which the classifier's saliency maps are compared with the lesion; the gallery
        shows maps as well. Each takes a second or two on a CPU. 0 omits both.
      against: folder of another evaluation of the same scans, or its report.json, to compare each metric with; by
        default none.
      out: folder for report.json and report.html; by default evaluation_<split>[_no_crf] in the run's folder. For a
        weights folder, a bundle or several runs there is no default, and only a table is printed.
    """

    runs: Annotated[tuple[PathText, ...], tyro.conf.Positional, takes("RUN...")] = tyro.MISSING
    split: Annotated[str, choice(("train", "validation", "test", "left_out", "unseen"))] = "test"
    sources: Annotated[str, takes("A,B,...")] = ""
    folder: Annotated[PathText | None, takes("DIR")] = None
    crf: bool = True
    by: Annotated[str, takes("A,B,...")] = ""
    operating_point: Annotated[str, choice(POINTS)] = BALANCED
    heat: Annotated[int, tyro.conf.arg(metavar="N")] = 40
    against: Annotated[PathText | None, takes("PATH")] = None
    out: Annotated[PathText | None, takes("DIR")] = None


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0, or 2 when nothing was scored."""
    return run("mcis evaluate", Evaluate, _main, argv)


def _main(options: Evaluate) -> int:
    from mcis.data.dataset import UNSEEN
    from mcis.evaluation.by_attribute import by_attribute, check_names, names_of
    from mcis.evaluation.comparison import compare_reports
    from mcis.evaluation.evaluator import check_unseen
    from mcis.evaluation.metrics import read_report, report
    from mcis.evaluation.scoring import score

    _check(options)
    out = _output_folder(options)
    if out is not None:
        check_extra("evaluation", "matplotlib")
    other = None if options.against is None else read_report(options.against)
    enable_compilation_cache()
    with _evaluator_and_records(options) as (evaluator, records, facts):
        if options.folder or options.split in ("test", UNSEEN):
            check_unseen(evaluator, records)
        by = names_of(options.by)
        check_names(by, records)
        rows = score(evaluator, records)
        found = report(evaluator.task, rows, options.split) | facts | _provenance(options.runs, evaluator, rows)
        found["by_attribute"] = by_attribute(evaluator.task, rows, by)
        if other is not None:
            found["against"] = {"report": options.against, "metrics": compare_reports(found, other)}
        print_report(found)
        if by:
            print_by_attribute(found["by_attribute"])
        if out is None:
            print("--out=DIR writes these numbers, and a page that shows them")
        else:
            _write(out, found, rows, evaluator, records, options.heat)
            print(f"{out / PAGE} shows the report; report.json in the same folder holds the numbers")
    return 0


def _check(options: Evaluate) -> None:
    """ValueError where options exclude each other, or name something that does not exist."""
    from mcis.data.dataset import LEFT_OUT, SPLITS, UNSEEN

    splits = (*SPLITS, LEFT_OUT, UNSEEN)
    if not options.runs:
        raise ValueError("name a run's folder, a weights folder or a bundle to score")
    if len(options.runs) > 1 and options.split not in (LEFT_OUT, UNSEEN):
        raise ValueError(
            f"several runs need --split={LEFT_OUT} (each fold run on its held-out scans) or --split={UNSEEN} (each run "
            "on sources that it was trained without)"
        )
    if options.folder is not None:
        if options.sources or options.data_dir or options.split != "test":
            raise ValueError("--folder scores all scans of that folder; remove --sources, --split and --data_dir")
        if not pathlib.Path(options.folder).is_dir():
            there = os.path.lexists(options.folder)
            said = f"{options.folder}: not a folder; name the one of images/, masks/ and labels.csv"
            raise ValueError(f"--folder={said if there else no_such_path(options.folder)}")
    if options.split == LEFT_OUT and options.operating_point != BALANCED:
        raise ValueError(
            f"--operating_point={options.operating_point} is a setting of a bundle's cascade; folds are scored by "
            "their most probable class"
        )
    if options.heat < 0:
        raise ValueError(f"--heat={options.heat}: must be 0 or more")
    if options.split not in splits:
        raise ValueError(no_such("split", options.split, splits))
    for path in options.runs:
        if not pathlib.Path(path).is_dir():
            raise ValueError(f"{path}: no such folder; name a run's folder or a weights folder")


def _output_folder(options: Evaluate) -> pathlib.Path | None:
    """The folder to write, checked before the work is done; None where none is named and there is no default."""
    from mcis.checkpoints.checkpoint import is_weights_folder
    from mcis.evaluation.evaluator import is_bundle

    path = pathlib.Path(options.runs[0])
    if not options.out and (len(options.runs) > 1 or is_weights_folder(path) or is_bundle(path)):
        return None
    if options.folder:
        parts = ["folder", pathlib.Path(options.folder).resolve().name]
    else:
        parts = [options.split, *filter(None, options.sources.split(","))]
    name = "_".join(["evaluation", *parts, *([] if options.crf else ["no_crf"])])  # other scans' reports stay
    out = pathlib.Path(options.out or path / name)
    if any(map(is_weights_folder, (out.resolve(), *out.resolve().parents))):
        raise ValueError(f"--out={out} lies in a weights folder, which takes no further files; choose another place")
    above = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"--out={out} cannot be written: {above} is not a folder that can be written to")
    return out


@contextlib.contextmanager
def _evaluator_and_records(options: Evaluate) -> Iterator[tuple["Evaluator", "Records", dict[str, Any]]]:
    """The evaluator, the records to score, and what the report says of their origin."""
    from mcis.data.dataset import LEFT_OUT, SPLITS, UNSEEN, prepared
    from mcis.data.records import read_records
    from mcis.evaluation.evaluator import load_evaluator, organ_of, sources_of
    from mcis.evaluation.several import load_folds, load_unseen, read_held_out
    from mcis.imaging.image_files import files_in

    sources, count = tuple(filter(None, options.sources.split(","))), len(options.runs)
    if options.split == LEFT_OUT:
        folds = load_folds(options.runs, options.crf)
        records, every = read_held_out(folds, sources or sources_of(folds, options.data_dir), options.data_dir)
        yield folds, records, {"left_out": {"runs": count, "scans": len(records), "of": every}}
        return
    if options.split == UNSEEN:
        chosen = (options.runs, sources, options.data_dir, options.crf, options.operating_point)
        several, records, facts = load_unseen(*chosen)
        yield several, records, {"unseen": facts}
        return
    evaluator = load_evaluator(options.runs[0], options.crf, operating_point=options.operating_point)
    if options.folder is None:
        sources = sources or sources_of(evaluator, options.data_dir)
        yield evaluator, read_records(sources, (options.split,), options.data_dir, organ_of(evaluator)), {}
        return
    from mcis.cli.build import build

    with tempfile.TemporaryDirectory(prefix="mcis_") as place:
        if len(files_in(options.folder)) > MANY:
            print(f"reading {options.folder}; the search for near-duplicates takes minutes", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):  # its output about splits and the temporary folder is no help
            build("folder", from_=options.folder, data_dir=place, progress=False)
        audit = json.loads((prepared("folder", place) / "audit.json").read_text(encoding="utf-8"))
        for one in audit["rejections"]:
            print(f"not scored: {one['scan']}: {one['reason']}")
        for one in audit["warnings"]:
            print(f"warning: {one['what']}: {one['count']} ({', '.join(one['scans'][:3])})")
        facts = {"name": pathlib.Path(options.folder).resolve().name, "rejected": audit["rejections"]}
        facts |= {"contradictions": len(audit["contradictions"]), "warnings": audit["warnings"]}
        records = read_records(("folder",), SPLITS, place, organ_of(evaluator))
        yield evaluator, records, {"split": "all", "folder": facts}


def _provenance(runs: Sequence[str], evaluator: "Evaluator", rows: "Rows") -> dict[str, Any]:
    """The origin of a report, and whether the weights have used the scans that were scored."""
    import numpy as np

    import mcis
    from mcis.checkpoints.checkpoint import versions
    from mcis.evaluation.evaluator import leaks, operating_point_of, summarise

    fingerprints = rows.fingerprint.tolist()
    return {
        "notice": mcis.NOTICE,
        "run": ", ".join(runs),
        "operating_point": operating_point_of(evaluator),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions() | {"numpy": np.__version__},
        "weights": summarise(evaluator),
        "audit": {
            "scans": len(fingerprints),
            "fingerprints": len(set(fingerprints)),
            "groups": len(set(rows.group.tolist())),
            "networks": leaks(evaluator, fingerprints),
        },
    }


def print_report(found: dict[str, Any]) -> None:
    """Print the report as a table."""
    from rich.table import Table

    from mcis.evaluation.descriptions import scans_scored, uses_seen
    from mcis.ops.metrics import with_interval

    table = Table(title=f"{found['task']}, {scans_scored(found)}: value [95 % interval by group]")
    sources = found["sources"]
    table.add_column("metric")
    for name, part in sources.items():
        table.add_column(f"{name}\n{part['scans']} scans\n{part['groups']} groups", justify="right")
    against = found.get("against", {}).get("metrics", {})
    if against:
        table.add_column(f"all, less {found['against']['report']}", justify="right")
    for name in dict.fromkeys(name for part in sources.values() for name in part["metrics"]):
        metrics = [(part["metrics"].get(name), "") for part in sources.values()]
        metrics += [(against.get(name), "+")] if against else []
        table.add_row(name, *["" if metric is None else with_interval(metric, sign) for metric, sign in metrics])
    print_table(table)
    if point := found.get("operating_point"):
        print(f"labels were decided at the operating point {point}")
    if used := uses_seen(found.get("audit", {})):
        print(f"some of these scans {used}: the metrics are not those of unseen patients; the audit has the numbers")


def print_by_attribute(parts: Mapping[str, Any]) -> None:
    """Print a table for each attribute."""
    from rich.table import Table

    from mcis.evaluation.page_by_attribute import metrics_of, text_of

    for name, part in parts.items():
        table = Table(title=f"by {name}: value [95 % interval by group]")
        names = metrics_of(part)
        for column in (name, "scans", "groups", *names):
            table.add_column(column, justify="left" if column == name else "right")
        for value, one in part["values"].items():
            cells = [text_of(one, metric) for metric in names]
            table.add_row(value, str(one["scans"]), str(one["groups"]), *cells)
        if part["not_stated"]["scans"]:
            table.add_row("not stated", *(str(count) for count in part["not_stated"].values()))
        print_table(table)


def _write(
    out: pathlib.Path,
    found: dict[str, Any],
    rows: "Rows",
    evaluator: "Evaluator",
    records: "Records",
    heat: int,
) -> None:
    """Write report.json, then the page, for which the scans of its gallery are predicted again."""
    from mcis.evaluation import gallery, page
    from mcis.evaluation.evaluator import saliency_map
    from mcis.evaluation.metrics import REPORT
    from mcis.evaluation.pointing_game import pointing_game
    from mcis.files import write_text
    from mcis.ops.metrics import MASK_THRESHOLD

    chosen = gallery.choose(rows, found["task"])
    found["gallery"] = {
        title: [f"{rows.source[at]}/{rows.scan_id[at]}" for at in index] for title, index in chosen.items()
    }
    saliency_of = saliency_map(evaluator) if heat else None
    if saliency_of is not None:
        found["heat"] = pointing_game(saliency_of, records, rows, heat)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / REPORT, json.dumps(found, indent=1, allow_nan=False) + "\n")
    shown = [(title, at) for title, index in chosen.items() for at in index]
    cards = []
    for (title, at), scan in zip(shown, evaluator.predict(records.take([at for _, at in shown])), strict=True):
        caption = gallery.caption(rows, at, found["task"], found["classes"])
        true = scan.mask if rows.has_mask[at] else None
        predicted = None if scan.probability is None else scan.probability > MASK_THRESHOLD
        cards.append(page.Card(title, gallery.draw_outlines(scan.image, true, predicted), caption))
        if saliency_of is not None and title in gallery.EXPLAINED:
            saliency = saliency_of(scan.record, scan.image, gallery.predicted_label(rows, at))
            if saliency is not None:
                image = gallery.draw_saliency(scan.image, saliency)
                cards.append(page.Card(title, image, [("saliency map", "of the scan above")]))
    write_text(out / PAGE, page.page(found, rows, cards))
