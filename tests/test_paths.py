"""Paths as users write them, and users without a home folder or a name."""

import os
import pathlib
import pwd
import stat
import sys
import tempfile

import pytest

from mcis import paths


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A user without home folder and name; returns the temporary folder."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    paths.fallback.cache_clear()
    yield tmp_path
    paths.fallback.cache_clear()


def test_tilde_is_the_home_folder_and_other_paths_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert paths.local_text("~/x/") == f"{tmp_path}/x/"
    assert paths.local_path("~") == tmp_path
    root = pwd.getpwuid(0)
    assert paths.local_text(f"~{root.pw_name}/x") == os.path.join(root.pw_dir, "x")
    for same in ("./x", "x/", "/x/../y", "a~", "", "C:/x", "a:b", "weights:1/x"):
        assert paths.local_text(same) == same
    pathlib.Path("~$scan.png").touch()
    assert paths.local_text("~$scan.png") == "~$scan.png"
    with pytest.raises(ValueError, match=r"--out=~nosuchuser/x: there is no user nosuchuser; write the full path"):
        paths.local_text("~nosuchuser/x", "--out")


@pytest.mark.parametrize("address", ["gs://bucket/x", "s3://bucket/x", "https://x.org/a.png", "file:///tmp/x", "gs:/b"])
def test_addresses_are_errors_that_name_the_option(address):
    with pytest.raises(ValueError, match=rf"^--out={address}: an address, not a path; .* give the local path$"):
        paths.local_text(address, "--out")
    with pytest.raises(ValueError, match=f"^{address}: an address"):
        paths.local_path(pathlib.Path(address) if address == "gs:/b" else address)


def test_a_file_whose_name_looks_like_an_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("gs:").mkdir()
    pathlib.Path("gs:", "x").touch()
    assert paths.local_text("gs:/x") == "gs:/x"


def test_without_home_and_name_tilde_is_an_error_and_the_fallback_is_private(nobody, capsys):
    assert paths.home() is None
    with pytest.raises(ValueError, match=r"~/x: the home folder of this user is unknown; write the full path"):
        paths.local_path("~/x")
    folder = paths.fallback()
    assert folder == nobody / f"mcis-{os.getuid()}" and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert paths.fallback() == folder
    assert capsys.readouterr().err.count("\n") == 1
    paths.fallback.cache_clear()
    assert paths.fallback() == folder  # of another process


@pytest.mark.parametrize("trap", ["others can write", "link", "file"])
def test_a_folder_that_others_may_have_made_is_not_used(nobody, trap):
    expected = nobody / f"mcis-{os.getuid()}"
    if trap == "link":
        (nobody / "elsewhere").mkdir()
        expected.symlink_to(nobody / "elsewhere")
    elif trap == "file":
        expected.touch()
    else:
        expected.mkdir()
        expected.chmod(0o777)
    folder = paths.fallback()
    assert folder != expected and folder.is_dir() and folder.name.startswith(f"mcis-{os.getuid()}-")


def test_an_empty_home_is_none(nobody, monkeypatch):
    monkeypatch.setenv("HOME", "")
    assert paths.home() is None


def test_a_missing_folder_is_writable_where_it_can_be_made(tmp_path):
    (tmp_path / "file").touch()
    assert paths.writable(tmp_path / "a" / "b") and not paths.writable(tmp_path / "file" / "b")
    assert not paths.writable("/proc/1/x")


def test_the_status_of_a_file_whose_owner_has_no_name_is_read(nobody):
    from etils import epath

    paths.allow_unnamed_owners()
    (nobody / "a").write_bytes(b"four")
    status = epath.Path(nobody / "a").stat()
    assert (status.length, status.is_directory, status.owner) == (4, False, None)


def test_the_current_folder_is_no_place_of_modules_unless_mcis_is_there(tmp_path, monkeypatch):
    root = str(pathlib.Path(paths.__file__).parents[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), root, "/usr/lib"])
    paths.forget_current_folder()
    assert sys.path == [root, "/usr/lib"]
    monkeypatch.chdir(root)
    paths.forget_current_folder()
    assert sys.path == [root, "/usr/lib"]
