"""Pixels of prepared scans: decoded in memory, or at each access."""

import dataclasses
import os
import resource
import sys

import numpy as np
import psutil
import pytest

from mcis.data import batches, dataset, storage


def load(phantom_dir, split="train", organ=None, stream=True):
    return dataset.load(("phantom",), split, phantom_dir, organ, stream)


def assert_same(pixels, expected):
    for x, y in zip(pixels, expected, strict=True):
        assert x.dtype == y.dtype == np.uint8
        np.testing.assert_array_equal(x, y)


def test_streamed_scans_equal_scans_in_memory(phantom_dir):
    kept, streamed = (load(phantom_dir, organ="breast", stream=stream) for stream in (False, True))
    assert streamed.pixels.streamed and not kept.pixels.streamed
    for name, values in kept.columns.items():
        np.testing.assert_array_equal(streamed.columns[name], values)
    assert_same(streamed.pixels.read(), kept.pixels.read())


@pytest.mark.parametrize("stream", [(True, False), (True, True)])
def test_selected_and_joined_scans_have_their_own_pixels(scans, phantom_dir, stream):
    image, mask = (np.concatenate(both) for both in zip(*(part.pixels.read() for part in scans), strict=True))
    splits = ("train", "validation")
    joined = dataset.Scans.join([load(phantom_dir, split, stream=on) for split, on in zip(splits, stream, strict=True)])
    order = np.random.default_rng(0).permutation(len(joined))
    taken = joined.take(order).take(np.arange(len(joined)) % 3 == 0)
    rows = order[::3]
    assert len(taken) == len(rows)
    assert_same(taken.pixels.read(), (image[rows], mask[rows]))
    assert_same(taken.pixels.read(np.array([4, 0, 4])), (image[rows[[4, 0, 4]]], mask[rows[[4, 0, 4]]]))
    assert_same(taken.pixels.read(slice(2, 5)), (image[rows[2:5]], mask[rows[2:5]]))
    assert len(taken.pixels.read(np.zeros(0, int))[0]) == 0


def test_selecting_copies_no_pixels(scans):
    taken = dataset.Scans.join([scans[0].take(np.array([1])), scans[1]])
    assert taken.pixels.parts[0] is scans[0].pixels.parts[0]


def test_batches_are_the_same_whether_scans_are_streamed_or_in_memory(scans, phantom_dir):
    label = scans[0].label
    streamed = load(phantom_dir)
    for make in (
        lambda s: batches.ahead(batches.training_batches(s, label, label, {0: 1.0, 1: 2.0}, 4, 0), s, 5),
        lambda s: (batch for _, batch in batches.evaluation_batches(s, label, 7)),
    ):
        for kept, read, _ in zip(make(scans[0]), make(streamed), range(4), strict=False):
            for x, y in zip(kept, read, strict=True):
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)


def test_a_damaged_record_stops_the_batches_that_read_it(phantom_dir):
    scans = load(phantom_dir, "validation")
    records = scans.pixels.parts[0].records
    broken = [dict(records[i]) for i in range(len(records))]
    for record in broken:
        record["image"] = record["image"][: len(record["image"]) // 2]
    pixels = dataclasses.replace(scans.pixels, parts=(storage.Part(broken, None),))
    with pytest.raises(ValueError, match="image"):
        list(batches.evaluation_batches(dataclasses.replace(scans, pixels=pixels), scans.label, 2))


@pytest.mark.parametrize("error", [RuntimeError("corrupt chunk"), TypeError("not bytes")])
def test_a_damaged_file_is_reported_with_its_remedy(error):
    class Damaged:
        def __getitem__(self, row):
            raise error

    with pytest.raises(OSError, match=r"record 7 of a prepared set cannot be read.*--overwrite"):
        storage.Part(Damaged(), None).read(np.array([7]))


def test_scans_are_streamed_where_they_would_take_more_than_a_third_of_the_free_memory(
    phantom_dir, monkeypatch, capsys
):
    count = len(dataset.records("phantom", "validation", phantom_dir))
    for free, streamed in ((3 * count * storage.BYTES, False), (3 * count * storage.BYTES - 1, True)):
        monkeypatch.setattr(dataset, "free_memory", lambda free=free: free)
        assert load(phantom_dir, "validation", stream=None).pixels.streamed == streamed
        printed = capsys.readouterr().out
        assert (f"validation: {count} scans" in printed and "decoded at each access" in printed) == streamed
    monkeypatch.setattr(dataset, "free_memory", lambda: 3 * count * storage.BYTES)
    assert dataset.load(("phantom",), "validation", phantom_dir, neighbours=2).pixels.streamed
    assert "free for each process" in capsys.readouterr().out
    assert not load(phantom_dir, "validation", stream=False).pixels.streamed


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS bounds a process's memory on Linux")
def test_scans_are_streamed_where_the_process_may_not_take_the_memory(phantom_dir, monkeypatch, capsys):
    allocate = storage.allocate
    monkeypatch.setattr(storage, "allocate", lambda count: allocate(1000 * count))
    taken, limits = psutil.Process().memory_info().vms, resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (256 << 20), limits[1]))
    try:
        scans = load(phantom_dir, "validation", stream=False)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert scans.pixels.streamed
    assert "this process may not take so much: they are decoded at each access" in capsys.readouterr().out


def write_cgroup(folder, limit, used, cached=0):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon {used - cached}\ninactive_file {cached}\n")


def test_free_memory_is_that_of_the_narrowest_control_group(tmp_path):
    process, root = tmp_path / "cgroup", tmp_path / "groups"
    process.write_text("1:name=systemd:/x\n0::/slurm/job_7/step\n")
    machine = psutil.virtual_memory().available
    assert storage.free_memory(root, tmp_path / "none") == pytest.approx(machine, rel=0.2)
    (root / "slurm" / "job_7" / "step").mkdir(parents=True)
    assert storage.free_memory(root, process) == pytest.approx(machine, rel=0.2)  # no memory controller
    write_cgroup(root / "slurm", "max", 5000)
    assert storage.free_memory(root, process) == pytest.approx(machine, rel=0.2)
    write_cgroup(root / "slurm" / "job_7", 4000, 3000, cached=1500)
    assert storage.free_memory(root, process) == 4000 - 1500
    write_cgroup(root / "slurm" / "job_7" / "step", 2000, 1900)
    assert storage.free_memory(root, process) == 100
    write_cgroup(root / "slurm" / "job_7" / "step", 2000, 2100)
    assert storage.free_memory(root, process) == 0
    write_cgroup(root.parent, 1, 1)  # outside the root
    assert storage.free_memory(root, process) == 0
    process.write_text("11:cpu,memory:/job\n0::/\n")
    v1 = root / "memory" / "job"
    v1.mkdir(parents=True)
    (v1 / "memory.limit_in_bytes").write_text("700")
    (v1 / "memory.usage_in_bytes").write_text("300")
    (v1 / "memory.stat").write_text("total_inactive_file 50")
    assert storage.free_memory(root, process) == 450
    process.write_text("0::/\n")
    assert storage.free_memory(root, process) == pytest.approx(machine, rel=0.2)


def test_there_are_no_more_threads_than_processors():
    assert 1 <= storage.THREADS <= os.cpu_count()
