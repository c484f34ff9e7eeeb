"""Where the classifiers look: maps of how much hiding a part of a scan lowers its class (`ops.occlusion`)."""

from collections.abc import Callable, Mapping
from typing import Any

from mcis.ops.occlusion import CELLS, REACH, occlusion_map
from mcis.tasks.config import Task


def class_maps(
    tasks: Mapping[str, Task], variables: Mapping[str, Any], cells: int = CELLS, reach: int = REACH
) -> dict[int, Callable[..., Any]]:
    """Organ index -> (uint8 (S, S, 3), class) -> its map on the canvas, float32 (S, S); of organs that are classified.

    Args:
      tasks: by name, as the cascade takes them.
      variables: theirs.
      cells: of `ops.occlusion.occlusion_map`, like `reach`.
      reach: likewise.
    """
    import jax

    from mcis.inference.cascade import label_experts
    from mcis.tasks.apply import make_expert

    maps: dict[int, Callable[..., Any]] = {}
    for organ, name in label_experts(tasks).items():
        expert, its = make_expert(tasks[name]), variables[name]

        def heat(image, label, expert=expert, its=its):
            return occlusion_map(lambda scans: expert(its, scans).label, image, label, cells, reach)

        maps[organ] = jax.jit(heat)
    return maps
