"""Headers of files as archives and other programs write them, read once and in time proportional to their size."""

import cProfile
import gzip
import sys
import time

import numpy as np
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from mcis.imaging import formats, image_files, scan
from mcis.imaging.dicom import elements, reader
from mcis.imaging.dicom import file as dicom_file
from tests.fixtures.dicom_files import CANARY, dataset, enhanced, items, write

RAMP = np.arange(200).reshape(10, 20).astype(np.uint16)
META = 132
"""Length of preamble and prefix."""


def grey(path, frame=0):
    return reader.read(path, frame).image[..., 0]


def many(count, private, path, undefined=True):
    """Write an enhanced MR of `count` frames of 8 x 8 with `private` private elements each, in nested sequences."""
    frames = (np.arange(count)[:, None, None] + np.arange(64).reshape(8, 8)).astype(np.uint16)
    found = enhanced(frames)
    item = Dataset()
    for index in range(private):
        block = item.private_block(0x2005 + 2 * (index // 200), "CANARY", create=True)
        block.add_new(index % 200, "LO", CANARY)
    for group in found.PerFrameFunctionalGroupsSequence:
        block = group.private_block(0x2005, "CANARY", create=True)
        block.add_new(0x0F, "SQ", [item])
        block[0x0F].is_undefined_length = undefined
        item.is_undefined_length_sequence_item = group.is_undefined_length_sequence_item = undefined
    found["PerFrameFunctionalGroupsSequence"].is_undefined_length = undefined
    found.save_as(path, enforce_file_format=True)
    return frames


@pytest.mark.parametrize("undefined", [True, False])
def test_frames_of_an_enhanced_file_have_their_own_positions_and_no_private_elements_are_kept(undefined, tmp_path):
    frames = many(5, 30, tmp_path / "a.dcm", undefined)
    assert reader.count_frames(tmp_path / "a.dcm") == 5
    found = [reader.read(tmp_path / "a.dcm", frame) for frame in range(5)]
    assert np.diff([one.slice_geometry.position for one in found]) == pytest.approx([2.5] * 4)
    for one, frame in zip(found, frames, strict=True):
        np.testing.assert_array_equal(one.image[..., 0], np.rint((frame - frame.min()) / 63 * 255))
    assert "CANARY" not in str(dicom_file.read(tmp_path / "a.dcm", reader.TAGS).header).upper()


def test_the_header_is_parsed_once_for_all_frames(tmp_path, monkeypatch):
    many(12, 3, tmp_path / "a.dcm")
    parsed = []
    parse = dicom_file.parse
    monkeypatch.setattr(dicom_file, "parse", lambda *arguments: parsed.append(1) or parse(*arguments))
    for frame in range(12):
        reader.read(tmp_path / "a.dcm", frame)
    assert len(parsed) == 1
    many(13, 3, tmp_path / "a.dcm")
    assert reader.count_frames(tmp_path / "a.dcm") == 13
    reader.read(tmp_path / "a.dcm", 12)  # the file has changed


def test_frames_with_many_private_elements_are_read_in_proportional_time(tmp_path):
    """By Python's calls, which no other program's load changes, and within seconds: copies are no calls."""
    calls = {}
    for count in (75, 300):
        many(count, 150, tmp_path / f"{count}.dcm")
        profile, start = cProfile.Profile(), time.process_time()
        position = profile.runcall(reader.read, tmp_path / f"{count}.dcm", count - 1).slice_geometry.position
        assert position is not None
        calls[count] = sum(entry.callcount for entry in profile.getstats())
    assert calls[75] > 75 * 150 and calls[300] < 5 * calls[75]
    assert time.process_time() - start < 10


def test_files_without_preamble_or_meta_information_are_recognised_and_read(tmp_path):
    write(tmp_path / "a.dcm", RAMP)
    whole = (tmp_path / "a.dcm").read_bytes()
    expected = grey(tmp_path / "a.dcm")
    meta_length = 12 + int.from_bytes(whole[META + 8 : META + 12], "little")
    variants = {"prefix": whole[128:], "meta": whole[META:], "data": whole[META + meta_length :]}
    for syntax, implicit, little in ((ImplicitVRLittleEndian, True, True), (ExplicitVRBigEndian, False, False)):
        found = dataset(RAMP, PixelData=RAMP.astype("<u2" if little else ">u2").tobytes())
        del found.file_meta
        del found[0x0011, 0x0010], found[0x0011, 0x1001]
        found.save_as(tmp_path / "b", implicit_vr=implicit, little_endian=little, enforce_file_format=False)
        variants[syntax.name] = (tmp_path / "b").read_bytes()
    for name, data in variants.items():
        (tmp_path / "c.img").write_bytes(data)
        assert formats.format_of(tmp_path / "c.img").name == "DICOM", name
        np.testing.assert_array_equal(grey(tmp_path / "c.img"), expected, err_msg=name)


@pytest.mark.parametrize("data", [b"\x89PNG" + bytes(600), b"text " * 200, bytes(600), b"\x08\0\x05\0" + b"\xff" * 600])
def test_other_content_is_not_taken_for_dicom(data, tmp_path):
    assert not dicom_file.looks_like_dicom(data)
    (tmp_path / "a.dcm").write_bytes(data)
    with pytest.raises(scan.ScanError, match="holds no DICOM"):
        reader.read(tmp_path / "a.dcm")


def test_a_picture_with_the_suffix_of_dicom_is_read_as_a_picture(tmp_path):
    picture = np.arange(300, dtype=np.uint8).reshape(10, 10, 3)
    (tmp_path / "a.dcm").write_bytes(image_files.encode_png(picture))
    np.testing.assert_array_equal(formats.read(tmp_path / "a.dcm").image, picture)


def test_packed_files_are_inflated_within_a_limit(tmp_path, monkeypatch):
    write(tmp_path / "a.dcm", RAMP)
    packed = gzip.compress((tmp_path / "a.dcm").read_bytes())
    for name in ("a.dcm.gz", "b.dcm", "c"):
        (tmp_path / name).write_bytes(packed)
        assert formats.format_of(tmp_path / name).name == "DICOM"
        np.testing.assert_array_equal(grey(tmp_path / name), grey(tmp_path / "a.dcm"))
    (tmp_path / "cut.dcm.gz").write_bytes(packed[:-60])
    with pytest.raises(scan.ScanError, match=r"cut\.dcm\.gz"):
        reader.read(tmp_path / "cut.dcm.gz")
    monkeypatch.setattr(dicom_file, "MAX_INFLATED", 1 << 16)
    (tmp_path / "bomb.dcm.gz").write_bytes(gzip.compress(bytes(128) + b"DICM" + bytes(1 << 20)))
    with pytest.raises(scan.ScanError, match="inflates to more than"):
        reader.read(tmp_path / "bomb.dcm.gz")
    assert reader.count_frames(tmp_path / "bomb.dcm.gz") == 1


SIDE = {
    "PixelSpacing": (
        "DS",
        [b"wide", b"0.5", b"0.5\\0.5\\0.5", b"-1\\2", b"0\\0", b"nan\\1"],
        "pixel spacing cannot be read",
    ),
    "ImagePositionPatient": ("DS", [b"x\\y\\z", b"1\\2", b"1\\2\\inf"], "its position cannot be read"),
    "ImageOrientationPatient": ("DS", [b"1\\0\\0", b"a\\b\\c\\d\\e\\f"], "its position cannot be read"),
    "WindowCenter": ("DS", [b"middle"], "its window cannot be read"),
    "WindowWidth": ("DS", [b"wide", b"0", b"-5", b"nan"], "its window"),
    "RescaleSlope": ("DS", [b"steep", b"inf"], "RescaleSlope is not a number"),
    "RescaleIntercept": ("DS", [b"low"], "RescaleIntercept is not a number"),
    "NumberOfFrames": ("IS", [b"many", b"0", b"-3"], None),
    "SeriesInstanceUID": ("UI", [b"not a uid", b""], None),
    "SOPInstanceUID": ("UI", [b"\xff\xfe"], None),
    "BurnedInAnnotation": ("CS", [b"\xff perhaps"], None),
    "PixelPaddingValue": ("US", [b"\1\2\3"], "its padding value cannot be read"),
    "VOILUTSequence": ("SQ", [b"no sequence"], None),
    "ModalityLUTSequence": ("SQ", [b"no sequence"], None),
    "SequenceOfUltrasoundRegions": ("SQ", [b"no sequence"], None),
    "SharedFunctionalGroupsSequence": ("SQ", [b"no sequence"], None),
    "PerFrameFunctionalGroupsSequence": ("SQ", [b"no sequence"], None),
}
"""Values that a side field cannot have, and the note that it leaves."""


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, row in SIDE.items() for value in row[1]])
def test_a_bad_side_field_costs_its_value_and_not_the_scan(name, value, tmp_path):
    good = {"PixelSpacing": ["0.5", "0.5"], "ImagePositionPatient": ["0"] * 3}
    good |= {"ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"]}
    found = dataset(RAMP, **({"WindowCenter": "100", "WindowWidth": "200"} if name.startswith("Window") else {}) | good)
    kind, _, note = SIDE[name]
    tag = Tag(name)
    found._dict[tag] = RawDataElement(tag, kind, len(value), value + b"\0" * (len(value) % 2), 0, False, True)
    found.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    read = reader.read(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read.image[..., 0], np.rint(RAMP / 199 * 255))
    assert note is None or any(note in one for one in read.notes), read.notes
    assert (read.spacing is None) == (name == "PixelSpacing")
    assert reader.count_frames(tmp_path / "a.dcm") == 1


def test_a_region_without_a_scale_costs_the_millimetres(tmp_path):
    region = items(PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3)
    write(tmp_path / "a.dcm", RAMP, Modality="US", SequenceOfUltrasoundRegions=region)
    found = reader.read(tmp_path / "a.dcm")
    assert found.spacing is None and any("no measurements in mm" in note for note in found.notes)


def test_elements_of_nested_sequences_are_limited_too(tmp_path, monkeypatch):
    many(4, 400, tmp_path / "a.dcm")
    monkeypatch.setattr(elements, "MAX_WALKED", 1000)
    with pytest.raises(scan.ScanError, match="more than 1000 elements"):
        reader.read(tmp_path / "a.dcm")


def test_a_pydicom_that_cannot_be_imported_is_an_error_that_names_it(tmp_path, monkeypatch):
    write(tmp_path / "a.dcm", RAMP)
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    dicom_file._read.cache_clear()
    with pytest.raises(
        scan.ScanError, match=r"pydicom, .* cannot be imported \(ModuleNotFoundError: .* another folder"
    ):
        reader.read(tmp_path / "a.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(scan.ScanError, match="DICOM needs the extra `dicom`"):
        reader.read(tmp_path / "a.dcm")
