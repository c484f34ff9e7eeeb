"""Attributes of scans (`mcis.data.attributes`) as the files of sources write them: literal tables, one vocabulary."""

import re
from collections.abc import Mapping

from .cells import is_missing

BIRADS = {one: one for one in ("0", "1", "2", "3", "4", "4a", "4b", "4c", "5", "6")}
PLANES = {
    **dict.fromkeys(("axial", "ax", "axi", "transverse", "transversal"), "axial"),
    **dict.fromkeys(("coronal", "cor"), "coronal"),
    **dict.fromkeys(("sagittal", "sag"), "sagittal"),
}
SEQUENCES = {
    **dict.fromkeys(("t1", "t1w", "t1 weighted", "t1-weighted"), "T1"),
    **dict.fromkeys(("t1c", "t1ce", "t1gd", "t1 gd", "t1+c", "t1 c", "ce-t1", "ce-mri"), "T1c"),
    **dict.fromkeys(("t2", "t2w", "t2 weighted", "t2-weighted"), "T2"),
    **dict.fromkeys(("flair", "fl", "t2 flair", "t2-flair"), "FLAIR"),
    "composite": "composite",
}
FRAMES = {
    **dict.fromkeys(("linear", "rectangular"), "linear"),
    **dict.fromkeys(("sector", "convex", "curved"), "sector"),
}
YES_NO = {"yes": "yes", "y": "yes", "no": "no", "n": "no"}
GRADES = {"1": "1", "i": "1", "2": "2", "ii": "2", "3": "3", "iii": "3", "4": "4", "iv": "4"}
SCANNERS = {
    "ge logiq 5": "GE Logiq 5",
    "ge logiq 7": "GE Logiq 7",
    "toshiba aplio 300": "Toshiba Aplio 300",
    "u-systems": "U-Systems",
}
HISTOLOGIES = {
    one: one
    for one in (
        "adenocarcinoma",
        "apocrine metaplasia",
        "astrocytoma",
        "cyst",
        "ductal carcinoma in situ",
        "ductal hyperplasia",
        "fat necrosis",
        "fibroadenoma",
        "fibrocystic changes",
        "fibrosis",
        "galactocele",
        "glioma",
        "hamartoma",
        "hyperplasia",
        "intraductal papilloma",
        "invasive ductal carcinoma",
        "invasive lobular carcinoma",
        "lipoma",
        "lobular atrophy",
        "lobular carcinoma in situ",
        "lymphoma",
        "mastitis",
        "medullary carcinoma",
        "meningioma",
        "mucinous carcinoma",
        "oligoastrocytoma",
        "oligodendroglioma",
        "papillary carcinoma",
        "phyllodes tumor",
        "pituitary tumor",
        "proliferative lesions",
        "sclerosing adenosis",
    )
} | {
    "invasive carcinoma of no special type": "invasive ductal carcinoma",  # its name by the WHO since 2012
    "invasive carcinoma of no special type (nst)": "invasive ductal carcinoma",
    "metaplasia apocrina": "apocrine metaplasia",
    "phyllodes tumour": "phyllodes tumor",
    "pituitary": "pituitary tumor",
}
SITES = {
    "cs": "Thomas Jefferson University",
    "du": "Henry Ford Hospital",
    "ez": "University of North Carolina",
    "fg": "Case Western Reserve University",
    "ht": "Case Western Reserve, St Joseph",
}
"""TCGA's codes of the hospitals whose patients LGG has."""

TABLES: Mapping[str, Mapping[str, str]] = {
    "birads": BIRADS,
    "combined": YES_NO,
    "doppler": YES_NO,
    "frame": FRAMES,
    "grade": GRADES,
    "histology": HISTOLOGIES,
    "marks": YES_NO,
    "plane": PLANES,
    "scanner": SCANNERS,
    "sequence": SEQUENCES,
    "site": SITES,
}
"""Attribute -> what files write, in lower case -> value."""

NOTHING = frozenset(("not applicable", "not available", "not stated"))
"""In lower case: what tables write in place of a fact, beside the signs for "unknown"."""
OLDEST = 90
"""Age in years from which on a decade would tell too much of a person."""
DECADE = re.compile(r"[0-8]?0-[0-8]?9|90\+")
_BIRADS = re.compile(r"bi-?\s?rads[\s:_-]*")
_FREQUENCY = re.compile(r"\s*@.*")
"""Of the probe, behind a scanner's name in BUS-BRA."""


def value_of(name: str, written: str) -> str | None:
    """The value of an attribute as the vocabulary has it; None where no table has what is written.

    >>> value_of("plane", "sag"), value_of("birads", "BI-RADS 4A"), value_of("age", "57"), value_of("plane", "oblique")
    ('sagittal', '4a', '50-59', None)
    >>> value_of("scanner", "GE Logiq 7 @10-14MHz")
    'GE Logiq 7'
    """
    if name == "age":
        return decade_of(written)
    key = " ".join(written.lower().split())
    if name == "birads":
        key = _BIRADS.sub("", key)
    if name == "scanner":
        key = _FREQUENCY.sub("", key)
    return TABLES.get(name, {}).get(key)


def states_nothing(text: str) -> bool:
    """Whether a cell states no fact.

    >>> states_nothing("n/a"), states_nothing("Not applicable"), states_nothing("4")
    (True, True, False)
    """
    return is_missing(text) or text.lower() in NOTHING


def decade_of(written: str) -> str | None:
    """The decade of an age in years, "90+" from OLDEST on; None where it is no age. A decade stays.

    >>> decade_of("57"), decade_of("57.0"), decade_of("8"), decade_of("93"), decade_of("50-59"), decade_of("old")
    ('50-59', '50-59', '0-9', '90+', '50-59', None)
    """
    text = written.replace(" ", "").replace("\N{EN DASH}", "-")
    if DECADE.fullmatch(text):
        low, _, high = text.partition("-")
        return text if text == "90+" or int(high) - int(low) == 9 else None
    if re.fullmatch(r"\d{1,3}(?:[.,]\d+)?", text) is None:
        return None
    years = int(re.split("[.,]", text)[0])
    if years >= OLDEST:
        return f"{OLDEST}+"
    return f"{years // 10 * 10}-{years // 10 * 10 + 9}"


def read(written: Mapping[str, str | None]) -> tuple[dict[str, str], list[str]]:
    """Attributes of a published scan, and those that are left out as no table has what the file says.

    Args:
      written: attribute -> what the file says; None, "" and signs of nothing ("n/a") state nothing.

    >>> read({"birads": "4", "plane": "oblique", "scanner": None})
    ({'birads': '4'}, ["plane 'oblique'"])
    """
    found, unknown = {}, []
    for name, text in written.items():
        if text is None or states_nothing(text):
            continue
        value = value_of(name, text)
        if value is None:
            unknown.append(f"{name} {text[:80]!r}")
        else:
            found[name] = value
    return found, unknown
