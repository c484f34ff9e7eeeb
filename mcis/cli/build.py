"""`mcis build`: prepare a data set with the TFDS builder.

```bash
mcis build busi --from ~/Downloads/archive.zip
mcis build phantom --data_dir=/tmp/scans
```
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import tyro
from mcis_datasets.mcis_scans.sources import SOURCES, expected

from mcis.cli.common import PathText, run
from mcis.data.dataset import data_folder
from mcis.inference.options import takes
from mcis.names import no_such, no_such_path
from mcis.organs import ORGAN_NAMES, organ_named
from mcis.paths import local_path

DATASET = "mcis_scans"


def build(
    source: str,
    from_: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    overwrite: bool = False,
    per_class: int | None = None,
    progress: bool | None = None,
    beam: str | None = None,
) -> pathlib.Path:
    """Prepare one source, unless it is prepared already, and print its audit. TensorFlow is not needed.

    The set is built in a temporary folder and moved to its place when it is complete, so that a set that looks complete
    is complete. Concurrent builds of one source wait for each other.

    The options are those of `Arguments`; `progress` = None shows bars where standard error is a terminal.

    Returns:
      The folder of the prepared version: `<data_dir>/mcis_scans/<source>/<version>`.

    Raises:
      ValueError: there is no such source, folder or zip; its files are not the expected ones; an option does not apply.
    """
    _check(source, from_, per_class)
    if beam is not None and from_ is not None and pathlib.Path(from_).is_file():
        raise ValueError(f"--beam with {from_}: Beam's workers cannot read a zip; unpack it, and name the folder")
    pipeline = None if beam is None else _beam_options(beam)
    import tensorflow_datasets as tfds
    from mcis_datasets.mcis_scans.mcis_scans_dataset_builder import Builder

    home = data_folder(data_dir) / DATASET / source
    target = home / str(Builder.VERSION)
    with _locked(home):
        _clean(home, target)
        if from_ is not None and not local_path(from_, "--from").exists():
            raise ValueError(f"--from {no_such_path(local_path(from_))}")
        if (target / "dataset_info.json").is_file() and not overwrite:
            print(f"{source} is prepared already, in {target}; --overwrite builds it again")
            return target
        shown = sys.stderr.isatty() if progress is None else progress
        (tfds.enable_progress_bar if shown else tfds.disable_progress_bar)()
        try:
            built = _build(source, from_, home, per_class, pipeline)
            if target.exists():
                # one level down, so that it is not taken for a version
                (home / ".replaced").mkdir()
                target.rename(home / ".replaced" / target.name)
            built.rename(target)
            (built.parent / "splits.json").replace(home / "splits.json")
        finally:
            _clean(home, target)
    print(f"{source} is prepared in {target}")
    return target


def _check(source: str, from_: str | os.PathLike | None, per_class: int | None) -> None:
    if source not in SOURCES:
        raise ValueError(no_such("source", source, SOURCES))
    needs_files = bool(SOURCES[source].requires)
    if needs_files and from_ is None:
        raise ValueError(f"--from is missing: name the folder or zip to read. {expected(source)}")
    if needs_files and per_class is not None:
        raise ValueError(f"--per_class is an option of the source 'phantom' only, not of {source!r}; remove it")
    if not needs_files and from_ is not None:
        raise ValueError(f"the source {source!r} is generated, not read; omit --from")
    if per_class is not None and per_class < 1:
        raise ValueError(f"--per_class={per_class}: must be 1 or more")


def _beam_options(beam: str) -> Any:
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ValueError("--beam needs Apache Beam, which is not installed: pip install -e '.[beam]'") from None
    return PipelineOptions([f"--{option}" for option in beam.split(",") if option])


def _build(
    source: str,
    from_: str | os.PathLike | None,
    home: pathlib.Path,
    per_class: int | None,
    pipeline: Any,
) -> pathlib.Path:
    """Build below the source's folder `home`, with the splits that are there; the folder of the finished version."""
    import tensorflow_datasets as tfds
    from mcis_datasets.mcis_scans import archive
    from mcis_datasets.mcis_scans.mcis_scans_dataset_builder import Builder
    from mcis_datasets.mcis_scans.record import find_base

    stage, history = home / ".building", home / "splits.json"
    (stage / DATASET / source).mkdir(parents=True)
    if history.exists():
        shutil.copyfile(history, stage / DATASET / source / "splits.json")
    builder = Builder(config=source, data_dir=stage, per_class=per_class, others=home.parents[1])
    with contextlib.nullcontext(stage) if from_ is None else archive.opened(local_path(from_, "--from")) as folder:
        requires = SOURCES[source].requires
        if requires and find_base(folder, requires) is None and not (folder / f"{source}.zip").is_file():
            raise ValueError(f"{from_} does not hold the files of {source!r}. {expected(source, folder)}")
        config = tfds.download.DownloadConfig(manual_dir=folder, beam_options=pipeline)
        builder.download_and_prepare(download_config=config)
    return pathlib.Path(builder.data_path)


@contextlib.contextmanager
def _locked(home: pathlib.Path) -> Iterator[None]:
    """Hold the source's lock. The system releases it when the process ends."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / ".lock").open("w")
    except OSError as error:
        advice = "name another folder with --data_dir"
        raise OSError(f"{home}: cannot be written to ({error.strerror}); {advice}") from None
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"another build of {home.name} is running; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clean(home: pathlib.Path, target: pathlib.Path) -> None:
    """Remove the temporary folders of a build, also of one that was killed; an interrupted replacement is undone."""
    replaced = home / ".replaced" / target.name
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    for path in (home / ".building", replaced.parent):
        if path.exists():
            shutil.rmtree(path)


OTHER_SOURCES = {
    "foreign": "pictures to be rejected",
    "phantom": "synthetic scans",
    "folder": "your own scans: images/, masks/, labels.csv",
}
"""The sources that are not published."""


def _sources() -> str:
    """What each source is, for the help."""
    published = {kind: [name for name, row in SOURCES.items() if row.organ == kind] for kind in ORGAN_NAMES}
    listed = "; ".join(f"{', '.join(names)} ({organ_named(kind).scan})" for kind, names in published.items())
    others = "; ".join(f"{name} ({what})" for name, what in OTHER_SOURCES.items())
    return f"The source to build: {listed}; {others}."


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Prepare a data set for training: read scans, group and split them, audit them, store them."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE", help=_sources())]
    from_: Annotated[PathText | None, tyro.conf.arg(name="from", metavar="PATH", help_behavior_hint="")] = None
    """Folder or zip with the source's files; needed for all sources but phantom."""
    data_dir: Annotated[PathText | None, takes("DIR")] = None
    """Folder of prepared data. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")] = False
    """Rebuild a set that is prepared already; scans keep their splits."""
    per_class: Annotated[int | None, takes("N")] = None
    """Number of phantoms of each class (phantom only). Default: 40."""
    beam: Annotated[str | None, takes("OPTIONS")] = None
    """Options of an Apache Beam pipeline that reads and stores the scans, such as
    runner=DirectRunner,direct_running_mode=multi_processing,direct_num_workers=8."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 where the set is prepared."""

    def command(arguments: Arguments) -> int:
        build(**vars(arguments))
        return 0

    return run("mcis build", Arguments, command, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
