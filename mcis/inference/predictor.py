"""The predictor: loaded weights that turn scans into findings and masks, for `predict`, `serve`, `evaluate`, notebooks.

```python
predictor = load()                                    # the bundled weights
result = predictor.predict("scan.png")                # or an array, uint8 (H, W) or (H, W, 3)
result.finding.label, result.mask                     # "malignant", uint8 {0,1} (H, W)
```
"""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mcis.imaging import formats
from mcis.imaging.formats import LoadedScan
from mcis.imaging.geometry import SliceGeometry
from mcis.imaging.image_files import from_array
from mcis.imaging.letterbox import INPUT_SIZE, Letterbox, unletterbox
from mcis.imaging.pool import read_all
from mcis.imaging.scan import Statement
from mcis.inference.options import InferenceOptions
from mcis.inference.plausibility import Rejection, reject_implausible
from mcis.inference.result import Result, result_of
from mcis.organs import ORGAN_NAMES, ORGANS, organ_named
from mcis.paths import local_path
from mcis.report.finding import Finding

if TYPE_CHECKING:
    from mcis.checkpoints.bundle import Weights
    from mcis.inference.cascade import Prediction
    from mcis.tasks.config import Task

BATCH = 8
"""Batch size of the cascade for more than one scan."""
SECONDS = 60.0
"""Time limit for reading one of many scans."""

