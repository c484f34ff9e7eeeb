"""Saliency maps of classifiers: how much hiding a part of a scan lowers a class's probability (`ops.occlusion`)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from mcis.ops.occlusion import CELLS, REACH, occlusion_map
from mcis.tasks.config import Task


def class_maps(
    tasks: Mapping[str, Task], variables: Mapping[str, Any], cells: int = CELLS, reach: int = REACH
) -> dict[int, Callable[..., Any]]:
    """Organ index -> (uint8 (S, S, 3), class) -> saliency map of the model input, float32 (S, S).

    Args:
      tasks: by name, as for `make_cascade`; organs without a label head have no map.
      variables: the networks', by task name.
      cells: of `ops.occlusion.occlusion_map`, like `reach`.
      reach: likewise.
    """
    import jax

    from mcis.inference.cascade import label_experts
    from mcis.tasks.apply import make_expert

    def make(name: str) -> Callable[..., Any]:
        expert = make_expert(tasks[name])

        def saliency(network: dict[str, Any], image: Any, label: int) -> Any:
            def predict(scans: Any) -> Any:
                return expert(network, scans).label

            return occlusion_map(predict, image, label, cells, reach)

        return functools.partial(jax.jit(saliency), variables[name])

    return {organ: make(name) for organ, name in label_experts(tasks).items()}
