"""Croissant metadata (mlcommons.org/croissant, 1.0) of a prepared source: `croissant.json` in its version folder.

It says what the set is, whose work to cite, under which terms, and which files it has, with their SHA-256. The records
are in array_record files, which Croissant has no reader for: `mcis.data.dataset.records` or TFDS reads them. The fields
name the features in them. No scan, name of a scan or patient is in the file.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any

from .sources import SOURCES

FILE = "croissant.json"
HERE = pathlib.Path(__file__).parent
CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
RECORDS = "mcis_scans-*.array_record-*"
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataBiases": "cr:dataBiases",
    "dataCollection": "cr:dataCollection",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "personalSensitiveInformation": "cr:personalSensitiveInformation",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that the specification recommends."""

CC_BY, CC_BY_NC_SA = (
    "https://creativecommons.org/licenses/by/4.0/",
    "https://creativecommons.org/licenses/by-nc-sa/4.0/",
)
NOT_STATED = "none stated: research only, do not redistribute"


@dataclasses.dataclass(frozen=True)
class Publication:
    """What a source's authors published.

    Attributes:
      url: where to get it; None for scans that nobody published.
      licence: URL or words.
      date: year of the publication, None if there is none.
      creators: the authors' names.
      works: keys of CITATIONS.bib.
    """

    url: str | None
    licence: str
    date: str | None
    creators: tuple[str, ...]
    works: tuple[str, ...] = ()


PUBLICATIONS: dict[str, Publication] = {
    "busi": Publication(
        "https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
        "CC0 1.0 or CC BY 4.0: sources disagree",
        "2020",
        ("Walid Al-Dhabyani", "Mohammed Gomaa", "Hussien Khaled", "Aly Fahmy"),
        ("aldhabyani2020busi",),
    ),
    "busbra": Publication(
        "https://zenodo.org/records/8231412",
        "permissive, citation required: see LICENSE.txt of the download",
        "2024",
        ("Wilfrido Gómez-Flores", "Maria Julia Gregorio-Calas", "Wagner Coelho de Albuquerque Pereira"),
        ("gomezflores2024busbra",),
    ),
    "lgg": Publication(
        "https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation",
        CC_BY_NC_SA,
        "2019",
        ("Mateusz Buda", "Ashirbani Saha", "Maciej A. Mazurowski"),
        ("buda2019lgg", "mazurowski2017radiogenomics"),
    ),
    "br35h": Publication(
        "https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
        NOT_STATED,
        "2020",
        ("Ahmed Hamada",),
        ("hamada2020br35h",),
    ),
    "cheng": Publication(
        "https://figshare.com/articles/dataset/brain_tumor_dataset/1512427",
        CC_BY,
        "2015",
        (
            "Jun Cheng",
            "Wei Huang",
            "Shuangliang Cao",
            "Ru Yang",
            "Wei Yang",
            "Zhaoqiang Yun",
            "Zhijian Wang",
            "Qianjin Feng",
        ),
        ("cheng2015enhanced",),
    ),
    "healthy": Publication(
        "https://github.com/CBICA/NiChart_Project",
        "research use",
        None,
        ("Center for Biomedical Image Computing and Analytics",),
        ("nichart",),
    ),
    "notumor": Publication(
        "https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset",
        NOT_STATED,
        "2021",
        ("Masoud Nickparvar", "Sartaj Bhuvaji"),
        ("nickparvar2021brain", "bhuvaji2020brain"),
    ),
    "uclm": Publication(
        "https://data.mendeley.com/datasets/7fvgj4jsp7",
        CC_BY,
        "2025",
        ("Noelia Vallez", "Gloria Bueno", "Oscar Deniz", "Miguel Angel Rienda", "Carlos Pastor"),
        ("vallez2025busuclm",),
    ),
    "brest": Publication(
        "https://doi.org/10.7937/9WKK-Q141",
        CC_BY,
        "2024",
        (
            "Anna Pawłowska",
            "Anna Ćwierz-Pieńkowska",
            "Agnieszka Domalik",
            "Dominika Jaguś",
            "Piotr Kasprzak",
            "Rafał Matkowski",
            "Łukasz Fura",
            "Andrzej Nowicki",
            "Norbert Żołek",
        ),
        ("pawlowska2024brest",),
    ),
    "foreign": Publication(None, "that of your images", None, ()),
    "phantom": Publication(None, "https://www.apache.org/licenses/LICENSE-2.0", None, ("mcis",)),
    "folder": Publication(None, "that of your scans: not published", None, ()),
}

