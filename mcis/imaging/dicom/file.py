"""Open DICOM files within limits: the header once for all frames, and where the pixels are. No JAX.

Read are files with and without preamble and file meta information, deflated ones, and ones that gzip packed. Only the
elements asked for are read: the name of a patient never enters this process, so it cannot reach a finding, a log or a
page. For the same reason no message quotes what pydicom says about a damaged file.
"""

import contextlib
import dataclasses
import functools
import io
import logging
import mmap
import os
import pathlib
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from mcis.imaging import other_formats
from mcis.imaging.dicom.elements import UNDEFINED, Data, Walker, pick
from mcis.imaging.scan import AGAIN, MAX_DECODED, ScanError, check_file

MAX_BYTES = 1 << 31
"""Bytes of a file; frames are read separately, so that memory holds only one."""
MIN_READ = 64
"""Bytes that a read counts as, at least."""
MAX_ITEMS = 1 << 20
"""Items of encapsulated pixel data: each frame has at least one."""
MAX_INFLATED = MAX_DECODED
"""Bytes of an inflated file, which is kept in memory."""
CACHED = 2
"""Files whose headers are kept: the frames of a file follow each other."""
GZIP = b"\x1f\x8b"
META = {0x00020002, 0x00020010}
"""Tags of SOP class and transfer syntax in the file meta information."""
GROUPS = {0x52009229, 0x52009230}
"""Tags of the functional groups shared by all frames, and of those of each."""
OVERLAY_POSITIONS = tuple(0x60000102 + (number << 17) for number in range(16))
"""Tags of the bit in which pixel values hold an overlay (60xx,0102)."""
PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR."""
MACROS = (
    *("FrameVOILUTSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence"),
    *("PlanePositionSequence", "PlaneOrientationSequence", "FrameContentSequence", "FrameAnatomySequence"),
    *("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "DerivationImageSequence"),
)
"""What is kept of functional groups; private ones are often large."""


class BoundedFile(io.BufferedReader):
    """A file of which at most `max_bytes` are read, whatever lengths it claims; then ScanError."""

    def __init__(self, path: str | os.PathLike, max_bytes: int, content: bytes | None = None):
        self._path, self._left = path, max_bytes
        raw: Any = io.FileIO(path) if content is None else io.BytesIO(content)
        super().__init__(raw)

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes, or all that are left."""
        left = self._left
        data = super().read(left + 1 if size is None or size < 0 or size > left else size)
        count = len(data)
        self._left = left = left - (count if count > MIN_READ else MIN_READ)
        if left < 0:
            raise ScanError(f"{self._path}: one frame is larger than the limit")
        return data


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The element with the pixels.

    Attributes:
      keyword: a value of PIXELS.
      offset: where its value begins.
      length: bytes of its value; None if undefined.
      words: whether it is of words of 16 bits (OW), whose bytes are swapped in big-endian files.
    """

    keyword: str
    offset: int
    length: int | None
    words: bool


@dataclasses.dataclass(frozen=True, eq=False)
class DicomFile:
    """A DICOM file without its pixels.

    Attributes:
      path: of the file.
      header: pydicom Dataset of the elements asked for; do not change it, other frames share it.
      syntax: transfer syntax; where the file states none, that of the header.
      little_endian: byte order of header and pixels.
      pixels: None if the file has none.
      content: the inflated file, if it was packed; `pixels` are positions in it.
    """

    path: str
    header: Any
    syntax: str
    little_endian: bool
    pixels: Pixels | None
    content: bytes | None = dataclasses.field(default=None, repr=False)

    def open(self, max_bytes: int) -> BoundedFile:
        """The file, or its inflated content, of which at most `max_bytes` may be read."""
        return BoundedFile(self.path, max_bytes, self.content)

    @functools.cached_property
    def items(self) -> list[tuple[int, int]]:
        """Offset and length of each item of encapsulated pixel data, the table of offsets first; empty if native."""
        found: list[tuple[int, int]] = []
        if self.pixels is None:
            return found
        end = None if self.pixels.length is None else self.pixels.offset + self.pixels.length
        with self.open(MIN_READ * MAX_ITEMS) as file:
            at = self.pixels.offset
            while (end is None or at < end) and len(found) < MAX_ITEMS:
                file.seek(at)
                group, element, length = struct.unpack("<HHI", file.read(8).ljust(8, b"\0"))
                if (group, element) != (0xFFFE, 0xE000) or length == 0xFFFFFFFF:
                    break
                found.append((at + 8, length))
                at += 8 + length
        return found


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file is DICOM by its first bytes, packed by gzip or not, with or without a preamble."""
    head = inflated_head(head)
    return head[128:132] == b"DICM" or head[:4] == b"DICM" or _begins_data_set(head)


