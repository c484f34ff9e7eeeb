"""PNG, JPEG, TIFF and BMP files give the picture that they hold; folders are searched for them."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from mcis.imaging import image_files, scan
from mcis.imaging.scan import ScanError
from tests.fixtures.pictures import GREY, GREY3, RGB, chunk, encoded, png
from tests.lanes.fuzz.crafted_pictures import jpeg_scans


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".PNG", ".Tif"])
@pytest.mark.parametrize("colour", [False, True])
def test_lossless_formats_are_read_exactly(tmp_path, suffix, colour):
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(encoded(suffix.lower(), RGB[..., ::-1] if colour else GREY))
    found = image_files.read(path)
    assert found.image.dtype == np.uint8
    assert found.image.flags.c_contiguous
    assert found.notes == ()
    np.testing.assert_array_equal(found.image, RGB if colour else GREY3)
    assert image_files.count_frames(path) == 1


def test_a_jpeg_is_read_in_rgb_order_with_little_loss():
    found = image_files.decode(encoded(".jpg", RGB[..., ::-1]))
    assert np.abs(found.image.astype(int) - RGB).mean() < 4
    grey = image_files.decode(encoded(".jpg", GREY)).image
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_a_grey_image_saved_as_rgb_gives_the_same_scan():
    grey, rgb, rgba = (
        image_files.decode(encoded(".png", a)) for a in (GREY, GREY3, np.dstack([GREY3, np.full_like(GREY, 255)]))
    )
    np.testing.assert_array_equal(grey.image, rgb.image)
    np.testing.assert_array_equal(grey.image, rgba.image)
    assert scan.fingerprint(grey.image) == scan.fingerprint(rgb.image) == scan.fingerprint(rgba.image)
    assert grey.notes == rgb.notes == rgba.notes == ()


def test_palette_and_its_transparency_equal_values_computed_by_hand():
    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 10, 20, 30]))
    rows = bytes([0, 0, 1, 2])
    np.testing.assert_array_equal(
        image_files.decode(png(3, 1, 8, 3, rows, palette)).image, [[[255, 0, 0], [0, 255, 0], [10, 20, 30]]]
    )
    transparent = image_files.decode(png(3, 1, 8, 3, rows, palette, chunk(b"tRNS", bytes([255, 128, 0]))))
    np.testing.assert_array_equal(transparent.image, [[[255, 0, 0], [0, 128, 0], [0, 0, 0]]])
    assert any("alpha" in note for note in transparent.notes)


def test_alpha_blended_with_black_equals_values_computed_by_hand():
    rgba = png(2, 1, 8, 6, bytes([0, 200, 100, 50, 255, 200, 100, 50, 51]))
    np.testing.assert_array_equal(image_files.decode(rgba).image, [[[200, 100, 50], [40, 20, 10]]])
    grey_alpha = png(2, 1, 8, 4, bytes([0, 200, 255, 200, 0]))
    np.testing.assert_array_equal(image_files.decode(grey_alpha).image, [[[200] * 3, [0] * 3]])


def test_a_png_of_one_bit_is_black_and_white():
    image = image_files.decode(png(4, 1, 1, 0, bytes([0, 0b10100000]))).image
    np.testing.assert_array_equal(image[0, :, 0], [255, 0, 255, 0])


def test_16_bits_are_scaled_from_minimum_to_maximum_with_a_note():
    values = struct.pack(">HHHH", 1000, 1510, 2020, 3550)
    found = image_files.decode(png(4, 1, 16, 0, b"\0" + values))
    np.testing.assert_array_equal(found.image[0, :, 1], [0, 51, 102, 255])
    assert found.notes == ("uint16 scaled from [1000, 3550] to 8 bits",)


def test_16_bit_alpha_is_scaled_by_its_own_range():
    values = struct.pack(">8H", 0, 0, 0, 65535, 100, 100, 100, 32768)
    found = image_files.decode(png(2, 1, 16, 6, b"\0" + values))
    np.testing.assert_array_equal(found.image[0], [[0, 0, 0], [128, 128, 128]])


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_tiffs_of_more_than_8_bits_are_scaled_linearly(dtype):
    deep = (GREY.astype(dtype) * 7 - (0 if dtype == np.uint16 else 500)).astype(dtype)
    found = image_files.decode(encoded(".tif", deep))
    np.testing.assert_array_equal(found.image, GREY3)
    assert found.notes[0].startswith(np.dtype(dtype).name)


def test_a_constant_16_bit_image_is_black():
    assert image_files.decode(encoded(".png", np.full((9, 9), 777, np.uint16))).image.max() == 0


def test_each_page_of_a_tiff_is_read(tmp_path):
    pages = [GREY, RGB[..., ::-1], GREY[:20]]
    done, data = cv2.imencodemulti(".tif", pages)
    assert done
    path = tmp_path / "série.TIFF"
    path.write_bytes(data.tobytes())
    assert image_files.count_frames(path) == 3
    for frame, image in enumerate((GREY3, RGB, GREY3[:20])):
        np.testing.assert_array_equal(image_files.read(path, frame).image, image)
    for frame in (3, 99, -1):
        with pytest.raises(ScanError, match="série"):
            image_files.read(path, frame)


@pytest.mark.parametrize(
    "name", ["脳 スキャン.png", "a b'\"c.png", "ümlaut\u0308.png", "no_suffix", "wrong.txt", "-x.png"]
)
def test_any_file_name_is_accepted(tmp_path, name):
    (tmp_path / name).write_bytes(encoded(".png", GREY))
    np.testing.assert_array_equal(image_files.read(tmp_path / name).image, GREY3)
    assert image_files.count_frames(tmp_path / name) == 1


def test_the_fingerprint_depends_on_pixels_and_shape_not_on_the_file_format():
    prints = {scan.fingerprint(image_files.decode(encoded(suffix, RGB)).image) for suffix in (".png", ".bmp", ".tif")}
    assert len(prints) == 1
    found = prints.pop()
    assert len(found) == 16
    assert set(found) <= set("0123456789abcdef")
    changed = RGB[..., ::-1].copy()
    changed[5, 6, 1] ^= 1
    others = [changed, RGB, RGB.reshape(47, 33, 3), RGB[:, :-1]]
    assert len({found} | {scan.fingerprint(other) for other in others}) == 5
    view = np.asfortranarray(RGB[..., ::-1])  # memory layout does not matter
    assert scan.fingerprint(view) == found


def test_an_encoded_png_is_read_back_and_a_wrong_shape_is_an_error():
    np.testing.assert_array_equal(image_files.decode(image_files.encode_png(RGB)).image, RGB)
    for grey in (GREY, GREY[..., None]):
        np.testing.assert_array_equal(image_files.decode(image_files.encode_png(grey)).image, GREY3)
    with pytest.raises((ValueError, cv2.error)):
        image_files.encode_png(np.zeros((4, 4, 7), np.uint8))


def bmp(bits, rows, *, size=40, compression=0, masks=b"", height=33, width=47):
    """A BMP of `rows` (bytes), with a header of 12 or 40 bytes."""
    if size == 12:
        head = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, *[0] * 5)
    start = 14 + len(head) + len(masks)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + head + masks + rows


@pytest.mark.parametrize("size", [12, 40])
def test_a_bmp_of_24_bits_keeps_its_colours_whatever_its_header(size):
    rows = b"".join(row[:, ::-1].tobytes() + b"\0" * (-3 * 47 % 4) for row in RGB[::-1])
    np.testing.assert_array_equal(image_files.decode(bmp(24, rows, size=size)).image, RGB)


def test_a_bmp_with_other_channels_than_blue_green_red_is_right_or_an_error():
    rows = np.dstack([RGB[::-1, :, ::-1], np.full((33, 47), 255, np.uint8)]).tobytes()
    usual, swapped = (0xFF0000, 0xFF00, 0xFF), (0xFF, 0xFF00, 0xFF0000)
    found = image_files.decode(bmp(32, rows, compression=3, masks=struct.pack("<III", *usual)))
    np.testing.assert_array_equal(found.image, RGB)
    with pytest.raises(ScanError, match="colours in an unusual order; save it again as PNG"):
        image_files.decode(bmp(32, rows, compression=3, masks=struct.pack("<III", *swapped)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_of_every_depth_and_order_is_read(bits, interlaced):
    full = (1 << bits) - 1
    values = np.rint(GREY / 255 * full).astype(int)

    def rows(part):
        bytes_of = [(row[:, None] >> np.arange(bits - 1, -1, -1)) & 1 for row in part if part.size]
        return b"".join(b"\0" + np.packbits(bits_of.reshape(-1).astype(np.uint8)).tobytes() for bits_of in bytes_of)

    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    passes = passes if interlaced else ((0, 0, 1, 1),)
    data = b"".join(rows(values[y::down, x::right]) for y, x, down, right in passes)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 47, 33, bits, 0, 0, 0, interlaced))
    made = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    found = image_files.decode(made).image[..., 0]
    np.testing.assert_allclose(found, np.rint(values * (255 / full)), atol=1)


def test_a_jpeg_of_cmyk_is_read_as_adobe_writes_it():
    ink = np.dstack([255 - RGB, np.zeros_like(GREY)])
    file = io.BytesIO()
    PIL.Image.fromarray(ink, "CMYK").save(file, "JPEG", quality=95)
    expected = np.asarray(PIL.Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    found = image_files.decode(file.getvalue()).image
    assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pixels_that_are_no_numbers_are_black_with_a_note_as_in_a_volume(value, dtype, tmp_path):
    values = np.linspace(5, 9, GREY.size).reshape(GREY.shape).astype(dtype)
    expected = np.rint((values - 5) * (255 / 4)).astype(np.uint8)
    values[3:5, 4:7], expected[3:5, 4:7] = value, 0
    in_colour, expected_colour = np.dstack([values, values, values + 4]), np.dstack([expected // 2 + expected % 2] * 3)
    in_colour[..., 2][3, 4] = 7
    (tmp_path / "a.tif").write_bytes(encoded(".tif", values))
    (tmp_path / "b.tif").write_bytes(encoded(".tif", in_colour[..., ::-1]))
    for found in (image_files.read(tmp_path / "a.tif"), image_files.from_array(values)):
        np.testing.assert_array_equal(found.image[..., 0], expected)
        note = "6 pixels are NaN or infinite: shown black, as background"
        assert found.notes == (f"{values.dtype} scaled from [5, 9] to 8 bits", note)
    colour = image_files.read(tmp_path / "b.tif")
    assert np.abs(colour.image[..., :2].astype(int) - expected_colour[..., :2]).max() <= 1
    assert colour.image[3:5, 4:7].max() == 0 and "6 pixels are NaN" in colour.notes[-1]
    hidden = image_files.from_array(np.dstack([np.ones_like(in_colour), np.where(np.isfinite(values), 1, value)]))
    assert hidden.image[3:5, 4:7].max() == 0


def test_images_below_a_folder_are_found_without_hidden_files_and_reports(tmp_path):
    for name in ("b/two.PNG", "a/one.tif", "a/.hidden.png", ".cache/three.png", "notes.txt", "out/masks/four.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("findings.jsonl", "run.json"):
        (tmp_path / "out" / name).touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "z").symlink_to(tmp_path / "a")
    found = [path.relative_to(tmp_path).as_posix() for path in image_files.files_in(tmp_path)]
    assert found == ["a/one.tif", "b/two.PNG", "gone.png"]
    assert image_files.files_in(tmp_path / "none") == []
    (tmp_path / "out" / "scan.png").touch()  # scans in the folder of their report
    (tmp_path / "out" / "more").mkdir()
    (tmp_path / "out" / "more" / "scan.png").touch()
    found = [path.relative_to(tmp_path).as_posix() for path in image_files.files_in(tmp_path / "out")]
    assert found == ["out/more/scan.png", "out/scan.png"]


def test_an_unreadable_folder_is_listed_and_reading_it_is_an_error(tmp_path, monkeypatch):
    original = os.scandir

    def scandir(path):  # as for any user but root
        if os.path.basename(path) == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    (tmp_path / "secret").mkdir()
    (tmp_path / "a.png").touch()
    monkeypatch.setattr(os, "scandir", scandir)
    assert image_files.files_in(tmp_path) == [tmp_path / "a.png", tmp_path / "secret"]
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.basename(path) != "secret")
    with pytest.raises(ScanError, match="secret: a folder, which may not be read"):
        image_files.read(tmp_path / "secret")


def test_a_large_image_is_scaled_in_blocks_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(0)
    for array in (rng.integers(0, 65536, (50, 40, 4), np.uint16), rng.random((50, 40), np.float32)):
        whole = image_files.from_array(array)
        with monkeypatch.context() as small:
            small.setattr(scan, "BLOCK", 7 * array[0].size)
            np.testing.assert_array_equal(image_files.from_array(array).image, whole.image)


def test_every_pair_of_colour_and_alpha_is_blended_and_rounded():
    colour, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    blended = image_files.from_array(np.stack([colour, colour[:, ::-1], colour, alpha], 2)).image
    expected = np.rint(colour * (alpha.astype(np.float32) / 255.0))
    np.testing.assert_array_equal(blended[..., 0], expected)
    np.testing.assert_array_equal(blended[..., 1], np.rint(colour[:, ::-1] * (alpha.astype(np.float32) / 255.0)))


def test_a_jpeg_is_measured_by_its_own_header_even_if_it_contains_that_of_a_jpeg_2000():
    data = jpeg_scans(2000, 2000, 10_000)["a.jpg"]
    comment = b"\xff\x4f\xff\x51" + struct.pack(">HH8IHB", 41, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 7)
    hidden = data[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment + data[2:]
    with pytest.raises(ScanError, match="4000000 pixels"):
        image_files.decode(hidden)
