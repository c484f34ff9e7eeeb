"""The command line: help without heavy imports, exit status, lists of options, signals, the compilation cache."""

import dataclasses
import os
import pathlib
import platform
import re
import runpy
import signal
import subprocess
import sys

import pytest

from mcis.cli import common, main
from mcis.data import dataset
from mcis.tasks.table import TASKS

HEAVY = ("jax", "flax", "cv2", "tensorflow_datasets", "orbax", "numpy")


def run_process(*arguments):
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """A function that runs `mcis` with arguments in this process and returns exit status, output and errors."""
    # with a folder given, no command changes JAX's configuration
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path))

    def call(*arguments):
        try:
            status = main.main(arguments)
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return call


def test_help_names_every_command_and_imports_no_heavy_module():
    program = "import sys; from mcis.cli.main import main; status = main(['--help']); "
    program += f"sys.exit(status or any(module in sys.modules for module in {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for command in main.COMMANDS:
        assert command in done.stdout
    assert "not a medical device" in done.stdout


def test_version(run):
    status, output, _ = run("--version")
    assert status == 0 and output.startswith("mcis ")


@pytest.mark.parametrize("command", main.COMMANDS)
def test_every_command_has_help(command, run):
    status, output, errors = run(command, "--help")
    assert status == 0, errors
    assert "usage" in output


@pytest.mark.parametrize("command", main.COMMANDS)
def test_an_unknown_option_fails_with_a_list_of_all_options(command, run):
    task = ["--task=route"] if command == "train" else []
    _, output, _ = run(command, *task, "--help")
    assert "(default: None)" not in re.sub(r"[│\s]+", " ", output)
    status, _, errors = run(command, *task, "--no_such_option=1")
    assert status == 2
    options = re.findall(r"(?m)^[^\w-]{1,3}(?:-\w, )?(--[a-z][\w.-]*)", output)  # first column, not prose
    assert options and set(options) <= set(re.findall(r"--[a-z][\w.-]*", errors))
    assert errors.index(options[-1]) < errors.index("For full helptext"), "the error is not last, where it is seen"


def test_the_list_of_options_names_those_that_parse_and_similar_ones_are_suggested(run):
    status, _, errors = run("info", "--wieghts=x")
    assert status == 2 and "Perhaps you meant" in errors
    assert "--help-verbose" in errors and run("info", "--help-verbose")[:2] == run("info", "--help")[:2]


@pytest.mark.parametrize(
    ("command", "option"),
    [("train --task=route --modle=cnn", "--model"), ("predict a.png --uot=x", "--out")],
)
def test_a_misspelt_option_with_a_value_is_corrected(command, option, run):
    status, _, errors = run(*command.split())
    assert status == 2 and f"Did you mean '{option}'?" in errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("predict a.png --out=x --members=1.5", "--members takes a whole number, not '1.5'."),
        ("predict a.png --out=x --threshold=abc", "--threshold takes a number, not 'abc'."),
        ("train --task=route --augmentation.brightness=x", "--augmentation.brightness takes a number, not 'x'."),
    ],
)
def test_a_value_that_is_no_number_is_named_in_plain_words(command, line, run):
    status, _, errors = run(*command.split())
    assert status == 2 and errors.splitlines()[-1] == line


@pytest.mark.parametrize("command", ["predict {}/scnas --out={}/out", "build busi --from={}/scnas --data_dir={}/data"])
def test_a_missing_path_is_named_with_a_similar_one(command, run, tmp_path):
    (tmp_path / "scans").mkdir()
    status, _, errors = run(*command.format(tmp_path, tmp_path).split())
    assert status == 2 and f"There is no 'scnas' in {tmp_path}. Did you mean '{tmp_path}/scans'?" in errors


def test_folders_that_hold_something_else_are_told_what_to_name(run, tmp_path):
    (tmp_path / "bundle" / "route").mkdir(parents=True)
    (tmp_path / "bundle" / "route" / "manifest.json").touch()
    status, _, errors = run("bundle", str(tmp_path / "bundle"), f"--out={tmp_path}/out")
    assert status == 2 and "it has no manifest.json; name one of its folders, which have: route" in errors
    status, _, errors = run("calibrate", str(tmp_path / "bundle"))
    assert status == 2 and "no fold runs given" in errors
    status, output, errors = run("info", f"--data_dir={tmp_path}/data", f"--weights={tmp_path}/none")
    assert status == 2 and f"prepared data in {tmp_path}/data: there is no such folder" in output
    assert "none: no such folder of weights; `mcis bundle RUN... --out DIR` makes one" in errors


