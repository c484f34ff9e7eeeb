"""The commands as processes of users without a name or a home folder, and in any current folder; their paths."""

import contextlib
import dataclasses
import importlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import typing

import numpy as np
import pytest

from mcis.cli import build, common, main
from mcis.cli.build import build as build_source
from mcis.data import dataset
from tests.fixtures import dicom_files, environments
from tests.fixtures.processes import OPTIONS

LINE = (
    "mcis: there is no home folder that can be written to; caches and prepared data are kept in {}. "
    "Set $HOME to keep them"
)
ROOT = pathlib.Path(__file__).parents[2]
DUMMY = ROOT / "datasets" / "mcis_scans" / "dummy_data"

SMALL = ("--task=segment_brain", "--members=1")
"""Options that run one network: the bundled weights, as the tests' own network is not known to other processes."""


@pytest.fixture
def temporary(tmp_path):
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def fallback(temporary):
    (folder,) = temporary.glob("mcis-*")
    return folder


def finish(temporary, home, module, *arguments):
    """Run a module to its end; its standard error without the progress bars."""
    command = environments.nameless(module, *map(str, arguments))
    environment = environments.environment(temporary, home)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@contextlib.contextmanager
def read_only(folder):
    """A folder that cannot be written to; by root neither, who needs something that is no folder."""
    folder.mkdir()
    folder.chmod(0o555)
    yield folder if environments.has_namespaces() or os.getuid() else pathlib.Path("/proc/self/fd")
    folder.chmod(0o755)


def test_a_user_without_a_name_builds_and_reads_data(temporary, tmp_path):
    (tmp_path / "home").mkdir()
    assert not finish(temporary, tmp_path / "home", "mcis", "build", "phantom", "--per_class=1")
    assert dataset.prepared("phantom", tmp_path / "home" / "tensorflow_datasets")
    assert not list(temporary.iterdir())


def test_without_a_home_folder_data_is_built_in_a_temporary_folder_and_found_there(temporary):
    error = finish(temporary, None, "mcis", "build", "folder", "--from", DUMMY / "folder")
    assert error.splitlines() == [LINE.format(fallback(temporary))]
    assert dataset.prepared("folder", fallback(temporary) / "tensorflow_datasets")


def test_with_a_read_only_home_folder_data_is_built_in_a_temporary_folder(temporary, tmp_path):
    with read_only(tmp_path / "home") as home:
        error = finish(temporary, home, "mcis", "build", "phantom", "--per_class=1")
    assert error.splitlines() == [LINE.format(fallback(temporary))]


@pytest.mark.parametrize("kind", ["missing", pytest.param("read-only", marks=pytest.mark.slow)])
def test_scans_are_predicted_without_a_home_folder(kind, temporary, tmp_path):
    arguments = (DUMMY / "folder" / "images" / "a.png", "--out", tmp_path / "out")
    with read_only(tmp_path / "home") as home:
        home = None if kind == "missing" else home
        error = finish(temporary, home, "tests.fixtures.predict_numpy", *arguments)
    assert error.splitlines() == [LINE.format(fallback(temporary))]
    assert (tmp_path / "out" / "findings.jsonl").is_file()


@pytest.mark.slow
def test_compiled_programs_are_kept_without_a_home_folder(temporary, tmp_path):
    image = DUMMY / "folder" / "images" / "a.png"
    finish(temporary, None, "mcis", "predict", image, "--out", tmp_path / "out", *SMALL)
    assert list((fallback(temporary) / "cache").glob("jaxlib-*/*-cache"))


@pytest.mark.slow
def test_a_run_is_trained_evaluated_and_bundled_without_a_home_folder(temporary, tmp_path):
    module, runs = "tests.fixtures.train_tiny", tmp_path / "runs"
    build_source("phantom", data_dir=tmp_path / "data", per_class=4, progress=False)
    (temporary / f"mcis-{environments.UID if environments.has_namespaces() else os.getuid()}").mkdir(mode=0o700)
    shutil.copytree(tmp_path / "data", fallback(temporary) / "tensorflow_datasets")
    line = [LINE.format(fallback(temporary))]
    options = [option.replace("--model=tiny", "--model=light") for option in OPTIONS]
    assert finish(temporary, None, module, *options, "--epochs=1", f"--runs_dir={runs}").splitlines() == line
    assert finish(temporary, None, "mcis", "evaluate", runs / "route", "--split=train").splitlines() == line
    assert not finish(temporary, None, "mcis", "bundle", runs / "route", "--out", tmp_path / "bundle")


@pytest.mark.slow
def test_the_server_starts_without_a_home_folder(temporary):
    command = environments.nameless("mcis", "serve", "--port=0", *SMALL)
    environment, pipe = environments.environment(temporary, None), subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout.readline().startswith("http://127.0.0.1:")
            process.send_signal(signal.SIGTERM)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert error.splitlines() == [LINE.format(fallback(temporary))]


def test_a_cache_that_cannot_be_kept_anywhere_is_no_error(monkeypatch, capsys):
    def none():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(common.paths, "fallback", none)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/1/none")
    common.enable_compilation_cache()
    assert "compiled programs are not kept: No usable temporary" in capsys.readouterr().err


