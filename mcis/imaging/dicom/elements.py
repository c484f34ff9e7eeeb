"""Pick elements out of a DICOM data set without parsing the others: enhanced files have thousands a frame. No JAX."""

import itertools
import mmap
import struct
from collections.abc import Callable, Set

from mcis.imaging.scan import ScanError

MAX_WALKED = 1 << 21
"""Elements of a header that are passed, in some two seconds; a thousand frames have a million at most."""
MAX_ELEMENTS = 1 << 16
"""Elements of a header outside sequences; there are some hundreds."""
MAX_PICKED = 1 << 24
"""Bytes of the elements picked from a header, which pydicom parses: 4 KiB for each of MAX_FRAMES frames."""
UNDEFINED = 0xFFFFFFFF
DELIMITERS = 0xFFFE
ITEM, ITEM_END, SEQUENCE_END = 0xE000, 0xE00D, 0xE0DD
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Value representations with a length of 32 bits (PS3.5, 7.1.2)."""
SHORT = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL"} | {
    *(b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
}
Data = bytes | mmap.mmap


class Walker:
    """Passes the elements of a data set.

    Args:
      data: the whole file.
      explicit: whether elements state their value representation; one that does not is read as implicit.
      big: whether the byte order is big-endian.
    """

    def __init__(self, data: Data, explicit: bool, big: bool):
        order = ">" if big else "<"
        self.data, self.explicit, self.big = data, explicit, big
        self._walked = self._copied = 0
        self._start = struct.Struct(f"{order}HH2sH").unpack_from
        self._length = struct.Struct(f"{order}I").unpack_from

    def header(self, at: int) -> tuple[int, int, int, int]:
        """Group, element, length and offset of the value of the element at an offset. struct.error at the end."""
        self._walked += 1
        if self._walked > MAX_WALKED:
            raise ScanError(f"more than {MAX_WALKED} elements in the header")
        group, element, kind, length = self._start(self.data, at)
        if self.explicit and group != DELIMITERS:
            if kind in SHORT:
                return group, element, length, at + 8
            if kind in LONG:
                return group, element, self._length(self.data, at + 8)[0], at + 12
            if kind.isalpha() and kind.isupper():
                return group, element, length, at + 8
        return group, element, self._length(self.data, at + 4)[0], at + 8

    def copy(self, at: int, end: int) -> bytes:
        """Some bytes of the file. ScanError once these are more than MAX_PICKED."""
        end = min(end, len(self.data))
        self._copied += max(0, end - at)
        if self._copied > MAX_PICKED:
            raise ScanError("the header is larger than the limit")
        return self.data[at:end]

    def after(self, length: int, value: int) -> int:
        """The offset after a value. Sequences of undefined length are passed element by element."""
        if length != UNDEFINED:
            return value + length
        at, depth = value, 1
        header = self.header
        while depth:
            group, element, length, value = header(at)
            if group == DELIMITERS and element in (ITEM_END, SEQUENCE_END):
                depth, at = depth - 1, value
            elif length == UNDEFINED:
                depth, at = depth + 1, value
            else:
                at = value + length
        return at


def pick(
    walker: Walker, at: int, wanted: Set[int], groups: Set[int], macros: Set[int], stop: Callable[[int], bool]
) -> tuple[bytes, int]:
    """The wanted elements of a data set, in its encoding.

    Args:
      walker: of the file.
      at: offset of the data set.
      wanted: tags of elements that are copied whole.
      groups: those of them that are sequences of functional groups, of whose items only `macros` are copied.
      macros: tags.
      stop: whether the walk ends before an element of a tag.

    Returns:
      The elements, and the offset at which the walk ended: of the element that stopped it, or of the end.

    Raises:
      ScanError: too many elements, or too many bytes of wanted ones.
    """
    parts: list[bytes] = []
    for number in itertools.count():
        if number > MAX_ELEMENTS:
            raise ScanError(f"more than {MAX_ELEMENTS} elements in the header")
        try:
            group, element, length, value = walker.header(at)
            tag = group << 16 | element
            if stop(tag):
                break
            end = walker.after(length, value)
            if tag in groups and length:
                parts.append(_filtered(walker, at, value, end, macros))
            elif tag in wanted:
                parts.append(walker.copy(at, end))
        except struct.error:  # the data end
            break
        at = min(end, len(walker.data))
    return b"".join(parts), at


def _filtered(walker: Walker, at: int, value: int, end: int, macros: Set[int]) -> bytes:
    """A sequence of functional groups at `at`, with only some elements of each item."""
    order = ">" if walker.big else "<"
    mark = struct.Struct(f"{order}HHI").pack
    parts = [walker.data[at : value - 4], struct.pack(f"{order}I", UNDEFINED)]
    position = value
    while position < end:
        group, element, length, inside = walker.header(position)
        if (group, element) != (DELIMITERS, ITEM):
            break
        stop = end if length == UNDEFINED else inside + length
        position, kept = inside, []
        while position < stop:
            group, element, length, first = walker.header(position)
            if group == DELIMITERS:
                position = first
                break
            after = walker.after(length, first)
            if group << 16 | element in macros:
                kept.append(walker.copy(position, after))
            position = after
        content = b"".join(kept)
        parts += [mark(DELIMITERS, ITEM, len(content)), content]
    return b"".join([*parts, mark(DELIMITERS, SEQUENCE_END, 0)])
