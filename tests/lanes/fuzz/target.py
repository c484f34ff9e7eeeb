"""A fuzzing target: a reader, its valid inputs, and how bad inputs are made from them."""

import dataclasses
import pathlib
import random
from collections.abc import Callable, Sequence

from tests.lanes.fuzz.mutations import Mutator, Tree


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader and its inputs.

    Attributes:
      name: of the row.
      inputs: number of inputs, those of `crafted` first.
      seeds: makes the valid inputs.
      mutators: make bad inputs from valid ones, one to four mutators each.
      attempt: reads the input in a folder; returns a word or raises.
      crafted: make handwritten bad inputs.
      writes: whether the reader may write files next to the input, in the folder `out`.
    """

    name: str
    inputs: int
    seeds: Callable[[], Sequence[Tree]]
    mutators: Sequence[Mutator]
    attempt: Callable[[pathlib.Path], str]
    crafted: Sequence[Callable[[], Tree]] = ()
    writes: bool = False


def make(target: Target, whole: Sequence[Tree], seed: int, number: int) -> Tree:
    """The input of a number; equal for equal seeds."""
    if number < len(target.crafted):
        return target.crafted[number]()
    rng = random.Random(f"{seed}/{target.name}/{number}")
    tree = rng.choice(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = rng.choice(target.mutators)(rng, tree, whole) or tree
    return tree
