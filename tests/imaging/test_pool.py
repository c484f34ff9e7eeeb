"""Processes that read uploads: what breaks one, or keeps it, is an error, and the next is asked as if nothing was."""

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
from mcis.imaging.pool import BROKE, Readers, read_all
from mcis.imaging.scan import ScanError

PICTURE = phantom.make_phantom("brain", 1, 5, size=(120, 160)).image


def run(work, **options):
    """What `work`, a coroutine function of Readers, gives."""

    async def ran():
        readers = Readers(**{"count": 1, "module": "tests.fixtures.breaking_worker"} | options)
        try:
            return await work(readers)
        finally:
            await readers.close()

    return asyncio.run(ran())


def refusal(readers, operation, **arguments):
    async def refused():
        with pytest.raises(ScanError) as error:
            await readers.ask(operation, **arguments)
        return str(error.value)

    return refused()


def test_reads_what_reading_reads(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE[..., ::-1])
    (tmp_path / "b.png").write_bytes(b"none")

    async def work(readers):
        return [await readers.read(str(tmp_path / name), None) for name in ("a.png", "b.png", "c.png")]

    for name, found in zip(("a.png", "b.png", "c.png"), run(work), strict=True):
        expected = formats.load(str(tmp_path / name), None)
        assert found.error == expected.error and found.geometry == expected.geometry and found.notes == expected.notes
        if found.image is not None:
            np.testing.assert_array_equal(found.image, expected.image)
            np.testing.assert_array_equal(found.square, expected.square)


def test_many_are_read_in_order_whatever_some_of_them_do_to_who_reads_them(tmp_path):
    names = ["a.png", "crash.png", "b.png", "none.png", "hang.png", "c.png", "take.png"]
    for name in names:
        cv2.imwrite(str(tmp_path / name), PICTURE[..., ::-1])
    (tmp_path / "none.png").write_bytes(b"none")
    scans = [(str(tmp_path / name), None) for name in names]
    options = {"module": "tests.fixtures.breaking_worker", "seconds": 5.0, "memory": 256 << 20}
    found = list(read_all(scans, 3, **options))
    assert [pathlib.Path(one.path).name for one in found] == names
    errors = {name: one.error for name, one in zip(names, found, strict=True) if one.error}
    assert {name: error.removeprefix(f"{tmp_path}/{name}: ") for name, error in errors.items()} == {
        "crash.png": BROKE,
        "none.png": "not a readable picture; PNG, JPEG, TIFF, BMP, DICOM and NIfTI are read",
        "hang.png": "took longer to read than the 5 s that are allowed",
        "take.png": "needs more memory to be read than is allowed",
    }
    np.testing.assert_array_equal(found[-2].image, PICTURE)


def test_who_takes_no_more_waits_for_nothing_and_leaves_no_process(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE)
    (tmp_path / "hang.png").write_bytes(b"")
    scans = [(str(tmp_path / name), None) for name in ("a.png", *["hang.png"] * 5)]
    before = psutil.Process().children()
    running = read_all(scans, 3, module="tests.fixtures.breaking_worker")
    assert next(running).error is None and len(psutil.Process().children()) > len(before)
    running.close()
    assert psutil.Process().children() == before


def test_pages_and_slices_are_those_that_are_asked_for(tmp_path):
    pages = [np.ascontiguousarray(page) for page in (PICTURE, PICTURE[::-1], PICTURE[:, ::-1])]
    cv2.imwritemulti(str(tmp_path / "p.tiff"), pages)
    volume = np.stack([page[..., 0] for page in pages], axis=2)
    nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 3.0, 1.0])).to_filename(tmp_path / "v.nii.gz")
    scans = [*formats.frames([str(tmp_path / "p.tiff"), str(tmp_path / "v.nii.gz")]), (str(tmp_path / "p.tiff"), 7)]
    assert len(scans) == 7
    for found, scan in zip(read_all(scans, 3), scans, strict=True):
        expected = formats.load(*scan)
        assert (found.path, found.frame, found.error) == (expected.path, expected.frame, expected.error)
        assert (found.notes, found.spacing, found.place) == (expected.notes, expected.spacing, expected.place)
        np.testing.assert_array_equal(found.image, expected.image)
        assert found.image is None or found.image.flags.writeable


