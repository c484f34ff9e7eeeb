"""Weights that answer: scans in, findings with their masks out. What `mcis predict`, `mcis serve` and notebooks share.

```python
predictor = load()                                    # the weights that come with mcis
result = predictor.predict("scan.png")                # or an array, uint8 (H, W) or (H, W, 3)
result.finding.label, result.mask                     # "malignant", uint8 {0,1} (H, W)
```
"""

import base64
import dataclasses
import functools
import html
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import mcis
from mcis.imaging import formats, image_files
from mcis.imaging.formats import LoadedScan
from mcis.imaging.geometry import SliceGeometry
from mcis.imaging.letterbox import INPUT_SIZE, MIN_CONTENT, unletterbox
from mcis.imaging.overlay import overlay
from mcis.imaging.pool import read_all
from mcis.inference.options import InferenceOptions
from mcis.ops.metrics import MASK_THRESHOLD
from mcis.organs import ORGAN_NAMES, ORGANS, UNKNOWN, UNSUPPORTED, organ_named
from mcis.report.finding import Finding, measured

if TYPE_CHECKING:
    from mcis.inference.cascade import Prediction
    from mcis.tasks.config import Task

BATCH = 8
"""Scans the cascade takes at once when there is more than one."""
SECONDS = 60.0
"""That one of many scans may take to be read."""