def inflated_head(head: bytes) -> bytes:
    """The first bytes of what gzip packed; other data are returned as they are."""
    if not head.startswith(GZIP):
        return head
    with contextlib.suppress(zlib.error):
        return zlib.decompressobj(31).decompress(head, 512)
    return head


def _begins_data_set(head: bytes) -> bool:
    """Whether data begin with an element of group 2 or 8, in a representation that DICOM has."""
    if len(head) < 16:
        return False
    group, element, length = struct.unpack_from("<HHI", head)
    if head[4:6].isalpha() and head[4:6].isupper():
        return group in (0x0002, 0x0008) or struct.unpack_from(">H", head)[0] == 0x0008
    following = struct.unpack_from("<HH", head, 8 + length) if length <= len(head) - 12 else (0, 0)
    return group == 0x0008 and element < 0x100 and (group, element) < following < (0x0030, 0)


def is_image_class(path: str, sop_class: str) -> bool:
    """Whether objects of a SOP class have pixels, as far as known: True for an unknown or missing one."""
    name = str(import_pydicom(path).uid.UID(sop_class).name)
    return name == sop_class or "Image" in name


def read(path: str | os.PathLike, tags: Sequence[str]) -> DicomFile:
    """A file's header, from a cache of the last CACHED ones. ScanError if it is not readable as DICOM."""
    check_file(path, MAX_BYTES)
    status = os.stat(path)
    return _read(os.fspath(path), tuple(tags), status.st_mtime_ns, status.st_size)


@functools.lru_cache(CACHED)
def _read(path: str, tags: tuple[str, ...], modified: int, size: int) -> DicomFile:
    return parse(path, (*tags, "ExtendedOffsetTable", "ExtendedOffsetTableLengths"))


def parse(path: str, tags: Sequence[str], last: int = 0xFFFFFFFF) -> DicomFile:
    """A file's header up to the tag `last`, of which only `tags` are kept. ScanError if it is not readable as DICOM."""
    check_file(path, MAX_BYTES)
    import_pydicom(path)
    with safe_errors(path), _opened(path) as (data, content):
        start = _first_element(path, data[:512])
        meta, at = _meta(path, data, start)
        syntax = str(_value(meta, "TransferSyntaxUID") or "")
        if syntax == DEFLATED:
            data = content = _inflate(path, data[at : at + MAX_INFLATED], -zlib.MAX_WBITS)
            syntax, at = EXPLICIT, 0
        explicit = data[at + 4 : at + 6].isalpha() and data[at + 4 : at + 6].isupper()
        big = syntax == BIG_ENDIAN or (not syntax and explicit and data[at + 1 : at + 2] > b"\3")
        header, at = _data_set(path, Walker(data, explicit, big), at, tags, last)
        if "SOPClassUID" not in header and (sop_class := _value(meta, "MediaStorageSOPClassUID")):
            header.SOPClassUID = sop_class  # a DICOMDIR has it only there
        syntax = syntax or (BIG_ENDIAN if big else EXPLICIT if explicit else IMPLICIT)
        return DicomFile(path, header, syntax, not big, _pixels(data, at, explicit, big), content)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[Data, bytes | None]]:
    """The bytes of a file, and these again if gzip had packed it."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        content = _inflate(path, data[: MAX_INFLATED + 1], 16 + zlib.MAX_WBITS) if data[:2] == GZIP else None
        yield data if content is None else content, content


def _first_element(path: str, head: bytes) -> int:
    """Offset of a file's first element. ScanError if it has none."""
    start = 132 if head[128:132] == b"DICM" else 4 if head[:4] == b"DICM" else 0
    if start == 0 and not _begins_data_set(head):
        suffix = pathlib.PurePath(path).suffix
        known = other_formats.explained("", head)
        called = f"called {suffix}, but holds no DICOM" if suffix else "not a DICOM file"
        raise ScanError(f"{path}: {called}; {known or f'perhaps a failed download: {AGAIN}'}")
    return start


