"""The sources of breast ultrasound: one function each, from its folder to records."""

import pathlib
import re
from collections.abc import Iterator
from functools import partial

import numpy as np

from mcis.imaging import image_files, scan
from mcis.imaging.masks import Mask
from mcis.organs import organ_named

from . import attributes, table
from .record import Item, Job, Rejection, Remark, empty, file_in, load, orphans, read_table, union_of
from .remarks import NO_ATTRIBUTE, OTHER_MASK

BREAST = organ_named("breast")


def busi(folder: pathlib.Path) -> Iterator[Item | Job]:
    """BUSI: the folder is the class; the mask of `x.png` joins `x_mask.png`, `x_mask_1.png` ... No patients."""
    for label, name in enumerate(BREAST.classes):
        masks: dict[str, list[pathlib.Path]] = {}
        images = []
        for path in image_files.files_in(folder / name):
            found = re.fullmatch(r"(.*)_mask(_\d+)?", path.stem)
            if found:
                masks.setdefault(found[1], []).append(path)
            else:
                images.append(path)
        for path in images:
            make_mask = union_of(masks.pop(path.stem, ()))
            yield partial(load, f"{name}/{path.stem}", path, make_mask, organ="breast", label=label, patient=None)
        yield from orphans(masks, name)


def busbra(folder: pathlib.Path) -> Iterator[Item | Job]:
    """BUS-BRA: `bus_data.csv` names images (`Images/bus_x.png`, mask `Masks/mask_x.png`), Case (patient), Pathology."""
    images = {path.stem: path for path in image_files.files_in(folder / "Images")}
    masks = {path.stem: [path] for path in image_files.files_in(folder / "Masks")}
    for row in read_table(folder / "bus_data.csv", ("ID", "Case", "Pathology")):
        scan_id, label = row["ID"], row["Pathology"].lower()
        image = images.pop(scan_id, folder / "Images" / f"{scan_id}.png")
        mask = masks.pop(scan_id.replace("bus_", "mask_", 1), ())
        if label not in BREAST.classes:
            reason = f"bus_data.csv gives Pathology {label!r}; the labels are {', '.join(BREAST.classes)}"
            yield Rejection(scan_id, reason)
        elif not row["Case"]:
            yield Rejection(scan_id, "bus_data.csv gives no Case; without it a patient could be in two splits")
        else:
            index = BREAST.classes.index(label)
            facts, unknown = attributes.read(
                {"birads": row.get("birads"), "histology": row.get("histology"), "scanner": row.get("device")}
            )
            make = partial(load, scan_id, image, union_of(mask), organ="breast", label=index, patient=row["Case"])
            yield partial(make, attributes=facts)
            yield from (Remark(f"{scan_id}: {one}", NO_ATTRIBUTE) for one in unknown)
    yield from (Rejection(scan_id, "has no row in bus_data.csv") for scan_id in images)
    yield from orphans(masks, "Masks")


def uclm(folder: pathlib.Path) -> Iterator[Item | Job]:
    """BUS-UCLM: `INFO.csv` (Image, Label) names `images/ABCD_000.png`; its mask has the same name in `masks/`.

    The first four letters are the patient. Masks are drawn in the colour of the class (COLOURS).
    """
    images = {path.stem: path for path in image_files.files_in(folder / "images")}
    masks = {path.stem: [path] for path in image_files.files_in(folder / "masks")}
    for row in read_table(folder / "INFO.csv", ("Image", "Label")):
        named, label = file_in(folder / "images", row["Image"]), row["Label"].lower()
        scan_id = named.stem
        image = images.pop(scan_id, named)
        mask = masks.pop(scan_id, ())
        patient = re.match(r"[A-Z]{4}(?=_)", scan_id)
        if label not in BREAST.classes:
            yield Rejection(
                scan_id, f"INFO.csv gives Label {row['Label']!r}; the labels are {', '.join(BREAST.classes)}"
            )
        elif patient is None:
            yield Rejection(scan_id, "its name does not begin with the four letters of a patient and _")
        else:
            owner = SAME_PATIENT.get(patient[0], patient[0])
            make_mask = partial(_coloured, mask[0], label) if mask else union_of(())
            index = BREAST.classes.index(label)
            facts, unknown = attributes.read({name: row.get(name) for name in ("combined", "doppler", "marks")})
            make = partial(load, scan_id, image, make_mask, organ="breast", label=index, patient=owner)
            yield partial(make, attributes=facts)
            yield from (Remark(f"{scan_id}: {one}", NO_ATTRIBUTE) for one in unknown)
    yield from (Rejection(scan_id, "has no row in INFO.csv") for scan_id in images)
    yield from orphans(masks, "masks")


