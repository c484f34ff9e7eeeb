"""TIFF files of every kind give the same picture, or an error that names what is not supported."""

import io
import struct

import cv2
import numpy as np
import PIL.Image
import pytest

from mcis.imaging import image_files
from mcis.imaging.scan import ScanError
from mcis.imaging.tiff import codecs
from tests.fixtures.tiff_files import DEFLATE, LZW, NONE, PACKBITS, TURNS, lzw, tiff

RNG = np.random.default_rng(0)
RGB = cv2.GaussianBlur(RNG.integers(0, 256, (33, 47, 3), np.uint8), (5, 5), 1)
RGB[0, 0], RGB[0, 1] = 0, 255
GREY = np.ascontiguousarray(RGB[..., 1])
COMPRESSIONS = (NONE, LZW, DEFLATE, PACKBITS)


def decoded(data):
    return image_files.decode(data).image


def three(grey):
    return np.repeat(grey[..., None], 3, 2)


def scaled(values):
    low, high = float(values.min()), float(values.max())
    return three(np.rint((values - low) * (255 / (high - low))).astype(np.uint8))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "storage",
    [{}, {"rows": 5}, {"rows": 1}, {"tile": (16, 16)}, {"tile": (16, 32), "planar": True}, {"planar": True, "rows": 7}],
    ids=str,
)
@pytest.mark.parametrize("more", [{}, {"reverse": True}, {"predictor": 2}, {"big": True}], ids=str)
def test_every_way_of_storing_gives_the_same_picture(compression, order, storage, more):
    options = {"compression": compression, "order": order} | storage | more
    if compression in (NONE, PACKBITS) and options.pop("predictor", None):
        options["tags"] = [(317, 3, [2])]  # it has no meaning
    np.testing.assert_array_equal(decoded(tiff(RGB, photometric=2, **options)), RGB)
    if "planar" not in storage:
        np.testing.assert_array_equal(decoded(tiff(GREY, **options)), three(GREY))
        deep = GREY.astype(np.uint16) * 3 + 1000
        np.testing.assert_array_equal(decoded(tiff(deep, **options)), scaled(deep.astype(float)))


