"""Compressed frames: where they are, what is behind their end, headers that name another syntax, and messages."""

import io

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from mcis.imaging import scan
from mcis.imaging.dicom import compressed, reader
from mcis.imaging.dicom import file as dicom_file
from tests.fixtures.dicom_files import dataset

FRAMES = (np.arange(5)[:, None, None] * 20 + np.arange(200).reshape(10, 20)).astype(np.uint16)
WINDOW = {"WindowCenter": "140", "WindowWidth": "281"}
SMOOTH = np.add.outer(np.arange(24), np.arange(32)).astype(np.uint16) * 60 >> 4
HTJ2K = bytes.fromhex(
    "ff4fff510029400000000020000000180000000000000000000000200000001800000000000000000001070101ff500008000200000002"
    "ff52000c00020001000504044001ff5c00132048505050505050505050505050484848ff64001700014f70656e4a50482056657220302e"
    "33322e302eff90000a0000000000f10001ff93c025f900877400c012c012808801077400fe00877400c01340118082f000827400063300"
    "c0151005480080a00230027600200882c00001beb600c016ac016c4015e000000000000000000000f04e035380d62c54adba0000000000"
    "000000000000000072020f2031c01a2a54adbc000000000000000006801a2a54adb900c02d2805af00bb4000908888fc7ff14f4f4f4f4e"
    "92d555552d00000d86611886e17ff092db492db492db492dcf33320001000000000000000000000000000cf8e38e38e2cbaebaebaeba9b"
    "aebaebaeba9baebaebaeba9baebaebaeba9bf7efdfbf7efc3702ffd9"
)
"""SMOOTH as a codestream of High-Throughput JPEG 2000, by OpenJPH."""


def shown(path, frame=0):
    return reader.read(path, frame).image[..., 0].astype(int)


def save(path, found, data, syntax, table=None):
    """Write a Dataset with items of compressed frames under a transfer syntax, which may be a wrong one."""
    found.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    found.PixelData = data
    found["PixelData"].VR = "OB"
    found["PixelData"].is_undefined_length = True
    if table is not None:
        found.ExtendedOffsetTable, found.ExtendedOffsetTableLengths = table
    found.save_as(path, enforce_file_format=True)
    stated, right = (uid.encode() + b"\0" * (len(uid) % 2) for uid in (str(syntax), str(JPEGBaseline8Bit)))
    whole = path.read_bytes()
    at = whole.index(right)
    length = len(stated).to_bytes(2, "little")
    path.write_bytes(whole[: at - 2] + length + stated + whole[at + len(right) :])


def frames_of(syntax):
    if syntax == JPEG2000Lossless:
        streams = [io.BytesIO() for _ in FRAMES]
        for stream, frame in zip(streams, FRAMES, strict=True):
            Image.fromarray(frame).save(stream, "JPEG2000", no_jp2=True, irreversible=False)
        return [stream.getvalue() for stream in streams]
    packed = dataset(FRAMES, NumberOfFrames=5, **WINDOW)
    packed.compress(syntax)
    return list(generate_frames(packed.PixelData, number_of_frames=5))


EXPECTED = np.rint(np.clip((FRAMES - (139.5 - 140)) / 280, 0, 1) * 255).astype(int)


@pytest.mark.parametrize("table", ["basic", "extended", "none", "wrong"])
@pytest.mark.parametrize(  # RLE has one fragment a frame
    ("syntax", "fragments"),
    [(RLELossless, 1), *((one, count) for one in (JPEGLSLossless, JPEG2000Lossless) for count in (1, 3))],
)
def test_frames_are_found_with_and_without_tables_in_one_or_several_fragments(syntax, table, fragments, tmp_path):
    streams, extended = frames_of(syntax), None
    if table == "extended":
        data, *extended = encapsulate_extended(streams)
    else:
        data = encapsulate(streams, fragments_per_frame=fragments, has_bot=table != "none")
        data = data[:8] + b"\7\7\0\0" * 5 + data[28:] if table == "wrong" else data
    save(tmp_path / "a.dcm", dataset(FRAMES, NumberOfFrames=5, **WINDOW), data, syntax, extended)
    for frame in (0, 4, 2):
        np.testing.assert_array_equal(shown(tmp_path / "a.dcm", frame), EXPECTED[frame])
    with pytest.raises(scan.ScanError, match="has no frame 5"):
        reader.read(tmp_path / "a.dcm", 5)


