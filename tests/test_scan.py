import os
import pathlib
import struct
import subprocess
import sys
import textwrap
import zlib

import cv2
import numpy as np
import pytest

from mcis import MAX_PIXELS, phantom, scan
from mcis.organs import ORGANS

LESIONS = [(o.name, label) for o in ORGANS for label in range(len(o.classes)) if o.is_lesion(label)]
SHAPES = [  # (height, width) of the scan, side of the square: tall, wide, up, down, both odd, barely changed, narrow
    ((300, 140), 64),
    ((140, 300), 64),
    ((40, 31), 128),
    ((31, 40), 100),
    ((517, 389), 256),
    ((255, 256), 256),
    ((600, 21), 256),
    ((512, 512), 256),
    ((256, 256), 384),
]


def page(height, width, *, background=0, content=(), value=200):
    """A grey picture (H, W, 3) with bright rectangles (x, y, width, height)."""
    image = np.full((height, width, 3), background, np.uint8)
    for x, y, w, h in content:
        image[y : y + h, x : x + w] = value
    return image


def disc(height, width, cx, cy, radius):
    """uint8 {0,1} (H, W, 1): pixels whose centre lies within `radius` of (cx, cy), in edge coordinates."""
    y, x = np.mgrid[:height, :width] + 0.5
    return ((x - cx) ** 2 + (y - cy) ** 2 <= radius**2).astype(np.uint8)[..., None]


def centroid(weights):
    """(x, y) in edge coordinates of a map (H, W)."""
    weights = weights.astype(np.float64)
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


def to_square(point, geometry):
    """Where a point of the scan must lie in the square."""
    (bx, by, bw, bh), (ix, iy, iw, ih) = geometry.box, geometry.inner
    return np.array([ix + (point[0] - bx) * iw / bw, iy + (point[1] - by) * ih / bh])


# Geometry


