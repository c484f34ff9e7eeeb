"""How Apache Beam reads the scans of a build, where it is installed and asked for; TFDS has it store them too.

What lies between them, which scans belong together and where each goes, is decided by one process: it needs all of
them. Workers on other machines have to see the scans, and the folder of prepared data, under the same paths.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import StandardOptions

from .packing import Writer, pack
from .record import Item, Job


class Pack(beam.DoFn):
    """Reads scans, each bundle of them into files of its own."""

    def __init__(self, folder: pathlib.Path):
        """Into `folder`."""
        self._folder = folder

    def start_bundle(self) -> None:
        """Open the files."""
        self._writer = Writer(self._folder).__enter__()

    def process(self, numbered: tuple[int, Item | Job]) -> None:
        """Read one scan."""
        self._writer.add(numbered[0], pack(numbered[1]))

    def finish_bundle(self) -> None:
        """Close the files."""
        self._writer.__exit__(None, None, None)


def pack_all(jobs: Sequence[Item | Job], folder: pathlib.Path, runner: Any, options: Any) -> None:
    """Like `packing.pack_all`, by a pipeline of its own."""
    with beam.Pipeline(runner=runner, options=options) as pipeline:
        _ = pipeline | beam.Create(list(enumerate(jobs))) | beam.Reshuffle() | beam.ParDo(Pack(folder))


def runner_of(config: Any) -> Any:
    """The runner that a TFDS DownloadConfig asks for, by itself or among its options."""
    named = config.beam_options and config.beam_options.view_as(StandardOptions).runner
    return config.beam_runner or named or "DirectRunner"
