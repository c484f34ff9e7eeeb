"""What a user may set of a loaded model's answers."""

import dataclasses

from mcis.organs import organ_named


@dataclasses.dataclass(frozen=True)
class InferenceOptions:
    """What weights are asked, and how; options of every command that asks them.

    Attributes:
      organ: every scan is of this organ; the router is not asked.
      task: this task's network alone answers for every scan.
      threshold: the router's smallest probability; below it a scan is unsupported. By default the one that was fitted
        with the weights.
      novelty: call a scan unsupported as well that is unlike all the router learned from, however sure it is, or a
        thumbnail.
      members: so many networks of each ensemble answer, the first ones: fewer are faster, and somewhat worse. By
        default all.
    """

    organ: str | None = None
    task: str | None = None
    threshold: float | None = None
    novelty: bool = True
    members: int | None = None

    def check(self) -> "InferenceOptions":
        """Itself. ValueError where it contradicts itself, or names what there is not."""
        if self.organ is not None:
            organ_named(self.organ)
        if self.organ and self.task:
            raise ValueError("--organ and --task exclude each other: --task names one network, whatever the organ")
        if (self.organ or self.task) and (self.threshold is not None or not self.novelty):
            raise ValueError("--threshold and --no-novelty are of the router, which --organ and --task leave out")
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"--threshold={self.threshold}: a probability in [0, 1] is needed")
        if self.members is not None and self.members < 1:
            raise ValueError(f"--members={self.members}: 1 network or more is needed")
        return self