def run_python(code, *words, **options):
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, **options)


def test_a_program_that_ends_while_scans_are_read_ends(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE)
    code = "import sys; from mcis.imaging.pool import read_all\n"
    code += "g = read_all([(sys.argv[1], None)] * 50, 2); next(g); print(1)"
    done = run_python(code, str(tmp_path / "a.png"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.mark.parametrize(("number", "to"), [(signal.SIGINT, "group"), (signal.SIGTERM, "each")])
def test_a_signal_to_all_processes_is_the_asking_ones_alone(number, to, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE)
    code = "import signal, sys; from mcis.imaging.pool import read_all; came = []\n"
    code += "for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, lambda *_: came.append(1))\n"
    code += "found = read_all([(sys.argv[1], None)] * 3000, 4); print(next(found).error, flush=True)\n"
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


def test_who_leaves_while_readers_start_waits_for_nothing(tmp_path):
    def scans(delay):
        yield str(tmp_path / "a.png"), None
        yield str(tmp_path / "b.png"), None
        time.sleep(delay)
        raise OSError("the list ends early")

    for delay in (0, 0.001, 0.002, 0.004, 0.006, 0.02, 0.2):
        with pytest.raises(OSError, match="ends early"):
            list(read_all(scans(delay), 4))
    assert not any("mcis.imaging.worker" in " ".join(child.cmdline()) for child in psutil.Process().children())


def test_the_current_folder_is_not_imported_from(tmp_path):
    for name in ("cv2.py", "json.py", "mcis.py"):
        (tmp_path / name).write_text("raise SystemExit('imported')")
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE)
    root = str(pathlib.Path(mcis.__file__).parents[1])
    code = "import sys; sys.path[0] = sys.argv[1]; from mcis.imaging.pool import read_all\n"
    code += "print([one.error for one in read_all([('a.png', None)], 2)])"
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which may name it
    done = run_python(code, root, cwd=tmp_path, env=plain)
    assert done.stdout == "[None]\n", done.stderr


def test_readers_that_do_not_start_are_no_fault_of_the_scans(tmp_path):
    with pytest.raises(OSError, match=r"does not start: `.* -m tests.no_such_reader [0-9]+` says why"):
        list(read_all([("a.png", None)], 2, module="tests.no_such_reader"))


@pytest.mark.parametrize(("number", "again"), [("SIGTERM", True), ("SIGABRT", False)])
def test_a_reader_that_sigterm_meets_while_it_starts_is_started_again(number, again, tmp_path, monkeypatch):
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE)
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


def test_a_reader_ends_with_who_asks_even_in_the_middle_of_a_scan(tmp_path):
    code = "from mcis.imaging.pool import read_all\n"
    code += "list(read_all([('hang.png', None)] * 2, 2, module='tests.fixtures.breaking_worker'))"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        asking, children = psutil.Process(process.pid), []
        while len(children) < 2 or any(child.cpu_times().user < 0.1 for child in children):
            time.sleep(0.1)
            children = asking.children()
        time.sleep(0.5)
        process.kill()
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_an_answer_is_taken_that_came_while_who_asks_was_stopped(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), PICTURE)

    async def work(readers):
        await readers.read(str(tmp_path / "a.png"), None)  # it has started
        asked = asyncio.create_task(readers.read(str(tmp_path / "a.png"), None))
        await asyncio.sleep(0)
        time.sleep(1.0)
        return await asked

    assert run(work, seconds=0.5).error is None


