"""`mcis build`: prepare a data set with the TFDS builder. The only room, with launch.py, that knows the builder.

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

from mcis.cli.common import exit_status, parse_dataclass
from mcis.data.dataset import data_folder
from mcis.files import expand_user

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
    """Prepare one source, unless it is prepared already, and print its audit. Needs no TensorFlow.

    The set is made in a folder of its own and moved to its place when it is complete: what looks finished is. Builds
    of one source wait for each other.

    Args:
      source: a key of SOURCES.
      from_: folder or zip with the source's files; not for "phantom".
      data_dir: where prepared sets are kept; None = $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      overwrite: build anew what is there; scans keep the splits that `splits.json` gives them.
      per_class: phantoms of each class, for "phantom" only; None = 40.
      progress: whether to show bars; None = when standard error is a terminal.
      beam: options of an Apache Beam pipeline, with commas between them, that is to read and to store the scans, such
        as "runner=DirectRunner,direct_running_mode=multi_processing,direct_num_workers=8"; None = this process does,
        with threads.

    Returns:
      The folder of the prepared version: `<data_dir>/mcis_scans/<source>/<version>`.

    Raises:
      ValueError: no such source, folder or zip; its files are not what is expected; an option that does not go with
        it.
    """
    _check(source, from_, per_class)
    if beam is not None and from_ is not None and pathlib.Path(from_).is_file():
        raise ValueError(f"--beam with {from_}: its workers have to see the scans; unpack it, and name the folder")
    pipeline = None if beam is None else _beam_options(beam)
    import tensorflow_datasets as tfds
    from mcis_datasets.mcis_scans.mcis_scans_dataset_builder import Builder

    root = data_folder(data_dir)
    home = root / DATASET / source
    target = home / str(Builder.VERSION)
    with _locked(home):
        _tidy(home, target)
        if from_ is not None and not expand_user(from_).exists():
            raise ValueError(f"--from {from_}: no such file or folder")
        if (target / "dataset_info.json").is_file() and not overwrite:
            print(f"{source} is prepared already, in {target}; --overwrite builds it anew")
            return target
        (tfds.enable_progress_bar if _shows(progress) else tfds.disable_progress_bar)()
        stage = home / ".building"
        try:
            made = _make(source, from_, stage, home / "splits.json", per_class, pipeline)
            if target.exists():
                # One folder down, so that nobody takes it for a version.
                (home / ".replaced").mkdir()
                target.rename(home / ".replaced" / target.name)
            made.rename(target)
            (made.parent / "splits.json").replace(home / "splits.json")
        finally:
            _tidy(home, target)
    print(f"{source} is prepared in {target}")
    return target


def _check(source: str, from_: str | os.PathLike | None, per_class: int | None) -> None:
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}; there are: {', '.join(SOURCES)}")
    needs_files = bool(SOURCES[source].requires)
    if needs_files and from_ is None:
        raise ValueError(f"--from is missing: it names the folder or zip to read. {expected(source)}")
    if needs_files and per_class is not None:
        raise ValueError(f"--per_class goes with the source 'phantom' only, not with {source!r}")
    if not needs_files and from_ is not None:
        raise ValueError(f"the source {source!r} is made here, not read; leave --from away")
    if per_class is not None and per_class < 1:
        raise ValueError(f"--per_class is {per_class}; it must be 1 or more")


def _beam_options(beam: str) -> Any:
    """Beam's own form of its options."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise ValueError("--beam needs Apache Beam, which is not installed: pip install -e '.[beam]'") from None
    return PipelineOptions([f"--{option}" for option in beam.split(",") if option])


def _make(
    source: str,
    from_: str | os.PathLike | None,
    stage: pathlib.Path,
    history: pathlib.Path,
    per_class: int | None,
    pipeline: Any,
) -> pathlib.Path:
    """Build below `stage`, obeying the splits in the file `history`; gives the finished version's folder."""
    import tensorflow_datasets as tfds
    from mcis_datasets.mcis_scans import archive
    from mcis_datasets.mcis_scans.mcis_scans_dataset_builder import Builder
    from mcis_datasets.mcis_scans.record import find_base

    (stage / DATASET / source).mkdir(parents=True)
    if history.exists():
        shutil.copyfile(history, stage / DATASET / source / "splits.json")
    builder = Builder(config=source, data_dir=stage, per_class=per_class)
    with contextlib.nullcontext(stage) if from_ is None else archive.opened(expand_user(from_)) as folder:
        requires = SOURCES[source].requires
        if requires and find_base(folder, requires) is None and not (folder / f"{source}.zip").is_file():
            raise ValueError(f"{from_} does not hold the files of {source!r}. {expected(source)}")
        config = tfds.download.DownloadConfig(manual_dir=folder, beam_options=pipeline)
        builder.download_and_prepare(download_config=config)
    return pathlib.Path(builder.data_path)


@contextlib.contextmanager
def _locked(home: pathlib.Path) -> Iterator[None]:
    """Hold the source's lock; the system frees it when a process dies."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"another build of {home.name} is running; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tidy(home: pathlib.Path, target: pathlib.Path) -> None:
    """Clear away what a build left, or one that was killed; a set that was just being replaced is put back."""
    replaced = home / ".replaced" / target.name
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    for path in (home / ".building", replaced.parent):
        if path.exists():
            shutil.rmtree(path)


def _shows(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Prepare a data set for training: read scans, group and split them, audit them, store them."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="|".join(SOURCES))]
    """What to build."""
    from_: Annotated[pathlib.Path | None, tyro.conf.arg(name="from", metavar="PATH")] = None
    """Folder or zip with the source's files (all but phantom)."""
    data_dir: Annotated[pathlib.Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where prepared sets are kept. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Build anew what is prepared already; scans keep their splits."""
    per_class: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Phantoms of each class (phantom only). Default: 40."""
    beam: Annotated[str | None, tyro.conf.arg(metavar="OPTIONS")] = None
    """Read and store by an Apache Beam pipeline with these options, as
    runner=DirectRunner,direct_running_mode=multi_processing,direct_num_workers=8."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0 when the set is there."""
    arguments = parse_dataclass(Arguments, sys.argv[1:] if argv is None else argv, prog="mcis build")
    return exit_status("mcis build", lambda: _main(arguments))


def _main(arguments: Arguments) -> int:
    build(**vars(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
