"""Masks: 0 is background and all else is lesion, in every kind of file."""

import io
import pathlib

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


def test_the_first_colour_of_a_palette_without_black_is_background(tmp_path):
    values, lesion = drawn(0, 1, 2)
    image = PIL.Image.fromarray(values.astype(np.uint8), "P")
    for colours, noted in (([0, 0, 0, 128, 0, 0, 0, 128, 0], False), ([255, 255, 255, 128, 0, 0, 0, 128, 0], True)):
        image.putpalette(colours)
        table = np.zeros((3, 256), int)
        table[:, :3] = np.reshape(colours, (3, 3)).T * 257
        table[:, 3:] = 65535
        as_tiff = tiff(values.astype(np.uint8), photometric=3, tags=[(320, 3, table.reshape(-1).tolist())])
        for data in (pillow(image), pillow(image, bits=2), as_tiff):
            found = masks.read(saved(tmp_path, data))
            np.testing.assert_array_equal(found.lesion, lesion)
            assert bool(found.notes) == noted
    image.putpalette([255, 255, 255, 0, 0, 0, 128, 0, 0])  # black is the second colour, as after an optimiser
    np.testing.assert_array_equal(masks.read(saved(tmp_path, pillow(image))).lesion[..., 0], values != 1)


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
