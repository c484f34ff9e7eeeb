"""Prepared scans and weights -> rows of results: of a task's network, or of a set of weights as one cascade.

Scoring is a separate act from training, which sees validation only. A test score of scans that the weights were
trained on, or chosen by, is refused.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mcis import data, scan
from mcis.checkpoint import MANIFEST, is_weights_folder, present, weights_folder
from mcis.ops.crf import CRF
from mcis.ops.metrics import MASK_THRESHOLD, dice_loss, mask_counts
from mcis.ops.surface import surface_distances
from mcis.organs import ORGANS, organ_index
from mcis.scores import Rows, report
from mcis.tasks import TASKS, Task

BATCH = 16
FOREIGN = "foreign"
"""The source of pictures to be refused."""

Record = Mapping[str, Any]
"""A scan as it is stored: of `data.records`."""


class LeakError(ValueError):
    """Scans to be scored as a test were seen in training."""


def check_unseen(fingerprints: Sequence[str], manifest: Mapping[str, Any]) -> None:
    """LeakError if any scan to be tested was trained on or chose the epoch, by content fingerprint."""
    for use in ("train", "validation"):
        seen = set(manifest["fingerprints"][use]) & set(fingerprints)
        if seen:
            raise LeakError(
                f"{len(seen)} of the {len(set(fingerprints))} scans were used for {use} of these weights "
                f"(fingerprint {min(seen)}, ...): this is no test. Score another split, or retrain without them"
            )


def leaks(fingerprints: Sequence[str], manifests: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """How many of the scored scans' contents each network has seen: task name -> {"train", "validation"} -> counts.

    Each use says `used`, how many contents there were, and `scored`, how many of the scored ones are among them.
    """
    scored = set(fingerprints)
    return {
        name: {
            use: {
                "used": len(set(manifest["fingerprints"][use])),
                "scored": len(scored & {*manifest["fingerprints"][use]}),
            }
            for use in ("train", "validation")
        }
        for name, manifest in manifests.items()
    }


def _prepared(record: Record):
    image, mask = data.decode(dict(record))
    square, geometry = scan.fit(image)
    return record, mask, square, geometry


def _batches(records: Sequence[Record]) -> Iterator[tuple[list, np.ndarray]]:
    """Records decoded and laid on the canvas, BATCH at once; the last squares are filled up with black ones."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for start in range(0, len(records), BATCH):
            chosen = [records[i] for i in range(start, min(start + BATCH, len(records)))]
            batch = list(pool.map(_prepared, chosen))
            squares = np.zeros((BATCH, scan.CANVAS, scan.CANVAS, 3), np.uint8)
            for i, (_, _, square, _) in enumerate(batch):
                squares[i] = square
            yield batch, squares


def score_scans(task: Task, expert: Callable[[np.ndarray], Any], records: Sequence[Record]) -> Rows:
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


def score_cascade(predict: Callable[[np.ndarray], Any], records: Sequence[Record]) -> Rows:
    """Run the cascade over records of all organs.

    Args:
      predict: uint8 (BATCH, S, S, 3) -> a `cascade.Prediction`.
      records: of `data.records`.
    """
    columns: dict[str, list] = collections.defaultdict(list)
    for batch, squares in _batches(records):
        found = predict(squares)
        organ, label, masks = (np.asarray(x) for x in (found.organ, found.label, found.mask))
        told = {name: np.asarray(getattr(found, name)) for name in ("organ_prob", "novelty", "label_probs")}
        for i, (record, mask, _, geometry) in enumerate(batch):
            said = {"said_organ": int(organ[i]), "said_label": int(label[i])}
            said |= {name: value[i] for name, value in told.items()}
            truth = {"organ": organ_index(data.text(record["organ"])), "label": int(record["label"])}
            row = _facts(record) | truth | said
            # the mask of another organ's network is none of this organ's
            right = said["said_organ"] == truth["organ"]
            prob = scan.unfit(masks[i, ..., 0], geometry) if right else np.zeros(mask.shape[:2], np.float32)
            row |= _overlap(prob, mask[..., 0])
            _append(columns, row)
    return {name: np.array(values) for name, values in columns.items()}


