"""Real processes that train together on loopback: as one would, stopped together, resumed after a kill."""

import signal

import numpy as np
import pytest

from mcis.checkpoints import checkpoint
from mcis.train import distributed, parallel, run_record
from tests.fixtures import processes

SIZE = ["--batch_size=8", "--epochs=8"]


def weights(run):
    return checkpoint.flatten(checkpoint.load(run / checkpoint.BEST)[0])


def same(run, other):
    """Weights to 2e-3 (AdamW divides by tiny second moments), losses to 1e-4, metrics to 0.005."""
    found, expected = weights(run), weights(other)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-3, atol=2e-3, err_msg=name)
    for line, expected_line in zip(processes.log_lines(run), processes.log_lines(other), strict=True):
        assert line["train"]["loss"] == pytest.approx(expected_line["train"]["loss"], rel=1e-4)
        assert line["validation"] == pytest.approx(expected_line["validation"], abs=0.005)


@pytest.mark.usefixtures("tiny")
def test_two_processes_train_as_two_devices_of_one_do_and_only_the_first_prints(finished, phantom_dir, tmp_path):
    two = tmp_path / "route"
    arguments = processes.command(two, phantom_dir, *processes.SMALL)
    printed = processes.finish(*processes.start_several(arguments, arguments))
    same(two, finished[0])
    assert "epoch 3" in printed[0][0] and "route" not in printed[1][0]
    (session,) = run_record.read(two)["sessions"]
    assert session["processes"] == 2 and len(session["devices"]) == 2
    checkpoint.read_manifest(two / checkpoint.BEST)


@pytest.mark.slow
def test_processes_stop_together_and_resume_after_a_kill_to_the_same_bits(phantom_dir, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    arguments = processes.command(whole, phantom_dir, *SIZE)
    processes.finish(*processes.start_several(arguments, arguments))
    arguments = processes.command(run, phantom_dir, *SIZE)
    started = processes.start_several(arguments, arguments)
    processes.wait_for_epochs(run, 1, *started)
    started[1].send_signal(signal.SIGTERM)  # only one of them, and not the one that writes
    found = processes.end(*started)
    assert [status for _, _, status in found] == [75, 75], found
    assert "run the same command again to resume" in found[0][0]
    done = len(processes.log_lines(run))
    started = processes.start_several(arguments, arguments)
    processes.wait_for_epochs(run, done + 1, *started)
    started[1].kill()
    (_, error, status), _ = processes.end(*started)
    # where the coordination service notices first, it ends the process with a message of its own
    assert (status == 1 and "has lost another one" in error) or status == -signal.SIGABRT, (status, error)
    processes.finish(*processes.start_several(arguments, arguments))
    expected = weights(whole)
    for name, value in weights(run).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    assert processes.log_lines(run) == processes.log_lines(whole)
    assert len(run_record.read(run)["sessions"]) == 3


@pytest.mark.slow
def test_four_processes_with_pmap_and_streaming_finish_what_one_began(phantom_dir, tmp_path):
    one, run = tmp_path / "one", tmp_path / "run"
    processes.finish(processes.start(processes.command(one, phantom_dir, *SIZE)))
    arguments = processes.command(run, phantom_dir, *SIZE)
    started = processes.start(arguments)
    processes.wait_for_epochs(run, 1, started)
    started.send_signal(signal.SIGTERM)
    assert [status for _, _, status in processes.end(started)] == [75]
    spread = [*arguments, "--pmap", "--stream=True"]
    printed = processes.finish(*processes.start_several(spread, spread, spread, spread))[0][0]
    assert "devices, processes changed since the last session; results may not be bit-identical" in printed
    same(run, one)


@pytest.mark.slow
def test_a_process_with_other_settings_is_an_error_in_all(phantom_dir, tmp_path):
    arguments = processes.command(tmp_path / "run", phantom_dir, *SIZE)
    for _, error, status in processes.end(*processes.start_several(arguments, [*arguments, "--seed=1"])):
        assert status == 2 and "process 1 of 2 has other settings" in error, (status, error)
    assert not (tmp_path / "run").exists()


def test_other_settings_of_a_process_are_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr(distributed, "alone", lambda: False)
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", lambda digest: np.stack([digest, digest]))
    distributed.check_same_settings({"seed": 0})
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", lambda digest: np.stack([digest, ~digest]))
    with pytest.raises(ValueError, match="process 1 of 1 has other settings or scans than process 0"):
        distributed.check_same_settings({"seed": 0})


def test_processes_of_the_same_machine_are_counted(monkeypatch):
    assert distributed.processes_here() == 1

    def gather(name):
        return np.stack([name, name + np.uint32(1), name])

    monkeypatch.setattr(distributed, "alone", lambda: False)
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gather)
    assert distributed.processes_here() == 2


def test_missing_and_contradictory_options_are_errors(monkeypatch):
    for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    distributed.join(None, None, None, 10)  # a single process: nothing to do
    assert distributed.alone() and distributed.is_first()
    with pytest.raises(ValueError, match="--process is missing: several processes need all of --coordinator"):
        distributed.join("localhost:1", 2, None, 10)
    with pytest.raises(ValueError, match=r"--process=2: with --processes=2 it must be 0 to 1"):
        distributed.join("localhost:1", 2, 2, 10)
    with pytest.raises(ValueError, match="HOST:PORT"):
        distributed.join("localhost", 2, 1, 10)


def test_only_an_error_of_the_connection_counts_as_a_lost_process():
    with pytest.raises(distributed.Lost, match="process 0 of 1 has lost another one"), distributed.peer_errors():
        raise ValueError("Gloo all-reduce failed: connection closed by peer")
    with pytest.raises(ValueError, match="another error"), distributed.peer_errors():
        raise ValueError("another error")


def test_a_flag_takes_effect_in_every_process_after_the_delay(monkeypatch):
    monkeypatch.setattr(distributed, "alone", lambda: False)
    agree = distributed.make_agreement(2)
    flags = [np.array([k == 1, False]) for k in range(6)]  # another process sets its first flag at the second step
    agreed = [list(agree((False, False), any_flags)) for any_flags in flags]
    assert agreed == [[False, False]] * 3 + [[True, False]] + [[False, False]] * 2


def test_a_single_process_gets_its_flags_at_once_and_computes_the_whole_batch():
    assert distributed.make_agreement(4)((True, False), None) == (True, False)
    assert parallel.share_of(8, parallel.make_mesh()) == slice(0, 8)
    distributed.check_same_settings({"seed": 0})
