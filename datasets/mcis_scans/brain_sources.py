"""The sources of brain MRI: one function each, from its folder to records. Cheng's is in `cheng.py`."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from mcis.imaging import image_files
from mcis.organs import UNKNOWN, organ_named

from . import attributes, via
from .record import Item, Job, MakeMask, Record, Rejection, Remark, empty, file_in, load, orphans, read_table, union_of
from .remarks import NO_ATTRIBUTE

BRAIN = organ_named("brain")


def lgg(folder: pathlib.Path) -> Iterator[Item | Job]:
    """LGG: one folder per patient; slice `x.tif` with `x_mask.tif`; "tumor" where the slice's mask is not empty.

    Red, green and blue are the three sequences (pre-contrast, FLAIR, post-contrast). `data.csv` has the patients' age,
    histology and grade, and the folder's name the hospital.
    """
    known, problems = _lgg_patients(folder / "data.csv")
    yield from problems
    for place in sorted(folder.glob("TCGA_*")):
        patient = "_".join(place.name.split("_")[:3])  # the rest of the folder's name is a date
        files = {path.stem: path for path in image_files.files_in(place)}
        masks = {stem.removesuffix("_mask"): [files.pop(stem)] for stem in list(files) if stem.endswith("_mask")}
        for stem, path in files.items():
            make_mask = union_of(masks.pop(stem, ()))
            facts = {"sequence": "composite", **known.get(patient, {}), **_lgg_site(patient)}
            yield partial(_slice, f"{place.name}/{stem}", path, make_mask, patient, facts)
        yield from orphans(masks, place.name)


LGG_HISTOLOGIES = {"1": "astrocytoma", "2": "oligoastrocytoma", "3": "oligodendroglioma"}
LGG_GRADES = {"1": "2", "2": "3"}
"""`data.csv` has no legend: its numbers are those of the values in alphabetical order, G2 and G3 for the grade, as
patients show that are in TCGA's tables too."""


def _lgg_patients(path: pathlib.Path) -> tuple[dict[str, dict[str, str]], list[Remark]]:
    """Patient -> attributes, and what cannot be read: the scans do not need this table."""
    if not path.is_file():
        return {}, []
    try:
        rows = read_table(path, ("Patient",))
    except ValueError as error:
        return {}, [Remark(str(error).replace(f"{path}", path.name), NO_ATTRIBUTE)]
    found, problems = {}, []
    for row in rows:
        written = {
            "age": row.get("age_at_initial_pathologic"),
            "grade": _of_number(LGG_GRADES, row.get("neoplasm_histologic_grade")),
            "histology": _of_number(LGG_HISTOLOGIES, row.get("histological_type")),
        }
        found[row["Patient"]], unknown = attributes.read(written)
        problems += [Remark(f"{row['Patient']}: {one}", NO_ATTRIBUTE) for one in unknown]
    return found, problems


def _of_number(values: Mapping[str, str], number: str | None) -> str | None:
    """The value of a number; a number without one stays recognisable as such, and so becomes no attribute."""
    return values.get(number, f"number {number}") if number else None


def _lgg_site(patient: str) -> dict[str, str]:
    """The hospital, by its code in a patient's name: "TCGA_DU_5849"."""
    site = attributes.value_of("site", patient.split("_")[1])
    return {} if site is None else {"site": site}


def _slice(scan_id: str, path: pathlib.Path, make_mask: MakeMask, patient: str, facts: Mapping[str, str]) -> Item:
    item = load(scan_id, path, make_mask, organ="brain", label=UNKNOWN, patient=patient, attributes=facts)
    if not isinstance(item, Record):
        return item
    return dataclasses.replace(item, label=BRAIN.classes.index("tumor" if item.mask.any() else "no_tumor"))


