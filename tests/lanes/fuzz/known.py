"""Inputs whose right value is known: a scan stored in another way. A wrong picture is a failure, not only a crash.

    A  a tag changes what is shown: orientation, photometric interpretation, units
    B  values are stored in another way: compression, depth, palette, planes, byte order, parts of a file missing
    C  a field beside the pixels is damaged: it costs no scan
    D  a header is odd, and other programs read it
    E  many frames: each costs the same
    F  no home folder, a path below the current folder
    G  names that differ by suffix, case or Unicode form are different files, and one file is one
    H  what cannot be read is named, with what to do
    I  files as they are found: names without suffix, pairs, packed files, time points
    J  masks: which pixels are lesion, also in one's own folder as `mcis build` reads it; pictures without content

An input has `want.json`, `want.npy` (the frames, or the mask), and the files to read.
"""

import contextlib
import io
import json
import os
import pathlib
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tests.lanes.fuzz.mutations import Mutator, Tree

WANT, VALUES = "want.json", "want.npy"
Make = Callable[[random.Random], Tree]


def known(values: np.ndarray | None, files: Tree, **want: object) -> Tree:
    """An input.

    Args:
      values: uint8 (F, H, W, 3), the frames that each of the files must give; (H, W), a mask; None if it gives none.
      files: to read, and files beside them.
      want: "folder": label, patient, and whether it is masked, of each scan of the folder `own`; "unsupported": how the
        reason begins why a picture is, or "" if it is a scan; "read": names of the files to read (default: all);
        "atol": tolerance in grey levels; "rejected": words that an error must have, or "" for any error beside the
        right values; "spacing": in mm; "mask": whether a mask is read; "bare": whether without home folder and by a
        relative path.
    """
    content: Tree = {WANT: json.dumps(want).encode()}
    if values is not None:
        file = io.BytesIO()
        np.save(file, values, allow_pickle=False)
        content[VALUES] = file.getvalue()
    return {**files, **content}


def as_mutator(make: Make) -> Mutator:
    """A mutator that makes an input of its own, whatever input it is given."""

    def mutate(rng: random.Random, tree: Tree, others: Sequence[Tree]) -> Tree:
        return make(rng)

    return mutate


def read_known(folder: pathlib.Path) -> str:
    """Read each file and compare it with the right values."""
    want = json.loads((folder / WANT).read_bytes())
    values = np.load(folder / VALUES, allow_pickle=False) if (folder / VALUES).exists() else None
    if "folder" in want:
        return _check_folder(folder / "own", want, values)
    names = want.get("read") or sorted(path.name for path in folder.iterdir() if path.name not in (WANT, VALUES))
    words = set()
    with _bare(folder) if want.get("bare") else contextlib.nullcontext():
        for name in names:
            path = name if want.get("bare") else str(folder / name)
            check = _check_mask if want.get("mask") else _check_reason if "unsupported" in want else _check
            words.add(check(path, want, values))
    return min(words)


@contextlib.contextmanager
def _bare(folder: pathlib.Path) -> Iterator[None]:
    """Without $HOME, in that folder."""
    home, place = os.environ.pop("HOME", None), os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(place)
        if home is not None:
            os.environ["HOME"] = home


def _check(path: str, want: dict, values: np.ndarray | None) -> str:
    from mcis.imaging import formats
    from mcis.imaging.scan import ScanError

    try:
        frames = list(formats.frames(path))
        found = [formats.read(name, frame or 0) for name, frame in frames]
    except ScanError as error:
        return _check_error(path, error, want)
    assert values is not None, f"{path} was read; an error was expected"
    assert len(found) == len(values), f"{len(found)} frames, {len(values)} were expected"
    for number, (scan, right) in enumerate(zip(found, values, strict=True)):
        assert scan.image.shape == right.shape, f"frame {number}: {scan.image.shape}, not {right.shape}"
        worst = int(np.abs(scan.image.astype(int) - right).max())
        assert worst <= want.get("atol", 0), f"frame {number}: {worst} grey levels from the right picture; {scan.notes}"
        if "spacing" in want:
            right_mm = None if want["spacing"] is None else tuple(want["spacing"])
            assert (scan.spacing is None) == (right_mm is None), f"{scan.spacing} mm, not {right_mm}"
            assert right_mm is None or np.allclose(scan.spacing, right_mm, rtol=1e-4), f"{scan.spacing}, not {right_mm}"
    return "right"


def _check_mask(path: str, want: dict, values: np.ndarray | None) -> str:
    from mcis.imaging import masks
    from mcis.imaging.scan import ScanError

    try:
        found = masks.read(path)
    except ScanError as error:
        return _check_error(path, error, want)
    assert values is not None, f"{path} was read; an error was expected"
    wrong = int(np.count_nonzero(found.lesion[..., 0] != values))
    assert wrong <= want.get("atol", 0), f"{wrong} pixels of the mask are wrong; {found.notes}"
    return "right"


def _check_reason(path: str, want: dict, values: np.ndarray | None) -> str:
    from mcis.imaging import formats
    from mcis.inference.plausibility import picture_reason

    loaded = formats.load(path, None)
    assert loaded.square is not None, loaded.error
    assert loaded.geometry is not None
    reason = picture_reason(loaded.square, loaded.geometry)
    if want["unsupported"] == "":
        assert reason is None, f"{reason}; it is a scan"
    else:
        assert reason is not None, f"no reason, not {want['unsupported']}"
        assert reason.startswith(want["unsupported"]), f"{reason}, not {want['unsupported']}"
    return "right"


def _check_folder(root: pathlib.Path, want: dict, values: np.ndarray | None) -> str:
    from mcis_datasets.mcis_scans.record import Record, Rejection, done
    from mcis_datasets.mcis_scans.sources import SOURCES

    items = [done(job) for job in SOURCES["folder"].read(root)]
    rejected = [f"{item.scan_id}: {item.reason}" for item in items if isinstance(item, Rejection)]
    assert not rejected, rejected
    found = {item.scan_id: item for item in items if isinstance(item, Record)}
    assert set(found) == set(want["folder"]), f"{set(found)}, not {set(want['folder'])}"
    for name, right in want["folder"].items():
        item = found[name]
        assert (item.label, item.patient) == (right["label"], right["patient"]), f"{item.label}, {item.patient!r}"
        expected = values if right["mask"] and values is not None else np.zeros(item.mask.shape[:2])
        wrong = int(np.count_nonzero(item.mask[..., 0] != expected))
        assert wrong <= want.get("atol", 0), f"{wrong} pixels of the mask are wrong; {item.mask_notes}"
    return "right"


def _check_error(path: str, error: Exception, want: dict) -> str:
    message = str(error)
    assert "rejected" in want, f"rejected: {message}"
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 1000 + len(path), message
    assert want["rejected"] in message, f"{want['rejected']!r} is not in: {message}"
    return "rightly rejected"
