"""Real processes that train together on loopback: as one would, stopped together, gone on with after a kill."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from mcis.checkpoints import checkpoint
from mcis.train import distributed, loop, parallel, run_record

EPOCHS = 8
OPTIONS = ["--task=route", "--sources=phantom", "--size=32", "--features=4"]  # what starts fastest
OPTIONS += ["--batch_size=8", f"--epochs={EPOCHS}", "--heartbeat=60"]


def start(run, data, number, *more):
    """`number` processes, each with one device, that train a run; one alone where it is 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = re.sub(r"device_count=\d+", "device_count=1", os.environ["XLA_FLAGS"])
    command = [sys.executable, "-m", "mcis.launch", *OPTIONS, f"--data_dir={data}", f"--runs_dir={run.parent}"]
    command += [f"--run={run.name}", *more]
    if number > 1:
        command += [f"--coordinator=127.0.0.1:{port}", f"--processes={number}"]
    return [
        subprocess.Popen(
            [*command, *([f"--process={k}"] if number > 1 else [])],
            env=os.environ | {"XLA_FLAGS": flags, "PYTHONFAULTHANDLER": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for k in range(number)
    ]


def end(started):
    """What each has printed, what it has complained of, and its exit status."""
    try:
        said = [process.communicate(timeout=400) for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            process.send_signal(signal.SIGABRT)  # they tell where they stand
        raise AssertionError([process.communicate() for process in started]) from None
    return [(out, err, process.returncode) for (out, err), process in zip(said, started, strict=True)]


def finish(run, data, number, *more):
    found = end(start(run, data, number, *more))
    assert [status for _, _, status in found] == [0] * number, found
    return found


def lines(run):
    return [json.loads(line) for line in (run / loop.LOG).read_text().splitlines()] if (run / loop.LOG).exists() else []


def start_an_epoch(run, data, number):
    """Processes that have just ended an epoch."""
    before, started = len(lines(run)), start(run, data, number)
    while len(lines(run)) == before:
        assert all(process.poll() is None for process in started), end(started)
        time.sleep(0.01)
    return started


def weights(run):
    return checkpoint.flatten(checkpoint.load(run / loop.BEST)[0])


@pytest.fixture(scope="module")
def one(phantom_dir, tmp_path_factory):
    """A run that one process with one device has trained."""
    run = tmp_path_factory.mktemp("one") / "run"
    finish(run, phantom_dir, 1)
    return run


@pytest.fixture(scope="module")
def two(phantom_dir, tmp_path_factory):
    """A run that two processes have trained, and what they have said."""
    run = tmp_path_factory.mktemp("two") / "run"
    return run, finish(run, phantom_dir, 2)


def same(run, other):
    """Weights to 2e-3 (AdamW divides by tiny second moments), losses to 1e-4, metrics to 0.005."""
    found, expected = weights(run), weights(other)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-3, atol=2e-3, err_msg=name)
    for line, expected_line in zip(lines(run), lines(other), strict=True):
        assert line["train"]["loss"] == pytest.approx(expected_line["train"]["loss"], rel=1e-4)
        assert line["validation"] == pytest.approx(expected_line["validation"], abs=0.005)


def test_two_processes_train_as_one_does_and_the_first_alone_speaks(one, two):
    run, said = two
    same(run, one)
    assert f"epoch {EPOCHS}" in said[0][0] and "segment_brain" not in said[1][0]
    (session,) = run_record.read(run)["sessions"]
    assert session["processes"] == 2 and len(session["devices"]) == 2
    checkpoint.read_manifest(run / loop.BEST)


@pytest.mark.slow
def test_processes_stop_together_and_what_a_kill_leaves_is_gone_on_with_to_the_same_bits(two, phantom_dir, tmp_path):
    run = tmp_path / "run"
    started = start_an_epoch(run, phantom_dir, 2)
    started[1].send_signal(signal.SIGTERM)  # one of them, and not the one that writes
    found = end(started)
    assert [status for _, _, status in found] == [75, 75], found
    assert "type the same again to go on" in found[0][0]
    started = start_an_epoch(run, phantom_dir, 2)
    started[1].kill()
    (_, error, status), _ = end(started)
    # the coordination service, where it is the first to know, ends the process in its own words
    assert (status == 1 and "has lost another one" in error) or status == -signal.SIGABRT, (status, error)
    finish(run, phantom_dir, 2)
    expected = weights(two[0])
    for name, value in weights(run).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    strip = [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines(run)]
    assert strip == [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines(two[0])]
    assert len(run_record.read(run)["sessions"]) == 3


@pytest.mark.slow
def test_what_one_process_began_four_finish_with_pmap_and_streaming_as_one_does(one, phantom_dir, tmp_path):
    run = tmp_path / "run"
    started = start_an_epoch(run, phantom_dir, 1)
    started[0].send_signal(signal.SIGTERM)
    assert [status for _, _, status in end(started)] == [75]
    said = finish(run, phantom_dir, 4, "--pmap", "--stream=True")[0][0]
    assert "other devices, processes than before" in said
    same(run, one)


def test_processes_with_other_settings_are_refused_by_all(phantom_dir, tmp_path):
    run = tmp_path / "run"
    first, second = start(run, phantom_dir, 2), []
    first[1].kill()
    first[1].wait()
    command = [*first[1].args, "--seed=1"]
    second = [subprocess.Popen(command, env=os.environ | {"XLA_FLAGS": ""}, text=True, stderr=subprocess.PIPE)]
    for _, error, status in end([first[0], *second]):
        assert status == 2 and "process 1 of 2 has other settings" in error, (status, error)
    assert not run.exists()


def test_neighbours_are_the_processes_of_the_same_machine(monkeypatch):
    assert distributed.neighbours() == 1

    def gather(name):
        return np.stack([name, name + np.uint32(1), name])

    monkeypatch.setattr(distributed, "alone", lambda: False)
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gather)
    assert distributed.neighbours() == 2


def test_what_is_missing_or_contradicts_itself_is_said(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    distributed.join(None, None, None, 10)  # one process: nothing
    assert distributed.alone() and distributed.is_first()
    with pytest.raises(ValueError, match="--process is missing: several processes need all of --coordinator"):
        distributed.join("localhost:1", 2, None, 10)
    with pytest.raises(ValueError, match=r"--process=2: with --processes=2 it is from 0 to 1"):
        distributed.join("localhost:1", 2, 2, 10)
    with pytest.raises(ValueError, match="HOST:PORT"):
        distributed.join("localhost", 2, 1, 10)


def test_one_process_gets_its_wishes_at_once_and_has_the_whole_batch():
    assert distributed.make_agreement(4)((True, False), None) == (True, False)
    assert parallel.share_of(8, parallel.make_mesh()) == slice(0, 8)
    distributed.check_alike({"seed": 0})
