"""Scans and masks are turned upright by one rule, whatever the format says it in."""

import io
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from mcis.imaging import formats, image_files, masks
from tests.fixtures.tiff_files import tiff

SCAN = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (33, 47, 3), np.uint8), (5, 5), 1)
BACK = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
"""The orientation that undoes one."""


def exif(turn, order=">"):
    head = b"MM\0*" if order == ">" else b"II*\0"
    return head + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, turn, 0, 0)


def jpeg(array, block):
    data = cv2.imencode(".jpg", array[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    app = b"" if block is None else b"\xff\xe1" + struct.pack(">H", len(block) + 8) + b"Exif\0\0" + block
    return data[:2] + app + data[2:]


def png(array, block):
    data = cv2.imencode(".png", array if array.ndim == 2 else array[..., ::-1])[1].tobytes()
    chunk = b"eXIf" + (block or b"")
    made = b"" if block is None else struct.pack(">I", len(block)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:33] + made + data[33:]


def as_tiff(array, block, turn):
    return tiff(array, photometric=2 if array.ndim == 3 else 1, tags=[(274, 3, [turn])])


def turned(array, turn):
    """How a viewer shows it, by Pillow."""
    image = PIL.Image.fromarray(array)
    image.getexif()[0x0112] = turn
    file = io.BytesIO()
    image.save(file, "PNG", exif=image.getexif())
    return np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(file)))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_jpeg_png_and_tiff_are_turned_alike(turn, order):
    upright = turned(SCAN, turn)
    for data, exact in (
        (png(SCAN, exif(turn, order)), True),
        (as_tiff(SCAN, None, turn), True),
        (jpeg(SCAN, exif(turn, order)), False),
    ):
        found = image_files.decode(data)
        expected = upright if exact else turned(image_files.decode(jpeg(SCAN, None)).image, turn)
        np.testing.assert_array_equal(found.image, expected)
        assert any(f"orientation {turn}" in note for note in found.notes) == (turn != 1)


@pytest.mark.parametrize("block", [exif(0), exif(9), exif(6)[:11], exif(6)[:-9], b"", b"MM", b"XX\0*" + exif(6)[4:]])
def test_an_invalid_orientation_turns_nothing(block):
    for data in (jpeg(SCAN, block), png(SCAN, block)):
        found = image_files.decode(data)
        assert found.image.shape == SCAN.shape and found.notes == ()


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_turned_scan_and_its_mask_fit_whichever_of_them_says_so(turn, tmp_path):
    lesion = np.zeros(SCAN.shape[:2], np.uint8)
    lesion[3:9, 5:21] = 255
    stored, marks = turned(SCAN, BACK[turn]), turned(lesion, BACK[turn])
    made = {
        "scan.jpg": jpeg(stored, exif(turn)),
        "scan.png": png(stored, exif(turn)),
        "scan.tif": as_tiff(stored, None, turn),
        "upright_mask.png": png(lesion, None),
        "mask.png": png(marks, exif(turn)),
        "mask.tif": as_tiff(marks, None, turn),
    }
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
        if "mask" in name:
            np.testing.assert_array_equal(masks.read(tmp_path / name).lesion[..., 0], lesion > 0)
        else:
            found = formats.load(str(tmp_path / name), None)
            assert found.image.shape == SCAN.shape and found.geometry.shape == lesion.shape
            assert np.abs(found.image.astype(int) - SCAN).mean() < 9


def test_a_palette_mask_is_turned_with_its_indexes(tmp_path):
    values = np.zeros((20, 30), np.uint8)
    values[2:5, 4:20] = 1
    image = PIL.Image.fromarray(values, "P")
    image.putpalette([255, 255, 255, 255, 0, 0])
    options = PIL.Image.Exif()
    options[0x0112] = 6
    image.save(tmp_path / "a.png", exif=options)
    np.testing.assert_array_equal(masks.read(tmp_path / "a.png").lesion[..., 0], np.rot90(values, -1))
