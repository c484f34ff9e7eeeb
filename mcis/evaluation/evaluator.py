"""Evaluators: a task's network, or a bundle as one cascade. `evaluation.several` has those of several runs."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from mcis.checkpoints import provenance
from mcis.checkpoints.bundle import Weights, load_bundle, load_weights
from mcis.checkpoints.checkpoint import MANIFEST, is_weights_folder, present, weights_folder
from mcis.data import dataset
from mcis.data.records import Record, Records, letterboxed_batches
from mcis.imaging.letterbox import Box, letterbox, unletterbox
from mcis.inference.cascade import supported
from mcis.inference.options import InferenceOptions
from mcis.inference.predictor import Predictor, make_predictor
from mcis.inference.saliency import class_maps
from mcis.models import Outputs
from mcis.ops.crf import CRF
from mcis.ops.points import BALANCED
from mcis.organs import ORGANS, organ_index
from mcis.tasks.apply import make_expert, place
from mcis.tasks.config import Task
from mcis.tasks.table import TASKS

OOD = "foreign"
"""The source of out-of-distribution scans, which a user may have prepared."""

SaliencyMap = Callable[[Record, np.ndarray, int], np.ndarray | None]
"""A stored scan, its image and a class -> how much hiding each pixel lowers the probability of the class
(`ops.occlusion`), float32 (H, W) of the scan's size; None where no network classifies such a scan."""


class PredictedScan(NamedTuple):
    """A stored scan and its prediction.

    Attributes:
      record: the scan as it is stored.
      image: uint8 RGB (H, W, 3).
      mask: the true mask, uint8 {0,1} (H, W).
      probability: of a lesion, float32 (H, W) on the scan's own grid; None without a segmenter.
      columns: the fields of `Rows` for the true label and the prediction.
      box: the scan's content (`letterbox.content_box`).
    """

    record: Record
    image: np.ndarray
    mask: np.ndarray
    probability: np.ndarray | None
    columns: dict[str, Any]
    box: Box


class Evaluator(Protocol):
    """Weights that can be scored, because they predict stored scans."""

    @property
    def task(self) -> Task | None:
        """The task whose metrics are computed; None for the cascade."""

    @property
    def weights(self) -> Mapping[str, Weights]:
        """The networks by task name, those of several runs by run; on the device."""

    @property
    def folders(self) -> Mapping[str, pathlib.Path]:
        """The weights folder of each network."""

    def predicted_by(self, fingerprints: Sequence[str]) -> dict[str, np.ndarray]:
        """Network -> int index of the scans that it predicts."""

    def predict(self, records: Records) -> Iterator[PredictedScan]:
        """The records with their predictions, in order."""


@dataclasses.dataclass(frozen=True)
class NetworkEvaluator:
    """One task's network.

    Attributes:
      task: the network's.
      weights, folders: as of Evaluator.
      function: uint8 (B, S, S, 3) -> Outputs of probabilities on the model input; and for the router, which scans it
        rejects, bool (B,), else None.
    """

    task: Task
    weights: Mapping[str, Weights]
    folders: Mapping[str, pathlib.Path]
    function: Callable[[np.ndarray], tuple[Outputs, Any]]

    def predicted_by(self, fingerprints: Sequence[str]) -> dict[str, np.ndarray]:
        """All scans, by the network."""
        return {self.task.name: np.arange(len(fingerprints))}

    def predict(self, records: Records) -> Iterator[PredictedScan]:
        """As of Evaluator."""
        for scans, images in letterboxed_batches(records):
            outputs, rejected = jax.device_get(self.function(images))
            for i, (record, image, mask, geometry) in enumerate(scans):
                label = self.task.label_of(dataset.text(record["organ"]), int(record["label"]))
                columns: dict[str, Any] = {"label": label}
                if outputs.label is not None:
                    columns |= {"probs": outputs.label[i], "features": outputs.features[i]}
                if rejected is not None:
                    columns["refused"] = bool(rejected[i])
                probability = None if outputs.mask is None else unletterbox(outputs.mask[i, ..., 0], geometry)
                yield PredictedScan(record, image, mask[..., 0], probability, columns, geometry.box)


