"""The command line: help without heavy imports, errors that list what there is."""

import os
import platform
import runpy
import subprocess
import sys

import pytest

from mcis.cli import main
from mcis.tasks.table import TASKS

HEAVY = ("jax", "flax", "cv2", "tensorflow_datasets", "orbax", "numpy")


def run(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)


def test_help_names_every_command_and_imports_nothing_heavy():
    program = "import sys; from mcis.cli.main import main; status = main(['--help']); "
    program += f"sys.exit(status or any(m in sys.modules for m in {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for command in main.COMMANDS:
        assert command in done.stdout
    assert "not a medical device" in done.stdout


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_command_has_help(command):
    done = run("mcis", command, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


@pytest.mark.parametrize("command", [c for c in main.COMMANDS if c != "train"])
def test_unknown_options_list_those_there_are(command):
    done = run("mcis", command, "--no_such_option=1")
    assert done.returncode == 2
    assert "options of mcis" in done.stderr


def test_options_that_are_listed_are_those_of_the_first_column_not_of_the_prose():
    listed = run("mcis", "merge", "--no_such_option=1").stderr.splitlines()[-1]
    assert listed == "options of mcis merge: --help --overwrite --no-overwrite"


def test_unknown_names_list_those_there_are():
    done = run("mcis", "trane")
    assert done.returncode == 2 and "train" in done.stderr
    done = run("mcis.launch", "--task=segment_liver")
    assert done.returncode != 0
    for task in TASKS:
        assert task in done.stderr
    done = run("mcis.launch", "--task=route", "--modle=cnn")
    assert done.returncode == 2 and "--model" in done.stderr and "--learning-rate" in done.stderr
    done = run("mcis.launch", "--task=route", "--model=resnet")
    assert done.returncode != 0 and "cnn, cnn_attention, resnet18" in done.stderr


def test_underscores_and_hyphens_both_work(tmp_path):
    for option in ("--data_dir", "--data-dir"):
        done = run("mcis.launch", "--task=route", f"{option}={tmp_path}", "--batch_size=4")
        assert done.returncode != 0
        assert "mcis build lgg" in done.stderr and "--sources=phantom" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_folder_of_nobody_is_an_error_not_a_traceback():
    for command in (["mcis", "info"], ["mcis", "build", "phantom"], ["mcis.launch", "--task=route"]):
        done = run(*command, "--data_dir=~nosuchuser/data")
        assert done.returncode == 2
        assert "~nosuchuser/data: there is no such user" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["info", "predict --help", "train --task=route --help", "--help", "--version"])
def test_a_reader_that_goes_away_is_no_traceback(command):
    piped = f"set -o pipefail; {sys.executable} -m mcis {command} | true"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stderr


def test_a_run_is_set_aside_only_when_there_is_data_to_train_on(tmp_path):
    (tmp_path / "runs" / "route").mkdir(parents=True)
    options = ["--task=route", f"--data_dir={tmp_path}", f"--runs_dir={tmp_path / 'runs'}", "--fresh"]
    assert run("mcis.launch", *options).returncode == 2
    assert (tmp_path / "runs" / "route").is_dir()


def test_version():
    done = run("mcis", "--version")
    assert done.stdout.startswith("mcis ") and done.returncode == 0


def page_faults(keep, **environment):
    """Pages that a process takes from the system for 64 MiB that it had before, freed, and asks for again."""
    code = (
        "import resource, numpy, mcis.cli.common as command\n"
        f"if {keep}: command.keep_memory()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "numpy.ones(1 << 24, numpy.float32)\n"
        "before = faults()\n"
        "numpy.ones(1 << 24, numpy.float32)\n"
        "print(faults() - before)"
    )
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment = plain | {"NUMPY_MADVISE_HUGEPAGE": "0"} | environment
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_every_command_keeps_its_memory_and_a_call_from_python_does_not(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("mcis.cli.common.keep_memory", lambda: calls.append(sys.argv[1]))
    for words in (["info", "--no_such"], ["--task=no such task"]):
        monkeypatch.setattr(sys, "argv", ["mcis", *words])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("mcis" if words[0] == "info" else "mcis.launch", run_name="__main__")
        assert stop.value.code == 2
    assert calls == ["info", "--task=no such task"]
    assert main.main(["train", "--task=no such task"]) == 2
    assert len(calls) == 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc that is told")
def test_a_command_keeps_the_memory_it_had_unless_the_user_tells_malloc_otherwise():
    assert page_faults(keep=False) > 10_000
    assert page_faults(keep=True) < 1_000
    assert page_faults(keep=True, GLIBC_TUNABLES="glibc.malloc.perturb=0") > 10_000
