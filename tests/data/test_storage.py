"""Pixels of prepared scans: in memory, or decoded when they are asked for."""

import dataclasses
import os
import subprocess
import sys
import textwrap

import numpy as np
import psutil
import pytest

from mcis.checkpoints import checkpoint
from mcis.data import dataset, storage
from mcis.train import loop
from tests.fixtures.runs import SMALL


def load(phantom_dir, split="train", organ=None, stream=True):
    return dataset.load(("phantom",), split, phantom_dir, organ, stream)


def same(found, wanted):
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == y.dtype == np.uint8
        np.testing.assert_array_equal(x, y)


def test_scans_are_the_same_whether_their_pixels_are_in_memory_or_not(phantom_dir):
    kept, streamed = (load(phantom_dir, organ="breast", stream=stream) for stream in (False, True))
    assert streamed.pixels.streamed and not kept.pixels.stored
    for name in streamed.columns:
        np.testing.assert_array_equal(getattr(streamed, name), getattr(kept, name))
    same(streamed.pixels.read(), kept.pixels.read())


@pytest.mark.parametrize("stream", [(False, False), (True, False), (True, True)])
def test_what_is_taken_and_joined_is_read_from_where_it_is(phantom_dir, stream):
    splits = ("train", "validation")
    image, mask = (
        np.concatenate(both)
        for both in zip(*(load(phantom_dir, split, stream=False).pixels.read() for split in splits), strict=True)
    )
    joined = dataset.Scans.join(
        [load(phantom_dir, *pair[:1], stream=pair[1]) for pair in zip(splits, stream, strict=True)]
    )
    order = np.random.default_rng(0).permutation(len(joined))
    taken = joined.take(order).take(np.arange(len(joined)) % 3 == 0)
    rows = order[::3]
    assert len(taken) == len(rows)
    same(taken.pixels.read(), (image[rows], mask[rows]))
    same(taken.pixels.read(np.array([4, 0, 4])), (image[rows[[4, 0, 4]]], mask[rows[[4, 0, 4]]]))
    same(taken.pixels.read(slice(2, 5)), (image[rows[2:5]], mask[rows[2:5]]))
    assert len(taken.pixels.read(np.zeros(0, int))[0]) == 0


def test_taking_copies_no_pixels(scans):
    part = scans[0].pixels.parts[0]
    taken = dataset.Scans.join([scans[0].take(np.array([1])), scans[1]])
    assert taken.pixels.parts[0] is part


def test_pixels_stay_in_the_files_where_they_would_take_more_than_a_third_of_what_is_free(
    phantom_dir, monkeypatch, capsys
):
    count = len(load(phantom_dir))
    for free, stored in ((3 * count * storage.BYTES, False), (3 * count * storage.BYTES - 1, True)):
        monkeypatch.setattr(dataset, "free_memory", lambda free=free: free)
        assert load(phantom_dir, stream=None).pixels.streamed == stored
        said = capsys.readouterr().out
        assert (f"train: {count} scans" in said and "decoded each time" in said) == stored
        halved = dataset.load(("phantom",), "train", phantom_dir, neighbours=2)
        assert halved.pixels.streamed
    assert not load(phantom_dir, stream=False).pixels.streamed  # one is taken at one's word


@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a process's memory is Linux's")
def test_a_process_that_may_not_take_so_much_streams():
    program = """
        import resource
        from mcis import data
        now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (8 << 20), -1))
        print(data._room("phantom", "train", 1000))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "this process may not take so much: they are decoded each time" in done.stdout
    assert done.stdout.splitlines()[-1] == "None"


def cgroup(folder, limit, used, cached=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cached}\ninactive_file {cached}\n")


def test_free_memory_is_what_the_narrowest_control_group_leaves(tmp_path):
    process, root = tmp_path / "cgroup", tmp_path / "groups"
    process.write_text("1:name=systemd:/x\n0::/slurm/job_7/step\n")
    machine = psutil.virtual_memory().available
    assert storage.free_memory(root, tmp_path / "none") == pytest.approx(machine, rel=0.2)
    (root / "slurm" / "job_7" / "step").mkdir(parents=True)
    assert storage.free_memory(root, process) == pytest.approx(machine, rel=0.2)  # no controller
    cgroup(root / "slurm", "max", 5000)
    assert storage.free_memory(root, process) == pytest.approx(machine, rel=0.2)
    cgroup(root / "slurm" / "job_7", 4000, 3000, cached=1500)
    assert storage.free_memory(root, process) == 4000 - 1500
    cgroup(root / "slurm" / "job_7" / "step", 2000, 1900)
    assert storage.free_memory(root, process) == 100
    cgroup(root / "slurm" / "job_7" / "step", 2000, 2100)
    assert storage.free_memory(root, process) == 0
    cgroup(root.parent, 1, 1)  # outside
    assert storage.free_memory(root, process) == 0
    process.write_text("11:cpu,memory:/job\n0::/\n")
    old = root / "memory" / "job"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("700")
    (old / "memory.usage_in_bytes").write_text("300")
    (old / "memory.stat").write_text("total_inactive_file 50")
    assert storage.free_memory(root, process) == 450
    process.write_text("0::/\n")
    assert storage.free_memory(root, process) == pytest.approx(machine, rel=0.2)


def test_a_run_ends_bit_by_bit_the_same_whether_its_scans_are_in_memory_or_not(phantom_dir, tmp_path):
    task = dataclasses.replace(SMALL, epochs=2)
    for name, stream in (("kept", False), ("streamed", True)):
        loop.train(
            task, *(load(phantom_dir, split, stream=stream) for split in ("train", "validation")), tmp_path / name
        )
    kept, streamed = (
        checkpoint.flatten(checkpoint.load(tmp_path / name / loop.BEST)[0]) for name in ("kept", "streamed")
    )
    assert kept.keys() == streamed.keys()
    for name, value in kept.items():
        np.testing.assert_array_equal(streamed[name], value)


def test_a_record_that_is_damaged_ends_the_training_that_meets_it(phantom_dir, tmp_path):
    train, validation = (load(phantom_dir, split) for split in ("train", "validation"))
    records = train.pixels.parts[0].records
    broken = [dict(record) for record in (records[i] for i in range(len(records)))]
    for record in broken:
        record["image"] = record["image"][: len(record["image"]) // 2]
    stored = dataclasses.replace(train.pixels, parts=(storage.Part(broken, None),))
    with pytest.raises(ValueError, match="image"):
        loop.train(SMALL, dataclasses.replace(train, pixels=stored), validation, tmp_path / "run")


@pytest.mark.parametrize("error", [RuntimeError("corrupt chunk"), TypeError("not bytes")])
def test_a_file_that_is_damaged_is_said_as_what_it_is(error):
    class Damaged:
        def __getitem__(self, row):
            raise error

    with pytest.raises(OSError, match=r"record 7 of a prepared set cannot be read.*--overwrite"):
        storage.Part(Damaged(), None).read(np.array([7]))


def test_threads_are_no_more_than_the_processors():
    assert 1 <= storage.THREADS <= os.cpu_count()