SAME_PATIENT = {"CHVI": "CHCO"}
"""Letters in BUS-UCLM of a patient who has others too."""
COLOURS = {"benign": 1, "malignant": 0}
"""Channel (RGB) of the colour in which BUS-UCLM draws a class: benign is green, malignant is red."""


def _coloured(path: pathlib.Path, label: str, size: tuple[int, int]) -> np.ndarray | Mask:
    """A mask of BUS-UCLM; ScanError where its colour is that of another class than `label`."""
    mask = union_of([path])(size)
    colours = image_files.read_picture(path).array
    if label in COLOURS and colours.shape[2] >= 3:
        drawn = {name: int(colours[..., channel].astype(np.int64).sum()) for name, channel in COLOURS.items()}
        most = max(drawn, key=lambda name: drawn[name])
        if drawn[most] > drawn[label]:
            raise scan.ScanError(f"labelled {label}, yet its mask has the colour of {most}; correct one of the two")
    return mask


BREST_FOLDER = "BrEaST-Lesions_USG-images_and_masks"
BREST_COLUMNS = (("Filename", "Label"), ("Image_filename", "Classification"))
"""File and class in a table of BrEaST: a short one, and the publisher's sheet saved as CSV."""
BREST_FACTS = {"age": "age", "birads": "birads", "histology": "diagnosis"}
"""Attribute -> column of the publisher's sheet, in lower case."""


def brest(folder: pathlib.Path) -> Iterator[Item | Job]:
    """BrEaST: `image_labels.csv` names images; the mask of `case001.png` joins `case001_tumor.png`. One scan a patient.

    `case001_other1.png` ... outline something else, such as an implant, a duct or a vessel: they are no lesion.
    """
    images: dict[str, pathlib.Path] = {}
    masks: dict[str, list[pathlib.Path]] = {}
    others: set[str] = set()
    for path in image_files.files_in(folder / BREST_FOLDER):
        found = re.fullmatch(r"(.*)_(tumor|other)(\d*)", path.stem)
        if found is None:
            images[path.stem] = path
        elif found[2] == "tumor":
            masks.setdefault(found[1], []).append(path)
        else:
            others.add(found[1])
    place = folder / "image_labels.csv"
    for row in _brest_rows(place):
        named, label = file_in(folder / BREST_FOLDER, row["file"]), row["label"].lower()
        scan_id = named.stem
        image, mask = images.pop(scan_id, named), masks.pop(scan_id, ())
        if label not in BREAST.classes:
            reason = f"{place.name} gives the class {row['label']!r}; the classes are {', '.join(BREAST.classes)}"
            yield Rejection(scan_id, reason)
            continue
        index = BREAST.classes.index(label)
        make_mask = union_of(mask) if mask or BREAST.is_lesion(index) else empty
        remarks = (OTHER_MASK,) if scan_id in others else ()
        facts, unknown = attributes.read({name: row.get(column) for name, column in BREST_FACTS.items()})
        make = partial(load, scan_id, image, make_mask, organ="breast", label=index, patient=scan_id, remarks=remarks)
        yield partial(make, attributes=facts)
        yield from (Remark(f"{scan_id}: {one}", NO_ATTRIBUTE) for one in unknown)
    yield from (Rejection(scan_id, f"has no row in {place.name}") for scan_id in images)
    yield from orphans(masks, BREST_FOLDER)


def _brest_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows, also with `file` and `label`. ValueError without such a table, or if none of BREST_COLUMNS fits it."""
    if not path.is_file():
        names = " and ".join(" and ".join(names) for names in BREST_COLUMNS[1:])
        raise ValueError(
            f"{path}: there is no such file. The download has its table as a workbook (.xlsx) beside the images: open "
            f"it, save its sheet as CSV ({table.ADVICE}) under this name, with the columns {names}"
        )
    for columns in BREST_COLUMNS:
        try:
            rows = read_table(path, columns)
            return [{**row, "file": row[columns[0]], "label": row[columns[1]]} for row in rows]
        except ValueError as error:
            problem = error
    raise problem
