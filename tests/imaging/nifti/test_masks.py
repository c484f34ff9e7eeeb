"""Masks of NIfTI volumes, on the grid of their scan."""

import nibabel
import numpy as np
import pytest

from mcis.imaging.nifti import masks, reader
from mcis.imaging.scan import ScanError

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
        shown = reader.read(path, frame).image[..., 0]
        found = masks.nifti_mask(mask, path, frame)
        assert found.shape == (*shown.shape, 1) and found.dtype == np.uint8
        values = reader.as_slices(array, reader.grid_of(reader.open_volume(path)))[..., frame]
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
        expected = masks.nifti_mask(tmp_path / "plain.nii", path, frame)
        found = masks.nifti_mask(mask, path, frame)
        assert (found != expected).sum() <= 1  # the voxel that is NaN


def test_a_mask_without_time_points_holds_for_all(tmp_path):
    scan = save(tmp_path / "scan.nii", np.random.default_rng(0).random((*SHAPE, 3)).astype(np.float32))
    mask = save(tmp_path / "mask.nii", (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3 == 0).astype(np.uint8))
    first, later = (masks.nifti_mask(mask, scan, frame) for frame in (1, 1 + 2 * SHAPE[2]))
    assert np.array_equal(first, later) and first.any()
    two = save(tmp_path / "two.nii", np.ones((*SHAPE, 2), np.uint8))
    with pytest.raises(ScanError, match=r"mask two\.nii has 2 time points, its scan 3"):
        masks.nifti_mask(two, scan, 0)


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
        masks.nifti_mask(mask, path, 0)


def test_a_grid_that_differs_by_rounding_is_the_same(volume, tmp_path):
    path, marked, _ = volume
    mask = save(tmp_path / "mask.nii", marked, AFFINE + np.float64(1e-6))
    assert masks.nifti_mask(mask, path, 0).any()
