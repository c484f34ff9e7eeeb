"""Variables on disk: an Orbax checkpoint beside a manifest with the sha256 of every file and the shape of every array.

A weights folder holds `manifest.json` and `variables/`. Orbax restores array data with a flipped bit without an error,
so every file is hashed before anything is restored. Nothing is ever unpickled.
"""

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import pathlib
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

import mcis
from mcis.files import read_json

FORMAT = 1
MANIFEST = "manifest.json"
VARIABLES = "variables"
COMMITTED = "commit_success.txt"
"""What Orbax leaves when a checkpoint is whole."""
PARAMETERS = ("params/", "members/params/")
"""How the paths of parameters begin, of one network and of an ensemble's."""
MAX_BYTES = 1 << 32
"""Of all arrays together: what a stranger's weights claim, whose missing parts Orbax would fill up with zeros."""
BEST = "best"
"""A run's folder of weights, those of its best epoch."""


class CheckpointError(ValueError):
    """A weights folder that cannot be used; the message names the file and what is wrong with it."""


def versions() -> dict[str, str]:
    """Versions of what determines a result."""
    import flax

    return {
        "mcis": mcis.__version__,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "orbax": ocp.__version__,
    }


@functools.cache
def revision() -> str | None:
    """The git revision of the code that runs, with a "+" where its files were changed since.

    Where git cannot say (the code is installed, git is not, or the repository is another user's) it is $MCIS_REVISION,
    which an image sets, or None.
    """
    here = pathlib.Path(__file__).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(here), *words]  # somebody may be committing
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=environment)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", pathlib.Path(__file__).name)  # else it lies in somebody else's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("MCIS_REVISION") or None


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> one dict of "a/b/c" keys, sorted."""
    flat: dict[str, Any] = {}
    for key in sorted(tree):
        path = f"{prefix}{key}"
        flat |= flatten(tree[key], f"{path}/") if isinstance(tree[key], dict) else {path: tree[key]}
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`, except that empty dicts are gone."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def write_text(path: pathlib.Path, text: str) -> None:
    """Write a file; it is the old one or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def hashes(folder: pathlib.Path) -> dict[str, str]:
    """sha256 of every file below a folder by its path there, in hex; a manifest on top is left out."""
    return {name: _sha256(folder / name) for name in _files_in(folder)}


def _files_in(folder: pathlib.Path) -> list[str]:
    """Paths of the files below a folder, without the manifest on top."""
    there = [p for p in folder.rglob("*") if not p.is_dir()]
    for path in there:
        if not path.is_file():  # Orbax would wait for what comes out of a pipe
            raise CheckpointError(f"{path} is no plain file; such a folder was not written by mcis")
    files = sorted(p for p in there if p != folder / MANIFEST)
    return [p.relative_to(folder).as_posix() for p in files]


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SPARE = 4 << 20
"""Bytes that a save may take beside its arrays."""


def check_room(folder: pathlib.Path, tree: Any) -> None:
    """OSError where there is no room to save the arrays of a tree in a folder.

    Orbax, which meets a full disk in the middle of its writing, says so in a thousand lines.
    """
    needed = SPARE + sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if hasattr(leaf, "nbytes"))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{free >> 20} MiB are free, {needed >> 20} are needed to save. What was saved before is whole: "
            "make room, then type the same again",
            str(folder),
        )


@contextlib.contextmanager
def writing(folder: pathlib.Path) -> Iterator[None]:
    """OSError, and not Orbax's ValueError, where the disk of a folder is full, or is not to be written to."""
    try:
        yield
    except ValueError as error:
        if (number := re.search(r"os_error_code='(\d+)'", str(error))) is None:
            raise
        code = int(number[1])
        told = "what was saved before is whole. Mend this, then type the same again"
        raise OSError(code, f"{os.strerror(code)}; {told}", str(folder)) from None


