"""The settings of a task: what is learned from which scans, by which network, at which size, and how.

A task is a frozen dataclass. The command line overrides its fields: `--model=unet --size=128 --epochs=3`.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Annotated, Any

import jax.numpy as jnp
import tyro

from mcis.imaging.letterbox import INPUT_SIZE
from mcis.models import MODELS, model_named
from mcis.models.network import Network
from mcis.names import meant
from mcis.ops.augment import Augmentation
from mcis.ops.crf import CRF
from mcis.ops.image import DENOISE, EDGES
from mcis.ops.metrics import LABEL_METRICS, MASK_METRICS
from mcis.organs import ORGAN_NAMES, UNKNOWN, UNSUPPORTED, organ_named

Names = Annotated[
    tuple[str, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B,...",
        instance_from_str=lambda words: tuple(name for name in words[0].split(",") if name),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(value)],
    ),
]
"""Names on a command line, separated by commas."""

PRECISIONS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
SCHEDULES = ("cosine", "polynomial")
LAST = "last"
"""The value of `select` for which the last epoch is kept."""
MAX_SIZE = 4 * INPUT_SIZE
"""Largest `size`. Scans are letterboxed to INPUT_SIZE, so that more pixels show nothing more."""
MAX_STEPS = 100
"""Largest number of CRF updates. They are unrolled in the compiled program."""

CHOICES = {"denoise": (*DENOISE,), "edges": (*EDGES,), "precision": (*PRECISIONS,), "schedule": SCHEDULES}
"""Allowed names by field."""
ABOVE_ZERO = (
    *("size", "batch_size", "accumulate", "learning_rate", "clip"),
    *("start.size", "start.learning_rate", "crf.smooth_sigma", "crf.sigma", "crf.grey_sigma"),
)
SHARES = (
    *("label_smoothing", "lesion_share", "transplant", "crop", "warmup", "ema"),
    *("augmentation.flip", "augmentation.blur", "augmentation.grey", "augmentation.missing"),
    *("augmentation.coarse", "augmentation.marks", "augmentation.sector", "augmentation.curve"),
)
"""Numbers in [0, 1]. All other numbers are at least 0."""


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """A pretraining stage at another size, with whose weights the task's own training begins (progressive resizing).

    Steps on small scans are cheap: Howard & Gugger 2020, fastai; Tan & Le 2021, EfficientNetV2.

    Attributes:
      epochs: length of the stage; 0 = no such stage. An option that changes the task's size or epochs sets it to 0.
      size: side of the network's input in this stage, pixels.
      learning_rate: peak learning rate of the stage's own schedule.
    """

    epochs: int = 0
    size: int = 128
    learning_rate: float = 1e-3


def _one_of(what: str, names: Iterable[str]) -> Any:
    return tyro.conf.arg(help=f"{what}, one of {', '.join(names)}.")


@dataclasses.dataclass(frozen=True)
class Task:
    """One thing to learn.

    Attributes:
      name: "route", "classify_<organ>" or "segment_<organ>".
      sources: prepared data sets to learn from.
      size: side S of the network's input, pixels; a multiple of the network's stride.
      features: channels of the network's first level; 0 = the network's own default.
      label_loss: weight of the label head's cross-entropy; a segmentation task with 0 has no label head.
      label_smoothing: share of the target that is spread over all classes.
      mask_loss: weight of Dice + cross-entropy on the mask; ignored by networks without a mask.
      auxiliary_loss: weight of the same loss on the finest auxiliary mask, halved from level to level (deep
        supervision); 0 = a network without auxiliary masks.
      lesion_share: share of lesion scans in a segmentation task's batches; other tasks draw classes evenly.
      even_sources: source-balanced sampling: sources are drawn evenly, and classes evenly within each, so that the
        appearance of a source does not indicate a class.
      even_classes: class-balanced sampling also for segmentation, where `lesion_share` is then ignored. With
        `even_sources`, the classes that a source has are drawn evenly within it; without, classes are drawn evenly over
        all, and within each class the sources that have it.
      max_repeats: most times that a scan is drawn in an epoch, on average, so that few scans of a class or source are
        not memorised; the remaining draws go to the other scans. 0 = no limit.
      epochs: length of training; an epoch draws as many scans as the training split has. 0 = no steps are taken, and
        the head of a router with a frozen encoder is fitted once (`refit`).
      patience: epochs without a better value of `select` after which training ends; 0 = training never ends early.
      batch_size: scans in a step, over all devices.
      transplant: share of the drawn scans without a lesion that get the lesion and class of another scan
        (`data.transplant`), so that the appearance of a source whose scans are all of one class does not indicate it.
      crop: share of the drawn scans that are cropped so that a lesion is shown whole or not at all (`data.crops`); the
        crops without it have the first class without a lesion.
      accumulate: parts of a batch, processed one after the other to save memory; batch normalisation sees one part.
      learning_rate: peak learning rate of the schedule.
      encoder_rate: learning rate of the encoder as a multiple of `learning_rate`, for networks with an encoder; 0 = the
        encoder is frozen: neither its parameters nor its running statistics change.
      weight_decay: weight decay of AdamW, on kernels only.
      warmup: share of training in which the learning rate rises linearly.
      ema: decay per step of the averaged variables, which are evaluated and kept.
      clip: largest global norm of the gradient; a larger gradient is scaled down to it.
      select: validation metric whose best epoch is kept; "last" = the last epoch is kept.
      each_channel: whether each channel is standardised by itself instead of all channels together.
      inside: whether scans are standardised by the mean and deviation of the pixels that are not black, so that
        black bars and the shape of the frame have no effect.
      grey: whether the network sees the mean of a scan's channels, so that colour indicates nothing.
      refit: weight decay of the logistic regression to which the label head is refitted after each epoch, on the
        features of all training scans without augmentation (`ops.last_layer`); 0 = the head stays as it was trained.
      start: a pretraining stage at another size.
      crf: the fully connected CRF that refines a segmentation network's mask after training; 0 steps = none.
      augmentation: strengths of the augmentation.
    """

    name: tyro.conf.Suppress[str]
    sources: Names
    model: Annotated[str, _one_of("network", MODELS)]
    size: int
    select: str
    features: int = 0
    label_loss: float = 1.0
    label_smoothing: float = 0.0
    mask_loss: float = 1.0
    auxiliary_loss: float = 0.0
    lesion_share: float = 0.7
    even_sources: bool = False
    even_classes: bool = False
    max_repeats: float = 0.0
    epochs: int = 30
    patience: int = 0
    transplant: float = 0.0
    crop: float = 0.0
    batch_size: int = 16
    accumulate: int = 1
    precision: Annotated[str, _one_of("precision in training (bfloat16: fast on GPUs alone)", PRECISIONS)] = "float32"
    learning_rate: float = 1e-3
    schedule: Annotated[str, _one_of("decay of the learning rate", SCHEDULES)] = "cosine"
    encoder_rate: float = 1.0
    weight_decay: float = 0.05
    warmup: float = 0.05
    ema: float = 0.995
    clip: float = 1.0
    denoise: Annotated[str, _one_of("noise removal before augmentation", DENOISE)] = "none"
    edges: Annotated[str, _one_of("edge map as a further input channel", EDGES)] = "none"
    each_channel: bool = False
    inside: bool = False
    grey: bool = False
    refit: float = 0.0
    start: Pretraining = Pretraining()
    crf: CRF = CRF(steps=0)
    augmentation: Augmentation = Augmentation()

    @property
    def organ(self) -> str | None:
        """The organ whose scans it learns from; None for the router, which learns from every organ's."""
        return None if self.name == "route" else self.name.split("_", 1)[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the label head's classes."""
        return (*ORGAN_NAMES, UNSUPPORTED) if self.organ is None else organ_named(self.organ).classes

    @property
    def segments(self) -> bool:
        """Whether it is a segmentation task."""
        return self.name.startswith("segment_")

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return 3 + (self.edges != "none")

    @property
    def width(self) -> int:
        """Channels of the network's first level."""
        return self.features or model_named(self.model).features

    @property
    def metrics(self) -> tuple[str, ...]:
        """The validation metrics that can choose the epoch."""
        labels = LABEL_METRICS if self.label_loss else ()
        return labels + MASK_METRICS if self.segments else labels

    @property
    def pretraining(self) -> "Task | None":
        """The task of the pretraining stage, which keeps its last epoch; None where there is no such stage."""
        if not self.start.epochs:
            return None
        epochs, size, rate = self.start.epochs, self.start.size, self.start.learning_rate
        task = dataclasses.replace(self, select=LAST, patience=0, start=Pretraining())
        return dataclasses.replace(task, epochs=epochs, size=size, learning_rate=rate)

    def label_of(self, organ: str, label: int) -> int:
        """The label head's target for a scan: its organ's index for the router, else its class, or UNKNOWN."""
        if self.organ is None:
            return self.classes.index(organ)
        return label if organ == self.organ else UNKNOWN

    @property
    def excess(self) -> tuple[float, ...]:
        """By how much training's draws raise the logarithm of each class's odds: above 0 for lesions if transplanted.

        Of evenly drawn scans a share of `transplant` of those without a lesion becomes some with one; 0.99 at most is
        assumed, as odds without any would be infinite. Changes by `crop` are not counted.
        """
        if self.organ is None or not self.transplant:
            return (0.0,) * len(self.classes)
        raised = math.log((1.0 + self.transplant) / max(1.0 - self.transplant, 0.01))
        return tuple(raised if lesion else 0.0 for lesion in organ_named(self.organ).lesion_classes)

    def make_model(self, axis_name: str | None = None, train: bool = False) -> Network:
        """The task's network; for training it computes in the task's precision."""
        fields: dict[str, Any] = {"supervise": True} if self.auxiliary_loss else {}
        if train:
            fields["dtype"] = PRECISIONS[self.precision]
            fields |= {} if self.encoder_rate else {"frozen": True}
        classes = len(self.classes) if self.label_loss or not self.segments else 0
        return model_named(self.model).clone(features=self.width, classes=classes, axis_name=axis_name, **fields)

    def check(self) -> "Task":
        """The task with its network's width filled in. ValueError names a field that is wrong, and what is allowed."""
        network = model_named(self.model)
        values: dict[str, Any] = {}
        for name, value in dataclasses.asdict(self).items():
            parts = value if isinstance(value, dict) else {}
            values |= {f"{name}.{part}": number for part, number in parts.items()} or {name: value}
        for name, choices in CHOICES.items():
            if values[name] not in choices:
                said = meant(str(values[name]), choices)
                raise ValueError(f"{name}={values[name]!r}: must be one of {', '.join(choices)}.{said}")
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                _check_number(name, value)
        if not self.sources:
            raise ValueError(f"{self.name} has no sources; name at least one, e.g. --sources=phantom")
        if self.segments and not network.segments:
            names = ", ".join(name for name, row in MODELS.items() if row.segments)
            raise ValueError(f"{self.name} needs a network that segments, one of {names}; {self.model} does not")
        if self.auxiliary_loss and not network.has_auxiliary:
            names = ", ".join(name for name, row in MODELS.items() if row.has_auxiliary)
            raise ValueError(f"auxiliary_loss={self.auxiliary_loss}: {self.model} has no auxiliary mask; {names} have")
        if self.encoder_rate != 1 and not network.has_encoder:
            names = ", ".join(name for name, row in MODELS.items() if row.has_encoder)
            raise ValueError(f"encoder_rate={self.encoder_rate}: {self.model} has no encoder; {names} have")
        if not self.start.epochs and self.start != Pretraining():
            raise ValueError(f"start.size={self.start.size}: a pretraining stage needs start.epochs above 0")
        for name in ("size", "start.size") if self.start.epochs else ("size",):
            if values[name] % network.stride or values[name] > MAX_SIZE:
                allowed = f"multiples of {network.stride}, at most {MAX_SIZE}"
                raise ValueError(f"{name}={values[name]}: {self.model} takes {allowed}")
        if not self.epochs and not (self.refit and not self.encoder_rate):
            raise ValueError(
                "epochs=0: must be above 0, unless a frozen encoder (encoder_rate=0) has its head refitted"
            )
        if self.refit and (self.organ is not None or not self.label_loss):
            raise ValueError(f"refit={self.refit}: {self.name} is no router; only the router's head is refitted")
        for name in ("transplant", "crop"):
            if values[name] and self.organ is None:
                raise ValueError(f"{name}={values[name]}: {self.name} has no lesions; only organs' tasks have")
        if self.crf.steps > MAX_STEPS:
            raise ValueError(f"crf.steps={self.crf.steps}: at most {MAX_STEPS}; the mask converges long before")
        if self.crf.steps and not self.segments:
            raise ValueError(f"crf.steps={self.crf.steps}: {self.name} has no mask to refine")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate}: it must divide batch_size={self.batch_size}")
        if not (self.mask_loss if self.segments else self.label_loss):
            loss = "mask_loss" if self.segments else "label_loss"
            raise ValueError(f"{loss}=0: then {self.name} has nothing to learn; it must be above 0")
        metrics = ", ".join(self.metrics)
        if self.select not in (LAST, *self.metrics):
            raise ValueError(f"select={self.select!r}: {self.name} can be chosen by {LAST}, {metrics}")
        if self.patience and self.select == LAST:
            raise ValueError(
                f"patience={self.patience}: select={LAST!r} keeps the last epoch, so that no epoch is better; "
                f"choose the epoch by a metric: --select= one of {metrics}"
            )
        return dataclasses.replace(self, features=self.width)


def _check_number(name: str, value: float) -> None:
    above_zero, share = name in ABOVE_ZERO, name in SHARES
    if not math.isfinite(value) or value < 0 or (above_zero and value == 0) or (share and value > 1):
        allowed = "above 0" if above_zero else "in [0, 1]" if share else "at least 0"
        raise ValueError(f"{name}={value}: must be {allowed}")