@dataclasses.dataclass(frozen=True)
class CascadeEvaluator:
    """A bundle as one cascade: the predictor that `mcis predict` and `mcis serve` run.

    Attributes:
      weights, folders: as of Evaluator.
      predictor: of these weights.
    """

    weights: Mapping[str, Weights]
    folders: Mapping[str, pathlib.Path]
    predictor: Predictor
    task: None = None

    def predicted_by(self, fingerprints: Sequence[str]) -> dict[str, np.ndarray]:
        """All scans, by every network."""
        return dict.fromkeys(self.weights, np.arange(len(fingerprints)))

    def predict(self, records: Records) -> Iterator[PredictedScan]:
        """As of Evaluator."""
        limited = "route" in self.weights and "certain" in self.weights["route"].variables
        for scans, images in letterboxed_batches(records):
            prediction, _ = self.predictor.predict_batch(images, [scan.geometry for scan in scans])
            for i, (record, image, mask, geometry) in enumerate(scans):
                columns = {
                    "organ": organ_index(dataset.text(record["organ"])),
                    "label": int(record["label"]),
                    "said_organ": int(prediction.organ[i]),
                    "said_label": int(prediction.label[i]),
                    "organ_prob": prediction.organ_prob[i],
                    "novelty": prediction.novelty[i],
                    "label_probs": prediction.label_probs[i],
                    "label_set": prediction.label_set[i],
                    "outer_both": -1,
                    "thumbnail": geometry.thumbnail,
                }
                if limited:
                    columns["uncertain"] = bool(prediction.organ_prob[i] < prediction.certain[i])
                probability = np.zeros(mask.shape[:2], np.float32)
                if columns["said_organ"] == columns["organ"]:  # else the mask is of another organ's network
                    probability = unletterbox(np.asarray(prediction.mask[i, ..., 0]), geometry)
                    if not np.isnan(prediction.outer[i]):
                        columns["outer_both"] = int((mask[..., 0] > 0)[probability > prediction.outer[i]].sum())
                yield PredictedScan(record, image, mask[..., 0], probability, columns, geometry.box)


def load_evaluator(
    path: str | os.PathLike,
    crf: bool = True,
    functions: dict[Task, Any] | None = None,
    operating_point: str = BALANCED,
) -> NetworkEvaluator | CascadeEvaluator:
    """The evaluator of a run, a weights folder or a bundle.

    Args:
      path: the folder.
      crf: whether masks are refined by the CRF that is kept with the weights.
      functions: jitted functions of single networks, to be shared by evaluators of the same task.
      operating_point: at which a bundle's cascade decides labels.

    Raises:
      CheckpointError, ValueError: there are no such weights, a bundle without a router or without that operating point,
        or another point than the default is asked of a single network.
    """
    inference = InferenceOptions(operating_point=operating_point).check()
    path = pathlib.Path(path)
    cascade = is_bundle(path)
    loaded = load_bundle(path) if cascade else {(one := load_weights(path)).task.name: one}
    weights = {}
    for name, one in loaded.items():
        task = one.task if crf else dataclasses.replace(one.task, crf=CRF(steps=0))
        weights[name] = dataclasses.replace(one, task=task, variables=place(one.variables))
    folders = {name: present(weights_folder(path / name if cascade else path)) for name in weights}
    if cascade:
        return CascadeEvaluator(weights, folders, make_predictor(weights, inference, str(path)))
    if operating_point != BALANCED:
        raise ValueError(
            f"--operating_point={operating_point} is a setting of a bundle's cascade; {path} holds one network, which "
            "is scored by its most probable class"
        )
    (one,) = weights.values()
    functions = {} if functions is None else functions
    function = functions.setdefault(one.task, jax.jit(_make_function(one.task)))
    return NetworkEvaluator(one.task, weights, folders, functools.partial(function, one.variables))