FIELDS = {
    "image": ("sc:ImageObject", "The scan at its own size, PNG, 8 bits, three channels."),
    "mask": ("sc:ImageObject", "1 = lesion, 0 = background, PNG, one channel."),
    "has_mask": ("sc:Boolean", "False: the lesion's outline is unknown. True with an empty mask: no lesion."),
    "organ": ("sc:Text", "brain, breast, or unsupported."),
    "label": ("sc:Integer", "brain: 0 no_tumor, 1 tumor; breast: 0 normal, 1 benign, 2 malignant; -1 unknown."),
    "group": ("sc:Text", "Patient, or cluster of near-duplicates. No group is in two splits."),
    "source": ("sc:Text", "Name of the source."),
    "scan_id": ("sc:Text", "Name of the scan, unique in the source."),
    "fingerprint": ("sc:Text", "16 hex digits of SHA-256 over shape and pixels of the image."),
    "attributes": ("sc:Text", "JSON object of what the source states of a scan beyond its class."),
}
"""Feature -> its type and meaning."""

SIDE_FILES = ("audit.json", "dataset_info.json", "features.json", "splits.json")


def citations(works: tuple[str, ...]) -> str:
    """The entries of CITATIONS.bib with these keys, in BibTeX."""
    text = (HERE / "CITATIONS.bib").read_text(encoding="utf-8")
    entries = {entry[1]: entry[0] for entry in re.finditer(r"(?ms)^@\w+\{(\w+),.*?^\}", text)}
    return "\n".join(entries[work] for work in works)


def describe(source: str, folder: pathlib.Path) -> dict[str, Any]:
    """The metadata of a prepared version of `source` in `folder`, as JSON-LD.

    Raises:
      OSError: a file of the folder cannot be read.
    """
    published = PUBLICATIONS[source]
    version = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))["version"]
    features = json.loads((folder / "features.json").read_text(encoding="utf-8"))["featuresDict"]["features"]
    optional = {
        "url": published.url,
        "datePublished": published.date,
        "citeAs": citations(published.works) or None,
        "creator": [{"@type": "sc:Person", "name": name} for name in published.creators] or None,
    }
    shards = sorted(folder.glob(RECORDS))
    files = [*shards, *(folder / name for name in SIDE_FILES if (folder / name).is_file())]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": f"mcis_scans_{source}",
        "description": f"{SOURCES[source].title}. Prepared by mcis for research; not a medical device.",
        "license": published.licence,
        "version": version,
        "isLiveDataset": False,
        **{key: value for key, value in optional.items() if value is not None},
        "distribution": [
            *(_file(path) for path in files),
            {
                "@type": "cr:FileSet",
                "@id": "records",
                "name": "records",
                "description": "Records in array_record files, as TFDS writes them: examples of TensorFlow's format.",
                "encodingFormat": "application/octet-stream",
                "includes": RECORDS,
            },
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "splits",
                "name": "splits",
                "dataType": "cr:Split",
                "key": {"@id": "splits/name"},
                "field": [{"@type": "cr:Field", "@id": "splits/name", "name": "name", "dataType": "sc:Text"}],
                "data": [{"splits/name": split} for split in ("train", "validation", "test")],
            },
            {
                "@type": "cr:RecordSet",
                "@id": "scans",
                "name": "scans",
                "description": "One record for each scan. Croissant has no reader for array_record: use mcis or TFDS.",
                "field": [_split(), *(_field(name) for name in FIELDS if name in features)],
            },
        ],
    }


def write(source: str, folder: pathlib.Path) -> None:
    """Write the metadata into the folder of a prepared version."""
    text = json.dumps(describe(source, folder), indent=1, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def _file(path: pathlib.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "@type": "cr:FileObject",
        "@id": path.name,
        "name": path.name,
        "contentUrl": path.name,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": "application/json" if path.suffix == ".json" else "application/octet-stream",
        "sha256": digest,
    }


def _field(name: str) -> dict[str, Any]:
    kind, meaning = FIELDS[name]
    return {
        "@type": "cr:Field",
        "@id": f"scans/{name}",
        "name": name,
        "description": meaning,
        "dataType": kind,
        "source": {"fileSet": {"@id": "records"}, "extract": {"column": name}},
    }


def _split() -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": "scans/split",
        "name": "split",
        "description": "train, validation or test, by the name of the file.",
        "dataType": "sc:Text",
        "references": {"field": {"@id": "splits/name"}},
        "source": {
            "fileSet": {"@id": "records"},
            "extract": {"fileProperty": "filename"},
            "transform": {"regex": r"mcis_scans-(train|validation|test)\.array_record.*"},
        },
    }
