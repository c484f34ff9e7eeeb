"""What is tried: a reader, its good inputs, what makes them bad; and the input of a number."""

import dataclasses
import pathlib
import random
from collections.abc import Callable, Sequence

from tests.lanes.fuzz.mutations import Mutator, Tree


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader, and how it is tried.

    Attributes:
      name: of the row.
      inputs: how many are tried, those of `crafted` first.
      seeds: makes the good inputs.
      mutators: make bad ones of them, one to four at a time.
      attempt: reads the input in a folder; returns a word, or raises.
      crafted: make bad inputs that were thought out.
      writes: whether files may appear beside the input, in the folder `out`.
    """

    name: str
    inputs: int
    seeds: Callable[[], Sequence[Tree]]
    mutators: Sequence[Mutator]
    attempt: Callable[[pathlib.Path], str]
    crafted: Sequence[Callable[[], Tree]] = ()
    writes: bool = False


def make(target: Target, whole: Sequence[Tree], seed: int, number: int) -> Tree:
    """The input of a number; the same for the same seed."""
    if number < len(target.crafted):
        return target.crafted[number]()
    rng = random.Random(f"{seed}/{target.name}/{number}")
    tree = rng.choice(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        tree = rng.choice(target.mutators)(rng, tree, whole) or tree
    return tree
