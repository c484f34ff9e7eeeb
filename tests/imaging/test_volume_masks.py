"""Masks of volumes: NIfTI on the grid of a scan, and DICOM SEG by its references."""

import gzip
import io

import nibabel
import numpy as np
import pydicom
import pytest

from mcis.imaging import dicom_seg, nifti, volume_masks
from mcis.imaging.scan import ScanError
from tests.fixtures import dicom_files

SHAPE = (7, 9, 4)
AFFINE = np.array([[-0.8, 0, 0, 30], [0, 0.9, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def save(path, array, affine=AFFINE, **fields):
    image = nibabel.Nifti1Image(array, affine)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.fixture
def volume(tmp_path):
    """A scan whose voxels have their own values, and a mask of some of them."""
    array = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    return save(tmp_path / "scan.nii.gz", array), (array % 5 == 0).astype(np.uint8), array


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("value", [1, 3])
def test_a_nifti_mask_has_the_orientation_of_its_scan(volume, tmp_path, kind, value):
    path, marked, array = volume
    mask = save(tmp_path / "mask.nii", (marked * value).astype(kind))
    order = np.sort(array.ravel())
    for frame in range(SHAPE[2]):
        shown = nifti.read(path, frame).image[..., 0]
        found = volume_masks.nifti_mask(mask, path, frame)
        assert found.shape == (*shown.shape, 1) and found.dtype == np.uint8
        values = nifti.as_slices(array, nifti.grid_of(nifti.open_volume(path)))[..., frame]
        assert np.array_equal(found[..., 0], values % 5 == 0)
    assert order[0] == 0


def test_a_nifti_mask_is_scaled_by_its_header_and_nan_is_background(volume, tmp_path):
    path, marked, _ = volume
    stored = np.where(marked, 7, 5).astype(np.float32)
    stored[0, 0, 0] = np.nan
    mask = save(tmp_path / "mask.nii", stored)
    image = nibabel.load(mask)
    image.header.set_slope_inter(1, -5)
    nibabel.save(nibabel.Nifti1Image(marked.astype(np.float32), AFFINE), tmp_path / "plain.nii")
    data = bytearray(mask.read_bytes())
    data[112:120] = np.array([1, -5], "<f4").tobytes()
    mask.write_bytes(bytes(data))
    for frame in range(SHAPE[2]):
        expected = volume_masks.nifti_mask(tmp_path / "plain.nii", path, frame)
        found = volume_masks.nifti_mask(mask, path, frame)
        assert (found != expected).sum() <= 1  # the voxel that is NaN


def test_a_mask_without_time_points_holds_for_all(tmp_path):
    scan = save(tmp_path / "scan.nii", np.random.default_rng(0).random((*SHAPE, 3)).astype(np.float32))
    mask = save(tmp_path / "mask.nii", (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3 == 0).astype(np.uint8))
    first, later = (volume_masks.nifti_mask(mask, scan, frame) for frame in (1, 1 + 2 * SHAPE[2]))
    assert np.array_equal(first, later) and first.any()
    two = save(tmp_path / "two.nii", np.ones((*SHAPE, 2), np.uint8))
    with pytest.raises(ScanError, match=r"mask two\.nii has 2 time points, its scan 3"):
        volume_masks.nifti_mask(two, scan, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("shape", r"mask mask\.nii has 7 x 9 x 3 voxels, its scan 7 x 9 x 4; save it on the grid"),
        ("shift", r"mask mask\.nii has another affine matrix"),
        ("flip", r"mask mask\.nii has another affine matrix"),
        ("probabilities", r"values between whole numbers"),
        ("damaged", r"truncated or damaged|damaged or unsupported"),
    ],
)
def test_a_mask_on_another_grid_is_an_error(volume, tmp_path, change, words):
    path, marked, _ = volume
    affine, array = AFFINE.copy(), marked
    if change == "shape":
        array = marked[..., :3]
    elif change == "shift":
        affine[2, 3] += 3
    elif change == "flip":
        affine[0] *= -1
    elif change == "probabilities":
        array = marked * np.float32(0.5)
    mask = save(tmp_path / "mask.nii", array, affine)
    if change == "damaged":
        mask.write_bytes(mask.read_bytes()[:400])
    with pytest.raises(ScanError, match=words):
        volume_masks.nifti_mask(mask, path, 0)


def test_a_grid_that_differs_by_rounding_is_the_same(volume, tmp_path):
    path, marked, _ = volume
    mask = save(tmp_path / "mask.nii", marked, AFFINE + np.float64(1e-6))
    assert volume_masks.nifti_mask(mask, path, 0).any()


def masks_of(count, shape=(11, 13)):
    rng = np.random.default_rng(5)
    return [(rng.random(shape) < 0.2).astype(np.uint8) * (index != 1) for index in range(count)]


def test_a_segmentation_of_a_series_gives_each_file_its_mask(tmp_path):
    images = list(np.random.default_rng(0).integers(0, 900, (4, 11, 13), np.uint16))
    paths, masks = dicom_files.write_series(tmp_path / "series", images, order=[2, 0, 3, 1]), masks_of(4)
    (tmp_path / "seg.dcm").write_bytes(dicom_seg.encode(paths, masks, organ="brain"))
    assert volume_masks.is_segmentation(tmp_path / "seg.dcm") and not volume_masks.is_segmentation(paths[0])
    found = volume_masks.read_segmentation(tmp_path / "seg.dcm")
    for path, mask in zip(paths, masks, strict=True):
        header = volume_masks.read_header(path)
        numbers = found.of(header.SOPInstanceUID, 0)
        assert np.array_equal(volume_masks.segmentation_mask(found.pixels, numbers, (11, 13))[..., 0], mask)
        place = volume_masks.position_of(header, 0)
        assert not volume_masks.is_misplaced(found, numbers, place)
        assert volume_masks.is_misplaced(found, numbers, ([value + 3 for value in place[0]], place[1])) == bool(numbers)
    assert found.of("1.2.3", 0) == ()


def test_a_segmentation_of_a_multi_frame_file_gives_each_frame_its_mask(tmp_path):
    images, masks = np.random.default_rng(0).integers(0, 900, (3, 11, 13), np.uint16), masks_of(3)
    for name, made in (("mr", dicom_files.enhanced(images)), ("us", dicom_files.ultrasound(images.astype(np.uint8)))):
        made.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
        path = tmp_path / f"seg_{name}.dcm"
        path.write_bytes(dicom_seg.encode([tmp_path / f"{name}.dcm"], masks, organ="breast"))
        found = volume_masks.read_segmentation(path)
        for frame, mask in enumerate(masks):
            numbers = found.of(made.SOPInstanceUID, frame)
            assert np.array_equal(volume_masks.segmentation_mask(found.pixels, numbers, (11, 13))[..., 0], mask)


def test_a_segmentation_of_another_size_is_an_error_that_names_no_identifier(tmp_path):
    paths = dicom_files.write_series(tmp_path / "series", list(np.zeros((1, 11, 13), np.uint16)))
    (tmp_path / "seg.dcm").write_bytes(dicom_seg.encode(paths, masks_of(1), organ="brain"))
    with pytest.raises(ScanError, match=r"mask seg\.dcm is 13 x 11 pixels, its scan 12 x 11; they must be equal"):
        volume_masks.segmentation_mask(volume_masks.read_segmentation(tmp_path / "seg.dcm").pixels, [0], (11, 12))


def test_fractional_segmentations_are_lesion_from_half_on(tmp_path):
    import pydicom

    paths = dicom_files.write_series(tmp_path / "series", list(np.zeros((1, 4, 6), np.uint16)))
    (tmp_path / "seg.dcm").write_bytes(dicom_seg.encode(paths, [np.ones((4, 6), np.uint8)], organ="brain"))
    made = pydicom.dcmread(tmp_path / "seg.dcm")
    values = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    made.SegmentationType, made.MaximumFractionalValue, made.PixelData = "FRACTIONAL", 255, values.tobytes()
    made.BitsAllocated = made.BitsStored = 8
    made.HighBit = 7
    made.save_as(tmp_path / "seg.dcm")
    pixels = volume_masks.read_segmentation(tmp_path / "seg.dcm").pixels
    found = volume_masks.segmentation_mask(pixels, [0], (4, 6))
    assert np.array_equal(found[..., 0], values >= 128)


def test_a_segmentation_without_references_is_an_error(tmp_path):
    import pydicom

    paths = dicom_files.write_series(tmp_path / "series", list(np.zeros((2, 4, 6), np.uint16)))
    (tmp_path / "seg.dcm").write_bytes(dicom_seg.encode(paths, [np.ones((4, 6), np.uint8)] * 2, organ="brain"))
    made = pydicom.dcmread(tmp_path / "seg.dcm")
    for group in made.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence
    made.save_as(tmp_path / "seg.dcm")
    with pytest.raises(ScanError, match="does not say which scan each frame outlines"):
        volume_masks.read_segmentation(tmp_path / "seg.dcm")


def test_a_dicom_seg_that_is_packed_or_compressed_is_an_error_that_says_how_to_unpack_it(tmp_path):
    paths = dicom_files.write_series(tmp_path / "scan", [np.full((6, 8), 9, np.uint8)] * 2)
    mask = np.eye(6, 8, dtype=np.uint8)
    data = dicom_seg.encode(list(map(str, paths)), [mask, mask], organ="brain")
    (tmp_path / "a.dcm.gz").write_bytes(gzip.compress(data))
    with pytest.raises(ScanError, match=r"mask a\.dcm\.gz is packed; unpack it, with `gunzip`"):
        volume_masks.read_segmentation(tmp_path / "a.dcm.gz")
    found = pydicom.dcmread(io.BytesIO(data))
    found.Modality = "MR"  # the SOP class says what it is
    found.save_as(tmp_path / "b.dcm")
    segmentation = volume_masks.read_segmentation(tmp_path / "b.dcm")
    numbers = segmentation.of(str(pydicom.dcmread(paths[1]).SOPInstanceUID), 0)
    assert volume_masks.is_segmentation(tmp_path / "b.dcm")
    np.testing.assert_array_equal(volume_masks.segmentation_mask(segmentation.pixels, numbers, (6, 8))[..., 0], mask)
    found.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    found.PixelData = pydicom.encaps.encapsulate([bytes(64)] * 2)
    found.save_as(tmp_path / "c.dcm")
    with pytest.raises(ScanError, match=r"mask c\.dcm is compressed; save it uncompressed, with `gdcmconv --raw`"):
        volume_masks.read_segmentation(tmp_path / "c.dcm")
