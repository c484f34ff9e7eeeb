"""Formats of scans that are not read: a folder's search and an error name them, and say what to do. No JAX."""

from typing import NamedTuple

CONVERT = "convert to NIfTI, DICOM or PNG"
"""What to do with such a file."""


class OtherFormat(NamedTuple):
    """A format that is not read.

    Attributes:
      name: for messages.
      suffixes: of its files, in lower case. The first one is the kind of a file that is recognised by its content.
      starts: first bytes by which a file of any name is recognised.
    """

    name: str
    suffixes: tuple[str, ...]
    starts: tuple[bytes, ...] = ()


ENVI, RADIANCE = ".hdr (ENVI)", ".hdr (Radiance)"
"""Kinds of files that share their suffix with the header of a NIfTI pair."""

OTHER_FORMATS = (
    OtherFormat("MetaImage", (".mha", ".mhd"), (b"ObjectType = ", b"NDims = ")),
    OtherFormat("NRRD", (".nrrd", ".nhdr"), (b"NRRD0",)),
    OtherFormat("FreeSurfer", (".mgz", ".mgh")),
    OtherFormat("MINC", (".mnc",)),
    OtherFormat("AFNI", (".brik", ".brik.gz")),
    OtherFormat("VTK", (".vti",)),
    OtherFormat("Interfile", (".hv", ".i33"), (b"!INTERFILE", b"!interfile")),
    OtherFormat("JPEG 2000", (".jp2", ".j2k", ".jpx", ".j2c", ".jpf"), (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),
    OtherFormat("JPEG-LS", (".jls",), (b"\xff\xd8\xff\xf7",)),
    OtherFormat("JPEG XL", (".jxl",), (b"\0\0\0\x0cJXL ", b"\xff\x0a")),
    OtherFormat("GIF", (".gif",), (b"GIF87a", b"GIF89a")),
    OtherFormat("WebP", (".webp",)),
    OtherFormat("HEIF", (".heic", ".heif", ".avif")),
    OtherFormat("Netpbm", (".pgm", ".ppm", ".pbm", ".pnm", ".pfm")),
    OtherFormat("Photoshop", (".psd",), (b"8BPS",)),
    OtherFormat("OpenEXR", (".exr",), (b"\x76\x2f\x31\x01",)),
    OtherFormat("Radiance", (RADIANCE, ".pic"), (b"#?RADIANCE", b"#?RGBE")),
    OtherFormat("ENVI", (ENVI,), (b"ENVI\n", b"ENVI\r", b"ENVI ")),
    OtherFormat("video", (".avi", ".mp4", ".mov", ".mkv", ".wmv", ".mpg", ".mpeg")),
)
"""The first format that matches, by content or else by suffix."""

KINDS = {suffix: one for one in OTHER_FORMATS for suffix in one.suffixes}
"""Kind of a file, as `kind_of` gives it -> its format."""


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
