"""Formats of scans that are not read: a folder's search and an error name them, and say what to do. No JAX."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

CONVERT = "convert to NIfTI, DICOM or PNG"
"""What to do with such a file."""


class OtherFormat(NamedTuple):
    """A format that is not read.

    Attributes:
      name: for messages.
      suffixes: of its files, in lower case. The first one is the kind of a file that is recognised by its content.
      starts: first bytes by which a file of any name is recognised.
      article: "a" or "an".
      advice: what to do with a file.
    """

    name: str
    suffixes: tuple[str, ...]
    starts: tuple[bytes, ...] = ()
    article: str = "a"
    advice: str = "convert it to NIfTI, DICOM or PNG"


SAVE = "save it as PNG"
ENVI, RADIANCE = ".hdr (ENVI)", ".hdr (Radiance)"
"""Kinds of files that share their suffix with the header of a NIfTI pair."""

VIDEOS = (".avi", ".mp4", ".mov", ".mkv", ".wmv", ".mpg", ".mpeg")

OTHER_FORMATS = (
    OtherFormat("MetaImage", (".mha", ".mhd"), (b"ObjectType = ", b"NDims = ")),
    OtherFormat("NRRD", (".nrrd", ".nhdr"), (b"NRRD0",)),
    OtherFormat("FreeSurfer", (".mgz", ".mgh")),
    OtherFormat("MINC", (".mnc",)),
    OtherFormat("AFNI", (".brik", ".brik.gz"), (), "an"),
    OtherFormat("VTK", (".vti",)),
    OtherFormat("Interfile", (".hv", ".i33"), (b"!INTERFILE", b"!interfile"), "an"),
    OtherFormat(
        "JPEG 2000", (".jp2", ".j2k", ".jpx", ".j2c", ".jpf"), (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "a", SAVE
    ),
    OtherFormat("JPEG-LS", (".jls",), (b"\xff\xd8\xff\xf7",), "a", SAVE),
    OtherFormat("JPEG XL", (".jxl",), (b"\0\0\0\x0cJXL ", b"\xff\x0a"), "a", SAVE),
    OtherFormat("GIF", (".gif",), (b"GIF87a", b"GIF89a"), "a", SAVE),
    OtherFormat("WebP", (".webp",), (), "a", SAVE),
    OtherFormat("HEIF", (".heic", ".heif", ".avif"), (), "a", SAVE),
    OtherFormat("Netpbm", (".pgm", ".ppm", ".pbm", ".pnm", ".pfm"), (), "a", SAVE),
    OtherFormat("Photoshop", (".psd",), (b"8BPS",), "a", SAVE),
    OtherFormat("OpenEXR", (".exr",), (b"\x76\x2f\x31\x01",), "an", SAVE),
    OtherFormat("Radiance", (RADIANCE, ".pic"), (b"#?RADIANCE", b"#?RGBE"), "a", SAVE),
    OtherFormat("ENVI", (ENVI,), (b"ENVI\n", b"ENVI\r", b"ENVI "), "an"),
    OtherFormat("video", VIDEOS, (), "a", "save single frames as PNG"),
)
"""The first format that matches, by content or else by suffix."""

KINDS = {suffix: one for one in OTHER_FORMATS for suffix in one.suffixes}
"""Kind of a file, as `kind_of` gives it -> its format."""

ZIP = (b"PK\3\4", b"PK\5\6")
"""First bytes of a zip archive, and of an office document."""
OFFICE_STARTS = b"[Content_Types].xml", b"_rels/", b"docProps/", b"mimetypeapplication/vnd.oasis"
"""Names of the first file in the zip archive of an office document."""
OFFICE_SUFFIXES = (".docx", ".docm", ".xlsx", ".xlsm", ".pptx", ".pptm", ".odt", ".ods", ".odp", ".odg")
OFFICE = {b"word/": "a Word document", b"xl/": "an Excel workbook", b"ppt/": "a PowerPoint presentation"}
"""Folders in office documents."""
CONTAINERS = {
    b"%PDF-": ("a PDF", "export the scans from it"),
    b"Rar!\x1a\x07": ("a RAR archive", "unpack it and give the folder"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it and give the folder"),
}
"""First bytes of files in which scans may be -> what they are, and what to do."""


def is_office(head: bytes) -> bool:
    """Whether a file is a document of Word, Excel, PowerPoint or LibreOffice, by its first bytes."""
    return head.startswith(ZIP) and head[30:].startswith(OFFICE_STARTS)


def explained(name: str, data: bytes) -> str | None:
    """What a file is that is not read, and what to do with it; None where that is not known.

    Args:
      name: of the file.
      data: its content, or the beginning of it.

    >>> explained("b/a.png", b"GIF89a")
    'a GIF file with the suffix .png, which is not read; save it as PNG'
    """
    suffix = pathlib.PurePath(name).suffix.lower()
    if is_office(data[:64]):
        what = next((what for folder, what in OFFICE.items() if folder in data), "an office document")
        return f"{what}{_unlike(suffix, OFFICE_SUFFIXES)}; export the picture from it"
    if data.startswith(ZIP):
        return f"a zip archive{_unlike(suffix, ('.zip',))}; unpack it and give the folder"
    for start, (what, advice) in CONTAINERS.items():
        if data.startswith(start):
            return f"{what}{_unlike(suffix, ('.pdf', '.rar', '.7z'))}: {advice}"
    if (kind := kind_of(name, data[:64])) is None:
        return None
    one = KINDS[kind]
    what = f"{one.article} {one.name}{'' if one.name == 'video' else ' file'}"
    return f"{what}{_unlike(suffix, (*one.suffixes, '.hdr'))}, which is not read; {one.advice}"


def _unlike(suffix: str, usual: Sequence[str]) -> str:
    return f" with the suffix {suffix}" if suffix[:12] and not any(one.endswith(suffix) for one in usual) else ""


def kind_of(name: str, head: bytes) -> str | None:
    """The kind of a file in a format that is not read, a key of KINDS; None for others.

    Args:
      name: of the file.
      head: its first bytes.

    >>> kind_of("a.MHA", b""), kind_of("a.nrrd", b"NRRD0004"), kind_of("a", b"GIF89a"), kind_of("a.txt", b"text")
    ('.mha', '.nrrd', '.gif', None)
    """
    named = next((suffix for suffix in KINDS if name.lower().endswith(suffix)), None)
    content = _by_content(head)
    if content is not None and named is not None and KINDS[named] is content:
        return named
    return content.suffixes[0] if content is not None else named


def _by_content(head: bytes) -> OtherFormat | None:
    if head.startswith(b"RIFF") and head[8:12] in (b"WEBP", b"AVI "):
        return KINDS[".webp" if head[8:12] == b"WEBP" else ".avi"]
    if head[4:8] == b"ftyp":
        return KINDS[".heic" if head[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis") else ".mp4"]
    return next((one for one in OTHER_FORMATS if one.starts and head.startswith(one.starts)), None)


def named(kind: str) -> str:
    """A kind for messages, with the name of its format.

    >>> named(".mha"), named(".hdr (ENVI)")
    ('.mha (MetaImage)', '.hdr (ENVI)')
    """
    return kind if "(" in kind else f"{kind} ({KINDS[kind].name})"
