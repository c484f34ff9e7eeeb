"""Cheng's contrast-enhanced brain MRI: slices with a tumour each, as published (MATLAB 7.3 files) or as pictures.

The published files name the patient. The pictures do not; they are numbered in the order of the patients, so that
neighbours are grouped by `neighbours.py`.
"""

import functools
import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from mcis import MAX_PIXELS
from mcis.imaging import image_files, scan
from mcis.organs import organ_named

from . import remarks
from .attributes import HISTOLOGIES
from .neighbours import runs_of
from .record import Item, Job, Record, Rejection, file_in, load, orphans, read_mask, read_table, union_of

KINDS = ("meningioma", "glioma", "pituitary")
"""Kinds of tumour; the published files number them from 1."""
PARTS = "brainTumorDataPublic_*"
"""The published folders or zips of slices, of which there are four."""
PERCENTILES = (0.5, 99.5)
"""Of a slice's values: they become 0 and 255, as in NIfTI volumes."""
MAX_DIGITS = 9
"""Most digits of a slice's number."""
MAX_LETTERS = 64
"""Longest name of a patient."""


def cheng(folder: pathlib.Path) -> Iterator[Item | Job]:
    """Cheng: `1.mat`, `2.mat` ... as published; or `cheng.csv` (file, kind) names `images/1.jpg`, `masks/1.png`."""
    return _pictures(folder) if (folder / "cheng.csv").is_file() else _matlab(folder)


def _pictures(folder: pathlib.Path) -> Iterator[Item | Job]:
    """The pictures. Their series is the run of neighbours that may show one patient; the patient is unknown."""
    images = {path.stem: path for path in image_files.files_in(folder / "images")}
    masks = {path.stem: [path] for path in image_files.files_in(folder / "masks")}
    rows = []
    for row in read_table(folder / "cheng.csv", ("file", "kind")):
        named = file_in(folder / "images", row["file"])
        name = named.stem
        image = images.pop(name, named)
        mask = masks.pop(name, [])
        if row["kind"].lower() not in KINDS:
            yield Rejection(name, f"cheng.csv gives the kind {row['kind']!r}; the kinds are {', '.join(KINDS)}")
        elif not _is_number(name):
            yield Rejection(name, "its file name must be a number, which gives the order of the slices; rename it")
        else:
            rows.append((name, image, mask, row["kind"].lower()))
    rows.sort(key=lambda row: int(row[0]))
    runs = runs_of(_planes(image, mask) for _, image, mask, _ in rows)
    first: dict[int, str] = {}
    for (name, image, mask, kind), run in zip(rows, runs, strict=True):
        series = f"run from {first.setdefault(run, name)}"
        make = functools.partial(load, name, image, union_of(mask), organ="brain", label=_tumor(), patient=None)
        yield functools.partial(make, series=series, attributes=_facts(kind))
    yield from (Rejection(name, "has no row in cheng.csv") for name in images)
    yield from orphans(masks, "masks")


def _facts(kind: str) -> dict[str, str]:
    """The attributes of a slice with that kind of tumor: all are T1 after contrast agent, as the publisher says."""
    return {"histology": HISTOLOGIES[kind], "sequence": "T1c"}


def _is_number(name: str) -> bool:
    return name.isdecimal() and len(name) <= MAX_DIGITS


def _tumor() -> int:
    return organ_named("brain").classes.index("tumor")


def _planes(image: pathlib.Path, mask: list[pathlib.Path]) -> tuple[np.ndarray, np.ndarray] | None:
    """A slice and its mask, both uint8 (H, W); None where one cannot be read, which `load` reports."""
    try:
        grey = image_files.read(image).image[..., 0]
        lesion = read_mask(mask[0]).lesion[..., 0]
    except (scan.ScanError, OSError, IndexError):
        return None
    return (grey, lesion) if grey.shape == lesion.shape else None


def _matlab(folder: pathlib.Path) -> Iterator[Item | Job]:
    files = sorted((path for path in folder.rglob("*.mat") if _is_number(path.stem)), key=lambda path: int(path.stem))
    if not files:
        zips = ", ".join(sorted(path.name for path in folder.glob(f"{PARTS}.zip"))) or "none"
        raise ValueError(
            f"{folder}: there are no files 1.mat, 2.mat ...; zips of them: {zips}. Unpack the four zips of the "
            "download into one folder, and name that folder"
        )
    if importlib.util.find_spec("h5py") is None:
        raise ValueError(f"{folder}: MATLAB files need the extra `mat`: pip install -e '.[mat]'")
    return (functools.partial(read_matlab, path.stem, path) for path in files)


def read_matlab(scan_id: str, path: pathlib.Path) -> Item:
    """Read a published slice: a Record, or a Rejection where it is damaged or its mask does not fit."""
    try:
        patient, kind, values, lesion = _contents(path)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        what = error.args[0] if isinstance(error, KeyError) else error  # KeyError puts its message in quotes
        return Rejection(scan_id, f"not readable as one of Cheng's MATLAB 7.3 files ({what})")
    if lesion.shape != values.shape:
        sizes = [f"{width} x {height}" for height, width in (lesion.shape, values.shape)]
        return Rejection(scan_id, f"its mask is {sizes[0]} pixels, its scan {sizes[1]}; they must be equal")
    mask = (lesion != 0).astype(np.uint8)[..., None]
    if not mask.any():
        return Rejection(scan_id, "labelled tumor, yet its mask is empty")
    if remarks.is_inverted(mask):
        return Rejection(scan_id, "its mask covers the picture up to the border and looks inverted")
    black, white = (float(value) for value in np.percentile(values, PERCENTILES))
    image = np.repeat(scan.to_8_bits(values, black, white)[..., None], 3, axis=2)
    found = ((remarks.BLANK,) if remarks.is_blank(image) else ()) + remarks.of_mask(image, mask)
    return Record(scan_id, image, mask, True, "brain", _tumor(), patient, None, found, attributes=_facts(kind))


def _contents(path: pathlib.Path) -> tuple[str, str, np.ndarray, np.ndarray]:
    """Patient, kind, values (H, W) and mask (H, W) of a MATLAB file. ValueError names what is not as published."""
    import h5py

    with h5py.File(path, "r") as file:
        group = file["cjdata"]
        patient = "".join(map(chr, _numbers(group, "PID", MAX_LETTERS).astype(int).ravel().tolist())).strip()
        label = _numbers(group, "label", 1).ravel().tolist()
        values, lesion = _numbers(group, "image", MAX_PIXELS), _numbers(group, "tumorMask", MAX_PIXELS)
    if not patient.isprintable() or not patient:
        raise ValueError(f"PID is {patient!r}; without it a patient could be in two splits")
    if label not in [[number + 1] for number in range(len(KINDS))]:
        raise ValueError(f"label is {label}; the labels are 1 to {len(KINDS)}")
    if values.ndim != 2 or min(values.shape) < 2:
        raise ValueError(f"image has the shape {values.shape}; a slice has rows and columns")
    if not np.isfinite(values).all():
        raise ValueError("image has values that are no numbers")
    return patient, KINDS[int(label[0]) - 1], values.T, lesion.T  # MATLAB stores columns first


def _numbers(group: Any, name: str, most: int) -> np.ndarray:
    """A data set of at most that many numbers. Its size is checked before it is read."""
    found = group[name]
    if not 0 < found.size <= most or found.dtype.kind not in "uifb":
        raise ValueError(f"{name} is {found.dtype} {found.shape}; numbers are needed, at most {most}")
    return np.asarray(found[()])
