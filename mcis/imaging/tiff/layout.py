"""How a page of a TIFF file is stored, by its tags; what is not supported is an error that names it. No JAX."""

import dataclasses
import functools
from typing import Literal

import numpy as np

from mcis import MAX_PIXELS
from mcis.imaging.scan import MAX_DECODED, ScanError
from mcis.imaging.tiff.codecs import DEFLATE, LZW, NAMES, SUPPORTED

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR = range(7)
"""Photometric interpretations."""
COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, MASK: 1, CMYK: 4, YCBCR: 3}
"""Samples of each, without extra ones."""
OTHER_COLOURS = {8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "raw colour filter", 32844: "LogL", 32845: "LogLuv"}
PREMULTIPLIED, ALPHA = 1, 2
"""Kinds of extra samples."""
MAX_BLOCKS = 1 << 17
"""Strips or tiles of a page: those of 16 x 16 pixels in 33 million."""
AGAIN = "save it again as PNG, or as TIFF with LZW or no compression"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a page is stored: sizes in pixels, `order` of bytes, blocks (strips or tiles) of `block` (height, width)."""

    width: int
    height: int
    bits: int
    samples: int
    form: int
    order: Literal["<", ">"]
    photometric: int
    compression: int
    planar: bool
    tiled: bool
    block: tuple[int, int]
    offsets: np.ndarray
    counts: np.ndarray
    reverse: bool
    predictor: int
    extras: tuple[int, ...]
    tags: dict[int, np.ndarray]

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """Type of the samples in memory; of fewer than 8 bits or odd numbers of bits, one that holds them."""
        size = next(size for size in (8, 16, 32, 64) if self.bits <= size)
        return np.dtype(f"{'uif'[max(0, self.form - 1)] if self.form in (1, 2, 3) else 'u'}{size // 8}")


def layout_of(tags: dict[int, np.ndarray], order: Literal["<", ">"], name: str) -> Layout:
    """Check a page's tags; ScanError says what is not supported."""

    def one(tag: int, default: int) -> int:
        return int(tags[tag][0]) if tag in tags else default

    width, height, samples, bits = one(256, 0), one(257, 0), one(277, 1), one(258, 1)
    if width < 1 or height < 1:
        raise ScanError(f"{name}: not a readable image: its TIFF page states no size")
    size = width * height * max(1, samples) * max(8, bits) // 8
    if width * height > MAX_PIXELS or size > MAX_DECODED:
        limit = f"{size >> 20} MiB, at most {MAX_DECODED >> 20} MiB are read"
        raise ScanError(f"{name}: too many pixels ({limit}); reduce its size")
    compression, form = one(259, 1), one(339, 1)
    if compression not in SUPPORTED:
        named = NAMES.get(compression, f"method {compression}")
        raise ScanError(f"{name}: a TIFF compressed by {named}, which is not supported; {AGAIN}")
    photometric = one(262, RGB if samples >= 3 else BLACK_IS_ZERO)
    if photometric not in COLOURS:
        named = OTHER_COLOURS.get(photometric, f"photometric interpretation {photometric}")
        raise ScanError(f"{name}: a TIFF of colours as {named}, which are not supported; save it again as RGB or grey")
    if not 0 <= samples - COLOURS[photometric] <= 64:
        raise ScanError(f"{name}: {samples} channels; grey, RGB, RGBA and CMYK are supported")
    depths = tags.get(258, np.array([1])).tolist()
    whole = {1: (32, 64, *range(1, 17)), 2: (8, 16, 32, 64), 3: (16, 32, 64), 4: (32, 64, *range(1, 17))}.get(form, ())
    if bits not in whole or len(set(depths)) > 1:
        kind = {2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex numbers"}.get(form, "integers")
        stated = "/".join(map(str, depths[:4] if len(set(depths)) > 1 else depths[:1]))
        raise ScanError(f"{name}: a TIFF of {stated}-bit {kind}, which are not supported; save it as 8 or 16 bits")
    tiled = 322 in tags
    block = (one(323, 0), one(322, 0)) if tiled else (min(one(278, height), height) or height, width)
    if min(block) < 1 or block[0] * block[1] > 4 * MAX_PIXELS:
        raise ScanError(f"{name}: not a readable image: its TIFF page states strips or tiles without a size")
    offsets, counts = tags.get(324 if tiled else 273), tags.get(325 if tiled else 279)
    planar = one(284, 1) == 2 and samples > 1
    if offsets is None:
        raise ScanError(f"{name}: not a readable image: its TIFF page has no pixels")
    number = -(-height // block[0]) * -(-width // block[1]) * (samples if planar else 1)
    if number > MAX_BLOCKS:
        raise ScanError(f"{name}: {number} strips or tiles; at most {MAX_BLOCKS} are read: save it with larger ones")
    if counts is None:  # old writers leave it out: up to the end of the file
        counts = np.full(len(offsets), 1 << 31, np.int64)
    if min(len(offsets), len(counts)) < number:
        raise ScanError(f"{name}: not a readable image: {len(offsets)} of {number} strips or tiles of its TIFF page")
    extras = tuple(tags.get(338, np.zeros(0, np.int64)).tolist())
    extras = (*extras, *[0] * 64)[: samples - COLOURS[photometric]]
    return Layout(
        width=width,
        height=height,
        bits=bits,
        samples=samples,
        form=1 if form == 4 else form,
        order=order,
        photometric=photometric,
        compression=compression,
        planar=planar,
        tiled=tiled,
        block=block,
        offsets=offsets[:number],
        counts=counts[:number],
        reverse=one(266, 1) == 2,
        predictor=one(317, 1) if compression in (LZW, *DEFLATE) else 1,  # others have none
        extras=extras,
        tags=tags,
    )
