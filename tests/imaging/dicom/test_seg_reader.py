"""Masks of scans in DICOM SEG, by its references."""

import gzip
import io

import numpy as np
import pydicom
import pytest

from mcis.imaging.dicom import seg, seg_reader
from mcis.imaging.scan import ScanError
from tests.fixtures import dicom_files


def masks_of(count, shape=(11, 13)):
    rng = np.random.default_rng(5)
    return [(rng.random(shape) < 0.2).astype(np.uint8) * (index != 1) for index in range(count)]


def test_a_segmentation_of_a_series_gives_each_file_its_mask(tmp_path):
    images = list(np.random.default_rng(0).integers(0, 900, (4, 11, 13), np.uint16))
    paths, masks = dicom_files.write_series(tmp_path / "series", images, order=[2, 0, 3, 1]), masks_of(4)
    (tmp_path / "seg.dcm").write_bytes(seg.encode(paths, masks, organ="brain"))
    assert seg_reader.is_segmentation(tmp_path / "seg.dcm") and not seg_reader.is_segmentation(paths[0])
    found = seg_reader.read_segmentation(tmp_path / "seg.dcm")
    for path, mask in zip(paths, masks, strict=True):
        header = seg_reader.read_header(path)
        numbers = found.of(header.SOPInstanceUID, 0)
        assert np.array_equal(seg_reader.segmentation_mask(found.pixels, numbers, (11, 13))[..., 0], mask)
        place = seg_reader.position_of(header, 0)
        assert not seg_reader.is_misplaced(found, numbers, place)
        assert seg_reader.is_misplaced(found, numbers, ([value + 3 for value in place[0]], place[1])) == bool(numbers)
    assert found.of("1.2.3", 0) == ()


def test_a_segmentation_of_a_multi_frame_file_gives_each_frame_its_mask(tmp_path):
    images, masks = np.random.default_rng(0).integers(0, 900, (3, 11, 13), np.uint16), masks_of(3)
    for name, made in (("mr", dicom_files.enhanced(images)), ("us", dicom_files.ultrasound(images.astype(np.uint8)))):
        made.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
        path = tmp_path / f"seg_{name}.dcm"
        path.write_bytes(seg.encode([tmp_path / f"{name}.dcm"], masks, organ="breast"))
        found = seg_reader.read_segmentation(path)
        for frame, mask in enumerate(masks):
            numbers = found.of(made.SOPInstanceUID, frame)
            assert np.array_equal(seg_reader.segmentation_mask(found.pixels, numbers, (11, 13))[..., 0], mask)


def test_a_segmentation_of_another_size_is_an_error_that_names_no_identifier(tmp_path):
    paths = dicom_files.write_series(tmp_path / "series", list(np.zeros((1, 11, 13), np.uint16)))
    (tmp_path / "seg.dcm").write_bytes(seg.encode(paths, masks_of(1), organ="brain"))
    with pytest.raises(ScanError, match=r"mask seg\.dcm is 13 x 11 pixels, its scan 12 x 11; they must be equal"):
        seg_reader.segmentation_mask(seg_reader.read_segmentation(tmp_path / "seg.dcm").pixels, [0], (11, 12))


def test_fractional_segmentations_are_lesion_from_half_on(tmp_path):
    import pydicom

    paths = dicom_files.write_series(tmp_path / "series", list(np.zeros((1, 4, 6), np.uint16)))
    (tmp_path / "seg.dcm").write_bytes(seg.encode(paths, [np.ones((4, 6), np.uint8)], organ="brain"))
    made = pydicom.dcmread(tmp_path / "seg.dcm")
    values = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    made.SegmentationType, made.MaximumFractionalValue, made.PixelData = "FRACTIONAL", 255, values.tobytes()
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit = 7
    made.save_as(tmp_path / "seg.dcm")
    pixels = seg_reader.read_segmentation(tmp_path / "seg.dcm").pixels
    found = seg_reader.segmentation_mask(pixels, [0], (4, 6))
    assert np.array_equal(found[..., 0], values >= 128)


def test_a_segmentation_without_references_is_an_error(tmp_path):
    import pydicom

    paths = dicom_files.write_series(tmp_path / "series", list(np.zeros((2, 4, 6), np.uint16)))
    (tmp_path / "seg.dcm").write_bytes(seg.encode(paths, [np.ones((4, 6), np.uint8)] * 2, organ="brain"))
    made = pydicom.dcmread(tmp_path / "seg.dcm")
    for group in made.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    made.save_as(tmp_path / "seg.dcm")
    with pytest.raises(ScanError, match="does not say which scan each frame outlines"):
        seg_reader.read_segmentation(tmp_path / "seg.dcm")


def test_a_dicom_seg_that_is_packed_or_compressed_is_an_error_that_says_how_to_unpack_it(tmp_path):
    paths = dicom_files.write_series(tmp_path / "scan", [np.full((6, 8), 9, np.uint8)] * 2)
    mask = np.eye(6, 8, dtype=np.uint8)
    data = seg.encode(list(map(str, paths)), [mask, mask], organ="brain")
    (tmp_path / "a.dcm.gz").write_bytes(gzip.compress(data))
    with pytest.raises(ScanError, match=r"mask a\.dcm\.gz is packed; unpack it, with `gunzip`"):
        seg_reader.read_segmentation(tmp_path / "a.dcm.gz")
    found = pydicom.dcmread(io.BytesIO(data))
    found.Modality = "MR"  # the SOP class says what it is
    found.save_as(tmp_path / "b.dcm")
    segmentation = seg_reader.read_segmentation(tmp_path / "b.dcm")
    numbers = segmentation.of(str(pydicom.dcmread(paths[1]).SOPInstanceUID), 0)
    assert seg_reader.is_segmentation(tmp_path / "b.dcm")
    np.testing.assert_array_equal(seg_reader.segmentation_mask(segmentation.pixels, numbers, (6, 8))[..., 0], mask)
    found.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    found.PixelData = pydicom.encaps.encapsulate([bytes(64)] * 2)
    found.save_as(tmp_path / "c.dcm")
    with pytest.raises(ScanError, match=r"mask c\.dcm is compressed; save it uncompressed, with `gdcmconv --raw`"):
        seg_reader.read_segmentation(tmp_path / "c.dcm")