def test_help_says_what_options_take(run):
    shown = {
        name: " ".join(run(name, "--help")[1].split()) for name in ("predict", "bundle", "merge", "runs", "evaluate")
    }
    assert not any(placeholder in text for text in shown.values() for placeholder in ("STR", "None", "(default: )"))
    for words in ("SCANS...", "--out DIR", "--weights DIR", "--dicom-seg {unnamed,named}", "--shard K/N"):
        assert words in shown["predict"]
    for words in (
        "--organ {brain,breast}",
        "--threshold PROBABILITY",
        "--operating-point {balanced,sensitive,specific}",
    ):
        assert words in shown["predict"]
    assert "mcis bundle [-h] RUN... --out DIR" in shown["bundle"]
    assert "mcis merge [-h] DIR" in shown["merge"] and "mcis runs [-h] RUN..." in shown["runs"]
    assert f"--split {{{','.join((*dataset.SPLITS, dataset.LEFT_OUT, dataset.UNSEEN))}}}" in shown["evaluate"]


def test_an_unknown_name_fails_with_a_list_of_the_known_names(run):
    status, _, errors = run("trane")
    assert status == 2 and all(command in errors for command in main.COMMANDS)
    assert "There is no command 'trane'. Did you mean 'train'?" in errors
    for words, meant in (
        ("train --task=segment_brian", "segment_brain"),
        ("train --task=route --model=unet_atention", "unet_attention"),
        ("train --task=route --precision=float23", "float32"),
        ("predict a.png --out=x --operating_point=sensitve", "sensitive"),
        ("evaluate x --split=tets", "test"),
    ):
        assert f"Did you mean '{meant}'?" in run(*words.split())[2], words
    status, _, errors = run("train", "--task=segment_liver")
    assert status == 2 and all(task in errors for task in TASKS)
    status, _, errors = run("train", "--task=route", "--model=resnet")
    assert status == 2 and "cnn, cnn_attention, resnet18" in errors


def test_a_process_exits_with_the_status_and_no_traceback():
    done = run_process("mcis.launch", "--task=route", "--modle=cnn")
    assert done.returncode == 2 and "--model" in done.stderr and "--learning-rate" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_may_have_underscores_or_hyphens(run, tmp_path):
    for option in ("--data_dir", "--data-dir"):
        status, _, errors = run("train", "--task=route", f"{option}={tmp_path}", "--batch_size=4")
        assert status == 2 and "mcis build lgg" in errors and "--sources=phantom" in errors


@pytest.mark.parametrize("command", ["info", "build phantom", "train --task=route"])
def test_an_unknown_user_in_a_path_is_an_error(command, run):
    status, _, errors = run(*command.split(), "--data_dir=~nosuchuser/data")
    assert status == 2 and "~nosuchuser/data" in errors


@pytest.mark.parametrize("command", ["predict --help", "--version"])
def test_a_closed_pipe_is_no_traceback(command):
    piped = f"set -o pipefail; {sys.executable} -m mcis {command} | true"
    done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stderr


def test_fresh_keeps_the_old_run_when_there_is_no_data(run, tmp_path):
    (tmp_path / "runs" / "route").mkdir(parents=True)
    options = ["--task=route", f"--data_dir={tmp_path}", f"--runs_dir={tmp_path / 'runs'}", "--fresh"]
    assert run("train", *options)[0] == 2
    assert (tmp_path / "runs" / "route").is_dir()


@dataclasses.dataclass(frozen=True)
class Example:
    """Options of no command.

    Attributes:
      number: any number.
    """

    number: int = 0


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("wrong option"), 2, "mcis example: wrong option\n"),
        (OSError("disk full"), 1, "mcis example: disk full\n"),
        (FloatingPointError("loss is nan"), 1, "mcis example: loss is nan\n"),
        (KeyboardInterrupt(), 130, "mcis example: interrupted\n"),
    ],
)
def test_errors_become_a_line_and_an_exit_status(error, status, message, capsys):
    def command(options):
        assert options == Example(number=3)
        raise error

    assert common.run("mcis example", Example, command, ["--number=3"]) == status
    assert capsys.readouterr().err == message


def test_the_first_signal_requests_a_stop_and_the_next_one_is_handled_as_before(capfd):
    handled = []
    before = signal.signal(signal.SIGTERM, lambda number, _: handled.append(number))
    try:
        with common.stop_requested() as stop:
            assert not stop()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop() and not handled
            assert "interrupt again to quit now" in capfd.readouterr().err
            os.kill(os.getpid(), signal.SIGTERM)
            assert handled == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("command", "module"), [("evaluate", "matplotlib"), ("shortcuts", "sklearn")])