def test_a_data_folder_that_cannot_be_written_to_is_an_error_that_names_the_option(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert build.main(["phantom", f"--data_dir={tmp_path / 'file'}"]) == 1
    assert "cannot be written to (Not a directory); name another folder with --data_dir" in capsys.readouterr().err


# A current folder with the names of modules


@pytest.fixture
def misleading(tmp_path):
    """A folder whose files and folders have the names of modules, with a scan and a report."""
    folder = tmp_path / "work"
    for name in ("dl", "PIL", "pydicom"):  # GDCM asks for `dl`, which Python 3 lacks
        (folder / name).mkdir(parents=True)
    for name in ("random.py", "gdcm.py", "tyro.py", "nibabel.py", "PIL/__init__.py", "pydicom/__init__.py"):
        (folder / name).write_text("raise SystemError('the wrong module')")
    grey = np.arange(200 * 200, dtype=np.uint16).reshape(200, 200)
    dicom_files.write(folder / "mr.dcm", grey)
    (folder / "reports").mkdir()
    dicom_files.write(folder / "reports" / "sr.dcm", grey, Modality="SR")
    return folder


def run_in(folder, *command, path=""):
    """A command's exit status and what it printed; the checkout is found by $PYTHONPATH, which may end in `path`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)) + path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_nothing_is_imported_from_the_current_folder(misleading):
    status, printed = run_in(misleading, sys.executable, "-m", "mcis", "predict", "reports", "--out=out")
    assert (status, printed.count("\n")) == (2, 1) and printed.endswith("1 DICOM object that is no scan (SR)\n"), (
        printed
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", ["", os.pathsep])
def test_scans_of_a_folder_with_names_of_modules_are_predicted(path, misleading):
    arguments = "predict", "mr.dcm", "--out=out", *SMALL
    script = "import sys; from mcis.cli.main import main; sys.exit(main())"
    for command in ([sys.executable, "-m", "mcis"], [sys.executable, "-P", "-c", script]):
        status, printed = run_in(misleading, *command, *arguments, "--overwrite", path=path)
        assert status == 0, printed
        assert '"error":null' in (misleading / "out" / "findings.jsonl").read_text().replace(" ", "")


@pytest.mark.slow
def test_training_imports_nothing_from_the_current_folder(misleading):
    status, printed = run_in(misleading, sys.executable, "-m", "mcis.launch", "--task=route", "--no_such=1")
    assert status == 2 and "the wrong module" not in printed


# Paths of options

NOT_PATHS = {
    *("beam", "by", "coordinator", "fold", "host", "operating_point"),
    *("run", "shard", "source", "sources", "split", "task"),
}
"""Text options that name no file or folder."""


def is_text(annotation):
    """Whether a type is str or a path, or one of these inside Annotated, a union or a tuple."""
    return annotation in (str, pathlib.Path) or any(map(is_text, typing.get_args(annotation)))


def options_of(command):
    """(field, type, whether it is a path) of a command's options that are text."""
    module = importlib.import_module(f"mcis.cli.{command}")
    kinds = [
        kind
        for kind in vars(module).values()
        if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__ and kind.__name__ != "TaskName"
    ]
    (kind,) = kinds
    for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
        if is_text(annotation):
            yield name, annotation, common._is_path(annotation)


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_text_option_is_a_path_or_known_to_be_none(command):
    assert {name for name, _, is_path in options_of(command) if not is_path} <= NOT_PATHS


REQUIRED = {
    "predict": ["x", "--out=y"],
    "bundle": ["x", "--out=y"],
    "merge": ["x"],
    "export": ["--out=y"],
    "evaluate": ["x"],
    "tune": ["x"],
    "calibrate": ["x", "y"],
    "shortcuts": ["--task=route"],
    "train": ["--task=route"],
    "build": ["folder"],
}
"""Arguments that a command cannot do without."""


@pytest.mark.parametrize("command", main.COMMANDS)
def test_no_command_takes_an_address_for_a_folder(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, annotation, is_path in options_of(command):
        if not is_path:
            continue
        option, needed = name.rstrip("_"), REQUIRED.get(command, [])
        if "Positional" in str(annotation):
            words, shown = [*["gs://bucket/x" if w in "xy" else w for w in needed or ["x"]]], "gs://bucket/x"
        else:
            kept = [word for word in needed if not word.startswith(f"--{option}=")]
            words, shown = [*kept, f"--{option}=gs://bucket/x"], f"--{option}=gs://bucket/x"
        assert main.main([command, *words]) == 2
        assert f"{shown}: an address, not a path" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [["--out=~/x"], ["--out", "~/x"]])
def test_tilde_is_the_home_folder_in_options_and_positional_arguments(form, tmp_path, monkeypatch):
    from mcis.cli.predict import Predict

    monkeypatch.setenv("HOME", str(tmp_path))
    options = common.parse_dataclass(Predict, ["~/a.png", "./b.png", "~/*.dcm", *form], "mcis predict")
    assert options.paths == (f"{tmp_path}/a.png", "./b.png", f"{tmp_path}/*.dcm")
    assert options.out == f"{tmp_path}/x" and options.weights is None


def test_tilde_is_the_home_folder_in_nested_options(tmp_path, monkeypatch):
    from mcis.cli.train import parse

    monkeypatch.setenv("HOME", str(tmp_path))
    options, _ = parse(["--task=route", "--runs_dir=~/runs", "--data-dir=~/data"])
    assert (options.runs_dir, options.data_dir) == (f"{tmp_path}/runs", f"{tmp_path}/data")


def test_addresses_in_variables_are_errors(monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/data")
    assert build.main(["phantom"]) == 2
    assert "$TFDS_DATA_DIR=gs://bucket/data: an address" in capsys.readouterr().err