def test_breaks_are_errors_and_the_next_is_answered():
    async def work(readers):
        said = [await refusal(readers, name) for name in ("crash", "raise")]
        said.append(await refusal(readers, "hang", seconds=1.0))
        said.append(await refusal(readers, "take", size=1 << 30))
        return said, await readers.ask("chatter"), await readers.ask("take", size=1 << 20)

    said, chatter, fine = run(work, memory=256 << 20)
    assert "broke on it" in said[0] and said[0] == said[1] and "1 s" in said[2] and "memory" in said[3]
    assert chatter == ({"fine": True}, b"123") and fine == ({"sum": 256}, b"")


def test_what_a_reader_says_is_not_trusted():
    async def work(readers):
        answers = []
        for said in BAD_HEADERS:
            readers.ask = lambda *_, said=said, **__: asyncio.sleep(0, said)
            answers.append((await readers.read("/nowhere/a.png", None)).error)
        return answers

    assert all("broke on it" in error for error in run(work))


SHAPES = (5, [2, 2], [2, 2, 1], [-2, -2, 3], [2, 2, 3, 1], [2, 3, 3])
BAD_HEADERS = [
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


def test_who_leaves_takes_no_answer_of_others():
    async def work(readers):
        left = asyncio.create_task(readers.ask("hang"))
        await asyncio.sleep(0.5)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        return await readers.ask("chatter")

    assert run(work)[1] == b"123"


@pytest.fixture
def packed(tmp_path):
    """A function that writes an archive, of names and bytes, and unpacks it."""

    def unpack(entries, files=100, size=1 << 24):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries:
                archive.writestr(name, data)
        (tmp_path / "in").mkdir(exist_ok=True)
        header, _ = worker.unpack(str(tmp_path / "a.zip"), str(tmp_path / "in"), files, size)
        return header["entries"]

    return unpack


def test_an_archive_is_unpacked_under_names_of_ours(packed, tmp_path):
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


def test_an_archive_takes_no_more_than_it_may(packed, tmp_path):
    bomb = ("bomb.png", b"\0" * (1 << 25))
    found = packed([("a.png", b"1"), bomb, ("b.png", b"1"), ("c.zip", b"PK")])
    assert [entry[2] and entry[2].split(",")[0] for entry in found] == [
        None,
        "too large",
        None,
        "an archive in an archive; unpack it first",
    ]
    with pytest.raises(ScanError, match="3 files; at most 2"):
        packed([(f"{k}.png", b"1") for k in range(3)], files=2)
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ScanError, match="damaged archive"):
        worker.unpack(str(tmp_path / "a.zip"), str(tmp_path), 10, 100)


def test_what_is_encrypted_is_said(packed, tmp_path):
    packed([("a.png", b"1")])
    data = bytearray((tmp_path / "a.zip").read_bytes())
    for sign, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(sign) + at] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    ((_, path, why),) = worker.unpack(str(tmp_path / "a.zip"), str(tmp_path / "in"), 10, 1000)[0]["entries"]
    assert path is None and why.startswith("encrypted")


def test_all_entries_share_the_room(packed):
    found = packed([(f"{k}.png", b"\0" * 600) for k in range(3)], size=1000)
    assert [entry[2] is None for entry in found] == [True, False, False]


def test_an_entry_larger_than_it_says_is_cut_off(packed, tmp_path):
    packed([("a.png", b"\0" * 5000)])
    data = (tmp_path / "a.zip").read_bytes().replace((5000).to_bytes(4, "little"), (50).to_bytes(4, "little"))
    (tmp_path / "a.zip").write_bytes(data)
    ((_, path, why),) = worker.unpack(str(tmp_path / "a.zip"), str(tmp_path / "in"), 10, 1000)[0]["entries"]
    assert path is None and why


def test_a_file_without_a_suffix_is_taken_where_it_is_dicom(packed):
    dicom = b"\0" * 128 + b"DICM" + b"\0" * 10
    assert [entry[0] for entry in packed([("IM0001", dicom), ("README", b"text"), ("LICENSE.txt", b"text")])] == [
        "IM0001"
    ]
