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
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from mcis.imaging.scan import MAX_DECODED, ScanError, check_file

MAX_BYTES = 1 << 31
"""Bytes of a file; frames are read separately, so that memory holds only one."""
MAX_HEADER = 1 << 26
"""Bytes read from a header. Skipped elements do not count; a read counts as at least MIN_READ."""
MIN_READ = 16
"""So that at most two million small elements are read, in some ten seconds; a thousand frames may have half as many."""
MAX_ITEMS = 1 << 20
"""Items of encapsulated pixel data: each frame has at least one."""
MAX_INFLATED = MAX_DECODED
"""Bytes of an inflated file, which is kept in memory."""
CACHED = 2
"""Files whose headers are kept: the frames of a file follow each other."""
GZIP = b"\x1f\x8b"
PIXELS = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Value representations with a length of 32 bits (PS3.5, 7.1.2)."""
IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
DIRECTORY = "1.2.840.10008.1.3.10"
"""SOP class of a DICOMDIR."""
MACROS = (
    *("FrameVOILUTSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence"),
    *("PlanePositionSequence", "PlaneOrientationSequence", "FrameContentSequence", "MRImageFrameTypeSequence"),
)
"""What is kept of a frame's functional groups; private ones are often large."""


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
            raise ScanError(f"{self._path}: the header or one frame is larger than the limit")
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
        with self.open(MAX_HEADER) as file:
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
    pydicom = import_pydicom(path)
    with safe_errors(path):
        content = _unpacked(path)
        with BoundedFile(path, MAX_HEADER, content) as file:
            _seek_start(path, file)
            meta = pydicom.filereader.read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
            syntax = str(_meta_value(meta, "TransferSyntaxUID") or "")
            if syntax == DEFLATED:
                packed = _rest(path, file.tell()) if content is None else content[file.tell() :]
                content = _inflate(path, packed, -zlib.MAX_WBITS)
                with BoundedFile(path, MAX_HEADER, content) as inflated:
                    return _data_set(path, inflated, meta, EXPLICIT, tags, last, content)
            return _data_set(path, file, meta, syntax, tags, last, content)


def _seek_start(path: str, file: BinaryIO) -> None:
    """Position the file at its first element. ScanError if it has none."""
    head = file.read(512)
    start = 132 if head[128:132] == b"DICM" else 4 if head[:4] == b"DICM" else 0
    if start == 0 and not _begins_data_set(head):
        raise ScanError(f"{path}: not a DICOM file, by its content; an image needs the suffix of its format")
    file.seek(start)


def _meta_value(meta: Any, name: str) -> Any:
    try:
        return meta.get(name)
    except Exception:
        return None


def _data_set(
    path: str, file: BinaryIO, meta: Any, syntax: str, tags: Sequence[str], last: int, content: bytes | None
) -> DicomFile:
    """The data set at the file's position."""
    pydicom = import_pydicom(path)
    head = file.read(6)
    file.seek(-len(head), os.SEEK_CUR)
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    big = syntax == BIG_ENDIAN or (not syntax and explicit and struct.unpack("<H", head[:2])[0] >= 1024)
    wanted = [pydicom.tag.Tag(tag) for tag in tags]

    def stop(tag: int, *_: Any) -> bool:
        return tag in PIXELS or tag > last

    header = pydicom.filereader.read_dataset(file, not explicit, not big, stop_when=stop, specific_tags=wanted)
    if "SOPClassUID" not in header and (sop_class := _meta_value(meta, "MediaStorageSOPClassUID")):
        header.SOPClassUID = sop_class  # a DICOMDIR has it only there
    if not syntax:
        syntax = BIG_ENDIAN if big else EXPLICIT if explicit else IMPLICIT
    with contextlib.suppress(Exception):  # whoever needs its values notes that they cannot be read
        for group in header.get("PerFrameFunctionalGroupsSequence") or ():
            for tag in tuple(group.keys()):
                if pydicom.datadict.keyword_for_tag(tag) not in MACROS:
                    del group[tag]
    return DicomFile(path, header, syntax, not big, _pixels(file, explicit, big), content)


def _pixels(file: BinaryIO, explicit: bool, big: bool) -> Pixels | None:
    """The element at the file's position, if it has pixels."""
    start = file.read(12)
    file_order = ">" if big else "<"
    if len(start) < 8:
        return None
    group, element = struct.unpack_from(f"{file_order}HH", start)
    keyword = PIXELS.get(group << 16 | element)
    if keyword is None:
        return None
    position = file.tell() - len(start)
    if explicit and start[4:6] in LONG:
        length, offset = struct.unpack_from(f"{file_order}I", start, 8)[0], position + 12
    elif explicit:
        length, offset = struct.unpack_from(f"{file_order}H", start, 6)[0], position + 8
    else:
        length, offset = struct.unpack_from(f"{file_order}I", start, 4)[0], position + 8
    return Pixels(keyword, offset, None if length == 0xFFFFFFFF else length, start[4:6] != b"OB")


def _unpacked(path: str) -> bytes | None:
    """The content of a file that gzip packed; None for any other."""
    with open(path, "rb") as file:
        if file.read(2) != GZIP:
            return None
    return _inflate(path, _rest(path, 0), 16 + zlib.MAX_WBITS)


def _rest(path: str, start: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        data = file.read(MAX_INFLATED + 1)
    if len(data) > MAX_INFLATED:
        raise ScanError(f"{path}: packed, and larger than {MAX_INFLATED >> 20} MiB; unpack it first")
    return data


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
    """The module pydicom, silenced. ScanError, about the file `path`, if it is not installed."""
    try:
        import pydicom
        import pydicom.filereader
        import pydicom.pixels
    except ImportError:
        raise ScanError(f"{path}: DICOM needs the extra `dicom`: pip install -e '.[dicom]'") from None
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
