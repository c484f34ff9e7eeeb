"""Masks: 0 is background and all else is lesion, in every kind of file."""

import io
import pathlib
import struct

import cv2
import numpy as np
import PIL.Image
import pytest

from mcis.imaging import image_files, masks
from mcis.imaging.scan import ScanError
from tests.fixtures.tiff_files import LZW, tiff

LEVELS = ((0, 1), (0, 255), (0, 127, 255), (0, 100, 200), (0, 85, 170, 255), (0, 1, 2, 4), (0, 31, 32), (0, 90))
LEVELS += (tuple(range(30)),)
SHAPE = (48, 70)


def drawn(*levels):
    """(H, W) with a block of each level but the first, which is around them; and where the blocks are."""
    values = np.full(SHAPE, levels[0])
    for number, level in enumerate(levels[1:]):
        y, x = divmod(number, 8)
        values[4 + 8 * y : 12 + 8 * y, 3 + 8 * x : 11 + 8 * x] = level
    return values, (values != levels[0]).astype(np.uint8)[..., None]


def saved(tmp_path, data, name="mask"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def png(array):
    return cv2.imencode(".png", array)[1].tobytes()


def pillow(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_every_level_but_0_is_lesion_at_any_depth(levels, tmp_path):
    values, lesion = drawn(*levels)
    files = [
        png(values.astype(np.uint8)),
        png(values.astype(np.uint16)),
        png(np.stack([values] * 3, 2).astype(np.uint8)),
    ]
    files.append(cv2.imencode(".bmp", values.astype(np.uint8))[1].tobytes())
    files += [tiff(values.astype(dtype), compression=LZW) for dtype in ("u1", "u2", "u4", "f4", "f8", "i2")]
    files += [tiff(values.astype(np.uint8), bits=bits) for bits in (1, 2, 4) if max(levels) < 1 << bits]
    files += [tiff(-values.astype("i2")), png(values.astype(np.uint16) * 257)]
    for number, data in enumerate(files):
        found = masks.read(saved(tmp_path, data))
        np.testing.assert_array_equal(found.lesion, lesion, err_msg=str(number))
        assert found.lesion.dtype == np.uint8 and found.notes == ()


def test_an_empty_mask_is_empty_and_a_full_one_full(tmp_path):
    for dtype in (np.uint8, np.uint16):
        assert not masks.read(saved(tmp_path, png(np.zeros(SHAPE, dtype)))).lesion.any()
        assert masks.read(saved(tmp_path, png(np.ones(SHAPE, dtype)))).lesion.all()


@pytest.mark.parametrize("bits", [1, 8, 16])
@pytest.mark.parametrize("compression", [1, LZW])
def test_a_mask_stored_with_0_as_white_is_right_whatever_its_writer_meant(bits, compression, tmp_path):
    values, lesion = drawn(0, (1 << bits) - 1)
    for array in (values, (1 << bits) - 1 - values):  # lesion is 1, as tifffile writes; lesion is white, as others do
        for marks in (array, np.full_like(array, array[0, 0])):
            data = tiff(
                marks.astype(np.uint16 if bits > 8 else np.uint8), bits=bits, photometric=0, compression=compression
            )
            found = masks.read(saved(tmp_path, data))
            np.testing.assert_array_equal(found.lesion, lesion if marks is array else lesion * 0)
            assert "0 as white" in found.notes[0]


def in_palette(values, colours):
    image = PIL.Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette(colours)
    return image


def tiff_palette(values, colours):
    table = np.zeros((3, 256), int)
    table[:, : len(colours) // 3] = np.reshape(colours, (-1, 3)).T * 257
    table[:, len(colours) // 3 :] = 65535
    return tiff(values.astype(np.uint8), photometric=3, tags=[(320, 3, table.reshape(-1).tolist())])


WITHOUT_BLACK, DISAGREE = "a palette without black", "colours and numbers of its palette disagree"


@pytest.mark.parametrize(
    ("colours", "note"),
    [
        ([0, 0, 0, 128, 0, 0, 0, 128, 0], None),
        ([255, 255, 255, 128, 0, 0, 0, 128, 0], WITHOUT_BLACK),
        ([0, 0, 128, 255, 255, 255, 0, 128, 0], WITHOUT_BLACK),
        ([200, 200, 200, 9, 9, 9, 90, 90, 90], WITHOUT_BLACK),  # grey
        ([255, 255, 255, 0, 0, 0, 128, 0, 0], DISAGREE),
        ([0, 0, 0, 128, 0, 0, 0, 0, 0], DISAGREE),  # the last class has no colour; it is lost with a note
        ([0] * 9, "a palette of black alone"),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["png", "png of 2 bits", "bmp", "bmp of 4 bits", "tiff"])
def test_the_first_colour_of_a_palette_is_background_unless_black_is_another(colours, note, form, tmp_path):
    values, lesion = drawn(0, 1, 2)
    image = in_palette(values, colours)
    if form == "bmp of 4 bits":
        rows = np.pad(values[::-1], ((0, 0), (0, 2))).reshape(len(values), -1, 2).astype(np.uint8)
        palette = b"".join(bytes([b, g, r, 0]) for r, g, b in np.reshape(colours, (-1, 3)))
        start, pixels = 54 + len(palette), np.pad(rows[..., 0] << 4 | rows[..., 1], ((0, 0), (0, 0))).tobytes()
        header = struct.pack("<IiiHHIIiiII", 40, 70, 48, 1, 4, 0, len(pixels), 0, 0, 3, 0)
        data = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels
    else:
        data = {
            "png": lambda: pillow(image),
            "png of 2 bits": lambda: pillow(image, bits=2),
            "bmp": lambda: pillow(image, "BMP"),
            "tiff": lambda: tiff_palette(values, colours),
        }[form]()
    found = masks.read(saved(tmp_path, data))
    right = (values == 1)[..., None] if colours[6:] == [0, 0, 0] and any(colours) else lesion
    np.testing.assert_array_equal(found.lesion, right)
    assert [one.split(":")[0] for one in found.notes] == ([] if note is None else [note])


def test_a_palette_whose_black_is_most_of_the_picture_is_read_by_its_colours(tmp_path):
    values, lesion = drawn(1, 0)  # the lesion is white, the first colour; all around is black
    for form in ("PNG", "BMP"):
        found = masks.read(saved(tmp_path, pillow(in_palette(values, [255, 255, 255, 0, 0, 0]), form)))
        np.testing.assert_array_equal(found.lesion, lesion)
        assert DISAGREE in found.notes[0]


@pytest.mark.parametrize("colours", [[255, 255, 255, 255, 0, 0], [0, 0, 0, 255, 0, 0], [90, 90, 90, 0, 0, 0]], ids=str)
@pytest.mark.parametrize(
    "transparent", [0, 1, b"\xff\x80", b"\x80\xff", b"\x00\xff", b"\xff\x00", b"\xff\xff"], ids=str
)
def test_transparent_colours_of_a_palette_leave_its_first_colour_background(colours, transparent, tmp_path):
    values, lesion = drawn(0, 1)
    found = masks.read(saved(tmp_path, pillow(in_palette(values, colours), transparency=transparent)))
    np.testing.assert_array_equal(found.lesion, lesion)


@pytest.mark.parametrize(("background", "mark"), [(255, 0), (255, 90), (0, 255), (7, 200)])
def test_a_transparent_grey_level_is_background(background, mark, tmp_path):
    values, lesion = drawn(background, mark)
    data = pillow(PIL.Image.fromarray(values.astype(np.uint8)), transparency=background)
    np.testing.assert_array_equal(masks.read(saved(tmp_path, data)).lesion, lesion)
    assert image_files.decode(data).image[0, 0].max() == 0
    one_bit = pillow(PIL.Image.fromarray(values == 255), transparency=1, bits=1)
    assert image_files.decode(one_bit).image.max() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_blended_or_is_the_mask_itself(dtype, tmp_path):
    values, lesion = drawn(0, 1)
    full = np.iinfo(dtype).max
    marks = values.astype(dtype) * dtype(full)
    white, black, opaque = np.full_like(marks, full), np.zeros_like(marks), np.full_like(marks, full)
    for grey, alpha, noted in ((marks, opaque, 0), (white, marks, 0), (marks, marks, 0), (black, marks, 1)):
        found = masks.read(saved(tmp_path, png(np.dstack([grey, grey, grey, alpha]))))
        np.testing.assert_array_equal(found.lesion, lesion)
        assert len(found.notes) == noted
    assert not masks.read(saved(tmp_path, png(np.dstack([black] * 3 + [opaque])))).lesion.any()


@pytest.mark.parametrize("levels", [(0, 255), (0, 127, 255), (0, 100, 200), (0, 85, 170, 255)], ids=str)
@pytest.mark.parametrize("quality", [75, 95])
def test_a_jpeg_mask_has_a_threshold_between_its_levels_and_noise(levels, quality, tmp_path):
    values, lesion = drawn(*levels)
    data = cv2.imencode(".jpg", values.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    assert len(np.unique(image_files.decode(data).image)) > len(levels)
    in_tiff = tiff(values.astype(np.uint8), compression=7, content=data)
    for content in (data, in_tiff):
        found = masks.read(saved(tmp_path, content, "mask.png"))  # the content counts
        assert np.count_nonzero(found.lesion != lesion) <= 0.02 * lesion.sum()
        assert found.notes == ("compressed by JPEG: values of 64 and more are lesion",)
    dim = cv2.imencode(".jpg", (values > 0).astype(np.uint8) * 9)[1].tobytes()
    with pytest.raises(ScanError, match="compressed by JPEG, with no value above"):
        masks.read(saved(tmp_path, dim))
    assert not masks.read(saved(tmp_path, cv2.imencode(".jpg", np.zeros(SHAPE, np.uint8))[1].tobytes())).lesion.any()


def test_smooth_edges_have_the_same_threshold_with_a_note(tmp_path):
    values, _ = drawn(0, 255, 255, 255)
    smooth = cv2.GaussianBlur(values.astype(np.uint8), (9, 9), 2)
    smooth[0, 0] = 255
    lesion = smooth >= 64
    for array, limit in ((smooth, 64), (smooth.astype(np.float32) / 256, 0.249023), (smooth.astype("u2") * 256, 16320)):
        found = masks.read(saved(tmp_path, tiff(array)))
        np.testing.assert_array_equal(found.lesion[..., 0], lesion)
        assert found.notes == (f"of many grey levels: values of {limit} and more are lesion",)


def shape(kind, top):
    """A disc of 200 pixels a side with edges of some kind: floats from 0 to `top`."""
    y, x = np.mgrid[:200, :200]
    distance = 70 - np.hypot(x - 101.3, y - 98.7)
    if kind == "anti-aliased":
        return np.clip(distance + 0.5, 0, 1) * top
    if kind == "blurred":
        return top / (1 + np.exp(-distance / 3))
    return np.clip(0.5 + distance / 140, 0, 1) * top  # a map of probabilities


@pytest.mark.parametrize("top", [60, 100, 127, 130, 200, 255])
@pytest.mark.parametrize("kind", ["anti-aliased", "blurred", "map"])
def test_smooth_edges_of_any_largest_value_have_a_threshold_of_a_quarter_of_it(kind, top, tmp_path):
    values = np.rint(shape(kind, top)).astype(np.uint8)
    assert len(np.unique(values)) > masks.MANY_LEVELS
    found = masks.read(saved(tmp_path, png(values)))
    limit = -(-int(values.max()) // 4)
    np.testing.assert_array_equal(found.lesion[..., 0], values >= limit)
    assert found.notes == (f"of many grey levels: values of {limit} and more are lesion",)


@pytest.mark.parametrize("numbers", [range(1, 51), range(2, 120, 3)], ids=str)
@pytest.mark.parametrize("side", [3, 4, 8])
@pytest.mark.parametrize("apart", [0, 2])
def test_many_class_numbers_are_no_smooth_edges(numbers, side, apart, tmp_path):
    values = np.zeros((10 * (side + apart), 10 * (side + apart)), np.uint8)
    order = np.random.default_rng(0).permutation(list(numbers))
    for place, number in enumerate(order):
        y, x = (side + apart) * np.array(divmod(place, 10))
        values[y : y + side, x : x + side] = number
    found = masks.read(saved(tmp_path, png(values)))
    np.testing.assert_array_equal(found.lesion[..., 0], values > 0)
    assert found.notes == ()


def test_not_a_number_is_background_and_booleans_are_read(tmp_path):
    values, lesion = drawn(0, 1)
    floats = values.astype(np.float32)
    floats[:2] = np.nan
    np.testing.assert_array_equal(masks.read(saved(tmp_path, tiff(floats))).lesion, lesion)
    image = PIL.Image.fromarray(values.astype(bool))
    for form in ("PNG", "BMP", "TIFF"):
        np.testing.assert_array_equal(masks.read(saved(tmp_path, pillow(image, form))).lesion, lesion)
    fax = pillow(image, "TIFF", compression="group4")
    np.testing.assert_array_equal(masks.read(saved(tmp_path, fax)).lesion, lesion)


def test_an_unreadable_mask_is_an_error(tmp_path):
    with pytest.raises(ScanError, match="not a readable image"):
        masks.read(saved(tmp_path, b"x"))
    with pytest.raises(ScanError, match="no such file"):
        masks.read(pathlib.Path(tmp_path, "nowhere.png"))
