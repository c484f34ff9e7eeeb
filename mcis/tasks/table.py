"""The TASKS table: what is learned from which scans, by which network, at which size, and how."""

import dataclasses
import json
from typing import Any, cast

from mcis.ops.augment import Augmentation
from mcis.ops.crf import CRF
from mcis.organs import ORGANS
from mcis.tasks.config import LAST, Start, Task

BRAIN_SOURCES = ("lgg", "br35h")


BREAST_SOURCES = ("busi", "busbra")


ROUTE = Task(
    name="route",
    sources=(*BRAIN_SOURCES, *BREAST_SOURCES, "foreign"),
    model="cnn",
    features=12,
    size=128,
    select=LAST,
    epochs=5,
    batch_size=32,
    learning_rate=2e-3,
    ema=0.98,
    # Foreign pictures are often coarse and bare of marks; neither must tell them from scans.
    augmentation=Augmentation(scale=0.5, depth_gain=0.3, speckle=0.15, coarse=0.3, marks=0.2),
)


CLASSIFY_BRAIN = Task(
    name="classify_brain",
    sources=BRAIN_SOURCES,
    model="cnn_attention",
    size=192,
    select="balanced_accuracy",
    label_smoothing=0.05,
    even_sources=True,
    epochs=24,
    batch_size=32,
    learning_rate=2e-3,
    # Scanners and sequences differ more than brains do: what tells a tumour must not be how bright its picture is.
    augmentation=Augmentation(grey=0.5, contrast=0.6, gamma=0.6, bias=0.5),
)


CLASSIFY_BREAST = Task(
    name="classify_breast",
    sources=BREAST_SOURCES,
    model="cnn_attention",
    size=192,
    select="balanced_accuracy",
    label_smoothing=0.1,
    epochs=24,
    batch_size=32,
    learning_rate=2e-3,
)


# Both segmenters say the label as well: on validation one network does both as well as two do (docs/experiments.md).
SEGMENT_BRAIN = Task(
    name="segment_brain",
    sources=BRAIN_SOURCES,
    model="unet_folded",
    features=24,
    # Small gliomas are a dozen pixels across at 128, where most is learned in half the time.
    start=Start(epochs=20, size=128, learning_rate=1.5e-3),
    size=192,
    select=LAST,
    lesion_share=0.6,
    even_sources=True,
    # One of the MRI sequences is often darker than the others.
    each_channel=True,
    epochs=6,
    batch_size=8,
    learning_rate=8e-4,
    augmentation=Augmentation(scale=0.4, grey=0.4, coarse=0.2),
)


SEGMENT_BREAST = Task(
    name="segment_breast",
    sources=BREAST_SOURCES,
    model="unet_attention",
    features=16,
    size=128,
    select=LAST,
    label_smoothing=0.1,
    # Normals are few and of one source: with more of them in a batch a network learns those few by heart.
    lesion_share=0.85,
    epochs=20,
    augmentation=Augmentation(depth_gain=0.3, speckle=0.1, coarse=0.2, marks=0.1),
)


TASKS: dict[str, Task] = {
    task.name: task for task in (ROUTE, CLASSIFY_BRAIN, CLASSIFY_BREAST, SEGMENT_BRAIN, SEGMENT_BREAST)
}


# Two tasks an organ and the router: nothing in the table is missing or left over.
assert set(TASKS) == {"route"} | {f"{verb}_{organ.name}" for verb in ("classify", "segment") for organ in ORGANS}


def task_named(name: str) -> Task:
    """The row of TASKS called `name`; ValueError lists the names there are."""
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; there are: {', '.join(TASKS)}")
    return TASKS[name]


def task_to_json(task: Task) -> dict[str, Any]:
    """A Task as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(task)))


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """JSON values of a Task, and those fields that are younger than they: each that has a default."""
    found = dict(values)
    for field in dataclasses.fields(Task):
        if dataclasses.is_dataclass(field.default) and isinstance(found.get(field.name, {}), dict):
            found[field.name] = dataclasses.asdict(cast(Any, field.default)) | found.get(field.name, {})
        elif field.default is not dataclasses.MISSING:
            found.setdefault(field.name, field.default)
    return found


def task_from_json(values: dict[str, Any]) -> Task:
    """The Task that `task_to_json` wrote; ValueError names a field that is unknown, missing or of another type.

    A field that has a default may be missing: it is younger than the values. Nothing is trusted: folders are called
    after a task's name, and its size decides how much memory is asked for.
    """
    example = task_named(str(values.get("name")))
    parts = {"augmentation": Augmentation, "crf": CRF, "start": Start}
    tables = [("task", Task, values)] + [(name, row, values.get(name, {})) for name, row in parts.items()]
    for what, row, found in tables:
        fields = dataclasses.fields(row)
        unknown = sorted(set(found) - {field.name for field in fields})
        missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in found]
        if unknown or missing:
            raise ValueError(f"{what} fields differ: unknown {unknown}, missing {missing}")
    examples = [example] + [getattr(example, name) for name in parts]
    for row, (_, _, found) in zip(examples, tables, strict=True):
        for name, value in found.items():
            kind = type(getattr(row, name))
            if kind in (str, int, float, bool) and not (type(value) is kind or (kind is float and type(value) is int)):
                raise ValueError(f"{name}={value!r}: must be of type {kind.__name__}")
    sources = values["sources"]
    if not isinstance(sources, list | tuple) or not all(isinstance(name, str) for name in sources):
        raise ValueError(f"sources={sources!r}: must be a list of names")
    made = {name: row(**values[name]) for name, row in parts.items() if name in values}
    return Task(**values | {"sources": tuple(sources)} | made).check()