def save(path: str | os.PathLike, variables: dict[str, Any], manifest: dict[str, Any], half: bool = False) -> None:
    """Write a weights folder; it appears whole or not at all, and replaces an older one.

    Args:
      path: the folder.
      variables: nested dicts of arrays, collection names on top ("params", "batch_stats", ...).
      manifest: JSON values to keep beside them; "format", "versions", "arrays" and "files" are added.
      half: store parameters as float16; other collections keep their precision.
    """
    path = pathlib.Path(path).absolute()
    flat = {key: np.asarray(value) for key, value in flatten(variables).items()}
    if half:
        with np.errstate(over="ignore"):
            flat = {
                key: value.astype(np.float16) if key.startswith(PARAMETERS) and value.dtype == np.float32 else value
                for key, value in flat.items()
            }
        for key, value in flat.items():
            if value.dtype == np.float16 and not np.isfinite(value).all():
                raise CheckpointError(f"{path}: array {key} exceeds float16's range; save in full precision")
    path.parent.mkdir(parents=True, exist_ok=True)
    check_room(path.parent, flat)
    temporary, old = path.with_name(f".{path.name}.tmp"), _old(path)
    if path.exists():  # else the older one may be all there is
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with writing(path), _alone() as checkpointer:
        checkpointer.save(temporary / VARIABLES, unflatten(flat))
    for done in (temporary / VARIABLES).glob(COMMITTED):  # only its presence counts, and it names this machine's folder
        done.write_text("committed\n")
    manifest = manifest | {
        "format": FORMAT,
        "versions": versions(),
        "arrays": {key: [value.dtype.name, list(value.shape)] for key, value in flat.items()},
        "files": hashes(temporary),
    }
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _alone() -> ocp.StandardCheckpointer:
    """Orbax's checkpointer of this process, which waits for no other that trains with it."""
    me = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _old(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.old")


def present(path: pathlib.Path) -> pathlib.Path:
    """A weights folder's path, or where it lies since a `save` was killed between its two renames."""
    return path if path.exists() or not _old(path).exists() else _old(path)


def is_weights_folder(path: pathlib.Path) -> bool:
    """Whether a folder looks like one that `save` wrote; a `manifest.json` alone may be anybody's."""
    return (path / MANIFEST).is_file() and (path / VARIABLES).is_dir()


def weights_folder(path: str | os.PathLike) -> pathlib.Path:
    """The weights folder that `path` means: itself, or the best one of a run."""
    best = present(pathlib.Path(path) / BEST)
    return best if (best / MANIFEST).is_file() else pathlib.Path(path)


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a weights folder, checked against the files beside it.

    Raises:
      CheckpointError: no manifest, one of another format, or a file that is missing, changed or left over.
    """
    path = present(pathlib.Path(path))
    file = path / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{path} is no weights folder: it has no {MANIFEST}")
    try:
        manifest = read_json(file)
        files, found_format = dict(manifest["files"]), manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is damaged ({type(error).__name__}: {error}); restore it from its source"
        ) from None
    if found_format != FORMAT:
        raise CheckpointError(f"{file} has format {str(found_format)[:40]}; this version reads {FORMAT}")
    found = set(_files_in(path))
    for name in sorted(files.keys() | found):
        if name not in found:
            raise CheckpointError(f"{path / name} is missing; restore the folder from its source")
        if name not in files:
            raise CheckpointError(f"{path / name} does not belong there: {MANIFEST} does not list it")
    for name in sorted(found):
        if files[name] != _sha256(path / name):
            raise CheckpointError(f"{path / name} is damaged: its sha256 is not the one in {MANIFEST}")
    return manifest


def load(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and manifest of a weights folder; float16 comes back as float32, NumPy arrays.

    Raises:
      CheckpointError: as `read_manifest`.
    """
    path = present(pathlib.Path(path).absolute())
    manifest = read_manifest(path)
    try:
        flat = _restore(path, manifest)
    except Exception as error:  # Orbax names few, and says much
        if isinstance(error, CheckpointError | MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise CheckpointError(
            f"{path / VARIABLES} is damaged ({type(error).__name__}); restore it from its source"
        ) from None
    flat = {key: value.astype(np.float32) if value.dtype == np.float16 else value for key, value in flat.items()}
    return unflatten(flat), manifest


def _restore(path: pathlib.Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that Orbax has, which must be those that the manifest lists."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with _alone() as checkpointer:
        stored = flatten(checkpointer.metadata(path / VARIABLES).item_metadata.tree)
        # the other files are whole by now, but nothing vouches for the manifest itself
        if manifest.get("arrays") != {key: [np.dtype(x.dtype).name, list(x.shape)] for key, x in stored.items()}:
            raise CheckpointError(
                f"{path / MANIFEST} is damaged: it lists other arrays than {VARIABLES} has; restore it from its source"
            )
        if (size := sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in stored.values())) > MAX_BYTES:
            raise CheckpointError(f"{path}: {size >> 20} MiB of arrays; at most {MAX_BYTES >> 20} MiB are read")
        abstract = {key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for key, x in stored.items()}
        restored = checkpointer.restore(path / VARIABLES, unflatten(abstract))
    return {key: np.asarray(value) for key, value in flatten(restored).items()}


def check_shapes(variables: dict[str, Any], expected: Any, path: str | os.PathLike) -> None:
    """CheckpointError unless `variables` has the arrays of `expected` (arrays or shapes), naming what differs."""
    found = {key: tuple(value.shape) for key, value in flatten(variables).items()}
    wanted = {key: tuple(value.shape) for key, value in flatten(expected).items()}
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise CheckpointError(
                f"{path}: array {key} is {found.get(key, 'missing')}, the network has {wanted.get(key, 'none')}; "
                "these weights are of another network"
            )
