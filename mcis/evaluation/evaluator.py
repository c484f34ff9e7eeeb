"""What is scored: a task's network, a set of weights as one cascade, or fold runs on the scans each has left out."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mcis.checkpoints.checkpoint import MANIFEST, is_weights_folder, present, weights_folder
from mcis.checkpoints.provenance import check_folds, check_unseen, leaks
from mcis.data import dataset
from mcis.data.records import Records, letterboxed_batches, read_records
from mcis.evaluation.metrics import Rows, report, take
from mcis.evaluation.results import FOREIGN, score_cascade, score_scans
from mcis.imaging.letterbox import unletterbox
from mcis.ops.crf import CRF
from mcis.ops.metrics import MASK_THRESHOLD
from mcis.organs import ORGANS, organ_index
from mcis.tasks.config import Task
from mcis.tasks.table import TASKS


@dataclasses.dataclass(frozen=True)
class Subject:
    """A task's network, or a set of them as one cascade.

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
        return tuple(name for name in every if name != FOREIGN or dataset.versions_of(name, data_dir))

    @property
    def organ(self) -> str | None:
        """The organ whose scans it answers; None for all."""
        return None if self.task is None else self.task.organ

    def facts(self) -> dict[str, dict[str, Any]]:
        """JSON values that say which weights these are: task name -> network, training, versions, manifest's hash.

        And, where `mcis calibrate` has been there, what it found.
        """
        found = {}
        for name, manifest in self.manifests.items():
            task, file = self.tasks[name], self.folders[name] / MANIFEST
            found[name] = {
                "model": task.model,
                "features": task.width,
                "size": task.size,
                "sources": list(task.sources),
                "epoch": manifest["epoch"],
                "members": len(manifest.get("seeds", [None])),
                "crf_steps": task.crf.steps,
                "versions": manifest["versions"],
                "manifest_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            if "calibration" in manifest:
                found[name]["calibration"] = manifest["calibration"]
        return found

    def parts(self, fingerprints: Sequence[str]) -> list[tuple["Subject", np.ndarray]]:
        """Who answers which of the scans, as int index: itself, all."""
        return [(self, np.arange(len(fingerprints)))]

    def seen(self, fingerprints: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What each network has seen of the scans it answers, as `scoring.leaks`."""
        return leaks(fingerprints, self.manifests)


@dataclasses.dataclass(frozen=True)
class Folds:
    """Runs of one task, or one, each of which answers the scans that it has left out: folds.

    Attributes:
      runs: run's name -> its network.
    """

    runs: dict[str, Subject]

    @property
    def task(self) -> Task:
        """Of all of them."""
        (task, *_) = (run.task for run in self.runs.values())
        assert task is not None
        return task

    @property
    def organ(self) -> str | None:
        """The organ whose scans they answer; None for all."""
        return self.task.organ

    def sources(self, data_dir: str | os.PathLike | None) -> tuple[str, ...]:
        """As `Subject.sources`."""
        return next(iter(self.runs.values())).sources(data_dir)

    def facts(self) -> dict[str, dict[str, Any]]:
        """As `Subject.facts`, by run."""
        return {name: run.facts()[self.task.name] for name, run in self.runs.items()}

    def left_out(self) -> dict[str, set[str]]:
        """Run -> fingerprints of the scans it has left out."""
        return {
            name: set(run.manifests[self.task.name]["fingerprints"]["validation"]) for name, run in self.runs.items()
        }

    def answered(self, fingerprints: Sequence[str]) -> dict[str, np.ndarray]:
        """Which of the scans each run answers, as int index."""
        names = np.array(fingerprints)
        return {run: np.flatnonzero(np.isin(names, list(mine))) for run, mine in self.left_out().items()}

    def parts(self, fingerprints: Sequence[str]) -> list[tuple[Subject, np.ndarray]]:
        """Who answers which of the scans, as int index."""
        return [(self.runs[run], index) for run, index in self.answered(fingerprints).items() if len(index)]

    def seen(self, fingerprints: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What each run has seen of the scans it answers, as `scoring.leaks`."""
        return {
            run: leaks([fingerprints[i] for i in index], self.runs[run].manifests)[self.task.name]
            for run, index in self.answered(fingerprints).items()
        }


def load_subject(run: str | os.PathLike, crf: bool = True) -> Subject:
    """Read a run, a weights folder or a set of weights, ready to answer, with the CRF kept with them or without.

    Raises:
      CheckpointError, ValueError: no such weights; a set without a router.
    """
    import jax

    from mcis.checkpoints.bundle import load_bundle, load_weights
    from mcis.inference.cascade import Settings, make_cascade
    from mcis.tasks.apply import make_expert, place

    path = pathlib.Path(run)
    cascade = is_set(path)
    one = None if cascade else load_weights(path)
    experts = load_bundle(path) if one is None else {one.task.name: one}
    tasks = {name: expert.task if crf else without_crf(expert.task) for name, expert in experts.items()}
    variables = {name: place(expert.variables) for name, expert in experts.items()}
    if one is None:
        task, answer = None, functools.partial(jax.jit(make_cascade(tasks, Settings())), variables)
    else:
        (task,) = tasks.values()
        answer = functools.partial(jax.jit(make_expert(task)), variables[task.name])
    folders = {name: present(weights_folder(path / name if cascade else path)) for name in experts}
    return Subject(task, answer, variables, {name: e.manifest for name, e in experts.items()}, tasks, folders)


def load_folds(runs: Sequence[str | os.PathLike], crf: bool = True) -> Folds:
    """Read runs of one task that are to answer what they have left out, as `load_subject`.

    Raises:
      CheckpointError, ValueError: no such weights, or such that `folds.check_folds` refuses.
    """
    found, checked = [], []
    for path in map(str, runs):
        if is_set(pathlib.Path(path)):
            raise ValueError(f"{path} is a set of weights; what was left out is answered by runs")
        run = load_subject(path, crf)
        found.append(run)
        checked += [(path, run.tasks[name], run.manifests[name]) for name in run.tasks]
    check_folds(checked)
    names = [pathlib.Path(path).resolve().name for path in runs]
    if len(set(names)) < len(names):
        names = list(map(str, runs))
    return Folds(dict(zip(names, found, strict=True)))


def read_left_out(folds: Folds, sources: Sequence[str], data_dir: str | os.PathLike | None) -> tuple[Records, int]:
    """The records that fold runs have left out, of some sources, and of how many they are a part.

    Raises:
      MissingData, ValueError: a source, or one of the scans, is not prepared here; none was left out.
    """
    every = read_records(sources, ("train", "validation"), data_dir, folds.organ)
    wanted = set().union(*folds.left_out().values())
    records = every.take([at for at, name in enumerate(every.fingerprints) if name in wanted])
    missing = len(wanted) - len(set(records.fingerprints))
    if missing and set(sources) == set(folds.sources(data_dir)):
        raise ValueError(
            f"{missing} of the {len(wanted)} scans that the runs left out are not prepared here; build the sources "
            "they were trained on, or say with --data_dir where they are"
        )
    if not len(records):
        raise ValueError(f"the runs have left out no scan of {', '.join(sources)}")
    return records, len(every)


def score(subject: Subject | Folds, records: Records) -> Rows:
    """Run what is scored over records."""
    parts = subject.parts(records.fingerprints)
    found = [_score(part, records.take(index.tolist())) for part, index in parts]
    joined = {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}
    return take(joined, np.argsort(np.concatenate([index for _, index in parts])))


def _score(subject: Subject, records: Records) -> Rows:
    if subject.task is None:
        return score_cascade(subject.answer, records)
    rows = score_scans(subject.task, subject.answer, records)
    if subject.task.organ is None:
        from mcis.inference.cascade import Settings, supported

        router = subject.variables[subject.task.name]
        known, *_ = supported(Settings(), router, rows["probs"][:, : len(ORGANS)].max(1), rows["features"])
        rows["refused"] = ~np.asarray(known)
    return rows


class Look(NamedTuple):
    """A scan looked at again: image uint8 (H, W, 3); masks uint8 {0,1} (H, W), None where not known or not asked."""

    image: np.ndarray
    true: np.ndarray | None
    said: np.ndarray | None


def look(subject: Subject | Folds, records: Records, index: Sequence[int]) -> Iterator[Look]:
    """Run what is scored over some of the records again, for their pictures; in the order of `index`."""
    chosen = records.take(index)
    found: dict[int, Look] = {}
    for part, here in subject.parts(chosen.fingerprints):
        found |= dict(zip(here.tolist(), _look(part, chosen.take(here.tolist())), strict=True))
    yield from (found[at] for at in range(len(chosen)))


def _look(subject: Subject, records: Records) -> Iterator[Look]:
    for batch, squares in letterboxed_batches(records):
        answer = subject.answer(squares)
        masks = None if answer.mask is None else np.asarray(answer.mask)
        for i, (record, image, mask, geometry) in enumerate(batch):
            said = (
                None if masks is None else (unletterbox(masks[i, ..., 0], geometry) > MASK_THRESHOLD).astype(np.uint8)
            )
            lost = subject.task is None and int(answer.organ[i]) != organ_index(dataset.text(record["organ"]))
            if lost or (subject.task is None and geometry.thumbnail):
                said = np.zeros(mask.shape[:2], np.uint8)  # as it was scored
            yield Look(image, mask[..., 0] if record["has_mask"] else None, said)


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
        check_all_unseen(records, subject.manifests)
    return report(subject.task, score(subject, records), split)


def check_all_unseen(records: Records, manifests: Mapping[str, Mapping[str, Any]]) -> None:
    """`scoring.check_unseen` for every network."""
    for manifest in manifests.values():
        check_unseen(records.fingerprints, records.names, manifest)


def is_set(folder: pathlib.Path) -> bool:
    """Whether a folder holds weights, or runs, by the names of their tasks: a set that makes a cascade."""
    alone = is_weights_folder(weights_folder(folder))
    return not alone and any(is_weights_folder(weights_folder(folder / name)) for name in TASKS)


def without_crf(task: Task) -> Task:
    """The task, its masks as the network makes them."""
    return dataclasses.replace(task, crf=CRF(steps=0))