@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_asymmetric_marker_lands_where_it_should_and_comes_back(shape, size, crop):
    height, width = shape
    unit = max(4, min(shape) // 6)
    corners = {  # of different sizes, none symmetric to another: a flip, a transposition or a shift shows
        "top left": (unit // 2, unit, unit, unit),
        "top right": (width - 2 * unit, unit // 2, unit, 2 * unit),
        "bottom left": (unit, height - 2 * unit, 2 * unit, unit),
    }
    geometry = None
    for x, y, w, h in corners.values():
        image = page(height, width, content=corners.values(), value=1 if crop else 0)
        image[y : y + h, x : x + w] = 255
        square, geometry = scan.fit(image, size, crop=crop)
        assert square.shape == (size, size, 3)
        assert geometry.shape == shape
        true = np.array([x + w / 2, y + h / 2])
        there = centroid(np.where(square[..., 0] > 5, square[..., 0], 0))
        scale = geometry.inner[2] / geometry.box[2]
        assert np.abs(there - to_square(true, geometry)).max() < 0.5 * min(scale, 1), (there, geometry)
        back = scan.unfit(np.where(square[..., 0] > 5, square[..., 0], 0) / 255.0, geometry)
        assert back.shape == shape
        assert back.dtype == np.float32
        assert np.abs(centroid(back) - true).max() < 0.5
    x, y, w, h = geometry.inner
    assert max(w, h) == size  # the longer side fills the square, the rest is centred
    assert abs(2 * x + w - size) <= 1
    assert abs(2 * y + h - size) <= 1


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_mask_keeps_position_and_area_there_and_back(shape, size):
    rng = np.random.default_rng(0)
    ratios, offsets, back_ratios, back_offsets = [], [], [], []
    blank = np.zeros((*shape, 3), np.uint8)
    _, geometry = scan.fit(blank, size)
    scale_x, scale_y = geometry.inner[2] / geometry.box[2], geometry.inner[3] / geometry.box[3]
    radius = min(shape) * 0.3
    for _ in range(40):
        centre = [rng.uniform(radius + 1, side - radius - 1) for side in shape[::-1]]
        mask = disc(*shape, *centre, radius)
        there = scan.fit_mask(mask, geometry)
        assert there.shape == (size, size, 1)
        assert there.dtype == np.uint8
        assert set(np.unique(there)) <= {0, 1}
        ratios.append(there.sum() / (mask.sum() * scale_x * scale_y))
        offsets.append(centroid(there[..., 0]) - to_square(centroid(mask[..., 0]), geometry))
        back = scan.unfit(there[..., 0].astype(np.float32), geometry) >= 0.5
        back_ratios.append(back.sum() / mask.sum())
        back_offsets.append(centroid(back) - centroid(mask[..., 0]))
    small = radius * min(scale_x, 1) < 5  # a disc of some ten pixels: grid effects are larger than any bias
    assert abs(np.mean(ratios) - 1) < (0.05 if small else 0.02)
    assert abs(np.mean(back_ratios) - 1) < (0.05 if small else 0.02)
    assert np.abs(np.mean(offsets, 0)).max() < 0.1
    assert np.abs(np.mean(back_offsets, 0)).max() < 0.1 * max(1, 1 / scale_x)
    assert np.abs(back_offsets).max() < 0.5 * max(1, 1 / scale_x)


@pytest.mark.parametrize("shape", [(128, 128), (128, 90), (77, 128)])
def test_identity_where_nothing_is_scaled(shape):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    mask = rng.integers(0, 2, (*shape, 1), dtype=np.uint8)
    square, geometry = scan.fit(image, 128, crop=False)
    x, y, w, h = geometry.inner
    assert (w, h) == shape[::-1]
    np.testing.assert_array_equal(square[y : y + h, x : x + w], image)
    assert square.sum() == image.sum()  # the rest is black
    there = scan.fit_mask(mask, geometry)
    np.testing.assert_array_equal(scan.unfit(there[..., 0], geometry), mask[..., 0])


def test_unfit_is_zero_outside_the_crop_and_keeps_probabilities_inside():
    image = page(200, 200, content=[(60, 40, 120, 110)])
    _, geometry = scan.fit(image, 64)
    full = scan.unfit(np.full((64, 64), 0.7, np.float32), geometry)
    x, y, w, h = geometry.box
    np.testing.assert_allclose(full[y : y + h, x : x + w], 0.7, rtol=1e-6)
    assert full.sum() == pytest.approx(0.7 * w * h, rel=1e-5)


def test_fit_mask_of_another_shape_fails_with_both_shapes():
    _, geometry = scan.fit(page(40, 50), 32)
    with pytest.raises(ValueError, match=r"\(50, 40\).*\(40, 50\)"):
        scan.fit_mask(np.zeros((50, 40, 1), np.uint8), geometry)


# Content


def assert_inside(inner, outer):
    assert outer[0] <= inner[0], (inner, outer)
    assert outer[1] <= inner[1], (inner, outer)
    assert inner[0] + inner[2] <= outer[0] + outer[2], (inner, outer)
    assert inner[1] + inner[3] <= outer[1] + outer[3], (inner, outer)


@pytest.mark.parametrize("background", [0, 255, 90])  # a brain on black, a white page, a grey user interface
@pytest.mark.parametrize("content", [(40, 30, 140, 120), (100, 20, 120, 170), (1, 1, 150, 150)])
def test_content_box_is_the_content_whatever_the_background(background, content):
    image = page(200, 240, background=background, content=[content], value=170)
    box = scan.content_box(image)
    assert_inside(content, box)
    assert np.abs(np.array(box) - content).max() <= 4  # the blur's reach on either side


def test_content_box_of_a_brain_is_a_tight_box_round_all_of_it():
    image = np.zeros((240, 200, 3), np.uint8)
    cv2.ellipse(image, (110, 105), (75, 90), 0, 0, 360, (120, 120, 120), -1)
    cv2.ellipse(image, (110, 105), (70, 85), 0, 0, 360, (70, 70, 70), -1)
    x, y, w, h = cv2.boundingRect(np.ascontiguousarray(image[..., 0]))
    box = scan.content_box(image)
    assert_inside((x, y, w, h), box)
    assert np.abs(np.array(box) - (x, y, w, h)).max() <= 6


def test_content_box_keeps_every_large_part_and_drops_specks():
    parts = [(30, 30, 60, 160), (150, 50, 70, 100)]
    box = scan.content_box(page(220, 250, content=[*parts, (2, 200, 6, 6)]))
    assert_inside((30, 30, 190, 160), box)
    assert np.abs(np.array(box) - (30, 30, 190, 160)).max() <= 4


@pytest.mark.parametrize("value", [0, 255, 131])
@pytest.mark.parametrize("shape", [(100, 80), (15, 300), (1, 1), (3, 3)])
def test_a_picture_without_content_or_tiny_keeps_its_whole_frame(shape, value):
    assert scan.content_box(np.full((*shape, 3), value, np.uint8)) == (0, 0, shape[1], shape[0])
    square, _ = scan.fit(np.full((*shape, 3), value, np.uint8), 32)
    assert square.shape == (32, 32, 3)


@pytest.mark.parametrize("where", [(2, 3), (150, 3), (80, 80), (2, 170), (150, 170)])
def test_a_small_slice_is_magnified_at_most_twice_and_the_box_stays_in_the_picture(where):
    x, y = where
    image = page(201, 181, content=[(x, y, 26, 27)])
    box = scan.content_box(image)
    assert_inside((x, y, 26, 27), box)
    assert_inside(box, (0, 0, 181, 201))
    assert box[2] >= 181 / 2
    assert box[3] >= 201 / 2
    _, geometry = scan.fit(image, 201)
    assert geometry.inner[2] / geometry.box[2] <= 2


@pytest.mark.parametrize(("organ", "label"), LESIONS)
def test_content_is_never_cut_no_lesion_leaves_the_box(organ, label):
    for seed in range(12):
        made = phantom.make_phantom(organ, label, seed, (160, 190))
        x, y, w, h = scan.content_box(made.image)
        assert made.mask[y : y + h, x : x + w].sum() == made.mask.sum(), seed


def test_a_picture_full_of_content_is_not_cut():
    noise = np.random.default_rng(0).integers(0, 256, (150, 170, 3), dtype=np.uint8)
    noise = cv2.GaussianBlur(noise, (0, 0), 4).astype(np.float32)
    image = np.clip((noise - noise.mean()) * 8 + 120, 0, 255).astype(np.uint8)
    *_, w, h = scan.content_box(image)
    assert w * h > 0.9 * 150 * 170


# Reading


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows, *before):
    """A PNG made by hand: `rows` with their filter bytes, `before` = chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join([header, *before, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")])


def encoded(suffix, array):
    done, data = cv2.imencode(suffix, array)
    assert done
    return data.tobytes()


def smooth_picture(channels=3, seed=0):
    """uint8 (33, 47, C) with low frequencies, 0 and 255 among them."""
    values = cv2.GaussianBlur(np.random.default_rng(seed).random((33, 47, channels)), (0, 0), 6).reshape(33, 47, -1)
    values = (values - values.min()) / (values.max() - values.min())
    return np.rint(values * 255).astype(np.uint8)


RGB = smooth_picture()
GREY = smooth_picture(1)[..., 0]
GREY3 = np.repeat(GREY[..., None], 3, 2)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff", ".PNG", ".Tif"])
@pytest.mark.parametrize("colour", [False, True])
def test_lossless_formats_are_read_exactly(tmp_path, suffix, colour):
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(encoded(suffix.lower(), RGB[..., ::-1] if colour else GREY))
    found = scan.read(path)
    assert found.image.dtype == np.uint8
    assert found.image.flags.c_contiguous
    assert found.notes == ()
    np.testing.assert_array_equal(found.image, RGB if colour else GREY3)
    assert scan.count_frames(path) == 1


def test_jpeg_is_read_within_its_loss_in_rgb_order():
    found = scan.decode(encoded(".jpg", RGB[..., ::-1]))
    assert np.abs(found.image.astype(int) - RGB).mean() < 4
    grey = scan.decode(encoded(".jpg", GREY)).image
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])


def test_jpeg_orientation_is_not_applied():
    plain = encoded(".jpg", RGB)
    tag = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)  # orientation 6: turned by 90 degrees
    body = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + tag + struct.pack(">I", 0)
    turned = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + plain[2:]
    np.testing.assert_array_equal(scan.decode(turned).image, scan.decode(plain).image)


def test_a_grey_picture_saved_as_rgb_gives_the_same_scan():
    grey, rgb, rgba = (
        scan.decode(encoded(".png", a)) for a in (GREY, GREY3, np.dstack([GREY3, np.full_like(GREY, 255)]))
    )
    np.testing.assert_array_equal(grey.image, rgb.image)
    np.testing.assert_array_equal(grey.image, rgba.image)
    assert scan.fingerprint(grey.image) == scan.fingerprint(rgb.image) == scan.fingerprint(rgba.image)
    assert grey.notes == rgb.notes == rgba.notes == ()


def test_palette_and_its_transparency_by_hand():
    palette = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 10, 20, 30]))
    rows = bytes([0, 0, 1, 2])
    np.testing.assert_array_equal(
        scan.decode(png(3, 1, 8, 3, rows, palette)).image, [[[255, 0, 0], [0, 255, 0], [10, 20, 30]]]
    )
    transparent = scan.decode(png(3, 1, 8, 3, rows, palette, chunk(b"tRNS", bytes([255, 128, 0]))))
    np.testing.assert_array_equal(transparent.image, [[[255, 0, 0], [0, 128, 0], [0, 0, 0]]])
    assert any("alpha" in note for note in transparent.notes)


def test_alpha_is_laid_over_black_by_hand():
    rgba = png(2, 1, 8, 6, bytes([0, 200, 100, 50, 255, 200, 100, 50, 51]))
    np.testing.assert_array_equal(scan.decode(rgba).image, [[[200, 100, 50], [40, 20, 10]]])
    grey_alpha = png(2, 1, 8, 4, bytes([0, 200, 255, 200, 0]))
    np.testing.assert_array_equal(scan.decode(grey_alpha).image, [[[200] * 3, [0] * 3]])


def test_one_bit_png():
    np.testing.assert_array_equal(scan.decode(png(4, 1, 1, 0, bytes([0, 0b10100000]))).image[0, :, 0], [255, 0, 255, 0])


def test_16_bits_are_scaled_from_minimum_to_maximum_and_say_so():
    values = struct.pack(">HHHH", 1000, 1510, 2020, 3550)
    found = scan.decode(png(4, 1, 16, 0, b"\0" + values))
    np.testing.assert_array_equal(found.image[0, :, 1], [0, 51, 102, 255])
    assert found.notes == ("uint16 scaled from [1000, 3550] to 8 bits",)


def test_16_bit_alpha_has_a_scale_of_its_own():
    values = struct.pack(">8H", 0, 0, 0, 65535, 100, 100, 100, 32768)
    found = scan.decode(png(2, 1, 16, 6, b"\0" + values))
    np.testing.assert_array_equal(found.image[0], [[0, 0, 0], [128, 128, 128]])


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_deep_tiffs_are_scaled_linearly(dtype):
    deep = (GREY.astype(dtype) * 7 - (0 if dtype == np.uint16 else 500)).astype(dtype)
    found = scan.decode(encoded(".tif", deep))
    np.testing.assert_array_equal(found.image, GREY3)
    assert found.notes[0].startswith(np.dtype(dtype).name)


def test_a_constant_deep_picture_is_black_not_an_error():
    assert scan.decode(encoded(".png", np.full((9, 9), 777, np.uint16))).image.max() == 0


def test_pages_of_a_tiff(tmp_path):
    pages = [GREY, RGB[..., ::-1], GREY[:20]]
    done, data = cv2.imencodemulti(".tif", pages)
    assert done
    path = tmp_path / "série.TIFF"
    path.write_bytes(data.tobytes())
    assert scan.count_frames(path) == 3
    for frame, image in enumerate((GREY3, RGB, GREY3[:20])):
        np.testing.assert_array_equal(scan.read(path, frame).image, image)
    for frame in (3, 99, -1):
        with pytest.raises(scan.ScanError, match="série"):
            scan.read(path, frame)


@pytest.mark.parametrize(
    "name", ["脳 スキャン.png", "a b'\"c.png", "ümlaut\u0308.png", "no_suffix", "wrong.txt", "-x.png"]
)
def test_any_name_will_do(tmp_path, name):
    (tmp_path / name).write_bytes(encoded(".png", GREY))
    np.testing.assert_array_equal(scan.read(tmp_path / name).image, GREY3)
    assert scan.count_frames(tmp_path / name) == 1


def test_fingerprint_knows_pixels_and_shape_not_file_formats():
    prints = {scan.fingerprint(scan.decode(encoded(suffix, RGB)).image) for suffix in (".png", ".bmp", ".tif")}
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


def test_encode_png_round_trip_and_its_error():
    np.testing.assert_array_equal(scan.decode(scan.encode_png(RGB)).image, RGB)
    for grey in (GREY, GREY[..., None]):
        np.testing.assert_array_equal(scan.decode(scan.encode_png(grey)).image, GREY3)
    with pytest.raises((ValueError, cv2.error)):
        scan.encode_png(np.zeros((4, 4, 7), np.uint8))


# Errors


def nan_tiff(value):
    values = GREY.astype(np.float32)
    values[3, 4] = value
    return encoded(".tif", values)


BROKEN = {
    "empty.png": (b"", "empty file"),
    "text.png": (b"I am no picture\n" * 40, "not a readable picture"),
    "text.tif": (b"I am no picture\n" * 40, "not a readable picture"),
    "header.png": (encoded(".png", RGB)[:20], "not a readable picture"),
    "half.png": (encoded(".png", RGB)[: len(encoded(".png", RGB)) // 2], "not a readable picture"),
    "half.bmp": (encoded(".bmp", RGB)[:900], "not a readable picture"),
    "half.tif": (encoded(".tif", RGB)[:900], "not a readable picture"),
    "nan.tif": (nan_tiff(np.nan), "NaN or infinite"),
    "infinite.tif": (nan_tiff(-np.inf), "NaN or infinite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_a_scan_error_that_names_it(tmp_path, name):
    data, reason = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(scan.ScanError, match=reason) as caught:
        scan.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert scan.count_frames(path) == 1  # never an error: reading says what is wrong


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(scan.ScanError, match=r"nowhere\.png: no such file"):
        scan.read(tmp_path / "nowhere.png")
    with pytest.raises(scan.ScanError, match="a folder"):
        scan.read(tmp_path)
    assert scan.count_frames(tmp_path / "nowhere.tif") == 1


def test_a_file_that_is_too_long_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "MAX_BYTES", 100)
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda _: pytest.fail("was read"))
    (tmp_path / "long.png").write_bytes(b"x" * 101)
    with pytest.raises(scan.ScanError, match=r"long\.png"):
        scan.read(tmp_path / "long.png")


def bombs():
    """Files of a few hundred bytes that claim 30000 x 30000 pixels."""
    bmp = bytearray(encoded(".bmp", GREY))
    bmp[18:26] = struct.pack("<ii", 30000, 30000)
    entries = [(256, 30000), (257, 30000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 30000), (279, 100)]
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in entries) + b"\0" * 4
    return {
        "bomb.png": png(30000, 30000, 8, 2, b"\0" * 1000),
        "bomb.bmp": bytes(bmp),
        "bomb.tif": b"II*\0" + struct.pack("<I", 8) + ifd + b"\0" * 200,
    }


def test_pixel_bombs_are_refused_in_bounded_memory(tmp_path):
    assert MAX_PIXELS < 30000**2
    for name, data in bombs().items():
        (tmp_path / name).write_bytes(data)
    script = """
        import resource, sys
        from mcis import scan
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sys.argv[1:]:
            try:
                scan.read(path)
            except scan.ScanError as error:
                print(error)
        scan.count_frames(sys.argv[-1])
        print("grown", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    paths = [str(tmp_path / name) for name in bombs()]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *paths], capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    *lines, grown = run.stdout.splitlines()
    assert len(lines) == len(paths), run.stdout
    for path, line in zip(paths, lines, strict=True):
        assert line.startswith(path), line
    assert "more pixels than" in lines[0]
    assert int(grown.split()[1]) < 100  # MiB; the picture would take 2,500


def test_pictures_below_a_folder(tmp_path):
    for name in ("b/two.PNG", "a/one.tif", "a/.hidden.png", ".cache/three.png", "notes.txt", "out/masks/four.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("findings.jsonl", "run.json"):
        (tmp_path / "out" / name).touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "z").symlink_to(tmp_path / "a")
    found = [path.relative_to(tmp_path).as_posix() for path in scan.pictures(tmp_path)]
    assert found == ["a/one.tif", "b/two.PNG", "gone.png"]
    assert scan.pictures(tmp_path / "none") == []
    (tmp_path / "out" / "scan.png").touch()  # a report among the scans that it is of
    (tmp_path / "out" / "more").mkdir()
    (tmp_path / "out" / "more" / "scan.png").touch()
    found = [path.relative_to(tmp_path).as_posix() for path in scan.pictures(tmp_path / "out")]
    assert found == ["out/more/scan.png", "out/scan.png"]


def test_a_folder_that_cannot_be_read_is_missed_aloud(tmp_path, monkeypatch):
    original = os.scandir

    def scandir(path):  # what any user but root is told
        if os.path.basename(path) == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    (tmp_path / "secret").mkdir()
    (tmp_path / "a.png").touch()
    monkeypatch.setattr(os, "scandir", scandir)
    assert scan.pictures(tmp_path) == [tmp_path / "a.png", tmp_path / "secret"]
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.basename(path) != "secret")
    with pytest.raises(scan.ScanError, match="secret: a folder that may not be read"):
        scan.read(tmp_path / "secret")


@pytest.mark.parametrize("name", ["pipe.png", "pipe.tif"])
def test_a_pipe_is_no_scan_and_nobody_waits_for_it(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert scan.pictures(tmp_path) == [tmp_path / name]
    assert scan.count_frames(tmp_path / name) == 1
    with pytest.raises(scan.ScanError, match="no plain file"):
        scan.read(tmp_path / name)


@pytest.mark.parametrize("order", ["little", "big"])
def test_every_page_of_a_tiff_is_counted_also_one_that_was_cut_off(tmp_path, order, monkeypatch):
    pages = [np.random.default_rng(seed).integers(0, 255, (60, 80), dtype=np.uint8) for seed in range(4)]
    assert cv2.imwritemulti(str(tmp_path / "whole.tif"), pages)
    whole = (tmp_path / "whole.tif").read_bytes()
    assert whole[:2] == b"II"
    assert scan.count_frames(tmp_path / "whole.tif") == 4
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) * 5 // 8])
    frames = scan.count_frames(tmp_path / "cut.tif")
    assert 2 < frames <= 4
    np.testing.assert_array_equal(scan.read(tmp_path / "cut.tif", 1).image[..., 0], pages[1])
    with pytest.raises(scan.ScanError, match="not a readable picture"):
        scan.read(tmp_path / "cut.tif", frames - 1)
    sign, head = ("<", b"II") if order == "little" else (">", b"MM")
    links = range(14, 14 + 6 * 5, 6)  # five empty directories, one after the other
    chain = head + struct.pack(f"{sign}HI", 42, 8) + b"".join(struct.pack(f"{sign}HI", 0, link) for link in links)
    (tmp_path / "chain.tiff").write_bytes(chain)
    assert scan.count_frames(tmp_path / "chain.tiff") == 5 + 1  # the last link leads out of the file
    chain = chain[:-4] + struct.pack(f"{sign}I", 0)
    (tmp_path / "chain.tiff").write_bytes(chain)
    assert scan.count_frames(tmp_path / "chain.tiff") == 5
    monkeypatch.setattr(scan, "MAX_FRAMES", 3)
    assert scan.count_frames(tmp_path / "chain.tiff") == 4
    with pytest.raises(scan.ScanError, match="more than 3 pages"):
        scan.read(tmp_path / "chain.tiff", 3)
    monkeypatch.undo()
    # a chain that bites its tail
    chain = head + struct.pack(f"{sign}HIHI", 42, 8, 0, 14) + struct.pack(f"{sign}HI", 0, 8)
    (tmp_path / "ring.tiff").write_bytes(chain)
    assert scan.count_frames(tmp_path / "ring.tiff") == 2
    big = head + struct.pack(f"{sign}HHHQQQ", 43, 8, 0, 16, 0, 0)
    (tmp_path / "big.tiff").write_bytes(big)
    assert scan.count_frames(tmp_path / "big.tiff") == 1
    for damage in (b"", b"II", b"MM\0*", b"XX\0*\0\0\0\x08", whole[:6]):
        (tmp_path / "damaged.tif").write_bytes(damage)
        assert scan.count_frames(tmp_path / "damaged.tif") == 1