def _make_function(task: Task) -> Callable[[dict[str, Any], jax.Array], tuple[Outputs, Any]]:
    """`NetworkEvaluator.function`, of variables and images."""
    expert = make_expert(task)

    def function(variables: dict[str, Any], images: jax.Array) -> tuple[Outputs, Any]:
        outputs = expert(variables, images)
        if task.organ is not None or outputs.label is None or outputs.features is None:
            return outputs, None
        prob = outputs.label[:, : len(ORGANS)].max(1)
        accepted, *_ = supported(InferenceOptions(), variables, prob, outputs.features)
        return outputs, ~accepted

    return function


def is_bundle(folder: pathlib.Path) -> bool:
    """Whether a folder holds weights, or runs, in folders named after their tasks."""
    alone = is_weights_folder(weights_folder(folder))
    return not alone and any(is_weights_folder(weights_folder(folder / name)) for name in TASKS)


def operating_point_of(evaluator: Evaluator) -> str | None:
    """The operating point at which labels are decided, of several bundles all; None for the most probable class."""
    every = getattr(evaluator, "runs", {"": evaluator}).values()
    points = {one.predictor.operating_point if isinstance(one, CascadeEvaluator) else None for one in every}
    return ", ".join(sorted(point or "none" for point in points)) if points != {None} else None


def organ_of(evaluator: Evaluator) -> str | None:
    """The organ whose scans are scored; None for all."""
    return None if evaluator.task is None else evaluator.task.organ


def sources_of(evaluator: Evaluator, data_dir: str | os.PathLike | None) -> tuple[str, ...]:
    """The sources of the networks' training scans; the OOD scans only if they are prepared."""
    every = dict.fromkeys(source for one in evaluator.weights.values() for source in one.task.sources)
    return tuple(name for name in every if name != OOD or dataset.versions_of(name, data_dir))


def summarise(evaluator: Evaluator) -> dict[str, dict[str, Any]]:
    """Network -> facts about its weights, JSON values."""
    found = {}
    for name, one in evaluator.weights.items():
        found[name] = {
            "model": one.task.model,
            "features": one.task.width,
            "size": one.task.size,
            "sources": list(one.task.sources),
            "epoch": one.manifest["epoch"],
            "members": len(one.manifest.get("seeds", [None])),
            "crf_steps": one.task.crf.steps,
            "versions": one.manifest["versions"],
            "manifest_sha256": hashlib.sha256((evaluator.folders[name] / MANIFEST).read_bytes()).hexdigest(),
        } | {key: one.manifest[key] for key in ("calibration",) if key in one.manifest}
    return found


def leaks(evaluator: Evaluator, fingerprints: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Network -> how many of the scans that it predicts it has used, as `provenance.leaks`."""
    return {
        name: provenance.leaks([fingerprints[i] for i in index], {name: evaluator.weights[name].manifest})[name]
        for name, index in evaluator.predicted_by(fingerprints).items()
    }


def check_unseen(evaluator: Evaluator, records: Records) -> None:
    """LeakError if a network has used any of the records that it predicts."""
    for name, index in evaluator.predicted_by(records.fingerprints).items():
        chosen = records.take(index.tolist())
        provenance.check_unseen(chosen.fingerprints, chosen.names, evaluator.weights[name].manifest)


def saliency_map(evaluator: Evaluator) -> SaliencyMap | None:
    """The saliency map of the classifiers; None without a classifier of lesions."""
    maps = class_maps({one.task.name: one.task for one in evaluator.weights.values()})

    def saliency(record: Record, image: np.ndarray, label: int) -> np.ndarray | None:
        task, function = maps.get(organ_index(dataset.text(record["organ"])), (None, None))
        if function is None or label < 0:
            return None
        here = evaluator.predicted_by([dataset.text(record["fingerprint"])])
        (weights,) = (one for name, one in evaluator.weights.items() if one.task.name == task and len(here[name]))
        square, geometry = letterbox(image)
        return unletterbox(np.asarray(function(weights.variables, square, label)), geometry)

    return saliency if maps else None
