"""Several runs or bundles as one evaluator, each of which predicts scans that it has not seen.

Fold runs predict the scans that each of them holds out. Networks trained without a source predict all its scans, as
they would those of a new hospital.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from mcis.checkpoints import provenance
from mcis.checkpoints.bundle import Weights
from mcis.data import dataset
from mcis.data.records import Records, read_records
from mcis.evaluation.evaluator import (
    OOD,
    CascadeEvaluator,
    NetworkEvaluator,
    PredictedScan,
    is_bundle,
    load_evaluator,
    organ_of,
    sources_of,
)
from mcis.inference.folds import held_out_scans, rows_of
from mcis.ops.points import BALANCED
from mcis.tasks.config import Task

SYNTHETIC = ("phantom", OOD)
"""Sources that are not real patients' scans of an organ: they are scored as unseen only where they are named."""


@dataclasses.dataclass(frozen=True)
class SeveralEvaluator:
    """Runs of one task, or bundles, each of which predicts scans of its own.

    Attributes:
      task: of all runs; None for bundles.
      runs: run's name -> its evaluator.
      scans: run's name -> fingerprints of the scans that it predicts. A scan belongs to one run.
    """

    task: Task | None
    runs: Mapping[str, NetworkEvaluator | CascadeEvaluator]
    scans: Mapping[str, frozenset[str]]

    @property
    def weights(self) -> Mapping[str, Weights]:
        """See Evaluator; by run, those of a bundle by run and task: "run/task"."""
        return {self._key(run, name): one for run, each in self.runs.items() for name, one in each.weights.items()}

    @property
    def folders(self) -> Mapping[str, pathlib.Path]:
        """See Evaluator; the keys are those of `weights`."""
        return {self._key(run, name): one for run, each in self.runs.items() for name, one in each.folders.items()}

    def predicted_by(self, fingerprints: Sequence[str]) -> dict[str, np.ndarray]:
        """See Evaluator; the keys are those of `weights`."""
        rows = rows_of(self.scans, fingerprints)
        return {self._key(run, name): rows[run] for run, each in self.runs.items() for name in each.weights}

    def predict(self, records: Records) -> Iterator[PredictedScan]:
        """See Evaluator."""
        run_of: dict[int, str] = {}
        predicted: dict[str, Iterator[PredictedScan]] = {}
        for run, index in rows_of(self.scans, records.fingerprints).items():
            run_of |= dict.fromkeys(index.tolist(), run)
            predicted[run] = self.runs[run].predict(records.take(index.tolist()))
        for row in range(len(records)):
            yield next(predicted[run_of[row]])

    def _key(self, run: str, network: str) -> str:
        return f"{run}/{network}" if self.task is None else run


def load_folds(runs: Sequence[str | os.PathLike], crf: bool = True) -> SeveralEvaluator:
    """The evaluator of fold runs of one task, each of which predicts the scans that it holds out.

    Raises:
      CheckpointError, ValueError: there are no such weights, or they are no folds (`provenance.check_folds`).
    """
    if bundles := [str(path) for path in runs if is_bundle(pathlib.Path(path))]:
        raise ValueError(f"{bundles[0]} is a bundle; name fold runs, which have held-out scans")
    functions: dict[Task, Any] = {}
    loaded = [cast(NetworkEvaluator, load_evaluator(path, crf, functions)) for path in runs]
    manifests = [one.weights[one.task.name].manifest for one in loaded]
    tasks = [one.task for one in loaded]
    provenance.check_folds(list(zip(map(str, runs), tasks, manifests, strict=True)))
    held_out = [frozenset(provenance.scans_of(manifest, "fingerprints", "validation")) for manifest in manifests]
    names = _names(runs)
    return SeveralEvaluator(tasks[0], dict(zip(names, loaded, strict=True)), dict(zip(names, held_out, strict=True)))


def read_held_out(
    folds: SeveralEvaluator, sources: Sequence[str], data_dir: str | os.PathLike | None
) -> tuple[Records, int]:
    """The records of some sources that fold runs hold out, and the number of records they were selected from.

    Raises:
      MissingData, ValueError: a source, or a held-out scan of the training sources, is not prepared; no scan of the
        sources is held out.
    """
    every = read_records(sources, ("train", "validation"), data_dir, organ_of(folds))
    manifests = {name: one.manifest for name, one in folds.weights.items()}
    complete = set(sources) == set(sources_of(folds, data_dir))
    by_run = held_out_scans(manifests, every.fingerprints, complete)
    records = every.take(sorted(np.concatenate(list(by_run.values())).tolist()))
    if not len(records):
        raise ValueError(f"the runs hold out no scan of {', '.join(sources)}")
    return records, len(every)


