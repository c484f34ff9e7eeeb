"""`mcis evaluate RUN --split=test`: metrics of a task, or of a set of weights as one cascade, with intervals.

Scoring is a separate act from training, which sees validation only. A test score of scans that the weights were
trained on, or chosen by, is refused.
"""

import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mcis import data, scan
from mcis.ops.crf import CRF
from mcis.ops.metrics import MASK_THRESHOLD, dice_loss, mask_counts
from mcis.ops.surface import surface_distances
from mcis.organs import ORGAN_NAMES
from mcis.scores import Rows, compare_reports, read_report, report
from mcis.tasks import TASKS, Names, Task

BATCH = 16


class LeakError(ValueError):
    """Scans to be scored as a test were seen in training."""


def check_unseen(fingerprints: Sequence[str], manifest: dict[str, Any]) -> None:
    """LeakError if any scan to be tested was trained on or chose the epoch, by content fingerprint."""
    for use in ("train", "validation"):
        seen = set(manifest["fingerprints"][use]) & set(fingerprints)
        if seen:
            raise LeakError(
                f"{len(seen)} of the {len(set(fingerprints))} scans were used for {use} of these weights "
                f"(fingerprint {min(seen)}, ...): this is no test. Score another split, or retrain without them"
            )


def _prepared(record: dict[str, Any]):
    image, mask = data.decode(record)
    square, geometry = scan.fit(image)
    return record, mask, square, geometry


def _batches(records: Sequence[dict[str, Any]]) -> Iterator[tuple[list, np.ndarray]]:
    """Records decoded and laid on the canvas, BATCH at once; the last squares are filled up with black ones."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for start in range(0, len(records), BATCH):
            chosen = [records[i] for i in range(start, min(start + BATCH, len(records)))]
            batch = list(pool.map(_prepared, chosen))
            squares = np.zeros((BATCH, scan.CANVAS, scan.CANVAS, 3), np.uint8)
            for i, (_, _, square, _) in enumerate(batch):
                squares[i] = square
            yield batch, squares


def score_scans(task: Task, expert: Callable[[np.ndarray], Any], records: Sequence[dict[str, Any]]) -> Rows:
    """Run a task's expert over records.

    Args:
      task: whose targets are scored.
      expert: uint8 (BATCH, S, S, 3) -> `Outputs` of probabilities on the canvas.
      records: of `data.records`.
    """
    columns: dict[str, list] = collections.defaultdict(list)
    for batch, squares in _batches(records):
        outputs = expert(squares)
        masks = None if outputs.mask is None else np.asarray(outputs.mask)
        for i, (record, mask, _, geometry) in enumerate(batch):
            row = _facts(record) | {"label": task.label_of(data.text(record["organ"]), int(record["label"]))}
            if masks is not None:
                row |= _overlap(scan.unfit(masks[i, ..., 0], geometry), mask[..., 0])
            _append(columns, row)
        if outputs.label is not None:
            columns["probs"].extend(np.asarray(outputs.label)[: len(batch)])
            columns["features"].extend(np.asarray(outputs.features)[: len(batch)])
    return {name: np.array(values) for name, values in columns.items()}


def score_cascade(predict: Callable[[np.ndarray], Any], records: Sequence[dict[str, Any]]) -> Rows:
    """Run the cascade over records of all organs.

    Args:
      predict: uint8 (BATCH, S, S, 3) -> a `cascade.Prediction`.
      records: of `data.records`.
    """
    columns: dict[str, list] = collections.defaultdict(list)
    for batch, squares in _batches(records):
        found = predict(squares)
        organ, label, masks = (np.asarray(x) for x in (found.organ, found.label, found.mask))
        for i, (record, mask, _, geometry) in enumerate(batch):
            said = {"said_organ": int(organ[i]), "said_label": int(label[i])}
            truth = {"organ": ORGAN_NAMES.index(data.text(record["organ"])), "label": int(record["label"])}
            row = _facts(record) | truth | said
            # the mask of another organ's network is none of this organ's
            right = said["said_organ"] == truth["organ"]
            prob = scan.unfit(masks[i, ..., 0], geometry) if right else np.zeros(mask.shape[:2], np.float32)
            row |= _overlap(prob, mask[..., 0])
            _append(columns, row)
    return {name: np.array(values) for name, values in columns.items()}


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    """What a row says of its scan."""
    source = data.text(record["source"])
    return {
        "source": source,
        "group": f"{source}/{data.text(record['group'])}",
        "scan_id": data.text(record["scan_id"]),
        "has_mask": bool(record["has_mask"]),
    }


def _overlap(prob: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """What a row says of lesion probabilities float (H, W) beside the mask {0,1} (H, W)."""
    found = prob > MASK_THRESHOLD
    counts = mask_counts(found[None, ..., None], true[None, ..., None])
    farthest, mean = surface_distances(found, true)
    return {name: int(count[0]) for name, count in counts.items()} | {
        "pixels": true.size,
        "dice_loss": dice_loss(prob, true),
        "hd95": farthest,
        "surface_distance": mean,
    }


def _append(columns: dict[str, list], row: dict[str, Any]) -> None:
    for name, value in row.items():
        columns[name].append(value)


def print_report(found: dict[str, Any]) -> None:
    """The report as a table on standard output."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found['task']}, {found['split']} split: value [95 % interval by group]")
    sources = found["sources"]
    table.add_column("metric")
    for name, part in sources.items():
        table.add_column(f"{name}\n{part['scans']} scans\n{part['groups']} groups", justify="right")
    against = found.get("against", {}).get("metrics", {})
    if against:
        table.add_column(f"all, less {found['against']['report']}", justify="right")
    for name in dict.fromkeys(name for part in sources.values() for name in part["metrics"]):
        cells = [_cell(part["metrics"].get(name)) for part in sources.values()]
        table.add_row(name, *cells, *([_cell(against.get(name), "+")] if against else []))
    # a file or a pipe has no width: nothing is cut there. "[" is no markup here
    Console(width=None if sys.stdout.isatty() else 30 + 28 * len(table.columns), markup=False).print(table)


