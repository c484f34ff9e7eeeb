"""The TASKS table: what is learned from which scans, by which network, at which size, and how.

A task is a frozen dataclass; the command line overrides its fields, typed: `--model=unet --size=128 --epochs=3`.
"""

import dataclasses
import math
from typing import Annotated, Any, cast

import flax.linen as nn
import jax.numpy as jnp
import tyro

from mcis.imaging.letterbox import INPUT_SIZE
from mcis.models import MODELS, model_named
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
"""What a network computes in, by name."""
SCHEDULES = ("cosine", "polynomial")


@dataclasses.dataclass(frozen=True)
class Start:
    """A first training at another size, from whose weights the task's own goes on: progressive resizing.

    Steps on small scans are cheap: Howard & Gugger 2020, fastai; Tan & Le 2021, EfficientNetV2.

    Attributes:
      epochs: its length; 0 = none, as where another size or number of epochs is asked for and no start.
      size: side of the square that the network sees meanwhile, pixels.
      learning_rate: peak of its own schedule.
    """

    epochs: int = 0
    size: int = 128
    learning_rate: float = 1e-3


@dataclasses.dataclass(frozen=True)
class Task:
    """One thing to learn.

    Attributes:
      name: "route", "classify_<organ>" or "segment_<organ>".
      sources: prepared data sets to learn from.
      model: a name in MODELS.
      size: side S of the square the network sees, pixels; a multiple of the network's stride.
      label_loss: weight of the label head's cross-entropy; a segmentation task with 0 has no label head.
      label_smoothing: share of the target spread over all classes.
      mask_loss: weight of Dice + cross-entropy on the mask; ignored by networks without a mask.
      auxiliary_loss: weight of the same on the finest auxiliary mask, halved from level to level (deep supervision);
        0 leaves such masks out of the network.
      lesion_share: share of lesion scans in a segmentation task's batches; other tasks draw classes evenly.
      even_sources: draw the sources evenly, and classes evenly within each: where a class comes from one source
        only, the look of that source must not stand for the class.
      epochs: length of training; one epoch draws as many scans as the training split has.
      patience: training ends where `select`, which must be a metric, has not got better for so many epochs; 0 = it
        never ends early.
      batch_size: scans a step, over all devices.
      accumulate: parts that a batch is taken in, one after the other, where memory does not hold it at once; it divides
        batch_size. Batch normalisation sees a part alone.
      precision: of the network's computation in training, a name in PRECISIONS; bfloat16 is fast on GPUs alone.
        Parameters, losses, and what is evaluated and kept, are float32 either way.
      learning_rate: peak of the schedule.
      schedule: how the learning rate decays, a name in SCHEDULES.
      weight_decay: of AdamW, on kernels only.
      warmup: share of training in which the learning rate rises linearly.
      ema: decay a step of the averaged variables, which are the ones evaluated and kept.
      clip: largest global norm of a gradient.
      select: the validation metric whose best epoch is kept, one of `metrics`; or "last", for which the last epoch is
        kept whatever it scores, so that the validation scans have chosen nothing.
      features: the network's width, channels of its first level; 0 = its own, which `check` fills in.
      denoise: noise removal at the network's size, before augmentation, a name in DENOISE.
      edges: an edge map as a further channel, a name in EDGES.
      each_channel: standardise every channel by itself, not all of a scan's together.
      start: a first training at another size.
      crf: the fully connected CRF that a segmentation network's mask goes through when it is used; 0 steps = none.
      augmentation: strengths of the augmentation.

    """

    name: tyro.conf.Suppress[str]
    sources: Names
    model: Annotated[str, tyro.conf.arg(help=f"the network, one of {', '.join(MODELS)}.")]
    size: int
    select: str
    features: Annotated[int, tyro.conf.arg(help="channels of the network's first level; 0 = its own width.")] = 0
    label_loss: float = 1.0
    label_smoothing: float = 0.0
    mask_loss: float = 1.0
    auxiliary_loss: float = 0.0
    lesion_share: float = 0.7
    even_sources: bool = False
    epochs: int = 30
    patience: int = 0
    batch_size: int = 16
    accumulate: int = 1
    precision: Annotated[
        str,
        tyro.conf.arg(
            help=f"of the computation in training, one of {', '.join(PRECISIONS)}, which is fast on GPUs alone."
        ),
    ] = "float32"
    learning_rate: float = 1e-3
    schedule: Annotated[str, tyro.conf.arg(help=f"the decay, one of {', '.join(SCHEDULES)}.")] = "cosine"
    weight_decay: float = 0.05
    warmup: float = 0.05
    ema: float = 0.995
    clip: float = 1.0
    denoise: Annotated[str, tyro.conf.arg(help=f"noise removal, one of {', '.join(DENOISE)}.")] = "none"
    edges: Annotated[str, tyro.conf.arg(help=f"an edge map as a further channel, one of {', '.join(EDGES)}.")] = "none"
    each_channel: bool = False
    start: Start = Start()
    crf: CRF = CRF(steps=0)
    augmentation: Augmentation = Augmentation()

    @property
    def organ(self) -> str | None:
        """The organ whose scans it learns from; None for the router, which sees every organ."""
        return None if self.name == "route" else self.name.split("_", 1)[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the label head's classes."""
        return (*ORGAN_NAMES, UNSUPPORTED) if self.organ is None else organ_named(self.organ).classes

    @property
    def segments(self) -> bool:
        """Whether the mask is what the task is for."""
        return self.name.startswith("segment_")

    def label_of(self, organ: str, label: int) -> int:
        """The label head's target for a scan: its organ's index for the router, else its class; UNKNOWN stays."""
        if self.organ is None:
            return self.classes.index(organ)
        return label if organ == self.organ else UNKNOWN

    def make_model(self, axis_name: str | None = None, train: bool = False) -> nn.Module:
        """The task's network; in training it computes in the task's precision."""
        classes = len(self.classes) if self.label_loss or not self.segments else 0
        fields: dict[str, Any] = {"supervise": True} if self.auxiliary_loss else {}
        fields |= {"dtype": PRECISIONS[self.precision]} if train else {}
        return model_named(self.model).clone(features=self.width, classes=classes, axis_name=axis_name, **fields)

    def first(self) -> "Task | None":
        """The training that comes before this one, if there is one: the same at another size and length."""
        if not self.start.epochs:
            return None
        # its last epoch, so that no scan has chosen it
        return dataclasses.replace(self, **vars(self.start), select=LAST, patience=0, start=Start())

    @property
    def channels(self) -> int:
        """Channels of what the network sees."""
        return 3 + (self.edges != "none")

    @property
    def width(self) -> int:
        """Channels of the network's first level."""
        return self.features or cast(Any, model_named(self.model)).features

    @property
    def metrics(self) -> tuple[str, ...]:
        """The validation metrics that can choose the epoch."""
        labels = LABEL_METRICS if self.label_loss else ()
        return labels + MASK_METRICS if self.segments else labels

    def check(self) -> "Task":
        """Itself, the network's width filled in; or a ValueError that names the field at fault."""
        model = cast(Any, model_named(self.model))
        stride = model.stride
        if self.segments and not model.segments:
            names = ", ".join(name for name, row in MODELS.items() if cast(Any, row).segments)
            raise ValueError(f"{self.name} needs a network that segments, one of {names}; {self.model} does not")
        if self.auxiliary_loss and "supervise" not in vars(model):
            names = ", ".join(name for name, row in MODELS.items() if "supervise" in vars(row))
            raise ValueError(f"auxiliary_loss={self.auxiliary_loss}: {self.model} has no auxiliary mask; {names} have")
        names_of: dict[str, Any] = {"denoise": DENOISE, "edges": EDGES, "precision": PRECISIONS, "schedule": SCHEDULES}
        for field, table in names_of.items():
            if getattr(self, field) not in table:
                raise ValueError(f"{field}={getattr(self, field)!r}: there are {', '.join(table)}")
        if self.crf.steps > MAX_STEPS:
            raise ValueError(f"crf.steps={self.crf.steps}: at most {MAX_STEPS}; the field stands still long before")
        if self.crf.steps and not self.segments:
            raise ValueError(f"crf.steps={self.crf.steps}: {self.name} has no mask to refine")
        if not self.sources:
            raise ValueError(f"{self.name} has no sources; name at least one, e.g. --sources=phantom")
        _check_numbers(self, "", positive=("size", "epochs", "batch_size", "learning_rate", "clip"), shares=SHARES)
        _check_numbers(self.augmentation, "augmentation.", positive=(), shares=PROBABILITIES)
        if not self.start.epochs and self.start != Start():
            raise ValueError(f"start.size={self.start.size}: without start.epochs there is no start; say how many")
        _check_numbers(self.start, "start.", positive=("size", "learning_rate"), shares=())
        _check_numbers(self.crf, "crf.", positive=("smooth_sigma", "sigma", "grey_sigma"), shares=())
        sizes = {"size": self.size} | ({"start.size": self.start.size} if self.start.epochs else {})
        for name, size in sizes.items():
            if size % stride or size > MAX_SIZE:
                raise ValueError(f"{name}={size}: {self.model} takes multiples of {stride}, at most {MAX_SIZE}")
        if not self.accumulate or self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate}: it must divide batch_size={self.batch_size}")
        if self.patience and self.select == LAST:
            raise ValueError(
                f"patience={self.patience}: select={LAST!r} keeps the last epoch, so that none is better; "
                f"choose it by a metric, --select= one of {', '.join(self.metrics)}"
            )
        what = "mask_loss" if self.segments else "label_loss"
        if not getattr(self, what):
            raise ValueError(f"{what}=0: then {self.name} has nothing to learn; it must be above 0")
        if self.select not in (LAST, *self.metrics):
            raise ValueError(f"select={self.select!r}: {self.name} can be chosen by {LAST}, {', '.join(self.metrics)}")
        return dataclasses.replace(self, features=self.width)


LAST = "last"
"""What `select` is where the last epoch is kept."""
MAX_SIZE = 4 * INPUT_SIZE
"""Largest `size`; scans come on the INPUT_SIZE, so that more pixels than it has show nothing more."""
MAX_STEPS = 100
"""Most updates of a CRF: they are unrolled in the compiled program."""
SHARES = ("label_smoothing", "lesion_share", "warmup", "ema")
PROBABILITIES = ("flip", "blur", "grey", "missing", "coarse", "marks")


def _check_numbers(row: Any, prefix: str, positive: tuple[str, ...], shares: tuple[str, ...]) -> None:
    """ValueError unless every number is finite and at least 0, of `positive` above 0, of `shares` at most 1."""
    for name, value in vars(row).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value) or value < 0 or (name in positive and value == 0) or (name in shares and value > 1):
            allowed = "above 0" if name in positive else "in [0, 1]" if name in shares else "at least 0"
            raise ValueError(f"{prefix}{name}={value}: must be {allowed}")
