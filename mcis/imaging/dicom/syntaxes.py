"""Transfer syntaxes of DICOM: which are read, what their frames may be, and what to do about the others. No JAX."""

from mcis.imaging.dicom.file import BIG_ENDIAN, EXPLICIT, IMPLICIT, import_pydicom

PS3_5 = "1.2.840.10008.1.2."
VIDEO = (
    "is a video, whose pictures are not read. `dcmdump +W . FILE` (DCMTK) writes its stream, FILE.1.raw, and `ffmpeg "
    "-i FILE.1.raw frame_%05d.png` its pictures; or let the archive export single frames"
)
UNSUPPORTED = {
    **dict.fromkeys((f"4.{number}" for number in range(100, 110)), VIDEO),
    **dict.fromkeys(
        ("4.110", "4.111", "4.112"),
        "is not decoded. `dcmdump +W . FILE` (DCMTK) writes its stream, FILE.1.raw, and `djxl FILE.1.raw frame.png` "
        "(libjxl) the picture; or let the archive export it as Explicit VR Little Endian",
    ),
    **dict.fromkeys(
        ("4.94", "4.95", "4.204", "4.205"),
        "has its pixels on a server (JPIP), not in the file. Let the archive export it with its pixels, as Explicit VR "
        "Little Endian",
    ),
    **dict.fromkeys(
        ("7.1", "7.2", "7.3"),
        "is uncompressed video (SMPTE ST 2110), which is not read. Let the archive export single frames",
    ),
}
"""Advice by transfer syntax, without the common beginning of the UIDs (PS3.6, table A-1)."""
OTHERS = (
    "cannot be decoded. Let the archive, or a program of the device's maker, export it as Explicit VR Little Endian"
)
NAMES = {"4.110": "JPEG XL Lossless", "4.111": "JPEG XL JPEG Recompression", "4.112": "JPEG XL"}
"""Transfer syntaxes that pydicom does not know by name."""
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, f"{PS3_5}1.98")
WRAPPED = f"{PS3_5}1.98"
"""Frames in items, but not compressed."""
RLE = f"{PS3_5}5"
JPEG, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LS, J2K = (f"{PS3_5}4.{end}" for end in ("50", "51", "57", "80", "91"))
FAMILIES = {
    **{f"{PS3_5}4.{end}": (JPEG, JPEG_EXTENDED, JPEG_LOSSLESS) for end in range(50, 71)},
    **{f"{PS3_5}4.{end}": (JPEG_LS,) for end in (80, 81)},
    **{f"{PS3_5}4.{end}": (J2K,) for end in (90, 91, 92, 93, 201, 202, 203)},
    RLE: (RLE,),
}
"""What the frames of each transfer syntax may be compressed with, as `codec_of` names it."""


def is_decodable(syntax: str) -> bool:
    """Whether frames of a transfer syntax can be read, as far as the syntax says."""
    return syntax in NATIVE or syntax in FAMILIES


def is_never_decodable(syntax: str) -> bool:
    """Whether nothing can be read of a transfer syntax, whatever the pixel data are."""
    return _short(syntax) in UNSUPPORTED


def _short(syntax: str) -> str:
    """The end of a UID by which UNSUPPORTED has it."""
    return ".".join(syntax.removeprefix(PS3_5).split(".")[:2])


def advice(path: str, syntax: str) -> str:
    """Why files of a transfer syntax are not read and what to do, for a message."""
    short = syntax.removeprefix(PS3_5)
    known = UNSUPPORTED.get(_short(syntax))
    name = NAMES.get(short) or import_pydicom(path).uid.UID(syntax).name
    valid = all(part.isdigit() for part in syntax.split(".")) and len(syntax) <= 64
    label = f"transfer syntax {name} ({syntax})" if name != syntax else f"private or unknown transfer syntax {syntax}"
    return f"{label if valid else 'an invalid transfer syntax'} {known or OTHERS}"
