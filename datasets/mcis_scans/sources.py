"""The sources of `mcis_scans`: each has one function from its folder to records, and one row of SOURCES. No TFDS.

To add a source: write its function, add its row, and add a few synthetic files of its layout to `dummy_data/`. The
functions are in `breast_sources.py`, `brain_sources.py`, `cheng.py` and `own_folder.py`, others here.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from functools import partial

from mcis.imaging import image_files, phantom
from mcis.organs import ORGANS, UNKNOWN, UNSUPPORTED

from . import brain_sources, breast_sources
from .cheng import PARTS, cheng
from .own_folder import advice, folder
from .record import MAX_DEPTH, Item, Job, Record, load


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


def _key(path: pathlib.Path, root: pathlib.Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


@dataclasses.dataclass(frozen=True)
class Source:
    """A row of SOURCES.

    Attributes:
      title: description in one line.
      read: function from the source's own folder (phantoms: from `per_class`) to its items, or jobs that read them.
      requires: patterns that all have a match in that folder (of several with "|" between them, one), by which it is
        recognised. Empty = needs no folder.
      layout: the files in the folder, for messages.
      origin: where to get it, and its licence.
      advice: what to do with a folder that lacks some of these files.
      organ: the organ of a published source: it is searched for near-duplicates of other such sources of the organ.
    """

    title: str
    read: Callable[..., Iterator[Item | Job]]
    requires: tuple[str, ...]
    layout: str
    origin: str
    organ: str | None = None
    advice: Callable[[pathlib.Path], str] | None = None


SOURCES: dict[str, Source] = {
    "busi": Source(
        title="BUSI: breast ultrasound; normal, benign, malignant; lesion masks; no patient identities",
        read=breast_sources.busi,
        requires=("benign/*_mask.*", "malignant/*_mask.*", "normal"),
        layout="Dataset_BUSI_with_GT/{benign,malignant,normal}/: `benign (1).png`, `benign (1)_mask.png` ...",
        origin="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset (CC0 1.0 or CC BY 4.0: sources disagree)",
        organ="breast",
    ),
    "busbra": Source(
        title="BUS-BRA: breast ultrasound; benign, malignant; lesion masks; by patient",
        read=breast_sources.busbra,
        requires=("Images", "Masks", "bus_data.csv"),
        layout="BUSBRA/: Images/bus_0001-l.png, Masks/mask_0001-l.png, bus_data.csv",
        origin="https://zenodo.org/records/8231412 (permissive, citation required)",
        organ="breast",
    ),
    "lgg": Source(
        title="LGG: brain MRI slices of lower-grade glioma patients; tumour masks; by patient",
        read=brain_sources.lgg,
        requires=("TCGA_*/*_mask.tif",),
        layout="kaggle_3m/: TCGA_CS_4941_19960909/TCGA_CS_4941_19960909_1.tif, ..._1_mask.tif",
        origin="https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation (CC BY-NC-SA 4.0)",
        organ="brain",
    ),
    "br35h": Source(
        title="Br35H: brain MRI; tumor, no_tumor; outlines of part of the tumors; no patient identities",
        read=brain_sources.br35h,
        requires=("yes", "no", "Br35H-Mask-RCNN"),
        layout="Br35H/: yes/y0.jpg, no/no0.jpg, Br35H-Mask-RCNN/{TRAIN,VAL,TEST}/: images and a VIA .json each",
        origin="https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection (no licence stated: research only)",
        organ="brain",
    ),
    "cheng": Source(
        title="Cheng: contrast-enhanced brain MRI slices in three planes; tumor; masks; by patient or neighbours",
        read=cheng,
        requires=(f"cheng.csv|[0-9]*.mat|{PARTS}",),
        layout="1.mat, 2.mat ... (MATLAB 7.3), or cheng.csv (columns file, kind), images/1.jpg, masks/1.png",
        origin="https://figshare.com/articles/dataset/brain_tumor_dataset/1512427 (CC BY 4.0)",
        organ="brain",
    ),
    "healthy": Source(
        title="healthy: brain MRI slices of subjects without tumor, T1 in three planes and FLAIR; by subject",
        read=brain_sources.healthy,
        requires=("healthy.csv", "images"),
        layout="healthy.csv (columns file, subject), images/h00_t1_sag0.jpg ...",
        origin="slices of demo volumes of https://github.com/CBICA/NiChart_Project (research use)",
        organ="brain",
    ),
    "notumor": Source(
        title="notumor: tumor-free brain MRI pictures of two Kaggle collections; by near-duplicates",
        read=brain_sources.notumor,
        requires=("notumor.csv", "images"),
        layout="notumor.csv (columns file, group), images/n0000.jpg ...",
        origin="https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset and https://www.kaggle."
        "com/datasets/sartajbhuvaji/brain-tumor-classification-mri (no licence found: research only)",
        organ="brain",
    ),
    "uclm": Source(
        title="BUS-UCLM: breast ultrasound; normal, benign, malignant; lesion masks; by patient",
        read=breast_sources.uclm,
        requires=("INFO.csv", "images", "masks"),
        layout="BUS-UCLM/: INFO.csv, images/ALWI_000.png, masks/ALWI_000.png",
        origin="https://data.mendeley.com/datasets/7fvgj4jsp7 (CC BY 4.0)",
        organ="breast",
    ),
    "brest": Source(
        title="BrEaST: breast ultrasound; normal, benign, malignant; lesion masks; one scan a patient",
        read=breast_sources.brest,
        requires=(breast_sources.BREST_FOLDER,),
        layout=f"image_labels.csv, {breast_sources.BREST_FOLDER}/: case001.png, case001_tumor.png ...",
        origin="https://doi.org/10.7937/9WKK-Q141 (CC BY 4.0)",
        organ="breast",
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
        layout="labels.csv (columns scan, label, patient; optional organ, frame, split), images/, masks/ (optional)",
        origin="your own scans",
        advice=advice,
    ),
}


def expected(name: str, root: pathlib.Path | None = None) -> str:
    """The layout of source `name` and where to get it, for error messages; and what to do with the folder `root`."""
    source = SOURCES[name]
    first = "" if root is None or source.advice is None else source.advice(root)
    return (f"{first}. " if first else "") + (
        f"The source {name!r} is read from a folder or zip that contains, at most {MAX_DEPTH} folders down,\n"
        f"    {source.layout}\n  origin: {source.origin}"
    )
