"""Worker processes: crashes, hangs and memory limits are errors of one file, and other files are read as usual."""

import asyncio
import os
import pathlib
import signal
import subprocess
import sys
import time
import zipfile

import cv2
import nibabel
import numpy as np
import psutil
import pytest

import mcis
from mcis.imaging import formats, phantom, worker
from mcis.imaging.pool import CRASHED, WorkerPool, read_all
from mcis.imaging.scan import ScanError

IMAGE = phantom.make_phantom("brain", 1, 5, size=(120, 160)).image


def run(work, **options):
    """The result of `work`, a coroutine function of a WorkerPool."""

    async def with_pool():
        pool = WorkerPool(**{"count": 1, "module": "tests.fixtures.breaking_worker"} | options)
        try:
            return await work(pool)
        finally:
            await pool.close()

    return asyncio.run(with_pool())


async def error_of(pool, operation, **arguments):
    with pytest.raises(ScanError) as error:
        await pool.request(operation, **arguments)
    return str(error.value)


def test_a_worker_reads_the_same_as_this_process(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE[..., ::-1])
    (tmp_path / "b.png").write_bytes(b"none")

    async def work(pool):
        return [await pool.read(str(tmp_path / name), None) for name in ("a.png", "b.png", "c.png")]

    for name, found in zip(("a.png", "b.png", "c.png"), run(work), strict=True):
        expected = formats.load(str(tmp_path / name), None)
        assert found.error == expected.error and found.geometry == expected.geometry and found.notes == expected.notes
        if found.image is not None:
            np.testing.assert_array_equal(found.image, expected.image)
            np.testing.assert_array_equal(found.square, expected.square)


def test_scans_are_read_in_order_although_some_crash_or_hang_their_worker(tmp_path):
    names = ["a.png", "crash.png", "b.png", "none.png", "hang.png", "c.png", "take.png"]
    for name in names:
        cv2.imwrite(str(tmp_path / name), IMAGE[..., ::-1])
    (tmp_path / "none.png").write_bytes(b"none")
    scans = [(str(tmp_path / name), None) for name in names]
    options = {"module": "tests.fixtures.breaking_worker", "seconds": 2.0, "memory": 256 << 20}
    found = list(read_all(scans, 3, **options))
    assert [pathlib.Path(one.path).name for one in found] == names
    errors = {name: one.error for name, one in zip(names, found, strict=True) if one.error}
    assert {name: error.removeprefix(f"{tmp_path}/{name}: ") for name, error in errors.items()} == {
        "crash.png": CRASHED,
        "none.png": "not a readable image; PNG, JPEG, TIFF, BMP, DICOM and NIfTI are supported",
        "hang.png": "took longer than the 2 s allowed for reading",
        "take.png": "needs more memory than is allowed for reading",
    }
    np.testing.assert_array_equal(found[-2].image, IMAGE)


def test_closing_the_reader_early_does_not_wait_and_leaves_no_process(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    (tmp_path / "hang.png").write_bytes(b"")
    scans = [(str(tmp_path / name), None) for name in ("a.png", *["hang.png"] * 5)]
    before = psutil.Process().children()
    running = read_all(scans, 3, module="tests.fixtures.breaking_worker")
    assert next(running).error is None and len(psutil.Process().children()) > len(before)
    running.close()
    assert psutil.Process().children() == before


def test_the_requested_pages_and_slices_are_read(tmp_path):
    pages = [np.ascontiguousarray(page) for page in (IMAGE, IMAGE[::-1], IMAGE[:, ::-1])]
    cv2.imwritemulti(str(tmp_path / "p.tiff"), pages)
    volume = np.stack([page[..., 0] for page in pages], axis=2)
    nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 3.0, 1.0])).to_filename(tmp_path / "v.nii.gz")
    scans = [*formats.frames([str(tmp_path / "p.tiff"), str(tmp_path / "v.nii.gz")]), (str(tmp_path / "p.tiff"), 7)]
    assert len(scans) == 7
    for found, scan in zip(read_all(scans, 3), scans, strict=True):
        expected = formats.load(*scan)
        assert (found.path, found.frame, found.error) == (expected.path, expected.frame, expected.error)
        assert (found.notes, found.spacing) == (expected.notes, expected.spacing)
        assert found.slice_geometry == expected.slice_geometry
        np.testing.assert_array_equal(found.image, expected.image)
        assert found.image is None or found.image.flags.writeable


