"""DICOM objects that are no scans: derived from scans, or without pixels. No JAX."""

from typing import Any

from mcis.imaging.dicom.file import DIRECTORY
from mcis.imaging.dicom.header import text_of
from mcis.imaging.dicom.pixels import modality_of
from mcis.imaging.modality import STORAGE

NO_SCANS = {
    "SEG": "a segmentation, which outlines parts of other scans",
    "PR": "a presentation state, which describes how other scans are shown",
    "SR": "a structured report",
    "KO": "a selection of other scans (key objects)",
    "REG": "a registration of other scans",
    "FID": "points marked in other scans",
    "RTDOSE": "a radiation dose, which is computed from scans",
    "RTSTRUCT": "structures drawn on other scans",
    "RTPLAN": "a radiation plan",
    "RTRECORD": "a radiation record",
    "DOC": "a document",
    "ECG": "an electrocardiogram",
    "HD": "a haemodynamic curve",
    "AU": "a sound recording",
    "PLAN": "a plan",
    "ANN": "annotations of other scans",
}
"""Modalities of objects that are no scans."""
OTHERS = {
    "RAW": "raw data of a device, from which scans are made",
    "SPECTRA": "spectra",
    "CURVE": "curves",
    "OVERLAY": "an overlay of other scans",
    "TABLE": "a lookup table",
    "TRACTS": "nerve fibres computed from other scans",
    "VALUES": "a mapping of the values of other scans",
    "SURFACE": "a surface",
    "MEASUREMENTS": "measurements of an eye",
    "ASSESSMENT": "an assessment of other scans",
    "LAYOUT": "a layout in which other scans are shown",
    "PROTOCOL": "the protocol of an examination",
    "INVENTORY": "a list of studies",
    "TEMPLATE": "the template of an implant",
    "DEVICE": "data of the maker's programs",
}
"""Other kinds of objects that are no scans, which have no modality of their own."""
IMAGE = ""
"""The kind of objects that are scans."""
CLASSES: dict[str, str] = {
    f"{STORAGE}8": "OVERLAY",
    **{f"{STORAGE}{end}": "CURVE" for end in ("9", "129")},
    **{f"{STORAGE}9.{end}": kind for end, kind in (("1", "ECG"), ("2", "HD"), ("4", "AU"))},
    f"{STORAGE}10": "TABLE",
    f"{STORAGE}11": "PR",
    f"{STORAGE}4.2": "SPECTRA",
    f"{STORAGE}66": "RAW",
    **{f"{STORAGE}66.{end}": kind for end, kind in (("1", "REG"), ("2", "FID"), ("3", "REG"), ("6", "TRACTS"))},
    **{f"{STORAGE}66.{end}": "SEG" for end in ("4", "5", "7", "8")},
    f"{STORAGE}67": "VALUES",
    f"{STORAGE}68": "SURFACE",
    **{f"{STORAGE}{end}": "MEASUREMENTS" for end in ("77.1.5.3", "78", "79", "80")},
    f"{STORAGE}88": "SR",
    f"{STORAGE}88.59": "KO",
    f"{STORAGE}90": "ASSESSMENT",
    f"{STORAGE}91": "ANN",
    f"{STORAGE}104": "DOC",
    f"{STORAGE}131": "LAYOUT",
    f"{STORAGE}200": "PROTOCOL",
    f"{STORAGE}201": "INVENTORY",
    f"{STORAGE}481": "RTRECORD",
    **{f"{STORAGE}481.{end}": IMAGE for end in ("1", "23", "24")},
    f"{STORAGE}481.2": "RTDOSE",
    **{f"{STORAGE}481.{end}": "RTSTRUCT" for end in ("3", "11")},
    **{f"{STORAGE}481.{end}": "RTPLAN" for end in ("5", "8", "10", "12", "13", "14", "15", "21", "22", "25")},
    **{f"1.2.840.10008.5.1.4.{end}": "RTPLAN" for end in ("34.1", "34.7", "34.10")},
    "1.2.840.10008.5.1.4.38": "LAYOUT",
    "1.2.840.10008.5.1.4.39": "TABLE",
    **{f"1.2.840.10008.5.1.4.{end}": "TEMPLATE" for end in ("43", "44", "45")},
    **{f"1.3.46.670589.11.0.0.12.{end}": "DEVICE" for end in ("1", "2", "4")},  # Philips: spectra, series, exam cards
    "1.3.12.2.1107.5.9.1": "DEVICE",  # Siemens: "CSA non-image"
}
"""SOP class -> kind of NO_SCANS or OTHERS. A class stands for all whose UID it begins, unless a longer one does."""


def kind_of(header: Any) -> str | None:
    """What an object is that is no scan: "DICOMDIR", or a key of NO_SCANS or OTHERS; None for all others.

    The SOP class decides, whatever modality such an object states: writers copy that of the scans.
    """
    parts = text_of(header, "SOPClassUID").strip(" \0").split(".")
    if ".".join(parts) == DIRECTORY:
        return "DICOMDIR"
    beginnings = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    kind = next((CLASSES[one] for one in beginnings if one in CLASSES), IMAGE)
    modality = modality_of(header)
    return kind or (modality if modality in NO_SCANS else None)


def described(kind: str, modality: str) -> str:
    """What a kind of object is, for a message about one that states some modality."""
    if kind == "DICOMDIR":
        return "a DICOMDIR, which lists files"
    if kind == modality:
        return f"of modality {kind}: {NO_SCANS[kind]}"
    return f"by its SOP class {NO_SCANS.get(kind) or OTHERS[kind]}"