def load_unseen(
    runs: Sequence[str | os.PathLike],
    sources: Sequence[str] = (),
    data_dir: str | os.PathLike | None = None,
    crf: bool = True,
    operating_point: str = BALANCED,
) -> tuple[SeveralEvaluator, Records, dict[str, Any]]:
    """The evaluator of networks or bundles on all scans of sources that they were trained without, and these scans.

    A scan in the group of a training scan (a near-duplicate of one from another source) is not among them.

    Args:
      runs: runs of one task, or bundles.
      sources: prepared sources to score; by default all but SYNTHETIC. One that a network was trained on is left to the
        other runs.
      data_dir: where these, and the sources of the training, are prepared.
      crf: see `load_evaluator`.
      operating_point: see `load_evaluator`.

    Returns:
      The evaluator, the records, and facts as JSON values: numbers of runs, of scans and of near-duplicates left out,
      and the sources of the training that are not prepared, so that their near-duplicates are not known.

    Raises:
      CheckpointError, MissingData, ValueError: there are no such weights or data; the runs are of several tasks; a
        source is unseen by two of them; there is nothing unseen.
    """
    loaded = [load_evaluator(path, crf, operating_point=operating_point) for path in runs]
    names, tasks = _names(runs), {one.task.name if one.task else None for one in loaded}
    if len(tasks) > 1:
        raise ValueError(f"{', '.join(map(str, runs))} are not of one task; name runs of one task, or bundles")
    prepared = [folder.name for folder in dataset.sources_in(data_dir)]
    organ = organ_of(loaded[0])
    wanted = tuple(dict.fromkeys(sources)) or tuple(
        name for name in prepared if name not in SYNTHETIC and _holds(name, organ, data_dir)
    )
    kept: list[tuple[Records, list[int]]] = []
    scans: dict[str, frozenset[str]] = {}
    taken: dict[str, str] = {}
    near, absent = 0, set()
    for name, one in zip(names, loaded, strict=True):
        trained = {source for each in one.weights.values() for source in each.task.sources}
        for source in (unseen := [source for source in wanted if source not in trained]):
            if source in taken:
                raise ValueError(f"{source} is unseen by {taken[source]} and by {name}; name one, or --sources")
            taken[source] = name
        if not unseen:
            raise ValueError(f"{name} was trained on all of {', '.join(wanted)}; nothing is unseen")
        absent |= trained - {*prepared, *SYNTHETIC}
        known = sorted(trained & {*prepared})
        groups = {*read_records(known, dataset.SPLITS, data_dir, organ_of(one)).groups} if known else set()
        records = read_records(unseen, dataset.SPLITS, data_dir, organ_of(one))
        index = [row for row, group in enumerate(records.groups) if group not in groups]
        near += len(records) - len(index)
        kept.append((records, index))
        scans[name] = frozenset(records.fingerprints[row] for row in index)
    records = Records.join([records.take(index) for records, index in kept])
    if not len(records):
        raise ValueError(f"all scans of {', '.join(taken)} are near-duplicates of training scans; nothing is unseen")
    facts = {"runs": len(runs), "scans": len(records), "near_duplicates": near, "not_compared": sorted(absent)}
    return SeveralEvaluator(loaded[0].task, dict(zip(names, loaded, strict=True)), scans), records, facts


def _holds(source: str, organ: str | None, data_dir: str | os.PathLike | None) -> bool:
    """Whether a prepared source has a scan of an organ; always for None."""
    stored = (dataset.records(source, split, data_dir) for split in dataset.SPLITS if organ is not None)
    return organ is None or any(dataset.text(own[row]["organ"]) == organ for own in stored for row in range(len(own)))


def _names(runs: Sequence[str | os.PathLike]) -> list[str]:
    """The names of the runs' folders; their paths where two have the same."""
    names = [pathlib.Path(path).resolve().name for path in runs]
    return names if len(set(names)) == len(names) else list(map(str, runs))
