"""A weights folder: `variables/`, an Orbax checkpoint, and `manifest.json`, which describes it.

The manifest lists the shape of every array and the sha256 of every file. Orbax restores array data with a flipped bit
without an error, so every file is hashed before anything is restored. Nothing is ever unpickled.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from mcis.checkpoints.provenance import versions
from mcis.files import read_json
from mcis.paths import allow_unnamed_owners

FORMAT = 1
MANIFEST = "manifest.json"
VARIABLES = "variables"
COMMITTED = "commit_success.txt"
"""File that Orbax writes when a checkpoint is complete."""
PARAMETERS = ("params/", "members/params/")
"""Prefixes of the paths of parameters, of a single network and of an ensemble."""
MAX_BYTES = 1 << 32
"""Largest total size of the arrays that are read. An untrusted folder may claim more, which Orbax would fill with
zeros."""
SPARE = 4 << 20
"""Bytes that a save may need in addition to its arrays."""
BEST = "best"
"""The weights folder in a run's folder: the weights of its best epoch."""


allow_unnamed_owners()


class CheckpointError(ValueError):
    """An unusable weights folder. The message names the file and what is wrong with it."""


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts -> one dict with keys like "a/b/c", sorted level by level. Empty dicts are dropped."""
    return {"/".join(path): leaf for path, leaf in sorted(flatten_dict(tree).items(), key=lambda item: item[0])}


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return unflatten_dict(flat, sep="/")


def hashes(folder: pathlib.Path) -> dict[str, str]:
    """Relative path -> sha256 in hex, of every file below a folder but the manifest at its top."""
    return {name: _sha256(folder / name) for name in _files_in(folder)}


def _files_in(folder: pathlib.Path) -> list[str]:
    """Relative paths of the files below a folder, sorted, without the manifest at its top."""
    paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
    for path in paths:
        if not path.is_file():  # Orbax would wait for data from a pipe
            raise CheckpointError(f"{path} is not a regular file; mcis did not write this folder")
    return [path.relative_to(folder).as_posix() for path in paths if path != folder / MANIFEST]


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_free_space(folder: pathlib.Path, tree: Any) -> None:
    """OSError if a folder's disk has no room for the arrays of a tree.

    Orbax notices a full disk only while it writes, and reports it in a thousand lines.
    """
    needed = SPARE + sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if hasattr(leaf, "nbytes"))
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = f"{free >> 20} MiB are free, {needed >> 20} MiB are needed to save. Earlier saves are intact: "
        raise OSError(errno.ENOSPC, f"{message}free some space, then run the same command again", str(folder))


@contextlib.contextmanager
def disk_errors(folder: pathlib.Path) -> Iterator[None]:
    """Turn the ValueError by which Orbax reports a full or read-only disk into an OSError."""
    try:
        yield
    except ValueError as error:
        if (match := re.search(r"os_error_code='(\d+)'", str(error))) is None:
            raise
        code = int(match[1])
        message = f"{os.strerror(code)}; earlier saves are intact. Mend this, then run the same command again"
        raise OSError(code, message, str(folder)) from None


def save(path: str | os.PathLike, variables: dict[str, Any], manifest: dict[str, Any], half: bool = False) -> None:
    """Write a weights folder. It appears complete or not at all, and replaces an older one.

    Args:
      path: the folder.
      variables: nested dicts of arrays by collection ("params", "batch_stats", ...).
      manifest: JSON values to store with them; "format", "versions", "arrays" and "files" are added.
      half: store parameters as float16; other collections keep their precision.

    Raises:
      CheckpointError: a parameter exceeds the range of float16.
      OSError: the disk is full or read-only.
    """
    path = pathlib.Path(path).absolute()
    flat = {key: np.asarray(value) for key, value in flatten(variables).items()}
    if half:
        flat = {key: _halved(path, key, value) for key, value in flat.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    check_free_space(path.parent, flat)
    temporary, old = path.with_name(f".{path.name}.tmp"), _old(path)
    if path.exists():  # otherwise the old folder may be the only one
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    with disk_errors(path), _checkpointer() as checkpointer:
        checkpointer.save(temporary / VARIABLES, unflatten(flat))
    for file in (temporary / VARIABLES).glob(COMMITTED):  # only its presence counts, and it holds this machine's path
        file.write_text("committed\n")
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


def _halved(path: pathlib.Path, key: str, value: np.ndarray) -> np.ndarray:
    """A parameter as float16, any other array as it is. CheckpointError where a float16 array is not finite."""
    if key.startswith(PARAMETERS) and value.dtype == np.float32:
        with np.errstate(over="ignore"):
            value = value.astype(np.float16)
    if value.dtype == np.float16 and not np.isfinite(value).all():
        raise CheckpointError(f"{path}: array {key} exceeds the range of float16; save it in full precision")
    return value


def _checkpointer() -> ocp.StandardCheckpointer:
    """An Orbax checkpointer for this process alone, which waits for no other process of a distributed training."""
    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


def _old(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.old")


def present(path: pathlib.Path) -> pathlib.Path:
    """A weights folder's path, or the path of its older version if a `save` was killed between its two renames."""
    return path if path.exists() or not _old(path).exists() else _old(path)


