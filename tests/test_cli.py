"""The command line: help without heavy imports, errors that list what there is."""

import os
import subprocess
import sys

import pytest

from mcis import cli
from mcis.command import TUNABLES
from mcis.tasks import TASKS

HEAVY = ("jax", "flax", "cv2", "tensorflow_datasets", "orbax", "numpy")


def run(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)


def test_help_names_every_command_and_imports_nothing_heavy():
    program = "import sys; from mcis import cli; status = cli.main(['--help']); "
    program += f"sys.exit(status or any(m in sys.modules for m in {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for command in cli.COMMANDS:
        assert command in done.stdout
    assert "not a medical device" in done.stdout


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command):
    done = run("mcis", command, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


@pytest.mark.parametrize("command", [c for c in cli.COMMANDS if c != "train"])
def test_unknown_options_list_those_there_are(command):
    done = run("mcis", command, "--no_such_option=1")
    assert done.returncode == 2
    assert "options of mcis" in done.stderr


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


def test_a_reader_that_goes_away_is_no_traceback():
    command = f"{sys.executable} -m mcis info | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stderr


def test_a_run_is_set_aside_only_when_there_is_data_to_train_on(tmp_path):
    (tmp_path / "runs" / "route").mkdir(parents=True)
    options = ["--task=route", f"--data_dir={tmp_path}", f"--runs_dir={tmp_path / 'runs'}", "--fresh"]
    assert run("mcis.launch", *options).returncode == 2
    assert (tmp_path / "runs" / "route").is_dir()


def test_version():
    done = run("mcis", "--version")
    assert done.stdout.startswith("mcis ") and done.returncode == 0


@pytest.mark.parametrize("command", [("mcis", "train"), ("mcis.launch",)])
def test_training_starts_anew_with_huge_pages_once_and_keeps_its_arguments(command, tmp_path):
    # sitecustomize runs in every start of this Python: it writes down what each one was given
    log = tmp_path / "starts"
    code = "import os; open({log!r}, 'a').write(os.environ.get('GLIBC_TUNABLES', 'none') + chr(10))"
    (tmp_path / "sitecustomize.py").write_text(code.format(log=str(log)))
    plain = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    for given, wanted in ((None, ["none", TUNABLES]), ("glibc.malloc.perturb=0", ["glibc.malloc.perturb=0"])):
        log.unlink(missing_ok=True)
        environment = plain | {"PYTHONPATH": str(tmp_path)} | ({"GLIBC_TUNABLES": given} if given else {})
        arguments = [sys.executable, "-m", *command, "--task=no such task"]
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
        assert done.returncode == 2
        assert "no task 'no such task'" in done.stderr
        assert log.read_text().splitlines() == wanted
