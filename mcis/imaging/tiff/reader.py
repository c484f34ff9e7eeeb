"""Decode a page of a TIFF file as it is displayed. No JAX.

What is supported is listed in SUPPORTED of `codecs`, in `layout` and in `_displayed`. Everything else is an
error that names it: a wrong picture would get a confident label.
"""

import zlib
from collections.abc import Iterator
from typing import BinaryIO

import cv2
import numpy as np

from mcis.imaging.scan import MAX_DECODED, Picture, ScanError
from mcis.imaging.tiff import codecs
from mcis.imaging.tiff import header as tiff_header
from mcis.imaging.tiff.codecs import FAX, JPEG, REVERSED
from mcis.imaging.tiff.layout import (
    AGAIN,
    ALPHA,
    CMYK,
    COLOURS,
    MASK,
    PALETTE,
    PREMULTIPLIED,
    RGB,
    WHITE_IS_ZERO,
    YCBCR,
    Layout,
    layout_of,
)

BLOCK_ERRORS = (ValueError, zlib.error, cv2.error, *tiff_header.DAMAGED)


def read_page(file: BinaryIO, page: tiff_header.TiffPage, name: str) -> Picture:
    """Decode a page. ScanError, with `name`, if it is damaged, unsupported or too large."""
    try:
        if page.entries == 0:
            raise ValueError("it has no tags")
        layout = layout_of(tiff_header.tags_of(file, page), page.order, name)
        stored = _read(file, layout)
    except ScanError:
        raise
    except BLOCK_ERRORS as error:
        detail = f": {error}" if type(error) is ValueError else ""
        raise ScanError(f"{name}: not a readable image: its TIFF page is damaged or truncated{detail}") from None
    array, notes, indexes = _displayed(stored, layout, name)
    turn = tiff_header.valid_orientation(int(layout.tags.get(274, [1])[0]))
    if turn != 1:
        notes.append(f"turned upright, as its orientation {turn} says")
        array = tiff_header.upright(array, turn)
        indexes = None if indexes is None else tiff_header.upright(indexes, turn)
    white_is_zero = layout.photometric == WHITE_IS_ZERO
    return Picture(array, tuple(notes), layout.compression == JPEG, indexes, white_is_zero)