@pytest.mark.parametrize("dtype", ["i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"])
@pytest.mark.parametrize("order", "<>")
def test_every_type_is_scaled_from_minimum_to_maximum_and_inverted_where_white_is_zero(dtype, order):
    values = (GREY // 4).astype(dtype) + (np.dtype(dtype).type(-20) if dtype[0] != "u" else 0)
    for compression, predictor in ((NONE, 1), (DEFLATE, 3 if dtype[0] == "f" else 2)):
        options = {"order": order, "compression": compression, "predictor": predictor}
        expected = scaled(values.astype(float))
        np.testing.assert_array_equal(decoded(tiff(values, **options)), expected)
        found = image_files.decode(tiff(values, photometric=0, **options))
        np.testing.assert_allclose(found.image.astype(int), 255 - expected.astype(int), atol=1)
        assert any("0 is white" in note for note in found.notes)


def test_large_numbers_keep_their_grey_levels():
    values = GREY.astype(np.uint32) + 4_000_000_000
    np.testing.assert_array_equal(decoded(tiff(values)), scaled(GREY.astype(float)))
    np.testing.assert_array_equal(decoded(tiff(values.astype(np.float64))), scaled(GREY.astype(float)))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 7, 10, 12, 14])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "options", [{}, {"reverse": True}, {"compression": LZW}, {"rows": 4}, {"tile": (16, 16)}], ids=str
)
def test_every_depth_is_read(bits, order, options):
    full = (1 << bits) - 1
    values = np.rint(GREY / 255 * full).astype(np.uint8 if bits <= 8 else np.uint16)
    expected = three((values.astype(int) * 255 // full).astype(np.uint8)) if bits < 8 else scaled(values.astype(float))
    black, white = (decoded(tiff(values, bits=bits, order=order, photometric=kind, **options)) for kind in (1, 0))
    np.testing.assert_array_equal(black, expected)
    np.testing.assert_allclose(white.astype(int), 255 - expected.astype(int), atol=1)
    if bits <= 8:
        ramp = np.arange(full + 1)
        table = np.stack([ramp[::-1] * 65535 // full, ramp * 0, ramp * 65535 // full]) >> 8
        for entries in (table * 257, table):  # of 16 bits, and of 8 against the standard
            tag = (320, 3, entries.reshape(-1).tolist())
            found = decoded(tiff(values, bits=bits, order=order, photometric=3, tags=[tag], **options))
            np.testing.assert_array_equal(found, table.T[values])


def test_a_palette_of_16_bits_is_read():
    table = np.stack([np.arange(65536)[::-1]] * 3)
    found = decoded(tiff(GREY.astype(np.uint16) * 257, photometric=3, tags=[(320, 3, table.reshape(-1).tolist())]))
    np.testing.assert_array_equal(found, three(255 - GREY))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planar", [False, True])
def test_extra_channels_are_alpha_only_where_the_file_says_so(dtype, planar):
    factor = 257 if dtype == np.uint16 else 1
    alpha = np.full_like(GREY, 51)
    alpha[:, :20] = 255
    dark = np.rint(RGB * (alpha[..., None] / 255)).astype(np.uint8)
    for colours, photometric in ((RGB, 2), (GREY[..., None], 1)):
        array = np.dstack([colours, alpha]).astype(dtype) * dtype(factor)
        expected, blended = ((a if photometric == 2 else three(a[..., 1])) for a in (RGB, dark))
        for kind, right in ((0, expected), (1, expected), (2, blended)):
            found = image_files.decode(tiff(array, photometric=photometric, planar=planar, tags=[(338, 3, [kind])]))
            if photometric == 1 and kind < 2:
                right = three(GREY)
            np.testing.assert_allclose(found.image.astype(int), right.astype(int), atol=1)
            assert any("left out" in note for note in found.notes) == (kind == 0)
            assert any("alpha" in note for note in found.notes) == (kind > 0)
    five = image_files.decode(tiff(np.dstack([RGB, GREY, GREY]), photometric=2, planar=planar))
    np.testing.assert_array_equal(five.image, RGB)
    assert "2 further channels of unstated meaning left out" in five.notes


def test_cmyk_and_ycbcr_become_rgb():
    ink = np.dstack([255 - RGB, np.zeros_like(GREY)])
    np.testing.assert_array_equal(decoded(tiff(ink, photometric=5)), RGB)
    np.testing.assert_array_equal(
        decoded(tiff(ink.astype(np.uint16) * 257, photometric=5)), decoded(tiff(RGB, photometric=2))
    )
    y, cr, cb = cv2.split(cv2.cvtColor(RGB, cv2.COLOR_RGB2YCrCb))
    found = decoded(tiff(np.dstack([y, cb, cr]), photometric=6, tags=[(530, 3, [1, 1])]))
    assert np.abs(found.astype(int) - RGB).max() <= 3


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"compression": LZW}, {"tile": (16, 16)}, {"order": ">"}], ids=str)
def test_every_orientation_is_turned_upright(turn, options):
    for array, photometric, shown in ((RGB, 2, RGB), (GREY, 1, three(GREY)), (GREY, 0, three(255 - GREY))):
        found = image_files.decode(tiff(array, photometric=photometric, tags=[(274, 3, [turn])], **options))
        np.testing.assert_array_equal(found.image, TURNS[turn](shown))
        assert any(f"orientation {turn}" in note for note in found.notes) == (turn != 1)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_invalid_orientation_is_none(value):
    np.testing.assert_array_equal(decoded(tiff(GREY, tags=[(274, 3, [value])])), three(GREY))


def jpeg_of(array, *options):
    return cv2.imencode(
        ".jpg", array if array.ndim == 2 else array[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95, *options]
    )[1].tobytes()


def test_jpeg_is_read_in_the_colours_that_the_page_states():
    grey = decoded(tiff(GREY, compression=7, content=jpeg_of(GREY)))
    np.testing.assert_array_equal(grey, decoded(jpeg_of(GREY)))
    data = jpeg_of(RGB)
    np.testing.assert_array_equal(decoded(tiff(RGB, compression=7, photometric=6, content=data)), decoded(data))
    as_stored = jpeg_of(
        np.dstack(cv2.split(RGB)), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    )
    planes = decoded(
        tiff(RGB, compression=7, photometric=2, content=as_stored)
    )  # Y, Cb and Cr, shown as red, green, blue
    y = cv2.cvtColor(RGB, cv2.COLOR_RGB2YCrCb)[..., 0]
    assert np.abs(planes[..., 0].astype(int) - y).max() <= 12
    end = data.index(b"\xff\xc0")  # tables apart from the strip
    tables, strip = data[:end] + b"\xff\xd9", data[:2] + data[end:]
    apart = tiff(RGB, compression=7, photometric=6, content=strip, tags=[(347, 7, list(tables))])
    np.testing.assert_array_equal(decoded(apart), decoded(data))
    for content in (data[: len(data) // 2], jpeg_of(RGB[:9]), jpeg_of(GREY), b"", b"\xff\xd8\xff"):
        with pytest.raises(ScanError, match="damaged or truncated"):
            decoded(tiff(RGB, compression=7, photometric=6, content=content))


@pytest.mark.parametrize(
    ("compression", "name"),
    [
        *((6, "old-style JPEG"), (33003, "JPEG 2000"), (33005, "JPEG 2000"), (34712, "JPEG 2000"), (34887, "LERC")),
        *((34892, "JPEG of DNG"), (34925, "LZMA"), (50000, "Zstandard"), (50001, "WebP"), (52546, "JPEG XL")),
        *((50002, "JPEG XL"), (34933, "PNG"), (22610, "JPEG XR"), (0, "method 0"), (777, "method 777")),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_compression_that_cannot_be_decoded_is_named_with_a_way_out(compression, name, dtype):
    data = tiff(GREY.astype(dtype), tags=[(259, 3, [compression])])
    with pytest.raises(ScanError, match=f"compressed by {name}, which is not supported; save it again as PNG"):
        decoded(data)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (RGB, {"photometric": 8}, "colours as CIELab"),
        (GREY, {"photometric": 32803}, "colours as raw colour filter"),
        (RGB, {"photometric": 6}, "YCbCr with fewer pixels of colour"),
        (GREY, {"photometric": 3}, "a palette that is missing"),
        (GREY, {"photometric": 2}, "1 channels"),
        (RGB, {"photometric": 2, "tags": [(258, 3, [8, 8, 16])]}, "8/8/16-bit integers"),
        (GREY.astype(np.uint64), {"tags": [(339, 3, [6])]}, "64-bit complex numbers"),
        (GREY.astype(np.uint32), {"bits": 24, "tags": [(339, 3, [3])]}, "24-bit floats"),
        (GREY, {"compression": LZW, "tags": [(317, 3, [7])]}, "predictor 7"),
        (GREY, {"tags": [(257, 3, [0])]}, "states no size"),
        (GREY, {"tags": [(278, 3, [10])]}, "1 of 4 strips"),
    ],
)
def test_what_cannot_be_shown_is_an_error_that_says_why(array, options, message):
    with pytest.raises(ScanError, match=message):
        decoded(tiff(array, **options))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("rows", [1, 4, 33])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_page_that_is_cut_off_anywhere_is_an_error_and_not_a_picture(compression, rows, dtype):
    whole = tiff(GREY.astype(dtype), compression=compression, rows=rows)
    for size in (len(whole) * 6 // 10, len(whole) * 9 // 10, len(whole) - 8):
        with pytest.raises(ScanError, match="damaged or truncated"):
            decoded(whole[:size])


def chain(*pages):
    """Little-endian TIFF files joined to one of several pages."""
    out = bytearray(pages[0])
    link = 4
    for number, page in enumerate(pages):
        base = 0 if number == 0 else len(out) + len(out) % 2
        if number:
            out += b"\0" * (len(out) % 2) + page
            struct.pack_into("<I", out, link, base + 8)
            entries = struct.unpack_from("<H", out, base + 8)[0]
            for at in range(base + 10, base + 10 + 12 * entries, 12):
                tag, form, count = struct.unpack_from("<HHI", out, at)
                size = count * {1: 1, 3: 2, 4: 4, 7: 1}[form]
                if size > 4:
                    far = struct.unpack_from("<I", out, at + 8)[0] + base
                    struct.pack_into("<I", out, at + 8, far)
                if tag == 273:
                    for place in range(far, far + size, 4) if size > 4 else [at + 8]:
                        struct.pack_into("<I", out, place, struct.unpack_from("<I", out, place)[0] + base)
        entries = struct.unpack_from("<H", out, base + 8)[0]
        link = base + 10 + 12 * entries
    return bytes(out)


def test_thumbnails_and_transparency_masks_are_no_scans(tmp_path):
    small, other = GREY[::4, ::4].copy(), 255 - GREY
    pages = [
        tiff(small, tags=[(254, 4, [1])]),
        tiff(GREY, tags=[(254, 4, [0])]),
        tiff(GREY, photometric=4, tags=[(254, 4, [4])]),
        tiff(other, rows=9),
        tiff(small, tags=[(255, 3, [2])]),
    ]
    path = tmp_path / "a"
    path.write_bytes(chain(*pages))
    assert image_files.count_frames(path) == 2
    np.testing.assert_array_equal(image_files.read(path, 0).image, three(GREY))
    np.testing.assert_array_equal(image_files.read(path, 1).image, three(other))
    with pytest.raises(ScanError, match="no readable page 2"):
        image_files.read(path, 2)
    alone = tmp_path / "b.tif"
    alone.write_bytes(chain(pages[0], pages[2]))
    assert image_files.count_frames(alone) == 2
    assert "the file calls it a transparency mask" in image_files.read(alone, 1).notes


def test_pages_are_found_once_and_read_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    path.write_bytes(chain(*[tiff(GREY[:4, :4] + np.uint8(number % 100)) for number in range(300)]))
    found = []
    monkeypatch.setattr(
        image_files.tiff_header,
        "scan_pages",
        lambda file, real=image_files.tiff_header.scan_pages: found.append(1) or real(file),
    )
    assert image_files.count_frames(path) == 300
    for frame in (0, 7, 299):
        np.testing.assert_array_equal(image_files.read(path, frame).image[..., 0], GREY[:4, :4] + np.uint8(frame % 100))
    assert len(found) == 1


@pytest.mark.parametrize("compression", [3, 4])
def test_a_fax_is_read_in_black_and_white(compression):
    picture = PIL.Image.fromarray((GREY > 100).astype(np.uint8) * 255).convert("1")
    file = io.BytesIO()
    picture.save(file, "TIFF", compression="group3" if compression == 3 else "group4")
    np.testing.assert_array_equal(decoded(file.getvalue()), three((GREY > 100) * np.uint8(255)))


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (201, 333), (1, 99), (64, 64)])
def test_lzw_in_python_equals_its_encoder(shape, monkeypatch):
    for values in (
        RNG.integers(0, 256, shape, np.uint8),
        np.zeros(shape, np.uint8),
        RNG.integers(0, 3, shape, np.uint8),
    ):
        packed = lzw(values.tobytes())
        assert codecs._lzw(packed, values.size) == values.tobytes()
        assert codecs.unpack(LZW, packed, *shape) == values.tobytes()
        monkeypatch.setattr(codecs, "MAX_SLOW", 0)
        assert codecs.unpack(LZW, packed, *shape) == values.tobytes()
        monkeypatch.undo()
        half = codecs._lzw(packed[: len(packed) // 2], values.size)
        assert values.tobytes().startswith(half)
