"""The weights that a run starts from (`--init_from`): a state dict, a run's folder or a weights folder."""

import hashlib
import pathlib
from typing import Any

import numpy as np

from mcis.checkpoints import checkpoint
from mcis.checkpoints.provenance import scans_of, uses
from mcis.models.pretrained import import_state_dict, import_variables, read_state_dict

STAGE = "start"
"""The folder, in a run's folder, of its pretraining stage (progressive resizing), whose weights it starts from."""


def fingerprint(path: pathlib.Path) -> str:
    """A hash of the weights, in hex: of a folder's arrays, or of a state dict's file.

    Raises:
      ValueError: there are no weights.
    """
    folder = checkpoint.weights_folder(path) if path.is_dir() else path
    if folder.is_file():
        return hashlib.sha256(folder.read_bytes()).hexdigest()
    if not (folder / checkpoint.MANIFEST).is_file():
        raise ValueError(f"init_from={path}: no such state dict, run or weights folder")
    digest = hashlib.sha256()
    for name, value in checkpoint.flatten(checkpoint.load(folder)[0]).items():
        digest.update(repr((name, value.shape, value.dtype.str)).encode() + np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def replace_variables(path: pathlib.Path | None, variables: dict[str, Any]) -> dict[str, Any]:
    """A network's variables with the numbers of the weights; prints what was loaded. ValueError if they do not fit."""
    if path is None:
        return variables
    try:
        if path.is_dir():
            stored, _ = checkpoint.load(checkpoint.weights_folder(path))
            imported, report = import_variables(stored, variables)
        else:
            imported, report = import_state_dict(read_state_dict(path), variables)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    print(f"{path}: {report}", flush=True)
    return imported


def used_scans(path: pathlib.Path | None, run_dir: pathlib.Path) -> dict[str, set[str]]:
    """The scans that the weights have used, as {"fingerprints", "names"}; those of a state dict are unknown.

    The run's own pretraining stage has used its training scans only. It keeps its last epoch, and what it fits to the
    validation scans, a router's OOD limit, is not passed on.
    """
    if path is None or not path.is_dir():
        return {"fingerprints": set(), "names": set()}
    manifest = checkpoint.read_manifest(checkpoint.weights_folder(path))
    splits = ("train",) if path == run_dir / STAGE else uses(manifest)
    return {by: scans_of(manifest, by, *splits) for by in ("fingerprints", "names")}