MAP_CELLS, MAP_REACH = 8, 2
"""`cells` and `reach` of the saliency maps: as wide a window as in evaluation, in fewer steps, to be faster."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Loaded weights. The networks are compiled on first use, separately for one scan and for a batch.

    Attributes:
      options: how the networks are run.
      variables: by task name, on the host.
      function: (variables, uint8 (B, S, S, 3)) -> Prediction, jitted.
      weights_record: where the weights are from, and facts from each task's manifest, as JSON values.
      lacking: what these weights cannot predict, as "brain label".
      tasks: by name, of the networks that are run.
      operating_point: at which the cascade decides labels; None where labels are the most probable classes, because one
        network is run alone or the weights have no points.
    """

    options: InferenceOptions
    variables: dict[str, Any]
    function: Callable[[dict[str, Any], np.ndarray], "Prediction"]
    weights_record: dict[str, Any]
    lacking: tuple[str, ...]
    tasks: "Mapping[str, Task]"
    operating_point: str | None = None

    @functools.cached_property
    def _on_device(self) -> dict[str, Any]:
        import jax

        # for one scan: faster than compiling each network of an ensemble separately
        return {name: jax.device_put(one) for name, one in self.variables.items()}

    @functools.cached_property
    def _placed(self) -> dict[str, Any]:
        from mcis.tasks.apply import place

        return {name: place(one) for name, one in self.variables.items()}

    def predict_batch(
        self,
        images: np.ndarray,
        geometries: Sequence[Letterbox],
        stated: Sequence[Sequence[Statement]] | None = None,
    ) -> tuple["Prediction", list[Rejection | None]]:
        """The final Prediction of letterboxed scans, plausibility rules included; every prediction is made here.

        Args:
          images: uint8 (B, S, S, 3).
          geometries: how the first N of them, N <= B, were letterboxed; the other images only fill the batch.
          stated: what the headers of their files say about the organ; None for scans without headers.

        Returns:
          Prediction of N scans, NumPy arrays; and why a plausibility rule rejected each scan, None where none did.
        """
        import jax

        variables = self._on_device if len(images) == 1 else self._placed
        count = len(geometries)
        prediction = jax.tree.map(lambda leaf: np.asarray(leaf)[:count], self.function(variables, images))
        compared = None if self.options.organ_given else stated
        return reject_implausible(prediction, images, geometries, compared, self.options.rejects_thumbnails)

    def predict(self, scan: str | os.PathLike | np.ndarray, frame: int = 0) -> Result:
        """The result of one scan; a scan that cannot be read gives a result with an error, as in `mcis predict`.

        Args:
          scan: a file; or an image, (H, W) or (H, W, 3) RGB. Types other than uint8 are scaled linearly from the
            image's minimum and maximum.
          frame: number of the frame, slice or page of a file that has several.
        """
        if isinstance(scan, np.ndarray):
            loaded = formats.prepare("array", None, lambda: from_array(scan))
        else:
            path = os.fspath(scan)
            several = formats.format_of(path).count(path) > 1
            loaded = formats.load(path, frame if several or frame else None)
        (result,) = self.results([loaded], 1)
        return result

    def predict_all(
        self, scans: Iterable[str | os.PathLike | tuple[str, int | None]], batch_size: int = BATCH
    ) -> Iterator[Result]:
        """The results of scans, in order. Other processes read ahead: a file that crashes its reader is only an error.

        Args:
          scans: files, of which every frame is taken, or (path, frame) as from `formats.frames`.
          batch_size: scans per batch; the last batch is filled with black images.
        """
        group: list[LoadedScan] = []
        frames = itertools.chain.from_iterable(
            [one] if isinstance(one, tuple) else formats.frames(one) for one in scans
        )
        for loaded in read_all(frames, 2 * batch_size, seconds=SECONDS):
            group.append(loaded)
            if sum(item.error is None for item in group) == batch_size or len(group) == 4 * batch_size:
                yield from self.results(group, batch_size)
                group = []
        yield from self.results(group, batch_size)

    def results(self, group: Sequence[LoadedScan], batch_size: int) -> Iterator[Result]:
        """The results of loaded scans, in order, from one batch.

        Args:
          group: scans, at most `batch_size` of them without an error.
          batch_size: 1 or BATCH, for which the networks are compiled; unused places hold black images.
        """
        images = np.zeros((batch_size, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
        geometries: list[Letterbox] = []
        stated: list[tuple[Statement, ...]] = []
        for loaded in group:
            if loaded.square is not None and loaded.geometry is not None:
                images[len(geometries)] = loaded.square
                geometries.append(loaded.geometry)
                stated.append(loaded.stated)
        if geometries:
            prediction, rejections = self.predict_batch(images, geometries, stated)
        rows = iter(range(len(geometries)))
        for loaded in group:
            if loaded.error is not None:
                series = (loaded.slice_geometry or SliceGeometry()).series
                yield Result(Finding(loaded.path, loaded.frame, error=loaded.error, series=series))
            else:
                row = next(rows)
                fields = {name: values[row] for name, values in vars(prediction).items()}
                yield result_of(loaded, fields, rejections[row])

    @functools.cached_property
    def _maps(self) -> dict[int, tuple[str, Callable[..., Any]]]:
        from mcis.inference.saliency import class_maps

        return class_maps(self.tasks, MAP_CELLS, MAP_REACH)

    def saliency_map(self, loaded: LoadedScan, finding: Finding) -> np.ndarray | None:
        """How much hiding each pixel lowers the probability of the finding's label (`ops.occlusion`).

        The network is run some eighty times: seconds on a CPU.

        Returns:
          float32 (H, W) of the scan's size; None where the finding has no label.
        """
        if loaded.square is None or loaded.geometry is None or finding.organ is None or finding.label is None:
            return None
        organ = organ_named(finding.organ)
        name, function = self._maps[ORGANS.index(organ)]
        saliency = function(self._on_device[name], loaded.square, organ.classes.index(finding.label))
        return unletterbox(np.asarray(saliency), loaded.geometry)


def load(weights: str | os.PathLike | None = None, **options: Any) -> Predictor:
    """Load weights.

    Args:
      weights: folder of a bundle; by default the bundled weights.
      options: the fields of `InferenceOptions`: organ, task, threshold, novelty, members, operating_point.

    Raises:
      ValueError: there are no such weights, or the options exclude each other or ask for a network that is missing.
    """
    checked = InferenceOptions(**options).check()

    from mcis.checkpoints.bundle import BUNDLED, load_bundle

    folder = local_path(weights, "weights") if weights else BUNDLED
    return make_predictor(load_bundle(folder), checked, str(weights or "shipped"))


def make_predictor(bundle: "Mapping[str, Weights]", options: InferenceOptions, folder: str) -> Predictor:
    """The predictor of a bundle.

    Args:
      bundle: weights by task name.
      options: how the networks are run.
      folder: where the weights are from, for the record.

    Raises:
      ValueError: the bundle lacks a network or the operating point that the options ask for.
    """
    import jax

    from mcis.checkpoints.bundle import first_networks
    from mcis.inference import cascade
    from mcis.tasks.table import task_named

    experts = {name: one.task for name, one in bundle.items()}
    lacking: list[str] = []
    point = None
    if options.task:
        task_named(options.task)
        if options.task not in experts:
            raise ValueError(f"these weights have no {options.task}; they have: {', '.join(experts)}")
        function, used = cascade.make_single(experts[options.task]), {options.task: bundle[options.task]}
    else:
        function, used = cascade.make_cascade(experts, options), dict(bundle)
        heads = {"label": cascade.label_experts(experts), "mask": cascade.mask_experts(experts)}
        organs = [k for k, name in enumerate(ORGAN_NAMES) if options.organ in (None, name)]
        lacking = [f"{ORGAN_NAMES[k]} {head}" for head, there in heads.items() for k in organs if k not in there]
        variables = {name: one.variables for name, one in bundle.items()}
        point = cascade.operating_point(options, variables, heads["label"])
    used = first_networks(used, options.members)
    facts = ("epoch", "validation", "versions", "files")
    record = {
        "folder": folder,
        "tasks": {name: {fact: one.manifest[fact] for fact in facts} for name, one in bundle.items()},
    }
    variables = {name: one.variables for name, one in used.items()}
    tasks = {name: one.task for name, one in used.items()}
    return Predictor(options, variables, jax.jit(function), record, tuple(lacking), tasks, point)