def test_a_missing_extra_is_named(command, module, run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    status, _, errors = run(command, str(tmp_path) if command == "evaluate" else "--task=route")
    assert status == 2 and "pip install -e '.[evaluation]'" in errors


def page_faults(keep, **environment):
    """Page faults of a process that frees 64 MiB and allocates them again."""
    code = (
        "import resource, numpy, mcis.cli.common as common\n"
        f"if {keep}: common.keep_memory()\n"
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_a_command_keeps_freed_memory_unless_the_user_configures_malloc():
    assert page_faults(keep=False) > 10_000
    assert page_faults(keep=True) < 1_000
    assert page_faults(keep=True, GLIBC_TUNABLES="glibc.malloc.perturb=0") > 10_000


def test_a_process_keeps_freed_memory_and_a_call_from_python_does_not(monkeypatch, capsys):
    calls = []
    for module in (common, main):
        monkeypatch.setattr(module, "keep_memory", lambda: calls.append(sys.argv[1]))
    for arguments in (["info", "--no_such"], ["--task=no such task"]):
        monkeypatch.setattr(sys, "argv", ["mcis", *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("mcis" if arguments[0] == "info" else "mcis.launch", run_name="__main__")
        assert stop.value.code == 2
    assert calls == ["info", "--task=no such task"]
    assert main.main(["train", "--task=no such task"]) == 2
    assert len(calls) == 2


CPUINFO = "processor: 0\nmodel name: A\ncpu MHz: 2000\nflags: sse avx\n\nprocessor: 1\nmodel name: A\nflags: sse avx\n"


@pytest.mark.parametrize(
    ("cpuinfo", "same"),
    [
        (CPUINFO.replace("2000", "2001"), True),
        (CPUINFO.replace("model name: A", "model name: B"), False),
        (CPUINFO.replace("sse avx", "sse avx amx"), False),
        ("Features: fp asimd\nCPU part: 0xd0c\n", False),
    ],
)
def test_the_compiler_target_changes_with_the_cpu_alone(cpuinfo, same, tmp_path):
    paths = tmp_path / "one", tmp_path / "other"
    for path, text in zip(paths, (CPUINFO, cpuinfo), strict=True):
        path.write_text(text)
    assert (common.compiler_target(paths[0]) == common.compiler_target(paths[1])) == same


def test_the_compiler_target_changes_with_the_version_and_the_machine(monkeypatch, tmp_path):
    names = {common.compiler_target(tmp_path / "no file")}
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    names.add(common.compiler_target(tmp_path / "no file"))
    monkeypatch.setattr("importlib.metadata.version", lambda _: "9.9.9")
    names.add(common.compiler_target(tmp_path / "no file"))
    assert len(names) == 3 and "jaxlib-9.9.9" in max(names)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """What is set in JAX's configuration, which stays unchanged."""
    import jax

    found = {}
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


def test_the_compilation_cache_is_bounded_and_for_this_compiler_and_cpu(settings, tmp_path):
    common.enable_compilation_cache()
    assert settings["jax_compilation_cache_dir"] == str(tmp_path / "cache" / "mcis" / common.compiler_target())
    assert settings["jax_compilation_cache_max_size"] == 2 << 30


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME"])
def test_a_cache_folder_that_cannot_be_made_is_replaced_with_one_line(name, settings, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv(name, "/proc/none")  # its permissions let root write
    monkeypatch.setattr(common.paths, "fallback", lambda: tmp_path / "fallback")
    common.enable_compilation_cache()
    assert settings["jax_compilation_cache_dir"].startswith(str(tmp_path / "fallback" / "cache"))
    if name == "HOME":
        assert dataset.data_folder() == tmp_path / "fallback" / "tensorflow_datasets"
        monkeypatch.setenv("HOME", str(tmp_path / "missing"))
        assert common.cache_dir() == tmp_path / "fallback" / "cache"
        assert not (tmp_path / "missing").exists()


def test_data_that_are_not_prepared_are_named_and_so_are_the_sources_if_there_is_no_such(tmp_path, capsys):
    def status(source):
        return common.exit_status("mcis", lambda: bool(dataset.prepared(source, tmp_path)))

    assert status("nope") == 2
    error = capsys.readouterr().err
    assert error.startswith("mcis: There is no source 'nope'. The sources are busi, ") and "mcis build" not in error
    assert status("busi") == 2 and "mcis build busi --from" in capsys.readouterr().err


def test_the_users_settings_of_the_compilation_cache_are_obeyed(settings, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "1000")
    common.enable_compilation_cache()
    assert "jax_compilation_cache_max_size" not in settings and settings
    settings.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    common.enable_compilation_cache()
    assert not settings


def test_the_oldest_programs_are_deleted_when_the_compilation_cache_is_full(tmp_path):
    code = (
        "import mcis.cli.common as common\n"
        f"common.CACHE_BYTES = {(bound := 12_000)}\n"
        "common.enable_compilation_cache()\n"
        "import jax, numpy\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "for n in range(1, 9): jax.jit(lambda x: x + n)(numpy.ones(n))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert not done.stderr
    (folder,) = pathlib.Path(tmp_path, "mcis").iterdir()
    sizes = [path.stat().st_size for path in folder.glob("*-cache")]
    assert 1 <= len(sizes) < 8 and sum(sizes) <= bound