def _cell(found: dict[str, float | None] | None, sign: str = "") -> str:
    if found is None:
        return ""
    interval = "no interval" if found["low"] is None else f"{found['low']:{sign}.3f}, {found['high']:{sign}.3f}"
    return f"{found['value']:{sign}.3f} [{interval}]"


def main(argv: Sequence[str]) -> int:
    """The command: exit status 0, or 2 when nothing was scored."""
    import tyro

    from mcis.command import Options, exit_status, parse_dataclass

    @dataclasses.dataclass(frozen=True)
    class Evaluate(Options):
        """Score a run's best weights on a split, per source and together, with 95 % bootstrap intervals by group.

        Attributes:
          run: a run's folder, or a weights folder; or a set of weights, which is scored as one cascade.
          split: train, validation or test. Look at test once, at the end.
          sources: prepared data sets to score; by default those the task was trained on.
          no_crf: leave out the CRF that `mcis tune` kept with the weights.
          against: the JSON file of another run's evaluation of the same scans, to say how much higher each figure is.
          out: JSON file to write; by default evaluation_<split>[_no_crf].json in the run's folder. A weights folder,
            whose files are sealed, and a set get none.
        """

        run: tyro.conf.Positional[str] = tyro.MISSING
        split: str = "test"
        sources: Names = ()
        no_crf: bool = False
        against: str | None = None
        out: str | None = None

    options = parse_dataclass(Evaluate, argv, "mcis evaluate")
    return exit_status("mcis evaluate", lambda: _main(options))


