"""The options of `mcis.load`, and of every command that runs the networks."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from mcis.names import meant
from mcis.ops.points import BALANCED, POINTS
from mcis.organs import ORGAN_NAMES, organ_named


def takes(value: str) -> Any:
    """Annotation of an option whose help says in words what happens without it; `value` stands for what it takes."""
    return tyro.conf.arg(metavar=value, help_behavior_hint="")


def choice(names: Sequence[str]) -> Any:
    """Annotation of an option that takes one of some names and has a default."""
    return tyro.conf.arg(metavar=f"{{{','.join(names)}}}")


@dataclasses.dataclass(frozen=True)
class InferenceOptions:
    """How the networks are run.

    Attributes:
      organ: organ of every scan, instead of the router's choice.
      task: run only the network of this task, on every scan; by default all that a scan needs.
      threshold: smallest router probability that is accepted; below it a scan is unsupported. By default the one that
        `mcis calibrate` fitted, or 0.9.
      novelty: reject out-of-distribution scans and thumbnails as unsupported, however high the router's probability.
      members: number of networks of each ensemble to run. Fewer are faster and less accurate; by default all.
      operating_point: trade-off between sensitivity and specificity: "balanced", "sensitive" (finds more of the last
        class, malignant or tumor, with more false alarms) or "specific" (fewer false alarms); fitted by `mcis
        calibrate`. Weights without operating points give the most probable class, which counts as "balanced" alone.
    """

    organ: Annotated[str | None, takes("{" + ",".join(ORGAN_NAMES) + "}")] = None
    task: Annotated[str | None, takes("TASK")] = None
    threshold: Annotated[float | None, takes("PROBABILITY")] = None
    novelty: bool = True
    members: Annotated[int | None, takes("N")] = None
    operating_point: Annotated[str, choice(POINTS)] = BALANCED

    @property
    def organ_given(self) -> bool:
        """Whether the organ of every scan is given, instead of found by the router."""
        return self.organ is not None or self.task not in (None, "route")

    @property
    def rejects_thumbnails(self) -> bool:
        """Whether thumbnails are unsupported; where the organ or a task is given, a note says it."""
        return self.novelty and self.task is None and self.organ is None

    def check(self) -> "InferenceOptions":
        """The options themselves. ValueError where they exclude each other or a value is out of range."""
        if self.organ is not None:
            organ_named(self.organ)
        if self.organ and self.task:
            raise ValueError("--organ and --task exclude each other: --task runs one network on every scan")
        if (self.organ or self.task) and (self.threshold is not None or not self.novelty):
            raise ValueError("--threshold and --no-novelty are settings of the router, which --organ and --task skip")
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"--threshold={self.threshold}: must be a probability in [0, 1]")
        if self.members is not None and self.members < 1:
            raise ValueError(f"--members={self.members}: must be 1 or more")
        if self.operating_point not in POINTS:
            said = meant(self.operating_point, POINTS)
            raise ValueError(f"--operating_point={self.operating_point}: must be one of {', '.join(POINTS)}.{said}")
        if self.task is not None and self.operating_point != BALANCED:
            raise ValueError(
                f"--operating_point={self.operating_point} is a setting of the whole cascade; --task={self.task} runs "
                "one network, which gives its most probable class"
            )
        return self
