"""The command that trains: killed and typed again, and its folds."""

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mcis.checkpoints import checkpoint
from mcis.cli import common, train
from mcis.tasks import config, table
from mcis.train import loop


def wait_for_lines(log, count, process):
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= count):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_process_resumes(phantom_dir, tmp_path):
    command = [sys.executable, "-m", "mcis.launch", "--task=route", "--sources=phantom", f"--data_dir={phantom_dir}"]
    command += [f"--runs_dir={tmp_path}", "--size=32", "--features=4", "--batch_size=16", "--epochs=12"]
    log = tmp_path / "route" / loop.LOG
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for_lines(log, 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    done = len(log.read_text().splitlines())
    assert done < 12
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "epoch 12 of 12, the last" in again.stdout
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == list(range(1, 13))
    hint = next(line for line in again.stdout.splitlines() if line.startswith("score it once"))
    words = shlex.split(hint.partition(": ")[2])
    scored = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    assert scored.returncode == 0 and "balanced_accuracy" in scored.stdout, scored.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_process_that_is_asked_to_stop_saves_and_goes_on_bit_by_bit(number, phantom_dir, tmp_path):
    command = [sys.executable, "-m", "mcis.launch", "--task=route", "--sources=phantom", f"--data_dir={phantom_dir}"]
    command += [f"--runs_dir={tmp_path}", "--size=32", "--features=4", "--batch_size=4", "--epochs=8", "--select=last"]
    subprocess.run([*command, "--run=whole"], check=True, capture_output=True)
    process = subprocess.Popen([*command, "--run=stopped"], stdout=subprocess.PIPE, text=True)
    wait_for_lines(tmp_path / "stopped" / loop.LOG, 1, process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "is saved after step" in said and "type the same again" in said
    again = subprocess.run([*command, "--run=stopped"], capture_output=True, text=True, check=True)
    assert "resumed after epoch" in again.stdout
    one, other = (checkpoint.load(tmp_path / run / loop.BEST)[0] for run in ("whole", "stopped"))
    for (name, value), theirs in zip(checkpoint.flatten(one).items(), checkpoint.flatten(other).values(), strict=True):
        np.testing.assert_array_equal(value, theirs, err_msg=name)


def test_a_second_interrupt_stops_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with common.asked_to_stop() as stop:
            assert not stop()
            signal.raise_signal(signal.SIGINT)
            assert stop()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_folds_leave_out_each_scan_once_and_no_test_scan(phantom_scans, phantom_dir, tmp_path, monkeypatch, capsys):
    seen, dirs = [], []

    def record(task, train_scans, validation_scans, run_dir, *rest, **further):
        dirs.append(run_dir)
        seen.append((set(train_scans.fingerprint), set(validation_scans.fingerprint)))
        return {"epoch": 1, "validation": {}}

    monkeypatch.setattr(loop, "train", record)
    options = ["--task=route", "--sources=phantom", f"--data_dir={phantom_dir}", f"--runs_dir={tmp_path}"]
    for fold in range(3):
        assert train.main([*options, f"--fold={fold}/3"]) == 0
    every = set(phantom_scans.fingerprint)
    for trained, left_out in seen:
        assert trained | left_out == every and not trained & left_out
    assert sum(len(left_out) for _, left_out in seen) == len(every)
    assert train.main([*options, "--fold=3/3"]) == 2
    assert "--fold=3/3: K/N is needed" in capsys.readouterr().err
    assert sorted(path.name for path in dirs) == ["route_fold0", "route_fold1", "route_fold2"]


def test_a_fold_is_named_by_its_number_and_theirs():
    assert train.parse_fold("2") == train.parse_fold("2/5") == (2, 5)
    assert train.parse_fold("0/3") == (0, 3)
    for text in ("5", "x/3", "0/1", "-1", "1/x", ""):
        with pytest.raises(ValueError, match=r"K from 0 to N - 1, as 0/5 to 4/5; K alone is K/5"):
            train.parse_fold(text)


def test_a_task_starts_at_another_size_and_goes_on_from_there(phantom_dir, tmp_path, capsys):
    options = ["--task=route", "--sources=phantom", f"--data_dir={phantom_dir}", f"--runs_dir={tmp_path}"]
    options += ["--features=4", "--start.epochs=2", "--start.size=32", "--start.learning_rate=1e-3"]
    options += ["--size=64", "--epochs=1", "--learning_rate=1e-12", "--weight_decay=0"]
    assert train.main(options) == 0
    assert "route: first 2 epochs at 32 px, then 1 at 64" in capsys.readouterr().out
    run = tmp_path / "route"
    first, last = (checkpoint.load(folder / loop.BEST) for folder in (run / train.START, run))
    assert [manifest["task"]["size"] for _, manifest in (first, last)] == [32, 64]
    assert last[1]["task"]["start"] == {"epochs": 2, "size": 32, "learning_rate": 1e-3}
    # the start kept its last epoch, so that no scan has chosen it and none counts as learned from but those that were
    assert last[1]["fingerprints"]["train"] == first[1]["fingerprints"]["train"]
    assert not set(last[1]["fingerprints"]["train"]) & set(last[1]["fingerprints"]["validation"])
    before, after = (checkpoint.flatten(variables["params"]) for variables, _ in (first, last))
    for name, value in before.items():  # a learning rate of nothing changes nothing
        np.testing.assert_allclose(after[name], value, atol=1e-7)
    assert train.main(options) == 0
    assert capsys.readouterr().out.count("complete already") == 2
    shutil.rmtree(run / train.START)
    for option in ("--start.epochs=3", "--learning_rate=1e-3"):  # found before a start is trained
        assert train.main([*options, option]) == 2
        assert "holds a run with other settings" in capsys.readouterr().err
    assert not (run / train.START).exists()


def test_a_size_or_a_length_that_is_asked_for_is_all_of_it(monkeypatch):
    row = dataclasses.replace(table.TASKS["route"], start=config.Pretraining(epochs=9))
    monkeypatch.setitem(table.TASKS, "route", row)
    starts = {
        option: train.parse(["--task=route", *option.split()])[1].start.epochs
        for option in ("--batch_size=8", f"--size={row.size}", "--size=64", "--epochs=3", "--size=64 --start.epochs=2")
    }
    assert list(starts.values()) == [9, 9, 0, 0, 2]