HEAT_CELLS, HEAT_REACH = 8, 2
"""Steps of a map of where a network looks: a window as wide as an evaluation's, in coarser steps, for less time."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A scan and what was found on it.

    Attributes:
      finding: as a line of findings.jsonl has it, but for the path of a mask.
      image: the scan, uint8 RGB (H, W, 3); None where it could not be read.
      mask: its lesions, uint8 {0,1} (H, W); None where it was not segmented.
    """

    finding: Finding
    image: np.ndarray | None = None
    mask: np.ndarray | None = None

    def overlay(self) -> np.ndarray:
        """The scan with its lesions outlined, uint8 (H, W, 3). ValueError where there is no scan."""
        if self.image is None:
            raise ValueError(f"{self.finding.scan}: {self.finding.error}")
        return self.image if self.mask is None else overlay(self.image, self.mask)

    def _repr_html_(self) -> str:
        """What a notebook shows: the outlined scan beside what was found."""
        said = {name: value for name, value in vars(self.finding).items() if value is not None}
        left = "style='text-align:left'"
        rows = "".join(
            f"<tr><th {left}>{name}</th><td {left}>{html.escape(_text(value))}</td></tr>"
            for name, value in said.items()
        )
        picture = ""
        if self.image is not None:
            data = base64.b64encode(image_files.encode_png(self.overlay())).decode()
            picture = f"<img style='max-width:320px;max-height:320px' alt='scan' src='data:image/png;base64,{data}'>"
        sides = f"<div style='display:flex;gap:1em;align-items:start'>{picture}<table>{rows}</table></div>"
        return f"{sides}<p><small>{html.escape(mcis.NOTICE)}</small></p>"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, list) else str(value)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Weights that are asked something. Compiled when first asked, for one scan and for BATCH apart.

    Attributes:
      asked: what.
      variables: by task, on the host.
      function: (variables, uint8 (B, S, S, 3)) -> Prediction, jitted.
      described: the weights, for the record: where from, and of each task what its manifest says.
      lacking: what these weights say nothing of, as "brain label".
      tasks: by name, whose networks these are.
    """

    asked: InferenceOptions
    variables: dict[str, Any]
    function: Callable[[dict[str, Any], np.ndarray], "Prediction"]
    described: dict[str, Any]
    lacking: tuple[str, ...]
    tasks: "Mapping[str, Task]"

    @functools.cached_property
    def _on_device(self) -> dict[str, Any]:
        import jax

        # one scan is there sooner than an ensemble's networks are compiled one by one
        return {name: jax.device_put(one) for name, one in self.variables.items()}

    @functools.cached_property
    def _placed(self) -> dict[str, Any]:
        from mcis.tasks.apply import place

        return {name: place(one) for name, one in self.variables.items()}

    @property
    def refuses_thumbnails(self) -> bool:
        """Whether thumbnails are unsupported, whatever the networks say."""
        return self.asked.novelty and self.asked.task is None and self.asked.organ is None

    def answer(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """What the networks say of canvases, uint8 (B, S, S, 3): the fields of a `cascade.Prediction`, by name."""
        import jax

        prediction = jax.device_get(self.function(self._on_device if len(batch) == 1 else self._placed, batch))
        return {field.name: np.asarray(getattr(prediction, field.name)) for field in dataclasses.fields(prediction)}

    def predict(self, given: str | os.PathLike | np.ndarray, frame: int = 0) -> Result:
        """The result of one scan.

        Args:
          given: a file, or a picture: (H, W) or (H, W, 3) RGB; what is not uint8 is scaled from its least and largest
            value.
          frame: which frame, slice or page of a file that has several.

        A scan that cannot be read gives a result with an error, as `mcis predict` has it.
        """
        if isinstance(given, np.ndarray):
            loaded = formats.prepare("array", None, lambda: image_files.from_array(given))
        else:
            path = os.fspath(given)
            several = formats.format_of(path).count(path) > 1
            loaded = formats.load(path, frame if several or frame else None)
        (result,) = self.results([loaded], 1)
        return result

    def predict_all(
        self, scans: Iterable[str | os.PathLike | tuple[str, int | None]], batch_size: int = BATCH
    ) -> Iterator[Result]:
        """The results of scans, in order; read a few ahead.

        Other processes read them: a file that ends what reads it is an error like any other.

        Args:
          scans: files, each frame of them, or (path, frame) as `reading.frames` gives them.
          batch_size: scans at once; the last batch is filled up with black squares.
        """
        group: list[LoadedScan] = []
        each = itertools.chain.from_iterable([one] if isinstance(one, tuple) else formats.frames(one) for one in scans)
        for loaded in read_all(each, 2 * batch_size, seconds=SECONDS):
            group.append(loaded)
            if sum(item.error is None for item in group) == batch_size or len(group) == 4 * batch_size:
                yield from self.results(group, batch_size)
                group = []
        yield from self.results(group, batch_size)

    def results(self, group: Sequence[LoadedScan], batch_size: int) -> Iterator[Result]:
        """The results of scans that were read, in order, in one batch.

        Args:
          group: scans, at most `batch_size` of them without an error.
          batch_size: 1 or BATCH, for which the networks are compiled; what is missing is filled up with black squares.
        """
        good = [loaded.square for loaded in group if loaded.square is not None]
        if good:
            batch = np.zeros((batch_size, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
            batch[: len(good)] = good
            fields = self.answer(batch)
        rows = iter(range(len(good)))
        for loaded in group:
            if loaded.error is not None:
                series = (loaded.slice_geometry or SliceGeometry()).series
                yield Result(Finding(loaded.path, loaded.frame, error=loaded.error, series=series))
            else:
                at = next(rows)
                row = {name: value[at] for name, value in fields.items()}
                yield result_of(loaded, row, self.refuses_thumbnails)

    @functools.cached_property
    def _maps(self) -> dict[int, Callable[..., Any]]:
        from mcis.inference.saliency import class_maps

        return class_maps(self.tasks, self._on_device, HEAT_CELLS, HEAT_REACH)

    def heat(self, loaded: LoadedScan, finding: Finding) -> np.ndarray | None:
        """Where the network looks that called a scan what its finding says: see `ops.occlusion`.

        Some eighty answers are asked for one map: seconds on a CPU.

        Returns:
          How much hiding each pixel lowers the label's probability, float32 (H, W) of the scan's size; None where the
          finding has no label.
        """
        if loaded.square is None or loaded.geometry is None or finding.organ is None or finding.label is None:
            return None
        organ = organ_named(finding.organ)
        found = self._maps[ORGANS.index(organ)](loaded.square, organ.classes.index(finding.label))
        return unletterbox(np.asarray(found), loaded.geometry)


def load(
    weights: str | os.PathLike | None = None,
    *,
    organ: str | None = None,
    task: str | None = None,
    threshold: float | None = None,
    novelty: bool = True,
    members: int | None = None,
) -> Predictor:
    """Weights, ready to be asked.

    Args:
      weights: folder of a set of weights; None = those that come with mcis.
      organ: as each of the following, see `InferenceOptions`; every scan is of this organ.
      task: this task's network alone answers.
      threshold: the router's smallest probability.
      novelty: whether scans unlike all known ones, and thumbnails, are unsupported.
      members: networks of each ensemble that answer.

    Raises:
      ValueError: there are no such weights, or they cannot answer what is asked.
    """
    question = InferenceOptions(organ, task, threshold, novelty, members).check()

    import jax

    from mcis.checkpoints.bundle import BUNDLED, first_networks, load_bundle
    from mcis.inference import cascade
    from mcis.tasks.table import task_named

    found = load_bundle(weights or BUNDLED)
    experts = {name: one.task for name, one in found.items()}
    lacking: list[str] = []
    if question.task:
        task_named(question.task)
        if question.task not in experts:
            raise ValueError(f"these weights have no {question.task}; they have: {', '.join(experts)}")
        function = cascade.make_single(experts[question.task])
    else:
        at = None if question.organ is None else ORGAN_NAMES.index(question.organ)
        function = cascade.make_cascade(experts, cascade.Settings(at, question.threshold, question.novelty))
        answered = {"label": cascade.label_experts(experts), "mask": cascade.mask_experts(experts)}
        possible = range(len(ORGAN_NAMES)) if at is None else (at,)
        lacking = [f"{ORGAN_NAMES[k]} {what}" for what, by in answered.items() for k in possible if k not in by]
    answering = first_networks({question.task: found[question.task]} if question.task else found, question.members)
    facts = ("epoch", "validation", "versions", "files")
    described = {
        "folder": str(weights or "shipped"),
        "tasks": {name: {fact: one.manifest[fact] for fact in facts} for name, one in found.items()},
    }
    variables = {name: one.variables for name, one in answering.items()}
    tasks = {name: one.task for name, one in answering.items()}
    return Predictor(question, variables, jax.jit(function), described, tuple(lacking), tasks)


def result_of(loaded: LoadedScan, row: Mapping[str, np.ndarray], thumbnails: bool = False) -> Result:
    """A scan's finding, and its mask on the scan's own grid.

    Args:
      loaded: the scan.
      row: the fields of a `cascade.Prediction` for this one scan.
      thumbnails: whether those are refused, whatever the row says.
    """
    asked = not math.isnan(float(row["organ_prob"]))
    probability = float(row["organ_prob"]) if asked else None
    index, notes = int(row["organ"]), list(loaded.notes) or None
    spacing = None if loaded.spacing is None else list(loaded.spacing)
    place = loaded.slice_geometry or SliceGeometry()
    seen = functools.partial(
        Finding,
        loaded.path,
        loaded.frame,
        spacing_mm=spacing,
        series=place.series,
        position_mm=place.position,
        slice_normal=None if place.normal is None else list(place.normal),
    )
    if loaded.geometry is not None and loaded.geometry.thumbnail:
        wide, high = loaded.geometry.box[2:]
        reason = f"a thumbnail: {wide} x {high} pixels of content, {MIN_CONTENT} along one side are needed"
        if thumbnails:
            return Result(seen(UNSUPPORTED, probability, reason=reason, notes=notes), loaded.image)
        notes = [*(notes or ()), reason]
    if index >= len(ORGANS):
        like = f"most like {ORGANS[int(row['choice'])].scan}, probability {probability:.6f}"
        if (times := float(row["novelty"])) > 1:
            reason = f"unlike the scans the router learned from, {times:.2f} times the distance allowed ({like})"
        else:
            reason = f"the router is unsure: {like}, {row['needed']:.6f} is needed"
        return Result(seen(UNSUPPORTED, probability, reason=reason, notes=notes), loaded.image)
    organ, label = ORGANS[index], int(row["label"])
    finding = seen(organ.name, probability, notes=notes)
    if label != UNKNOWN:
        probs = dict(zip(organ.classes, map(float, row["label_probs"]), strict=False))
        finding = dataclasses.replace(finding, label=organ.classes[label], label_probs=probs)
    if not math.isnan(confidence := float(row["confidence"])):
        review = None if row["review"] == UNKNOWN else bool(row["review"])
        finding = dataclasses.replace(finding, confidence=confidence, review=review)
    if not row["segmented"] or loaded.geometry is None:
        return Result(finding, loaded.image)
    mask = (unletterbox(row["mask"][..., 0], loaded.geometry) > MASK_THRESHOLD).astype(np.uint8)
    if label != UNKNOWN and organ.is_lesion(label) and not mask.any():
        found_none = f"called {organ.classes[label]}, but no lesion could be outlined"
        finding = dataclasses.replace(finding, notes=[*(notes or ()), found_none])
    return Result(measured(finding, mask), loaded.image, mask)
