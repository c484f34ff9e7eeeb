"""Pixel data beyond what a DICOM header states: frames that nobody would miss otherwise. No JAX."""

import functools

from mcis.imaging.dicom import compressed, syntaxes
from mcis.imaging.dicom.compressed import J2K_START, JP2_START, JPEG_START, Layout
from mcis.imaging.dicom.file import MIN_READ, DicomFile
from mcis.imaging.dicom.header import frames_of
from mcis.imaging.scan import MAX_FRAMES

STARTS = (JPEG_START + b"\xff", J2K_START, JP2_START)
RLE_HEADER = 64
"""Bytes by which `codec_of` recognises RLE."""


def notes(file: DicomFile, layout: Layout) -> list[str]:
    """A note if a file has pixel data for more frames, or more of a frame, than its header states."""
    if file.pixels is None or file.syntax == syntaxes.WRAPPED:
        return []
    if compressed.is_compressed(file):
        frames, surplus = _codestreams(file) - frames_of(file.header), 0
    else:
        frames, surplus = _native(layout, file.pixels.length or 0, frames_of(file.header))
    if frames > 0:
        more = "1 more frame" if frames == 1 else f"{frames} more frames"
        return [f"holds pixel data for {more} than its header states; only the stated ones are read"]
    if surplus:
        return [f"its pixel data have {surplus} bytes more than its header states, which are not read"]
    return []


def _native(layout: Layout, length: int, count: int) -> tuple[int, int]:
    """Frames and bytes of native pixel data beyond `count` frames; less than a row fills up a file."""
    bits = layout.rows * layout.columns * layout.samples * layout.allocated
    if layout.kind.endswith("_422") and length * 8 < bits * count:
        bits = bits * 2 // 3
    surplus = length - (bits * count + 7) // 8
    row = bits // layout.rows // 8
    return surplus * 8 // bits, surplus if surplus > max(16, row) else 0


@functools.lru_cache(2)
def _codestreams(file: DicomFile) -> int:
    """How many items of a file begin a compressed frame; 0 where there are no more items than frames."""
    fragments = file.items[1:]
    if len(fragments) <= frames_of(file.header):
        return 0
    found = 0
    with file.open(2 * MIN_READ * MAX_FRAMES) as source:
        for at, _ in fragments[:MAX_FRAMES]:
            source.seek(at)
            head = source.read(RLE_HEADER)
            found += head.startswith(STARTS) or compressed.codec_of(head, "") == syntaxes.RLE
    return found