def test_the_frames_of_a_file_are_found_once(tmp_path, monkeypatch):
    data = encapsulate(frames_of(RLELossless), has_bot=False)
    save(tmp_path / "a.dcm", dataset(FRAMES, NumberOfFrames=5, **WINDOW), data, RLELossless)
    file = dicom_file.read(tmp_path / "a.dcm", reader.TAGS)
    assert compressed.frame_items(file) is compressed.frame_items(file)
    assert len(file.items) == 6


@pytest.mark.parametrize("stated", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit, "1.2.3.4.5"])
@pytest.mark.parametrize("actual", [JPEGLSLossless, JPEG2000Lossless])
def test_a_frame_is_decoded_by_what_it_is_whatever_the_header_says(stated, actual, tmp_path):
    found = dataset(FRAMES, NumberOfFrames=5, **WINDOW)
    save(tmp_path / "a.dcm", found, encapsulate(frames_of(actual)), stated)
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm", 3), EXPECTED[3])
    assert any("other than its header says" in note for note in reader.read(tmp_path / "a.dcm", 3).notes)


def test_compressed_pixels_in_an_implicit_data_set_are_read(tmp_path):
    found = dataset(FRAMES, NumberOfFrames=5, **WINDOW)
    found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    found.PixelData = b""
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    for streams in (frames_of(JPEGLSLossless), frames_of(RLELossless)):
        head = (tmp_path / "a.dcm").read_bytes()
        head = head[: head.index(b"\xe0\x7f\x10\0")]
        end = b"\xfe\xff\xdd\xe0\0\0\0\0"
        (tmp_path / "b.dcm").write_bytes(head + b"\xe0\x7f\x10\0\xff\xff\xff\xff" + encapsulate(streams) + end)
        np.testing.assert_array_equal(shown(tmp_path / "b.dcm", 2), EXPECTED[2])


def test_native_pixels_under_a_compressed_syntax_are_read(tmp_path):
    found = dataset(FRAMES, NumberOfFrames=5, **WINDOW)
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    whole = (tmp_path / "a.dcm").read_bytes()
    native, packed = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.50"
    at = whole.index(native)
    (tmp_path / "b.dcm").write_bytes(
        whole[: at - 2] + len(packed).to_bytes(2, "little") + packed + whole[at + len(native) :]
    )
    np.testing.assert_array_equal(shown(tmp_path / "b.dcm", 4), EXPECTED[4])


@pytest.mark.parametrize(
    "name", ["MR_small_jpeg_ls_lossless", "SC_rgb_jpeg_gdcm", "SC_rgb_jpeg_lossy_gdcm", "MR_small_jp2klossless"]
)
@pytest.mark.parametrize(
    "tail", [b"\0" * 7, b"\xff" * 6, b"\xff\xd9" * 2, b"\x80\x81padding", b"\xff\xd9\0\xff\xd8\xff"]
)
def test_bytes_behind_the_end_of_a_codestream_are_ignored(name, tail, tmp_path):
    found = dcmread(get_testdata_file(f"{name}.dcm"))
    whole = reader.read(get_testdata_file(f"{name}.dcm")).image
    stream = next(generate_frames(found.PixelData, number_of_frames=1))
    found.PixelData = encapsulate([stream + tail])
    found.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(reader.read(tmp_path / "a.dcm").image, whole)