def _read(file: BinaryIO, layout: Layout) -> np.ndarray:
    """The samples as stored, (H, W, samples) of `layout.dtype`."""
    planes, samples = (layout.samples, 1) if layout.planar else (1, layout.samples)
    rows, columns = layout.block
    down, across = -(-layout.height // rows), -(-layout.width // columns)
    blocks = _blocks(file, layout)
    if planes * down * across == 1 and not layout.tiled:
        return next(blocks)
    found = np.empty((layout.height, layout.width, layout.samples), layout.dtype)
    for plane in range(planes):
        channels = slice(plane, plane + 1) if layout.planar else slice(0, samples)
        for y in range(0, layout.height, rows):
            for x in range(0, layout.width, columns):
                place = found[y : y + rows, x : x + columns, channels]
                place[:] = next(blocks)[: place.shape[0], : place.shape[1]]
    return found


def _blocks(file: BinaryIO, layout: Layout) -> Iterator[np.ndarray]:
    """The strips or tiles, (rows, columns, samples), plane by plane. The last strip of a plane may be shorter."""
    rows, columns = layout.block
    down = -(-layout.height // rows)
    samples = 1 if layout.planar else layout.samples
    row_bytes = -(-columns * samples * layout.bits // 8)
    tables = layout.tags.get(347, np.zeros(0, np.int64)).astype(np.uint8).tobytes()
    options = int(layout.tags.get(292 if layout.compression != 4 else 293, [0])[0])
    for number, (offset, count) in enumerate(zip(layout.offsets.tolist(), layout.counts.tolist(), strict=True)):
        height = rows if layout.tiled else min(rows, layout.height - number % down * rows)
        file.seek(offset)
        data = file.read(min(count, MAX_DECODED))
        if layout.reverse:
            data = data.translate(REVERSED)
        if layout.compression == JPEG:
            is_rgb = layout.photometric == RGB
            yield codecs.jpeg(data, tables, (height, columns, samples), is_rgb)
        elif layout.compression in FAX:
            if (layout.bits, samples) != (1, 1):
                raise ValueError("a fax of more than one bit")
            yield codecs.fax(layout.compression, data, height, columns, options)[..., None]
        else:
            content = codecs.unpack(layout.compression, data, height, row_bytes)
            yield _samples(content, layout, (height, columns, samples))


def _samples(content: bytes, layout: Layout, shape: tuple[int, int, int]) -> np.ndarray:
    """Unpacked bytes as samples of `layout.dtype`, after undoing the predictor."""
    height, width, samples = shape
    if layout.predictor == 3 and layout.form == 3:  # bytes of equal weight follow each other, in any byte order
        weights = np.frombuffer(content, np.uint8).reshape(height, -1, samples).cumsum(1, dtype=np.uint8)
        weights = weights.reshape(height, layout.bits // 8, width * samples).swapaxes(1, 2)
        return np.ascontiguousarray(weights).view(layout.dtype.newbyteorder(">")).reshape(shape).astype(layout.dtype)
    if layout.predictor not in (1, 2):
        raise ValueError(f"predictor {layout.predictor}")
    if layout.bits % 8 or layout.bits == 24:
        bits = np.frombuffer(content, np.uint8).reshape(height, -1)
        found = np.zeros((height, width * samples), layout.dtype)
        step = max(1, (1 << 22) // max(1, bits.shape[1]))
        for start in range(0, height, step):
            part = np.unpackbits(bits[start : start + step], axis=1)[:, : width * samples * layout.bits]
            for bit in part.reshape(len(part), -1, layout.bits).transpose(2, 0, 1):
                found[start : start + step] = (found[start : start + step] << 1) | bit
        found = found.reshape(shape)
    else:
        found = np.frombuffer(content, layout.dtype.newbyteorder(layout.order)).reshape(shape)
        found = found.astype(layout.dtype, copy=False)
    if layout.predictor == 2:
        integers = found.view(f"u{found.itemsize}") if found.dtype.kind == "f" else found
        found = integers.cumsum(1, dtype=integers.dtype).view(found.dtype)
        if layout.bits % 8:
            found &= (1 << layout.bits) - 1
    return found


def _displayed(stored: np.ndarray, layout: Layout, name: str) -> tuple[np.ndarray, list[str], np.ndarray | None]:
    """Stored samples as displayed, notes, and the indexes of a palette."""
    colours, notes = COLOURS[layout.photometric], []
    array, extra = stored[..., :colours], stored[..., colours:]
    kinds = list(layout.extras)
    indexes = None
    if layout.photometric == PALETTE:
        indexes = np.ascontiguousarray(array[..., 0])
        array = _coloured(indexes, layout, name)
    elif layout.bits < 8:
        array = (array.astype(np.uint16) * 255 // ((1 << layout.bits) - 1)).astype(np.uint8)
    if layout.photometric == WHITE_IS_ZERO:
        if layout.form == 3 or layout.bits > 16:
            array = -array.astype(np.float64)
        else:
            array = array ^ array.dtype.type(_full(layout))
        notes.append("inverted, as its photometric interpretation says: 0 is white")
    elif layout.photometric == CMYK:
        array = _of_cmyk(array, layout, name)
        notes.append("CMYK converted to RGB")
    elif layout.photometric == YCBCR and layout.compression != JPEG:
        if layout.tags.get(530, np.array([2, 2])).tolist() != [1, 1] or layout.dtype != np.uint8:
            raise ScanError(f"{name}: a TIFF of YCbCr with fewer pixels of colour, which is not supported; {AGAIN}")
        array = cv2.cvtColor(np.ascontiguousarray(array[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB)
    elif layout.photometric == MASK:
        notes.append("the file calls it a transparency mask")
    if ALPHA in kinds and array.dtype == stored.dtype and layout.bits >= 8 and layout.form != 2:
        alpha = extra[..., kinds.index(ALPHA)]
        array = np.concatenate([array, alpha[..., None]], axis=2)
    elif PREMULTIPLIED in kinds:
        notes.append("alpha blended with black")
    if left_out := sum(kind not in (ALPHA, PREMULTIPLIED) for kind in kinds):
        notes.append(f"{left_out} further channel{'s' * (left_out > 1)} of unstated meaning left out")
    return array, notes, indexes


def _full(layout: Layout) -> int:
    """What exclusive or with it inverts: all bits of a sample."""
    if layout.form == 2:
        return -1
    return (1 << (8 if layout.bits < 8 else layout.bits)) - 1


def _coloured(index: np.ndarray, layout: Layout, name: str) -> np.ndarray:
    """The colours of a palette's indexes, uint8 (H, W, 3)."""
    table = layout.tags.get(320)
    if table is None or len(table) != 3 << layout.bits or layout.form != 1:
        raise ScanError(f"{name}: a TIFF with a palette that is missing or has another size; {AGAIN}")
    if table.max() > 255:  # else written as 8 bits, against the standard
        table = table >> 8
    return table.reshape(3, -1).T.astype(np.uint8)[index]


def _of_cmyk(array: np.ndarray, layout: Layout, name: str) -> np.ndarray:
    """RGB of CMYK without a colour profile: each ink and black darken in proportion."""
    if layout.compression == JPEG or layout.dtype not in (np.uint8, np.uint16) or layout.bits not in (8, 16):
        raise ScanError(f"{name}: a TIFF of CMYK, of this depth or compression not supported; save it again as RGB")
    full = _full(layout)
    light = full - array.astype(np.float32)
    return np.rint(light[..., :3] * light[..., 3:] / full).astype(layout.dtype)
