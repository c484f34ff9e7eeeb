"""The TASKS table, and tasks as JSON."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from mcis.names import no_such
from mcis.ops.augment import Augmentation
from mcis.ops.crf import CRF
from mcis.organs import ORGANS
from mcis.tasks.config import LAST, Pretraining, Task

BRAIN_SOURCES = ("lgg", "br35h", "cheng", "healthy", "notumor")
BREAST_SOURCES = ("busi", "busbra", "uclm", "brest")

ROUTE = Task(
    name="route",
    sources=(*BRAIN_SOURCES, *BREAST_SOURCES, "foreign"),
    model="efficientnet_lite0",
    size=128,
    encoder_rate=0.0,
    select=LAST,
    even_classes=True,
    each_channel=True,
    inside=True,
    # Colour tells photographs from scans, but LGG's composites of three sequences from other brains as well.
    grey=True,
    # The encoder is frozen: its features need no steps, and the head is fitted to them at once.
    refit=0.04,
    epochs=0,
    batch_size=32,
    # Out-of-distribution images are often coarse and have no drawn marks. Neither may distinguish them from scans.
    augmentation=Augmentation(scale=0.5, depth_gain=0.3, speckle=0.15, coarse=0.3, marks=0.2, sector=0.2, tint=0.2),
)

# Scanners and sequences differ more than brains do: brightness must not indicate a tumour.
BRAINS = Augmentation(rotate=25.0, scale=0.45, grey=0.4, contrast=0.6, gamma=0.6, bias=0.5, curve=0.6, coarse=0.4)
# Linear and curved probes, and the gain curves, colour maps and marks of several machines.
BREASTS = Augmentation(
    rotate=10.0, scale=0.5, stretch=0.3, depth_gain=0.6, speckle=0.15, coarse=0.3, marks=0.3, sector=0.25, tint=0.3
)

# Both segmenters have a label head too: on validation one network does both as well as two do (docs/experiments.md).
SEGMENT_BRAIN = Task(
    name="segment_brain",
    sources=BRAIN_SOURCES,
    model="unet_efficientnet_lite0",
    # Most is learned at 128 px, in half the time.
    start=Pretraining(epochs=4, size=128, learning_rate=1e-3),
    size=192,
    select=LAST,
    label_smoothing=0.05,
    even_sources=True,
    even_classes=True,
    max_repeats=2.0,
    # One of the MRI sequences is often darker than the others.
    each_channel=True,
    inside=True,
    epochs=4,
    learning_rate=6e-4,
    encoder_rate=0.3,
    augmentation=BRAINS,
)

SEGMENT_BREAST = Task(
    name="segment_breast",
    sources=BREAST_SOURCES,
    model="unet_efficientnet_lite0",
    start=Pretraining(epochs=12, size=128, learning_rate=1e-3),
    size=224,
    select=LAST,
    label_smoothing=0.1,
    even_sources=True,
    even_classes=True,
    # BrEaST has few normal scans and UCLM few patients: they must not be memorised.
    max_repeats=2.0,
    each_channel=True,
    inside=True,
    epochs=10,
    learning_rate=6e-4,
    encoder_rate=0.3,
    augmentation=BREASTS,
)

# The classifiers learn as the segmenters do, at one size.
CLASSIFIER: dict[str, Any] = {"model": "efficientnet_lite0", "start": Pretraining(), "select": "balanced_accuracy"}
CLASSIFY_BRAIN = dataclasses.replace(SEGMENT_BRAIN, name="classify_brain", epochs=4, **CLASSIFIER)
CLASSIFY_BREAST = dataclasses.replace(SEGMENT_BREAST, name="classify_breast", epochs=16, **CLASSIFIER)

TASKS: dict[str, Task] = {
    task.name: task for task in (ROUTE, CLASSIFY_BRAIN, CLASSIFY_BREAST, SEGMENT_BRAIN, SEGMENT_BREAST)
}
# The router, and two tasks for each organ.
assert set(TASKS) == {"route"} | {f"{verb}_{organ.name}" for verb in ("classify", "segment") for organ in ORGANS}

PARTS = {"augmentation": Augmentation, "crf": CRF, "start": Pretraining}
"""Fields of a Task that are dataclasses themselves."""


def task_named(name: str) -> Task:
    """The row of TASKS called `name`; ValueError lists the names there are."""
    if name not in TASKS:
        raise ValueError(no_such("task", name, TASKS))
    return TASKS[name]


def task_to_json(task: Task) -> dict[str, Any]:
    """A Task as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(task)))


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values of a Task, completed with the defaults of the fields that they lack."""
    complete = dict(values)
    for field in dataclasses.fields(Task):
        if field.default is not dataclasses.MISSING:
            default = dataclasses.asdict(field.default) if field.name in PARTS else field.default
            given = complete.setdefault(field.name, default)
            if isinstance(given, dict) and field.name in PARTS:
                complete[field.name] = default | given
    return complete


def task_from_json(values: dict[str, Any]) -> Task:
    """The Task that `task_to_json` wrote. A field with a default may be missing: older values lack newer fields.

    The values may come from an untrusted file: a task's name becomes a folder's name, and its size decides how much
    memory is used. ValueError names a field that is unknown, missing, of another type, or that `Task.check` rejects.
    """
    example, given = dataclasses.asdict(task_named(str(values.get("name")))), with_defaults(values)
    _check_fields("task", given, example)
    for name in PARTS:
        _check_fields(name, given[name], example[name])
    sources = given["sources"]
    if not isinstance(sources, list | tuple) or not all(isinstance(name, str) for name in sources):
        raise ValueError(f"sources={sources!r}: must be a list of names")
    parts = {name: row(**given[name]) for name, row in PARTS.items()}
    return Task(**given | parts | {"sources": tuple(sources)}).check()


def _check_fields(what: str, values: Any, example: Mapping[str, Any]) -> None:
    """ValueError unless `values` is a dict with the example's keys, and its texts and numbers are of the same types."""
    if not isinstance(values, dict):
        raise ValueError(f"{what}={values!r}: must be an object with the fields {', '.join(example)}")
    unknown, missing = sorted(set(values) - set(example)), sorted(set(example) - set(values))
    if unknown or missing:
        raise ValueError(f"{what} fields differ: unknown {unknown}, missing {missing}")
    for name, value in values.items():
        kind = type(example[name])
        if kind in (str, int, float, bool) and type(value) is not kind and (kind, type(value)) != (float, int):
            raise ValueError(f"{name}={value!r}: must be of type {kind.__name__}")