def test_a_lossless_jpeg_with_a_damaged_marker_is_an_error(tmp_path):
    """GDCM would end the process."""
    found = dcmread(get_testdata_file("SC_rgb_jpeg_gdcm.dcm"))
    stream = next(generate_frames(found.PixelData, number_of_frames=1))
    assert stream[:3] == b"\xff\xd8\xff"
    found.PixelData = encapsulate([stream[:2] + b"\x40\0" + stream[4:]])
    found.save_as(tmp_path / "a.dcm")
    with pytest.raises(scan.ScanError, match="a frame without a size; damaged, or no JPEG Lossless"):
        reader.read(tmp_path / "a.dcm")


def test_jpegs_of_12_bits_and_high_throughput_jpeg_2000_are_read(tmp_path):
    found = reader.read(get_testdata_file("JPGExtended.dcm"))
    assert found.image.std() > 10
    whole = dcmread(get_testdata_file("JPGExtended.dcm"))
    stream = next(generate_frames(whole.PixelData, number_of_frames=1))
    whole.PixelData = encapsulate([stream[:150] + bytes(60) + stream[210:]])  # GDCM may abort
    whole.save_as(tmp_path / "bad.dcm")
    with pytest.raises(scan.ScanError, match="a damaged JPEG frame of 12 bits"):
        reader.read(tmp_path / "bad.dcm")
    smooth = dataset(SMOOTH.astype(np.uint8), WindowCenter="128", WindowWidth="256")
    save(tmp_path / "a.dcm", smooth, encapsulate([HTJ2K]), "1.2.840.10008.1.2.4.201")
    np.testing.assert_array_equal(shown(tmp_path / "a.dcm"), SMOOTH)


@pytest.mark.parametrize(
    ("syntax", "parts"),
    {
        "MPEG-2": ("1.2.840.10008.1.2.4.100", ("MPEG2 Main Profile", "video", "dcmdump +W", "ffmpeg")),
        "fragmentable": ("1.2.840.10008.1.2.4.102.1", ("Fragmentable MPEG-4", "video", "ffmpeg")),
        "HEVC": ("1.2.840.10008.1.2.4.107", ("HEVC/H.265", "video", "ffmpeg")),
        "JPEG XL": ("1.2.840.10008.1.2.4.112", ("JPEG XL", "djxl", "Explicit VR Little Endian")),
        "JPIP": ("1.2.840.10008.1.2.4.94", ("JPIP Referenced", "on a server", "Explicit VR Little Endian")),
        "SMPTE": ("1.2.840.10008.1.2.7.1", ("SMPTE ST 2110-20", "video")),
        "private": ("1.2.840.113619.5.2", ("private or unknown transfer syntax 1.2.840.113619.5.2", "device's maker")),
        "invalid": ("CANARY", ("an invalid transfer syntax", "Explicit VR Little Endian")),
    }.values(),
)
def test_a_syntax_without_a_decoder_is_named_with_what_to_do(syntax, parts, tmp_path):
    save(tmp_path / "a.dcm", dataset(FRAMES, NumberOfFrames=5), encapsulate([b"\1" * 64] * 5), syntax)
    with pytest.raises(scan.ScanError) as raised:
        reader.read(tmp_path / "a.dcm")
    message = str(raised.value)
    assert all(part in message for part in parts) and "damaged" not in message and "CANARY" not in message
    assert reader.count_frames(tmp_path / "a.dcm") == 1  # one error, not one a frame


def test_the_end_of_a_codestream_is_found_behind_its_segments():
    inside = b"\xff\xd8\xff\xe0\0\6\xff\xd9\xff\xd9\xff\xda\0\2\1\xff\0\2\xff\xd3\3\xff\xd9"
    assert compressed.jpeg_end(inside + b"\xff\xd9\0") == len(inside)
    assert compressed.jpeg_end(inside[:-2]) is None
    assert compressed.jpeg_end(b"\xff\xd8") is None


def test_a_file_with_too_few_frames_says_how_many_there_are(tmp_path):
    save(tmp_path / "a.dcm", dataset(FRAMES, NumberOfFrames=5), encapsulate(frames_of(RLELossless)[:1]), RLELossless)
    with pytest.raises(scan.ScanError, match="it has the compressed pixels of 1 frame only; copy or export it again"):
        reader.read(tmp_path / "a.dcm", 3)
