"""Paths as users write them, and the folders of a user, who may have no home folder and no name.

Standard library only.
"""

import contextlib
import functools
import os
import pathlib
import re
import stat
import sys
from typing import Any

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(gs|gcs|s3|az|abfss?|hdfs|https?|ftp|file):/")
"""How an address begins that is no path of this system; `pathlib` has made one slash of two."""


def forget_current_folder() -> None:
    """Import nothing from the current folder, unless mcis itself lies there.

    `python -m` and an empty part of $PYTHONPATH let Python look for modules there: a user's folder `dl` or file
    `random.py` would be taken for a module of that name.
    """
    try:
        here = os.getcwd()
    except OSError:  # it was deleted
        return
    if os.path.realpath(here) != os.path.realpath(pathlib.Path(__file__).parents[1]):
        sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != here]


def local_path(path: str | os.PathLike, name: str = "") -> pathlib.Path:
    """As `local_text`, as a pathlib.Path."""
    return pathlib.Path(local_text(path, name))


def local_text(path: str | os.PathLike, name: str = "") -> str:
    """`path` with a leading ~ or ~user replaced, and otherwise as it was written.

    Args:
      path: a path as the user wrote it.
      name: the option or variable that it came from, such as "--out", for messages.

    Raises:
      ValueError: `path` is a remote address; there is no such user; or the home folder is unknown.
    """
    text = os.fspath(path)
    shown = f"{name}={text}" if name else text
    if REMOTE.match(text) and not os.path.lexists(text):
        raise ValueError(
            f"{shown}: an address, not a path; mcis reads and writes folders and files of this machine. Copy or mount "
            "it here, and give the local path"
        )
    if not text.startswith("~"):
        return text
    user = text.split("/")[0]
    if user == "~":
        if (place := home()) is None:
            raise ValueError(f"{shown}: the home folder of this user is unknown; write the full path, or set $HOME")
        return os.path.join(place, text[2:])
    expanded = os.path.expanduser(text)
    if expanded == text and not os.path.lexists(text):  # a file's name may begin with ~
        raise ValueError(f"{shown}: there is no user {user[1:]}; write the full path")
    return expanded


def home() -> pathlib.Path | None:
    """The user's home folder: $HOME, else that of the system's list of users. None if neither names one."""
    if os.environ.get("HOME"):
        return pathlib.Path(os.environ["HOME"])
    try:
        import pwd

        return pathlib.Path(pwd.getpwuid(os.getuid()).pw_dir)
    except (ImportError, KeyError):  # a container that runs under any number: no such user
        return None


def writable(folder: str | os.PathLike) -> bool:
    """Whether a folder can be written to, or be made, as far as its permissions say."""
    folder = pathlib.Path(os.path.abspath(folder))
    with contextlib.suppress(OSError):
        nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    return False


@functools.cache
def fallback() -> pathlib.Path:
    """A folder for what belongs into a home folder, where there is none: in the temporary folder, for this user alone.

    A process finds the folder of an earlier one. A folder of that name that others could have written to is not used:
    compiled programs are kept there.

    Raises:
      OSError: there is no temporary folder that can be written to.
    """
    import tempfile

    folder = pathlib.Path(tempfile.gettempdir(), f"mcis-{os.getuid()}")
    if not _is_private(folder):
        folder = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    print(
        f"mcis: there is no home folder that can be written to; caches and prepared data are kept in {folder}. "
        "Set $HOME to keep them",
        file=sys.stderr,
    )
    return folder


def _is_private(folder: pathlib.Path) -> bool:
    """Whether `folder`, made if it is missing, belongs to this user, and nobody else can write to it."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    own = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return own and os.access(folder, os.W_OK | os.X_OK)


@functools.cache
def allow_unnamed_owners() -> None:
    """Let `etils.epath`, with which TFDS and Orbax read paths, give the status of a file whose owner has no name.

    It asks the system for the names of owner and group of each file, which are not used, and fails where there is none:
    in a container that runs under any number, and on files of another machine.
    """
    from etils.epath import backend, stat_utils

    local: Any = type(backend.os_backend)
    named = local.stat

    def status_of(self: Any, path: str | os.PathLike) -> stat_utils.StatResult:
        try:
            return named(self, path)
        except KeyError:
            found = os.stat(path)
        return stat_utils.StatResult(
            is_directory=stat.S_ISDIR(found.st_mode),
            length=found.st_size,
            mtime=int(found.st_mtime),
            owner=None,
            group=None,
            mode=found.st_mode,
        )

    local.stat = status_of
