"""Headers that contradict the pixels: bits beyond those stored, and pixel data for more frames than stated."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

from mcis.imaging import modality
from mcis.imaging.dicom import reader
from tests.fixtures.dicom_files import dataset, write

VALUES = (np.arange(200).reshape(10, 20) * 10 + 2).astype(np.uint16)
"""Of 11 bits."""
SHOWN = np.rint((VALUES - 2.0) / 1990 * 255)
SCRAMBLED = "Bits Stored 8, but the pixels use 11 bits: the picture is scrambled"


def scrambled(path):
    return [one.header for one in reader.read(path).stated if "scrambled" in one.header]


def overlay(found, group, position, separate=False):
    """State an overlay in a bit of the pixels, or in an element of its own."""
    block = Dataset()
    block.add_new((group, 0x0100), "US", 1 if separate else 16)
    block.add_new((group, 0x0102), "US", position)
    found.update(block)


@pytest.mark.parametrize("packed", [False, True])
def test_bits_beyond_those_stored_contradict_the_header(packed, tmp_path):
    found = dataset(VALUES)
    if packed:
        found.compress(RLELossless)
    found.BitsStored, found.HighBit = 8, 7
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert scrambled(tmp_path / "a.dcm") == [SCRAMBLED]
    assert modality.contradiction(reader.read(tmp_path / "a.dcm").stated, "brain") == SCRAMBLED
    assert modality.contradiction(reader.read(tmp_path / "a.dcm").stated, None) == SCRAMBLED


@pytest.mark.parametrize(
    ("stored", "high", "signed", "bits"),
    [(11, 10, 0, 0), (12, 11, 0, 0), (10, 9, 0, 11), (16, 15, 0, 0), (12, 11, 1, 0), (10, 9, 1, 11), (8, 15, 0, 11)],
)
def test_a_header_that_states_enough_bits_is_believed(stored, high, signed, bits, tmp_path):
    write(tmp_path / "a.dcm", VALUES, BitsStored=stored, HighBit=high, PixelRepresentation=signed)
    expected = [f"Bits Stored {stored}, but the pixels use {bits} bits: the picture is scrambled"] if bits else []
    assert scrambled(tmp_path / "a.dcm") == expected
    if not bits:
        np.testing.assert_array_equal(reader.read(tmp_path / "a.dcm").image[..., 0], SHOWN)


def test_bits_of_an_overlay_and_of_a_sign_are_no_contradiction(tmp_path):
    drawn = VALUES | np.where(VALUES > 900, 1 << 12, 0).astype(np.uint16)
    for number, positions in enumerate(((), (12,), (13,), (14, 12))):
        found = dataset(drawn, BitsStored=11, HighBit=10)
        for index, position in enumerate(positions):
            overlay(found, 0x6000 + 2 * index, position)
        found.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
        assert bool(scrambled(tmp_path / f"{number}.dcm")) == (12 not in positions)
    np.testing.assert_array_equal(reader.read(tmp_path / "1.dcm").image[..., 0], SHOWN)
    signed = VALUES.astype(np.int16) - 1000
    write(tmp_path / "b.dcm", signed, BitsStored=11, HighBit=10)
    write(tmp_path / "c.dcm", signed & 0x7FF, BitsStored=11, HighBit=10)  # unused bits are 0
    for name in "bc":
        read = reader.read(tmp_path / f"{name}.dcm")
        np.testing.assert_array_equal(read.image[..., 0], SHOWN)
        assert not scrambled(tmp_path / f"{name}.dcm") and not any("Bits Stored" in note for note in read.notes)
    write(tmp_path / "d.dcm", signed, BitsStored=11, HighBit=10, PixelRepresentation=0)
    assert not scrambled(tmp_path / "d.dcm")
    assert any("look like the sign of negative values" in note for note in reader.read(tmp_path / "d.dcm").notes)


def test_an_overlay_below_moved_values_does_not_hide_that_they_are_moved(tmp_path):
    found = dataset((VALUES << 4) | 1, BitsStored=12, HighBit=15)
    overlay(found, 0x6000, 0)
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(reader.read(tmp_path / "a.dcm").image[..., 0], SHOWN)


def left_out(path):
    return [note for note in reader.read(path).notes if "than its header states" in note]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, None),
        ({"NumberOfFrames": None}, "holds pixel data for 2 more frames than its header states; only the stated ones"),
        ({"NumberOfFrames": 2}, "holds pixel data for 1 more frame than its header states"),
        ({"Rows": 5}, "holds pixel data for 3 more frames"),
        ({"Rows": 8}, "its pixel data have 240 bytes more than its header states, which are not read"),
        ({"NumberOfFrames": 1, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "for 5 more frames"),
    ],
)
def test_native_pixels_of_more_frames_than_stated_are_noted(changes, note, tmp_path):
    write(tmp_path / "a.dcm", np.stack([VALUES] * 3), **{"NumberOfFrames": 3, **changes})
    notes = left_out(tmp_path / "a.dcm")
    assert (notes == []) if note is None else (len(notes) == 1 and note in notes[0])


def test_bytes_that_fill_up_a_file_are_not_noted(tmp_path):
    write(tmp_path / "a.dcm", VALUES, PixelData=VALUES.tobytes() + bytes(16))
    assert left_out(tmp_path / "a.dcm") == []


def frames_of(syntax):
    greys = [np.full((16, 16), value, np.uint8) for value in (10, 100, 200)]
    if syntax == JPEGBaseline8Bit:
        return [cv2.imencode(".jpg", grey)[1].tobytes() for grey in greys]
    if syntax == RLELossless:
        return [bytes([1, 0, 0, 0, 64]) + bytes(59) + bytes([129, value, 129, value, 0, 0]) for value in (10, 100, 200)]
    streams = [io.BytesIO() for _ in greys]
    for stream, grey in zip(streams, greys, strict=True):
        Image.fromarray(grey).save(stream, "JPEG2000", no_jp2=True, irreversible=False)
    return [stream.getvalue() for stream in streams]


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless, RLELossless])
@pytest.mark.parametrize(("stated", "more"), [(3, None), (2, "1 more frame"), (None, "2 more frames")])
@pytest.mark.parametrize("table", [True, False])
def test_compressed_frames_that_the_header_leaves_out_are_noted(syntax, stated, more, table, tmp_path):
    found = dataset(np.zeros((16, 16), np.uint8), NumberOfFrames=stated)
    found.file_meta.TransferSyntaxUID = syntax
    found.PixelData = encapsulate(frames_of(syntax), has_bot=table)
    found["PixelData"].VR = "OB"
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    notes = left_out(tmp_path / "a.dcm")
    assert (notes == []) if more is None else (len(notes) == 1 and f"for {more} than" in notes[0])


def test_fragments_of_one_frame_are_no_frames(tmp_path):
    found = dataset(np.zeros((16, 16), np.uint8))
    found.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    found.PixelData = encapsulate(frames_of(JPEGBaseline8Bit)[:1], fragments_per_frame=4)
    found["PixelData"].VR = "OB"
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert left_out(tmp_path / "a.dcm") == []
    assert abs(reader.read(tmp_path / "a.dcm").image.astype(int) - 0).max() == 0