def run_python(code, *arguments, **options):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_a_program_can_exit_while_scans_are_being_read(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    code = "import sys; from mcis.imaging.pool import read_all\n"
    code += "g = read_all([(sys.argv[1], None)] * 50, 2); next(g); print(1)"
    done = run_python(code, str(tmp_path / "a.png"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.mark.parametrize(("number", "to"), [(signal.SIGINT, "group"), (signal.SIGTERM, "each")])
def test_a_signal_to_all_processes_reaches_only_the_caller(number, to, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    code = "import signal, sys; from mcis.imaging.pool import read_all; came = []\n"
    code += "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, lambda *_: came.append(1))\n"
    code += "found = read_all([(sys.argv[1], None)] * 100, 4); print(next(found).error, flush=True)\n"
    code += "print([one.error for one in found if one.error], len(came))"
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "None\n"
        children = psutil.Process(process.pid).children()
        assert len(children) == 2
        if to == "group":
            os.killpg(process.pid, number)
        else:
            for one in (*children, process):
                one.send_signal(number)
        assert process.communicate(timeout=60)[0] == "[] 1\n"


def test_an_error_of_the_caller_while_workers_start_leaves_no_process(tmp_path):
    def scans(delay):
        yield str(tmp_path / "a.png"), None
        yield str(tmp_path / "b.png"), None
        time.sleep(delay)
        raise OSError("the list ends early")

    for delay in (0, 0.002, 0.01, 0.1):
        with pytest.raises(OSError, match="ends early"):
            list(read_all(scans(delay), 4))
    assert not any("mcis.imaging.worker" in " ".join(child.cmdline()) for child in psutil.Process().children())


def test_nothing_is_imported_from_the_current_folder(tmp_path):
    for name in ("cv2.py", "json.py", "mcis.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    root = str(pathlib.Path(mcis.__file__).parents[1])
    code = "import sys; sys.path[0] = sys.argv[1]; from mcis.imaging.pool import read_all\n"
    code += "print([one.error for one in read_all([('a.png', None)], 2)])"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which may contain it
    done = run_python(code, root, cwd=tmp_path, env=plain)
    assert done.stdout == "[None]\n", done.stderr


def test_a_worker_that_does_not_start_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match=r"does not start; run `.* -m tests.no_such_worker [0-9]+` to see why"):
        list(read_all([("a.png", None)], 2, module="tests.no_such_worker"))


@pytest.mark.parametrize(("number", "again"), [("SIGTERM", True), ("SIGABRT", False)])
def test_a_worker_that_gets_sigterm_while_it_starts_is_started_again(number, again, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    code = f"import os, pathlib, signal; met = pathlib.Path({str(tmp_path / 'met')!r})\n"
    code += f"if not met.exists(): met.touch(); os.kill(os.getpid(), signal.{number})\n"
    (tmp_path / "met_once.py").write_text(f"{code}from mcis.imaging import worker; worker.main()")
    root = str(pathlib.Path(mcis.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{root}")
    reads = read_all([(str(tmp_path / "a.png"), None)], 2, module="met_once")
    if again:
        assert next(reads).error is None
    else:
        with pytest.raises(OSError, match="does not start"):
            next(reads)


def test_workers_end_with_the_caller_even_while_they_read(tmp_path):
    code = "from mcis.imaging.pool import read_all\n"
    code += "list(read_all([('hang.png', None)] * 2, 2, module='tests.fixtures.breaking_worker'))"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        caller, children = psutil.Process(process.pid), []
        while len(children) < 2 or any(child.cpu_times().user < 0.1 for child in children):
            time.sleep(0.1)
            children = caller.children()
        time.sleep(0.5)
        process.kill()
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_a_response_that_came_while_the_caller_was_suspended_is_used(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)

    async def work(pool):
        await pool.read(str(tmp_path / "a.png"), None)  # it has started
        request = asyncio.create_task(pool.read(str(tmp_path / "a.png"), None))
        await asyncio.sleep(0)
        time.sleep(1.0)
        return await request

    assert run(work, seconds=0.5).error is None


def test_after_crashes_and_timeouts_the_next_request_is_answered():
    async def work(pool):
        errors = [await error_of(pool, name) for name in ("crash", "raise")]
        errors.append(await error_of(pool, "hang", seconds=0.5))
        errors.append(await error_of(pool, "take", size=1 << 30))
        return errors, await pool.request("chatter"), await pool.request("take", size=1 << 20)

    errors, chatter, fine = run(work, memory=256 << 20)
    assert errors[0] == errors[1] == CRASHED and "0.5 s" in errors[2] and "memory" in errors[3]
    assert chatter == ({"fine": True}, b"123") and fine == ({"sum": 256}, b"")


def test_an_invalid_response_is_an_error():
    async def work(pool):
        errors = []
        for response in BAD_RESPONSES:
            pool.request = lambda *_, response=response, **__: asyncio.sleep(0, response)
            errors.append((await pool.read("/nowhere/a.png", None)).error)
        return errors

    assert run(work) == [f"/nowhere/a.png: {CRASHED}"] * len(BAD_RESPONSES)


BAD_RESPONSES = [
    *(
        ({"shape": shape, "notes": []}, bytes(12))
        for shape in (5, [2, 2], [2, 2, 1], [-2, -2, 3], [2, 2, 3, 1], [2, 3, 3])
    ),
    *(({"shape": [2, 2, 3], "notes": notes}, bytes(12)) for notes in (5, "x", [5], None)),
    ({"shape": [2, 2, 3], "notes": [], "spacing": [1.0]}, bytes(12)),
    ({"shape": [2, 2, 3], "notes": [], "spacing": "xx"}, bytes(12)),
    ({"shape": [2, 2, 3], "notes": [], "series": "a", "normal": [1.0]}, bytes(12)),
    ({"notes": []}, b""),
]


def test_a_cancelled_request_leaves_no_response_for_the_next():
    async def work(pool):
        request = asyncio.create_task(pool.request("hang"))
        await asyncio.sleep(0.5)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        return await pool.request("chatter")

    assert run(work)[1] == b"123"


@pytest.fixture
def packed(tmp_path):
    """A function that writes an archive of (name, bytes) and unpacks it."""

    def unpack(entries, files=100, size=1 << 24):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries:
                archive.writestr(name, data)
        (tmp_path / "in").mkdir(exist_ok=True)
        header, _ = worker.unpack(str(tmp_path / "a.zip"), str(tmp_path / "in"), files, size)
        return header["entries"]

    return unpack


def test_an_archive_is_unpacked_to_numbered_files(packed, tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    names = ["../../out.png", "/etc/out.png", "C:\\out.png", "a/b.jpg", "a/b.jpg", "x" * 300 + ".nii.gz"]
    entries = [(name, b"1") for name in names] + [
        (link, "/etc/passwd"),
        (".hidden.png", b"1"),
        ("__MACOSX/a.png", b"1"),
    ]
    found = packed(entries)
    assert [entry[0] for entry in found] == names
    assert [os.path.basename(entry[1]) for entry in found] == [
        *("000000.png", "000001.png", "000002.png", "000003.jpg", "000004.jpg", "000005.nii.gz")
    ]
    everything = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert everything == ["a.zip", *(f"in/{os.path.basename(entry[1])}" for entry in found)]


def test_limits_of_an_archive_are_enforced(packed, tmp_path):
    bomb = ("bomb.png", b"\0" * (1 << 25))
    found = packed([("a.png", b"1"), bomb, ("b.png", b"1"), ("c.zip", b"PK")])
    assert [entry[2] and entry[2].split(",")[0] for entry in found] == [
        None,
        "too large",
        None,
        "a zip archive in another; unpack that one and give the folder",
    ]
    with pytest.raises(ScanError, match="3 files; at most 2"):
        packed([(f"{k}.png", b"1") for k in range(3)], files=2)
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ScanError, match="not an archive, or damaged"):
        worker.unpack(str(tmp_path / "a.zip"), str(tmp_path), 10, 100)


def encrypted(path, count):
    """State in an archive that its first entries are encrypted."""
    data = bytearray(path.read_bytes())
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        for _ in range(count):
            at = data.index(sign, at + 1)
            data[at + offset] |= 1
    path.write_bytes(data)


def test_an_encrypted_entry_is_an_error(packed, tmp_path):
    packed([("a.png", b"1"), ("b.png", b"2")])
    words = "protected by a password; unpack it with the password and give the folder"
    encrypted(tmp_path / "a.zip", 1)
    first, second = worker.unpack(str(tmp_path / "a.zip"), str(tmp_path / "in"), 10, 1000)[0]["entries"]
    assert first == ["a.png", None, words] and second[2] is None
    encrypted(tmp_path / "a.zip", 2)
    with pytest.raises(ScanError, match=f"^{words}$"):
        worker.unpack(str(tmp_path / "a.zip"), str(tmp_path / "in"), 10, 1000)


def test_a_damaged_entry_does_not_affect_the_others(packed, tmp_path):
    packed([("a.png", b"1"), ("b.png", b"2")])
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[:4] = b"XXXX"  # the local header of the first
    (tmp_path / "a.zip").write_bytes(data)
    first, second = worker.unpack(str(tmp_path / "a.zip"), str(tmp_path / "in"), 10, 1000)[0]["entries"]
    assert first[1] is None and first[2].startswith("cannot be unpacked") and second[2] is None


def test_all_entries_share_one_limit(packed):
    found = packed([(f"{k}.png", b"\0" * 600) for k in range(3)], size=1000)
    assert [entry[2] is None for entry in found] == [True, False, False]


def test_an_entry_larger_than_the_archive_says_is_an_error(packed, tmp_path):
    packed([("a.png", b"\0" * 5000)])
    data = (tmp_path / "a.zip").read_bytes().replace((5000).to_bytes(4, "little"), (50).to_bytes(4, "little"))
    (tmp_path / "a.zip").write_bytes(data)
    ((_, path, why),) = worker.unpack(str(tmp_path / "a.zip"), str(tmp_path / "in"), 10, 1000)[0]["entries"]
    assert path is None and why


def test_an_entry_without_suffix_is_unpacked_only_if_it_is_dicom(packed):
    dicom = b"\0" * 128 + b"DICM" + b"\0" * 10
    assert [entry[0] for entry in packed([("IM0001", dicom), ("README", b"text"), ("LICENSE.txt", b"text")])] == [
        "IM0001"
    ]
