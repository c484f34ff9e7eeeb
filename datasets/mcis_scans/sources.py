"""The sources of `mcis_scans`: each has one function from its folder to records, and one row of SOURCES. No TFDS.

To add a source: write its function, add its row, and add a few synthetic files of its layout to `dummy_data/`.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator
from functools import partial

from mcis.imaging import image_files, phantom
from mcis.organs import ORGANS, UNKNOWN, UNSUPPORTED, organ_named

from . import via
from .own_folder import folder
from .record import MAX_DEPTH, Item, Job, MakeMask, Record, Rejection, empty, load, read_table, union_of

BRAIN, BREAST = organ_named("brain"), organ_named("breast")


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
        yield from _orphans(masks, name)


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
            yield partial(load, scan_id, image, union_of(mask), organ="breast", label=index, patient=row["Case"])
    yield from (Rejection(scan_id, "has no row in bus_data.csv") for scan_id in images)
    yield from _orphans(masks, "Masks")


def lgg(folder: pathlib.Path) -> Iterator[Item | Job]:
    """LGG: one folder per patient; slice `x.tif` with `x_mask.tif`; "tumor" where the slice's mask is not empty.

    Red, green and blue are the three sequences (pre-contrast, FLAIR, post-contrast).
    """
    for place in sorted(folder.glob("TCGA_*")):
        patient = "_".join(place.name.split("_")[:3])  # the rest of the folder's name is a date
        files = {path.stem: path for path in image_files.files_in(place)}
        masks = {stem.removesuffix("_mask"): [files.pop(stem)] for stem in list(files) if stem.endswith("_mask")}
        for stem, path in files.items():
            make_mask = union_of(masks.pop(stem, ()))
            yield partial(_slice, f"{place.name}/{stem}", path, make_mask, patient)
        yield from _orphans(masks, place.name)


def _slice(scan_id: str, path: pathlib.Path, make_mask: MakeMask, patient: str) -> Item:
    item = load(scan_id, path, make_mask, organ="brain", label=UNKNOWN, patient=patient)
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


def foreign(root: pathlib.Path) -> Iterator[Item | Job]:
    """Out-of-distribution images, which the router learns to reject: one folder per kind.

    The kind takes the place of the patient. So no kind is in two splits, and rejection is tested on unseen kinds.
    """
    for kind in sorted(path for path in root.iterdir() if path.is_dir()):
        for path in image_files.files_in(kind):
            scan_id = f"{kind.name}/{_key(path, kind)}"
            yield partial(load, scan_id, path, None, organ=UNSUPPORTED, label=UNKNOWN, patient=kind.name)


def phantoms(per_class: int = 40) -> Iterator[Job]:
    """Synthetic scans with exact masks, `per_class` of every class of every organ, each of its own patient."""
    for number, seed in enumerate(phantom.seeds(per_class)):
        for organ in ORGANS:
            for label, name in enumerate(organ.classes):
                yield partial(_phantom, f"{organ.name}-{name}-{number:04d}", organ.name, label, seed)


def _phantom(scan_id: str, organ: str, label: int, seed: int) -> Record:
    made = phantom.make_phantom(organ, label, seed)
    return Record(scan_id, made.image, made.mask, True, organ, label, scan_id)


def _orphans(masks: dict[str, list[pathlib.Path]], place: str) -> Iterator[Rejection]:
    for paths in masks.values():
        for path in paths:
            yield Rejection(f"{place}/{path.stem}", "a mask without its image")


def _key(path: pathlib.Path, root: pathlib.Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


@dataclasses.dataclass(frozen=True)
class Source:
    """A row of SOURCES.

    Attributes:
      title: description in one line.
      read: function from the source's own folder (phantoms: from `per_class`) to its items, or jobs that read them.
      requires: patterns that all have a match in that folder, by which it is recognised. Empty = needs no folder.
      layout: the files in the folder, for messages.
      origin: where to get it, and its licence.
    """

    title: str
    read: Callable[..., Iterator[Item | Job]]
    requires: tuple[str, ...]
    layout: str
    origin: str


SOURCES: dict[str, Source] = {
    "busi": Source(
        title="BUSI: breast ultrasound; normal, benign, malignant; lesion masks; no patient identities",
        read=busi,
        requires=("benign/*_mask.*", "malignant/*_mask.*", "normal"),
        layout="Dataset_BUSI_with_GT/{benign,malignant,normal}/: `benign (1).png`, `benign (1)_mask.png` ...",
        origin="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset (CC0 1.0 or CC BY 4.0: sources disagree)",
    ),
    "busbra": Source(
        title="BUS-BRA: breast ultrasound; benign, malignant; lesion masks; by patient",
        read=busbra,
        requires=("Images", "Masks", "bus_data.csv"),
        layout="BUSBRA/: Images/bus_0001-l.png, Masks/mask_0001-l.png, bus_data.csv",
        origin="https://zenodo.org/records/8231412 (permissive, citation required)",
    ),
    "lgg": Source(
        title="LGG: brain MRI slices of lower-grade glioma patients; tumor masks; by patient",
        read=lgg,
        requires=("TCGA_*/*_mask.tif",),
        layout="kaggle_3m/: TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1.tif, ..._1_mask.tif",
        origin="https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation (CC BY-NC-SA 4.0)",
    ),
    "br35h": Source(
        title="Br35H: brain MRI; tumor, no_tumor; outlines of part of the tumors; no patient identities",
        read=br35h,
        requires=("yes", "no", "Br35H-Mask-RCNN"),
        layout="Br35H/: yes/y0.jpg, no/no0.jpg, Br35H-Mask-RCNN/{TRAIN,VAL,TEST}/: images and a VIA .json each",
        origin="https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection (no licence stated: research only)",
    ),
    "foreign": Source(
        title="out-of-distribution images, which the router learns to reject; by kind",
        read=foreign,
        requires=("*/*.[jp][pn]g",),
        layout="one folder per kind, of PNG or JPEG images: ct_head/, us_lung/, natural_photo/ ...",
        origin="your own collection",
    ),
    "phantom": Source(
        title="synthetic brain MRI and breast ultrasound with exact masks; made here, needs no files",
        read=phantoms,
        requires=(),
        layout="(none)",
        origin="generated by mcis.imaging.phantom (Apache-2.0)",
    ),
    "folder": Source(
        title="your own scans",
        read=folder,
        requires=("images", "labels.csv"),
        layout="labels.csv (columns scan, label, patient; optional organ, frame), images/, masks/ (optional)",
        origin="your own scans",
    ),
}


def expected(name: str) -> str:
    """The layout of source `name` and where to get it, for error messages."""
    source = SOURCES[name]
    return (
        f"The source {name!r} is read from a folder or zip that contains, at most {MAX_DEPTH} folders down,\n"
        f"    {source.layout}\n  origin: {source.origin}"
    )
