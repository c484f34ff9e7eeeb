import os
import stat
import struct
import zipfile

import numpy as np
import pytest
from mcis_datasets.mcis_scans import archive


def make_zip(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as made:
        for name, content in entries:
            made.writestr(name, content)
    return path


def assert_rejected(path, tmp_path, words):
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(archive.ArchiveError, match=words):
        archive.extract(path, folder)
    return [p for p in folder.rglob("*") if p.is_file()]


def test_a_zip_is_unpacked_and_removed_afterwards(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("x/a (1).txt", "one"), ("__MACOSX/x/._a", "clutter"), ("y/", "")])
    with archive.opened(path) as folder:
        assert (folder / "x" / "a (1).txt").read_text() == "one"
        assert sorted(p.name for p in folder.iterdir()) == ["x", "y"]
    assert not folder.exists()


def test_a_folder_is_used_as_it_is(tmp_path):
    with archive.opened(tmp_path) as folder:
        assert folder == tmp_path
    assert tmp_path.exists()


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a\\..\\..\\x", "C:\\x", "c:/x"])
def test_paths_outside_the_folder_are_an_error_before_anything_is_written(tmp_path, name):
    path = make_zip(tmp_path / "a.zip", [("good.txt", "good"), (name, "bad")])
    assert assert_rejected(path, tmp_path, "outside the folder") == []
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("kind", "words"), [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "not a regular file")])
def test_links_and_devices_are_an_error(tmp_path, kind, words):
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (kind | 0o777) << 16
    assert assert_rejected(make_zip(tmp_path / "a.zip", [("good.txt", "good"), (entry, "/etc")]), tmp_path, words) == []


def test_a_name_that_occurs_twice_is_an_error(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = make_zip(tmp_path / "a.zip", [("a.txt", "one"), ("a.txt", "two")])
    assert assert_rejected(path, tmp_path, "twice") == []


@pytest.mark.parametrize("names", [("a", "a/b.txt"), ("x" * 300,)], ids=["file and folder", "long"])
def test_names_that_the_disk_cannot_hold_have_their_own_message(tmp_path, names):
    path = make_zip(tmp_path / "a.zip", [(name, "text") for name in names])
    assert_rejected(path, tmp_path, "unpack it yourself")


def test_a_zip_bomb_is_recognised_by_its_ratio(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("zeros", bytes(archive.RATIO_FLOOR + 1))])
    assert assert_rejected(path, tmp_path, "bomb") == []


def test_a_zip_bomb_of_small_files_is_recognised(tmp_path):
    path = make_zip(tmp_path / "a.zip", [(f"zeros{k}", bytes(1 << 20)) for k in range(17)])
    assert assert_rejected(path, tmp_path, "all together") == []


def test_masks_with_a_high_ratio_are_no_zip_bomb(tmp_path):
    path = make_zip(tmp_path / "a.zip", [(f"mask{k}.tif", bytes(1 << 16)) for k in range(20)])
    with archive.opened(path) as folder:
        assert len(list(folder.iterdir())) == 20


def test_size_and_number_of_entries_are_limited(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "a.zip", [("a", "12345"), ("b", "12345")])
    monkeypatch.setattr(archive, "MAX_BYTES", 9)
    assert assert_rejected(path, tmp_path, "would unpack to") == []
    monkeypatch.setattr(archive, "MAX_FILES", 1)
    with pytest.raises(archive.ArchiveError, match="2 entries; at most 1"):
        archive.extract(path, tmp_path)


@pytest.mark.parametrize("declared", [10, 3000])
def test_a_wrong_declared_size_is_an_error(tmp_path, declared):
    path = make_zip(tmp_path / "a.zip", [("a", bytes(2000))])
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")  # the central directory, which is what declares
    struct.pack_into("<I", data, entry + 24, declared)
    path.write_bytes(data)
    with pytest.raises(archive.ArchiveError), archive.opened(path):
        pytest.fail("was unpacked")


def test_other_files_are_an_error_that_says_what_is_allowed(tmp_path):
    (tmp_path / "a.rar").write_bytes(b"Rar!")
    with pytest.raises(archive.ArchiveError, match="neither a folder nor a zip"), archive.opened(tmp_path / "a.rar"):
        pass
    with pytest.raises(archive.ArchiveError, match="no such"), archive.opened(tmp_path / "none.zip"):
        pass


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_stream_is_an_error_in_every_compression(tmp_path, packing):
    content = np.random.default_rng(0).integers(0, 40, 5000, dtype=np.uint8).tobytes()
    path = make_zip(tmp_path / "whole.zip", [("a", content)], packing)
    whole = path.read_bytes()
    for at in range(40, len(whole) - 200, 97):
        path.write_bytes(whole[:at] + bytes(x ^ 0xFF for x in whole[at : at + 9]) + whole[at + 9 :])
        (tmp_path / f"{at}").mkdir()
        assert_rejected(path, tmp_path / f"{at}", "download it again")


def test_a_wrong_checksum_is_an_error(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a", bytes(range(256)) * 9)], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    assert_rejected(path, tmp_path, "download it again")


@pytest.mark.parametrize("name", ["", "a" * 60_000, "a/" * 900 + "b"])
def test_empty_and_very_long_names_are_an_error_with_a_short_message(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr(zipfile.ZipInfo("x" if name == "" else name), b"")
    if name == "":  # zipfile writes none such
        data = (tmp_path / "a.zip").read_bytes().replace(b"PK\1\2", b"PK\1\2", 1)
        at = data.index(b"PK\1\2")
        data = data[: at + 28] + b"\0\0" + data[at + 30 : at + 46] + data[at + 47 :]
        end = data.index(b"PK\5\6")
        size = struct.unpack_from("<I", data, end + 12)[0]
        (tmp_path / "a.zip").write_bytes(data[: end + 12] + struct.pack("<I", size - 1) + data[end + 16 :])
    with (
        pytest.raises(archive.ArchiveError, match=r"an entry's name has \d+ characters") as caught,
        archive.opened(tmp_path / "a.zip"),
    ):
        pass
    assert len(str(caught.value)) < 1000


def test_a_pipe_or_a_device_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with pytest.raises(archive.ArchiveError, match="neither a folder nor a zip"), archive.opened(tmp_path / name):
            pass