def _main(options: Any) -> int:
    from mcis.checkpoint import is_weights_folder, write_text

    run, target = pathlib.Path(options.run), None
    cascade = is_set(run)
    if options.split not in data.SPLITS:
        raise ValueError(f"no split {options.split!r}; there are: {', '.join(data.SPLITS)}")
    if not run.is_dir():
        raise ValueError(f"{run}: no such folder; name a run's, or a weights folder")
    if options.out or not (is_weights_folder(run) or cascade):
        asked = [options.split, *options.sources, *(["no_crf"] if options.no_crf else [])]
        name = f"evaluation_{'_'.join(asked)}.json"  # figures of other scans stay
        target = pathlib.Path(options.out or run / name)
        # asked before the work is done. A weights folder lists its files, and a further one would spoil it
        if any(map(is_weights_folder, target.resolve().parents)):
            raise ValueError(
                f"--out={target} lies in a weights folder, which takes no further files; name another place"
            )
        if target.is_dir() or not os.access(target.parent, os.W_OK):
            raise ValueError(f"--out={target} cannot be written: a file name in a folder that exists is needed")
    other = None if options.against is None else read_report(options.against)
    score = evaluate_cascade if cascade else evaluate
    found = score(options.run, options.split, options.sources, options.data_dir, not options.no_crf)
    if other is not None:
        found["against"] = {"report": options.against, "metrics": compare_reports(found, other)}
    print_report(found)
    if target is not None:
        write_text(target, json.dumps(found, indent=1, allow_nan=False) + "\n")
        print(f"{target} holds the same figures")
    return 0


def evaluate(
    run: str, split: str, sources: Sequence[str] = (), data_dir: str | None = None, crf: bool = True
) -> dict[str, Any]:
    """Score a run's best weights on a split of some sources, with the CRF kept with them or without.

    Raises:
      CheckpointError, MissingData, ValueError: no such weights, data or split.
      LeakError: `split` is test and the weights have seen some of it.
    """
    import jax

    from mcis.bundle import load_weights
    from mcis.cascade import Settings, supported
    from mcis.command import enable_compilation_cache
    from mcis.tasks import make_expert

    enable_compilation_cache()
    weights = load_weights(run)
    task = weights.task if crf else without_crf(weights.task)
    records = _records(sources or task.sources, split, data_dir, task.organ)
    if split == "test":
        check_unseen([data.text(record["fingerprint"]) for record in records], weights.manifest)
    expert = jax.jit(make_expert(task))
    rows = score_scans(task, lambda batch: expert(weights.variables, batch), records)
    if task.organ is None:
        known, _ = supported(Settings(), weights.variables, rows["probs"].max(1), rows["features"])
        rows["refused"] = ~np.asarray(known)
    return report(task, rows, split)


def evaluate_cascade(
    weights: str, split: str, sources: Sequence[str] = (), data_dir: str | None = None, crf: bool = True
) -> dict[str, Any]:
    """Score a set of weights as one cascade, as `mcis predict` runs it: by default on all that they were trained on.

    Raises:
      CheckpointError, MissingData, ValueError: no such weights, data or split; no router.
      LeakError: `split` is test and one of the networks has seen some of it.
    """
    import jax

    from mcis.bundle import load_bundle
    from mcis.cascade import Settings, make_predict
    from mcis.command import enable_compilation_cache

    enable_compilation_cache()
    experts = load_bundle(weights)
    tasks = {name: expert.task if crf else without_crf(expert.task) for name, expert in experts.items()}
    every = dict.fromkeys(source for task in tasks.values() for source in task.sources)
    records = _records(sources or tuple(every), split, data_dir, None)
    if split == "test":
        fingerprints = [data.text(record["fingerprint"]) for record in records]
        for expert in experts.values():
            check_unseen(fingerprints, expert.manifest)
    predict = jax.jit(make_predict(tasks, Settings()))
    variables = {name: expert.variables for name, expert in experts.items()}
    return report(None, score_cascade(lambda batch: predict(variables, batch), records), split)


def is_set(folder: pathlib.Path) -> bool:
    """Whether a folder holds weights, or runs, by the names of their tasks: a set that makes a cascade."""
    from mcis.checkpoint import is_weights_folder, weights_folder

    alone = is_weights_folder(weights_folder(folder))
    return not alone and any(is_weights_folder(weights_folder(folder / name)) for name in TASKS)


def without_crf(task: Task) -> Task:
    """The task, its masks as the network makes them."""
    return dataclasses.replace(task, crf=CRF(steps=0))


def _records(sources: Sequence[str], split: str, data_dir: str | None, organ: str | None) -> list[dict[str, Any]]:
    parts = [data.records(source, split, data_dir) for source in sources]
    records = [part[i] for part in parts for i in range(len(part))]
    records = [record for record in records if organ in (None, data.text(record["organ"]))]
    if not records:
        raise ValueError(f"split {split!r} of {', '.join(sources)} holds no scans")
    return records
