"""Reading the scans of a build with Apache Beam, where it is installed and chosen. TFDS stores them with Beam too.

In between, one process decides which scans belong together and which split each goes to: this needs all scans. Workers
on other machines must see the scans and the folder of prepared data under the same paths.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import StandardOptions

from .record import Item, Job
from .staging import pack, writer


class Stage(beam.DoFn):
    """Reads scans; each bundle of them is staged in its own file."""

    def __init__(self, folder: pathlib.Path):
        """Stage in `folder`."""
        self._folder = folder

    def start_bundle(self) -> None:
        """Open the file."""
        self._writer = writer(self._folder)
        self._add = self._writer.__enter__()

    def process(self, numbered: tuple[int, Item | Job]) -> None:
        """Read one scan."""
        self._add(numbered[0], pack(numbered[1]))

    def finish_bundle(self) -> None:
        """Close the file."""
        self._writer.__exit__(None, None, None)


def stage_all(jobs: Sequence[Item | Job], folder: pathlib.Path, runner: Any, options: Any) -> None:
    """As `staging.stage_all`, by a pipeline."""
    with beam.Pipeline(runner=runner, options=options) as pipeline:
        _ = pipeline | beam.Create(list(enumerate(jobs))) | beam.Reshuffle() | beam.ParDo(Stage(folder))


def runner_of(config: Any) -> Any:
    """The runner of a TFDS DownloadConfig, from its own field or its options."""
    named = config.beam_options and config.beam_options.view_as(StandardOptions).runner
    return config.beam_runner or named or "DirectRunner"
