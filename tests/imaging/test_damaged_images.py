"""PNG, JPEG, TIFF and BMP files that are damaged, too large or of an unsupported kind."""

import os
import pathlib
import struct
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest

from mcis import MAX_PIXELS
from mcis.imaging import image_files, scan
from mcis.imaging.scan import ScanError
from mcis.imaging.tiff import header as tiff_header
from mcis.imaging.tiff import layout
from tests.fixtures.pictures import GREY, RGB, encoded, png
from tests.lanes.fuzz.crafted_pictures import jpeg_scans, tiff_of


@pytest.mark.parametrize(("marker", "bits", "words"), [(0xF7, 8, "JPEG-LS"), (0xC1, 12, "a JPEG of 12 bits")])
def test_another_kind_of_jpeg_is_named(marker, bits, words):
    frame = struct.pack(">BBHBHHB", 255, marker, 11, bits, 33, 47, 1) + bytes([1, 0x11, 0])
    with pytest.raises(ScanError, match=f"{words}.*, which is not supported; save it again as PNG"):
        image_files.decode(b"\xff\xd8" + frame + bytes(99) + b"\xff\xd9")


BROKEN = {
    "empty.png": (b"", "empty file"),
    "text.png": (b"I am not an image\n" * 40, "not a readable image"),
    "text.tif": (b"I am not an image\n" * 40, "not a readable image"),
    "header.png": (encoded(".png", RGB)[:20], "the PNG file is damaged or truncated"),
    "half.png": (encoded(".png", RGB)[: len(encoded(".png", RGB)) // 2], "the PNG file is damaged or truncated"),
    "half.jpg": (encoded(".jpg", RGB)[: len(encoded(".jpg", RGB)) // 2], "the JPEG file is damaged or truncated"),
    "header.jpg": (encoded(".jpg", RGB)[:20], "the JPEG file is damaged or truncated"),
    "half.bmp": (encoded(".bmp", RGB)[:900], "the BMP file is damaged or truncated"),
    "half.tif": (encoded(".tif", RGB)[:900], "its TIFF page is damaged or truncated"),
    "nan.tif": (encoded(".tif", np.full((9, 9), np.nan, np.float32)), "every pixel is NaN or infinite; nothing can be"),
    "wide.tif": (
        encoded(".tif", np.array([[-1e308, 1e308]] * 9)),
        "range from -1e.308 to 1e.308, too far to be scaled",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_is_a_scan_error_that_names_it(tmp_path, name):
    data, reason = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ScanError, match=reason) as caught:
        image_files.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert image_files.count_frames(path) == 1


@pytest.mark.parametrize("length", [1 << 22, 0xFF00001E])
def test_a_png_chunk_longer_than_its_file_is_not_given_to_the_decoder(length, monkeypatch):
    """OpenCV would reserve and clear what the chunk states: 4 GiB for a file of 151 bytes."""
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("the decoder was called"))
    data = encoded(".png", RGB)
    at = data.index(b"IDAT") - 4
    with pytest.raises(ScanError, match="the PNG file is damaged or truncated"):
        image_files.decode(data[:at] + struct.pack(">I", length) + data[at + 4 :])


def test_what_follows_the_end_of_a_png_does_not_matter():
    data = encoded(".png", RGB)
    np.testing.assert_array_equal(image_files.decode(data + b"\xff" * 99).image, image_files.decode(data).image)


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    with pytest.raises(ScanError, match=r"nowhere\.png: no such file"):
        image_files.read(tmp_path / "nowhere.png")
    with pytest.raises(ScanError, match="a folder"):
        image_files.read(tmp_path)
    assert image_files.count_frames(tmp_path / "nowhere.tif") == 1


def test_a_file_with_too_many_bytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_BYTES", 100)
    monkeypatch.setattr(pathlib.Path, "read_bytes", lambda _: pytest.fail("the file was read"))
    (tmp_path / "long.png").write_bytes(b"x" * 101)
    with pytest.raises(ScanError, match=r"long\.png"):
        image_files.read(tmp_path / "long.png")


def bombs():
    """Files of a few hundred bytes whose headers say 30000 x 30000 pixels."""
    bmp = bytearray(encoded(".bmp", GREY))
    bmp[18:26] = struct.pack("<ii", 30000, 30000)
    entries = [(256, 30000), (257, 30000), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 30000), (279, 100)]
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in entries) + b"\0" * 4
    return {
        "bomb.png": png(30000, 30000, 8, 2, b"\0" * 1000),
        "bomb.bmp": bytes(bmp),
        "bomb.tif": b"II*\0" + struct.pack("<I", 8) + ifd + b"\0" * 200,
    }


def test_headers_that_claim_many_pixels_are_rejected_in_bounded_memory(tmp_path):
    assert MAX_PIXELS < 30000**2
    for name, data in bombs().items():
        (tmp_path / name).write_bytes(data)
    script = """
        import resource, sys
        from mcis.imaging import image_files
        from mcis.imaging.scan import ScanError
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in sys.argv[1:]:
            try:
                image_files.read(path)
            except ScanError as error:
                print(error)
        image_files.count_frames(sys.argv[-1])
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
    assert "too many pixels" in lines[0]
    assert int(grown.split()[1]) < 100  # MiB; the image would need 2,500


@pytest.mark.parametrize("name", ["pipe.png", "pipe.tif"])
def test_reading_a_pipe_is_an_error_and_does_not_block(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert image_files.files_in(tmp_path) == [tmp_path / name]
    assert image_files.count_frames(tmp_path / name) == 1
    with pytest.raises(ScanError, match="not a regular file"):
        image_files.read(tmp_path / name)


@pytest.mark.parametrize("order", ["little", "big"])
def test_every_page_of_a_tiff_is_counted_even_a_truncated_one(tmp_path, order, monkeypatch):
    pages = [np.random.default_rng(seed).integers(0, 255, (60, 80), dtype=np.uint8) for seed in range(4)]
    assert cv2.imwritemulti(str(tmp_path / "whole.tif"), pages)
    whole = (tmp_path / "whole.tif").read_bytes()
    assert whole[:2] == b"II"
    assert image_files.count_frames(tmp_path / "whole.tif") == 4
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) * 5 // 8])
    frames = image_files.count_frames(tmp_path / "cut.tif")
    assert 2 < frames <= 4
    np.testing.assert_array_equal(image_files.read(tmp_path / "cut.tif", 1).image[..., 0], pages[1])
    with pytest.raises(ScanError, match=f"has no readable page {frames - 1}"):
        image_files.read(tmp_path / "cut.tif", frames - 1)
    sign, head = ("<", b"II") if order == "little" else (">", b"MM")
    links = range(14, 14 + 6 * 5, 6)  # five empty directories
    chain = head + struct.pack(f"{sign}HI", 42, 8) + b"".join(struct.pack(f"{sign}HI", 0, link) for link in links)
    (tmp_path / "chain.tiff").write_bytes(chain)
    assert image_files.count_frames(tmp_path / "chain.tiff") == 5 + 1  # the last link points beyond the file
    chain = chain[:-4] + struct.pack(f"{sign}I", 0)
    (tmp_path / "chain.tiff").write_bytes(chain)
    assert image_files.count_frames(tmp_path / "chain.tiff") == 5
    for module in (scan, tiff_header):
        monkeypatch.setattr(module, "MAX_FRAMES", 3)
    image_files._pages_of.cache_clear()
    assert image_files.count_frames(tmp_path / "chain.tiff") == 4
    with pytest.raises(ScanError, match="only the first 3 frames"):
        image_files.read(tmp_path / "chain.tiff", 3)
    monkeypatch.undo()
    image_files._pages_of.cache_clear()
    # directories that link to each other in a circle
    chain = head + struct.pack(f"{sign}HIHI", 42, 8, 0, 14) + struct.pack(f"{sign}HI", 0, 8)
    (tmp_path / "ring.tiff").write_bytes(chain)
    assert image_files.count_frames(tmp_path / "ring.tiff") == 2
    big = head + struct.pack(f"{sign}HHHQQQ", 43, 8, 0, 16, 0, 0)
    (tmp_path / "big.tiff").write_bytes(big)
    assert image_files.count_frames(tmp_path / "big.tiff") == 1
    for damage in (b"", b"II", b"MM\0*", b"XX\0*\0\0\0\x08", whole[:6]):
        (tmp_path / "damaged.tif").write_bytes(damage)
        assert image_files.count_frames(tmp_path / "damaged.tif") == 1


@pytest.mark.parametrize(("depth", "colour"), [(16, 2), (16, 6)])
def test_an_image_of_too_many_bytes_per_pixel_is_rejected(depth, colour):
    with pytest.raises(ScanError, match=r"too many pixels \(\d+ MiB, at most 256"):
        image_files.decode(png(8192, 8192, depth, colour, b"\0" * 1000))


@pytest.mark.parametrize("big", [False, True])
def test_the_size_of_a_tiff_is_known_from_its_tags(big, monkeypatch):
    monkeypatch.setattr(layout, "MAX_DECODED", 1 << 20)
    for bits, channels, message in ((32, 1, ""), (64, 3, "too many pixels"), (8, 60_000, "too many pixels")):
        data = tiff_of(4 if channels > 3 else 256, 256, bits, channels, 3 if bits > 8 else 1, 16, big)["a.tif"]
        if message:
            with pytest.raises(ScanError, match=message):
                image_files.decode(data)
        else:
            assert image_files.decode(data).image.shape == (256, 256, 3)


def test_a_jpeg_of_ten_thousand_progressive_scans_is_rejected_and_one_of_ten_is_read():
    assert image_files.decode(jpeg_scans(64, 64, 9)["a.jpg"]).image.shape == (64, 64, 3)
    with pytest.raises(ScanError, match="4000000 pixels in 10001 progressive scans"):
        image_files.decode(jpeg_scans(2000, 2000, 10_000)["a.jpg"])


@pytest.mark.parametrize("suffix", [".webp", ".hdr", ".ppm", ".jp2"])
def test_unsupported_formats_never_reach_a_decoder(suffix, monkeypatch):
    data = cv2.imencode(suffix, np.zeros((64, 64, 3), np.float32 if suffix == ".hdr" else np.uint8))[1].tobytes()
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(ScanError, match=r"which is not read; save it as PNG|DICOM and NIfTI are supported"):
        image_files.decode(data)