def br35h(folder: pathlib.Path) -> Iterator[Item | Job]:
    """Br35H: `yes/` and `no/`; for some of `yes/`, Br35H-Mask-RCNN has an outline (VIA) and another copy of the image.

    That copy replaces the image of the same name in `yes/`, since the outline is drawn on its pixels. An image of
    `yes/` without outline has no mask; one of `no/` has an empty mask. No patients.
    """
    tumors: dict[str, tuple[pathlib.Path, MakeMask | None]] = {
        path.stem.lower(): (path, None) for path in image_files.files_in(folder / "yes")
    }
    for place in ("TRAIN", "VAL", "TEST"):
        here = folder / "Br35H-Mask-RCNN" / place
        outlines = {}
        for table in sorted(here.glob("*.json")):
            outlines.update(via.read_outlines(table))
        drawn = {name.lower(): shapes for name, shapes in outlines.items()}
        for path in image_files.files_in(here):
            shapes, key = drawn.pop(path.name.lower(), ()), path.stem.lower()
            if not shapes:
                tumors.setdefault(key, (path, None))
            elif tumors.get(key, (path, None))[1] is not None:
                yield Rejection(f"{place}/{path.stem}", "is outlined in another folder too; the first is used")
            else:
                tumors[key] = (path, partial(via.rasterise, shapes))
        yield from (Rejection(f"{place}/{name}", "an outline without its image") for name in drawn)
    label = BRAIN.classes.index("tumor")
    for key, (path, make_mask) in sorted(tumors.items()):
        yield partial(load, f"yes/{key}", path, make_mask, organ="brain", label=label, patient=None)
    label = BRAIN.classes.index("no_tumor")
    for path in image_files.files_in(folder / "no"):
        yield partial(load, f"no/{path.stem}", path, empty, organ="brain", label=label, patient=None)


def healthy(folder: pathlib.Path) -> Iterator[Item | Job]:
    """Healthy volumes, cut into slices: `healthy.csv` (file, subject) names `images/x.jpg`. None has a tumour.

    The columns `sequence` and `plane` become attributes.
    """
    rows, unlisted = _listed(folder, "healthy.csv", ("file", "subject"))
    for scan_id, image, row in rows:
        if not row["subject"]:
            yield Rejection(scan_id, "healthy.csv gives no subject; without it a person could be in two splits")
        else:
            facts, unknown = attributes.read({name: row.get(name) for name in ("plane", "sequence")})
            yield partial(_tumor_free(scan_id, image, patient=row["subject"]), attributes=facts)
            yield from (Remark(f"{scan_id}: {one}", NO_ATTRIBUTE) for one in unknown)
    yield from unlisted


def notumor(folder: pathlib.Path) -> Iterator[Item | Job]:
    """Tumor-free pictures: `notumor.csv` (file, group) names `images/x.jpg`. Pictures of a group may be of one person.

    No patients: groups are approximate. Each stays in one split, as the near-duplicates do.
    """
    rows, unlisted = _listed(folder, "notumor.csv", ("file", "group"))
    for scan_id, image, row in rows:
        yield _tumor_free(scan_id, image, series=f"group {row['group']}" if row["group"] else None)
    yield from unlisted


def _tumor_free(
    scan_id: str, image: pathlib.Path, patient: str | None = None, series: str | None = None
) -> partial[Item]:
    label = BRAIN.classes.index("no_tumor")
    return partial(load, scan_id, image, empty, organ="brain", label=label, patient=patient, series=series)


def _listed(
    folder: pathlib.Path, name: str, columns: Sequence[str]
) -> tuple[list[tuple[str, pathlib.Path, dict[str, str]]], list[Rejection]]:
    """(name, image, row) of each row of a table of the pictures in `images/`; and pictures without a row."""
    images = {path.name: path for path in image_files.files_in(folder / "images")}
    rows = []
    for row in read_table(folder / name, columns):
        named = file_in(folder / "images", row["file"])
        image = images.pop(named.name, named)
        rows.append((image.stem, image, dict(row)))
    return rows, [Rejection(path.stem, f"has no row in {name}") for path in images.values()]