def _facts(record: Record) -> dict[str, Any]:
    """What a row says of its scan."""
    source = data.text(record["source"])
    return {
        "source": source,
        "group": f"{source}/{data.text(record['group'])}",
        "scan_id": data.text(record["scan_id"]),
        "fingerprint": data.text(record["fingerprint"]),
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


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is scored: a task's network, or a set of them as one cascade.

    Attributes:
      task: the network's, None for the cascade.
      answer: uint8 (BATCH, S, S, 3) -> `Outputs` of probabilities on the canvas; of the cascade a `Prediction`.
      variables: of each network, by task name.
      manifests: what each network's weights say of themselves, by task name.
      tasks: the networks' tasks, by name.
      folders: where each network's weights lie, by task name.
    """

    task: Task | None
    answer: Callable[[np.ndarray], Any]
    variables: dict[str, dict[str, Any]]
    manifests: dict[str, dict[str, Any]]
    tasks: dict[str, Task]
    folders: dict[str, pathlib.Path]

    def sources(self, data_dir: str | os.PathLike | None) -> tuple[str, ...]:
        """Every source that one of the networks was trained on; foreign pictures, a collection of one's own, if any."""
        every = dict.fromkeys(source for task in self.tasks.values() for source in task.sources)
        return tuple(name for name in every if name != FOREIGN or data.versions_of(name, data_dir))

    @property
    def organ(self) -> str | None:
        """The organ whose scans it answers; None for all."""
        return None if self.task is None else self.task.organ

    def facts(self) -> dict[str, dict[str, Any]]:
        """JSON values that say which weights these are: task name -> network, training, versions, manifest's hash."""
        found = {}
        for name, manifest in self.manifests.items():
            task, file = self.tasks[name], self.folders[name] / MANIFEST
            found[name] = {
                "model": task.model,
                "features": task.width,
                "size": task.size,
                "sources": list(task.sources),
                "epoch": manifest["epoch"],
                "crf_steps": task.crf.steps,
                "versions": manifest["versions"],
                "manifest_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
        return found


def load_subject(run: str | os.PathLike, crf: bool = True) -> Subject:
    """Read a run, a weights folder or a set of weights, ready to answer, with the CRF kept with them or without.

    Raises:
      CheckpointError, ValueError: no such weights; a set without a router.
    """
    import jax

    from mcis.bundle import load_bundle, load_weights
    from mcis.cascade import Settings, make_predict
    from mcis.tasks import make_expert

    path = pathlib.Path(run)
    cascade = is_set(path)
    one = None if cascade else load_weights(path)
    experts = load_bundle(path) if one is None else {one.task.name: one}
    tasks = {name: expert.task if crf else without_crf(expert.task) for name, expert in experts.items()}
    variables = {name: expert.variables for name, expert in experts.items()}
    if one is None:
        task, answer = None, functools.partial(jax.jit(make_predict(tasks, Settings())), variables)
    else:
        (task,) = tasks.values()
        answer = functools.partial(jax.jit(make_expert(task)), one.variables)
    folders = {name: present(weights_folder(path / name if cascade else path)) for name in experts}
    return Subject(task, answer, variables, {name: e.manifest for name, e in experts.items()}, tasks, folders)


def score(subject: Subject, records: Sequence[Record]) -> Rows:
    """Run what is scored over records."""
    if subject.task is None:
        return score_cascade(subject.answer, records)
    rows = score_scans(subject.task, subject.answer, records)
    if subject.task.organ is None:
        from mcis.cascade import Settings, supported

        router = subject.variables[subject.task.name]
        known, _ = supported(Settings(), router, rows["probs"][:, : len(ORGANS)].max(1), rows["features"])
        rows["refused"] = ~np.asarray(known)
    return rows


class Look(NamedTuple):
    """A scan looked at again: image uint8 (H, W, 3); masks uint8 {0,1} (H, W), None where not known or not asked."""

    image: np.ndarray
    true: np.ndarray | None
    said: np.ndarray | None


def look(subject: Subject, records: Sequence[Record], index: Sequence[int]) -> Iterator[Look]:
    """Run what is scored over some of the records again, for their pictures; in the order of `index`."""
    for batch, squares in _batches([records[i] for i in index]):
        found = subject.answer(squares)
        masks = None if found.mask is None else np.asarray(found.mask)
        for i, (record, mask, _, geometry) in enumerate(batch):
            image, _ = data.decode(dict(record))
            said = None if masks is None else (scan.unfit(masks[i, ..., 0], geometry) > MASK_THRESHOLD).astype(np.uint8)
            if subject.task is None and int(found.organ[i]) != organ_index(data.text(record["organ"])):
                said = np.zeros(mask.shape[:2], np.uint8)  # as it was scored
            yield Look(image, mask[..., 0] if record["has_mask"] else None, said)


@dataclasses.dataclass(frozen=True)
class Records(Sequence):
    """Records of several splits as one sequence, each read when it is asked for.

    Attributes:
      parts: of `data.records`.
      places: which part, and which of its records, each one is.
      fingerprints: their contents' fingerprints.
    """

    parts: tuple[Sequence[Record], ...]
    places: tuple[tuple[int, int], ...]
    fingerprints: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, at: Any) -> Any:
        part, row = self.places[at]
        return self.parts[part][row]


def read_records(
    sources: Iterable[str], splits: Iterable[str], data_dir: str | os.PathLike | None, organ: str | None
) -> Records:
    """The records of some splits of some sources, of one organ if `organ` names it.

    Raises:
      MissingData, ValueError: a source is not prepared; there is no such split, or it holds no such scans.
    """
    sources, splits = tuple(sources), tuple(splits)
    parts = tuple(data.records(source, split, data_dir) for source, split in itertools.product(sources, splits))
    places, fingerprints = [], []
    for number, part in enumerate(parts):
        for row in range(len(part)):
            record = part[row]
            if organ in (None, data.text(record["organ"])):
                places.append((number, row))
                fingerprints.append(data.text(record["fingerprint"]))
    if not places:
        kind = "scans" if organ is None else f"{organ} scans"
        raise ValueError(f"split {' or '.join(map(repr, splits))} of {', '.join(sources)} holds no {kind}")
    return Records(parts, tuple(places), tuple(fingerprints))


def evaluate(
    run: str | os.PathLike,
    split: str,
    sources: Sequence[str] = (),
    data_dir: str | os.PathLike | None = None,
    crf: bool = True,
) -> dict[str, Any]:
    """Score weights on a split of some sources, by default of all they were trained on: what `scores.report` says.

    Args:
      run: a run or a weights folder; or a set of weights, which is scored as the cascade that `mcis predict` runs.
      split: train, validation or test.
      sources: names of prepared data sets.
      data_dir: where these are.
      crf: whether masks go through the CRF that was kept with the weights.

    Raises:
      CheckpointError, MissingData, ValueError: no such weights, data or split; a set without a router.
      LeakError: `split` is test and one of the networks has seen some of it.
    """
    subject = load_subject(run, crf)
    records = read_records(sources or subject.sources(data_dir), (split,), data_dir, subject.organ)
    if split == "test":
        for manifest in subject.manifests.values():
            check_unseen(records.fingerprints, manifest)
    return report(subject.task, score(subject, records), split)


def is_set(folder: pathlib.Path) -> bool:
    """Whether a folder holds weights, or runs, by the names of their tasks: a set that makes a cascade."""
    alone = is_weights_folder(weights_folder(folder))
    return not alone and any(is_weights_folder(weights_folder(folder / name)) for name in TASKS)


def without_crf(task: Task) -> Task:
    """The task, its masks as the network makes them."""
    return dataclasses.replace(task, crf=CRF(steps=0))