def is_weights_folder(path: pathlib.Path) -> bool:
    """Whether a folder looks like one that `save` wrote; other programs write a `manifest.json` as well."""
    return (path / MANIFEST).is_file() and (path / VARIABLES).is_dir()


def weights_folder(path: str | os.PathLike) -> pathlib.Path:
    """The weights folder that a path means: the best weights of a run's folder, otherwise the path itself."""
    best = present(pathlib.Path(path) / BEST)
    return best if (best / MANIFEST).is_file() else pathlib.Path(path)


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a weights folder, after its file hashes have been checked.

    Raises:
      CheckpointError: there is no manifest, it has another format, or a file is missing, changed or not listed.
    """
    path = present(pathlib.Path(path))
    file = path / MANIFEST
    if not path.exists():
        raise CheckpointError(f"{path}: no such folder; name a run or a weights folder")
    if not file.is_file():
        inner = sorted(one.parent.name for one in path.glob(f"*/{MANIFEST}"))[:5]
        raise CheckpointError(
            f"{path} is not a weights folder or a run with weights: it has no {MANIFEST}"
            + (f"; name one of its folders, which have: {', '.join(inner)}" if inner else "")
        )
    try:
        manifest = read_json(file)
        listed, version = dict(manifest["files"]), manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file} is damaged ({type(error).__name__}: {error}); restore it from its source"
        ) from None
    if version != FORMAT:
        raise CheckpointError(f"{file} has format {str(version)[:40]}; this version of mcis reads format {FORMAT}")
    found = _files_in(path)
    for name in sorted(listed.keys() | set(found)):
        if name not in found:
            raise CheckpointError(f"{path / name} is missing; restore the folder from its source")
        if name not in listed:
            raise CheckpointError(f"{path / name} does not belong there: {MANIFEST} does not list it")
    for name in found:
        if listed[name] != _sha256(path / name):
            raise CheckpointError(f"{path / name} is damaged: its sha256 differs from the one in {MANIFEST}")
    return manifest


def load(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and manifest of a weights folder: NumPy arrays; float16 becomes float32.

    Raises:
      CheckpointError: as `read_manifest`, or the arrays are damaged or too large.
    """
    path = present(pathlib.Path(path).absolute())
    manifest = read_manifest(path)
    try:
        flat = _restore(path, manifest)
    except Exception as error:  # Orbax documents few of its errors, and its messages are long
        if isinstance(error, CheckpointError | MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise CheckpointError(
            f"{path / VARIABLES} is damaged ({type(error).__name__}); restore it from its source"
        ) from None
    flat = {key: value.astype(np.float32) if value.dtype == np.float16 else value for key, value in flat.items()}
    return unflatten(flat), manifest


def _restore(path: pathlib.Path, manifest: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays that Orbax has stored, by path. CheckpointError unless they are those that the manifest lists."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with _checkpointer() as checkpointer:
        stored = flatten(checkpointer.metadata(path / VARIABLES).item_metadata.tree)
        # no hash protects the manifest itself
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
    """CheckpointError, which names the array, unless `variables` has the array shapes of `expected`."""
    found = {key: tuple(value.shape) for key, value in flatten(variables).items()}
    wanted = {key: tuple(value.shape) for key, value in flatten(expected).items()}
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise CheckpointError(
                f"{path}: array {key} is {found.get(key, 'missing')}, the network has {wanted.get(key, 'none')}; "
                "these weights belong to another network"
            )
