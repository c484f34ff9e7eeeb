"""JSON files within limits, and atomic writes."""

import os
import pathlib

import pytest

from mcis import files


def test_a_file_is_written_as_it_is_and_replaced(tmp_path):
    files.write_text(tmp_path / "a.txt", "ä\r\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == "ä\r\nb\n".encode()
    files.write_bytes(str(tmp_path / "a.txt"), b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"new")]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(step, tmp_path, monkeypatch):
    files.write_text(tmp_path / "a.txt", "old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(OSError, match="No space"):
        files.write_text(tmp_path / "a.txt", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_the_file_is_complete_on_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(os, "fsync", lambda number, real=os.fsync: steps.append("fsync") or real(number))

    def replace(source, target, real=os.replace):
        steps.append((os.path.dirname(source), pathlib.Path(source).read_text()))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    files.write_text(tmp_path / "a.txt", "text")
    assert steps == ["fsync", (str(tmp_path), "text")]


def test_a_new_file_has_the_usual_permissions(tmp_path):
    files.write_text(tmp_path / "a.txt", "text")
    (tmp_path / "b.txt").write_text("text")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_json_that_is_too_large_too_deep_or_no_regular_file_is_an_error(tmp_path):
    (tmp_path / "large").write_text("[1, 2, 3]")
    assert files.read_json(tmp_path / "large", 9) == [1, 2, 3]
    with pytest.raises(ValueError, match="more than 0 MiB"):
        files.read_json(tmp_path / "large", 8)
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        files.read_json(tmp_path / "deep")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a regular file"):
        files.read_json(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "none")