def _meta(path: str, data: Data, start: int) -> tuple[Any, int]:
    """The file meta information at an offset, and the offset after it."""
    picked, at = pick(Walker(data, True, False), start, META, set(), set(), lambda tag: tag >> 16 != 2)
    return import_pydicom(path).filereader.read_dataset(io.BytesIO(picked), False, True), at


def _value(header: Any, name: str) -> Any:
    try:
        return header.get(name)
    except Exception:  # of pydicom, for a value of another form
        return None


def _data_set(path: str, walker: Walker, at: int, tags: Sequence[str], last: int) -> tuple[Any, int]:
    """The pydicom Dataset of some elements of the data set at an offset, and the offset of the pixels or the end."""
    pydicom = import_pydicom(path)
    names = (*tags, "SpecificCharacterSet")
    elements, macros = ({pydicom.datadict.tag_for_keyword(name) for name in some} for some in (names, MACROS))
    try:
        wanted = elements | {*OVERLAY_POSITIONS}
        picked, at = pick(walker, at, wanted, wanted & GROUPS, macros, lambda tag: tag in PIXELS or tag > last)
    except ScanError as error:
        raise ScanError(f"{path}: {error}") from None
    return pydicom.filereader.read_dataset(io.BytesIO(picked), not walker.explicit, not walker.big), at


def _pixels(data: Data, at: int, explicit: bool, big: bool) -> Pixels | None:
    """The element at an offset, if it has pixels."""
    try:
        group, element, length, offset = Walker(data, explicit, big).header(at)
    except struct.error:
        return None
    keyword = PIXELS.get(group << 16 | element)
    words = data[at + 4 : at + 6] != b"OB"
    return None if keyword is None else Pixels(keyword, offset, None if length == UNDEFINED else length, words)


def _inflate(path: str, data: bytes, window: int) -> bytes:
    """Inflate at most MAX_INFLATED bytes. A stream that is cut ends there: what is missing shows in the data set."""
    inflater = zlib.decompressobj(window)
    try:
        content = inflater.decompress(data, MAX_INFLATED)
    except zlib.error:
        raise ScanError(f"{path}: packed, and damaged; unpack it with another program to see what is left") from None
    if inflater.unconsumed_tail:
        raise ScanError(f"{path}: inflates to more than {MAX_INFLATED >> 20} MiB; convert it with `dcmconv +te`")
    return content


def import_pydicom(path: str | os.PathLike) -> Any:
    """The module pydicom, silenced. ScanError, about the file `path`, if it is not installed or cannot be imported."""
    try:
        import pydicom
        import pydicom.filereader
        import pydicom.pixels
    except Exception as error:  # of any kind, where a file of the user is taken for a module
        if isinstance(error, ModuleNotFoundError) and error.name == "pydicom":
            raise ScanError(f"{path}: DICOM needs the extra `dicom`: pip install -e '.[dicom]'") from None
        raise ScanError(
            f"{path}: pydicom, which reads DICOM, cannot be imported ({type(error).__name__}: {error}). A file or "
            "folder with the name of a Python module, such as `dl`, may be in the way: start from another folder. Or "
            "install it anew: pip install --force-reinstall pydicom"
        ) from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # log and warnings quote values
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    return pydicom


@contextlib.contextmanager
def safe_errors(path: str | os.PathLike) -> Iterator[None]:
    """Replace errors of decoders by a ScanError that quotes nothing of the file."""
    try:
        yield
    except (ScanError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # from the file system
            raise
        raise ScanError(f"{path}: damaged or unsupported DICOM ({type(error).__name__})") from None
