"""Files and folders of scans: what is read, what is refused, and how it is said."""

import io
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

from mcis import MAX_PIXELS
from mcis.imaging import headers, scan
from tests.lanes.fuzz.crafted_pictures import jpeg_scans, tiff_of


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
    with pytest.raises(scan.ScanError, match=f"has no page {frames - 1} that can be read; they count from 0"):
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


@pytest.mark.parametrize(("depth", "colour"), [(16, 2), (16, 6)])
def test_pixels_of_more_bytes_than_are_read_are_refused(depth, colour):
    with pytest.raises(scan.ScanError, match=r"more pixels than are read: \d+ MiB of them, at most 256"):
        scan.decode(png(8192, 8192, depth, colour, b"\0" * 1000))


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_is_measured_by_its_tags(big, monkeypatch):
    monkeypatch.setattr(scan, "MAX_DECODED", 1 << 20)
    for bits, channels, reads in ((32, 1, True), (64, 3, False), (8, 60_000, False)):
        data = tiff_of(4 if channels > 3 else 256, 256, bits, channels, 3 if bits > 8 else 1, 16, big)["a.tif"]
        (page,) = headers.tiff_pages(io.BytesIO(data))
        said = 256 * (4 if channels > 3 else 256) * channels * bits // 8
        assert headers.tiff_bytes(io.BytesIO(data), page) == said and (said <= scan.MAX_DECODED) == reads
        if not reads:
            with pytest.raises(scan.ScanError, match="more pixels than are read"):
                scan.decode(data)


def test_a_jpeg_of_ten_thousand_scans_is_refused_and_one_of_ten_is_not():
    assert scan.decode(jpeg_scans(64, 64, 9)["a.jpg"]).image.shape == (64, 64, 3)
    with pytest.raises(scan.ScanError, match="4000000 pixels in 10001 scans"):
        scan.decode(jpeg_scans(2000, 2000, 10_000)["a.jpg"])


@pytest.mark.parametrize("suffix", [".webp", ".hdr", ".ppm", ".jp2"])
def test_kinds_that_are_not_promised_never_reach_a_decoder(suffix, monkeypatch):
    data = cv2.imencode(suffix, np.zeros((64, 64, 3), np.float32 if suffix == ".hdr" else np.uint8))[1].tobytes()
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(scan.ScanError, match="PNG, JPEG, TIFF, BMP, DICOM and NIfTI are read"):
        scan.decode(data)


def test_large_pictures_are_worked_on_in_bands_that_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    for array in (rng.integers(0, 65536, (50, 40, 4), np.uint16), rng.random((50, 40), np.float32)):
        whole = scan.from_array(array)
        with monkeypatch.context() as small:
            small.setattr(scan, "bands", lambda array: (slice(row, row + 7) for row in range(0, len(array), 7)))
            np.testing.assert_array_equal(scan.from_array(array).image, whole.image)
    assert [one.stop - one.start for one in scan.bands(np.empty((3000, 1000)))] == [1048] * 3
