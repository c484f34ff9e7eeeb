"""Saliency maps of classifiers: how much hiding a part of a scan lowers a class's probability (`ops.occlusion`)."""

from collections.abc import Callable, Mapping
from typing import Any

from mcis.ops.occlusion import CELLS, REACH, occlusion_map
from mcis.tasks.config import Task


def class_maps(
    tasks: Mapping[str, Task], cells: int = CELLS, reach: int = REACH
) -> dict[int, tuple[str, Callable[..., Any]]]:
    """Organ index -> the task that classifies it, and a jitted function.

    The function takes the task's variables, a model input uint8 (S, S, 3) and a class, and gives float32 (S, S).

    Args:
      tasks: by name, as for `make_cascade`; organs without a label head have no map.
      cells: of `ops.occlusion.occlusion_map`, like `reach`.
      reach: likewise.
    """
    import jax

    from mcis.inference.cascade import label_experts
    from mcis.tasks.apply import make_expert

    def make(task: Task) -> Callable[..., Any]:
        expert = make_expert(task)

        def saliency(variables: dict[str, Any], image: Any, label: int) -> Any:
            def predict(scans: Any) -> Any:
                return expert(variables, scans).label

            return occlusion_map(predict, image, label, cells, reach)

        return jax.jit(saliency)

    return {organ: (name, make(tasks[name])) for organ, name in label_experts(tasks).items()}
