"""NIfTI volumes: slices have the same order and the radiological orientation however the volume is stored."""

import gzip
import sys

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from mcis.imaging import formats, scan
from mcis.imaging.nifti import reader
from tests.lanes.fuzz.crafted_scans import nifti_of

CORNER = np.zeros((20, 30, 10), np.int16)
CORNER[-3:, -4:, -2:] = 100
"""The right, front and top corner is bright; axes point to the right, to the front and up."""


def save(path, array=CORNER, spacing=(1.0, 1.0, 3.0), codes="RAS", slope=None):
    image = nibabel.Nifti1Image(array, np.diag([*spacing, 1.0]))
    image = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))
    if slope is not None:
        image.header.set_slope_inter(slope, 5)
        image = nibabel.Nifti1Image(np.asarray(image.dataobj) * slope + 5, image.affine, image.header)
    nibabel.save(image, path)
    return str(path)


def bright(image):
    rows, columns = np.nonzero(image[..., 0] > 128)
    return (rows.min(), rows.max(), columns.min(), columns.max()) if rows.size else None


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAI", "PIR", "ASL", "SPR"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_the_patients_right_is_at_the_left_and_the_front_at_the_top(codes, suffix, tmp_path):
    path = save(tmp_path / f"a{suffix}", codes=codes)
    assert list(formats.frames([path])) == [(path, frame) for frame in range(10)]
    found = [reader.read(path, frame) for frame in range(10)]
    assert {one.image.shape for one in found} == {(30, 20, 3)}
    assert {one.spacing for one in found} == {(1.0, 1.0)}
    assert [bright(one.image) for one in found] == [None] * 8 + [(0, 3, 0, 2)] * 2  # the top slices come last


@pytest.mark.parametrize(
    ("spacing", "shape", "bright_at", "of"),
    [
        ((1.0, 4.0, 1.0), (10, 20, 3), (0, 1, 0, 2), "coronal"),
        ((4.0, 1.0, 1.0), (10, 30, 3), (0, 1, 0, 3), "sagittal"),
        ((1.0, 1.0, 1.0), (30, 20, 3), (0, 3, 0, 2), "axial"),
    ],
)
def test_slices_follow_the_axis_of_the_acquisition(spacing, shape, bright_at, of, tmp_path):
    path = save(tmp_path / "a.nii", spacing=spacing, codes="PIR")
    last = reader.read(path, reader.count_frames(path) - 1)
    assert last.image.shape == shape and bright(last.image) == bright_at, of


def test_all_slices_have_the_same_grey_scale_whatever_the_stored_scale(tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 1000, (16, 16, 5)).astype(np.int16)
    plain = save(tmp_path / "a.nii", array)
    low, high = np.percentile(array, (0.5, 99.5))
    expected = np.clip(np.rint((array[::-1, ::-1, 2].T - low) / (high - low) * 255), 0, 255)
    np.testing.assert_allclose(reader.read(plain, 2).image[..., 0], expected, atol=1)
    scaled = save(tmp_path / "b.nii", array, slope=0.25)
    np.testing.assert_array_equal(reader.read(scaled, 2).image, reader.read(plain, 2).image)
    inverted = save(tmp_path / "c.nii", array, slope=-1.0)
    np.testing.assert_allclose(reader.read(inverted, 2).image, 255 - reader.read(plain, 2).image, atol=1)


def header(**changes):
    made = nibabel.Nifti1Header()
    made.set_data_shape((4, 4, 4))
    for name, value in changes.items():
        made[name] = value
    made["magic"], made["vox_offset"] = b"n+1", 352
    return made.binaryblock + b"\0" * 4 + b"\0" * 256


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"not a volume" * 100, "damaged or unsupported NIfTI"),
        (header()[:352], "truncated or damaged"),
        (header(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "are read"),
        (header(dim=[5, 4, 4, 4, 1, 3, 1, 1]), "one value per voxel"),
        (header(dim=[3, -4, 4, 4, 1, 1, 1, 1]), "damaged header: it states -4 x 4 x 4"),
        (header(datatype=128, bitpix=24), "voxels of type RGB"),
        (header(datatype=32, bitpix=64), "voxels of type complex64"),
        (header(datatype=999), "voxels of type number 999"),
        (nifti_of((10, 10, 10), 4, 16, 1e9), "its voxels begin at byte 1e"),
        (nifti_of((10, 10, 10), 4, 16, 1e9, 0, 2), "its voxels begin at byte 1e"),
        (nifti_of((10, 10, 10), 4, 16, 2e9, 1_999_999_984), "its voxels begin at byte 2e"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_an_invalid_volume_is_an_error(content, message, packed, tmp_path):
    path = tmp_path / ("a.nii.gz" if packed and content else "a.nii")
    path.write_bytes(gzip.compress(content) if packed and content else content)
    with pytest.raises(scan.ScanError, match=message):
        reader.read(path)
    assert reader.count_frames(path) in (1, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_background_with_a_note(value, tmp_path):
    array = np.random.default_rng(0).normal(100, 10, (1000, 1001, 3)).astype(np.float32)
    whole = [reader.read(save(tmp_path / "a.nii", array), frame) for frame in range(3)]
    array[:300, :, 1] = value
    found = [reader.read(save(tmp_path / "b.nii", array), frame) for frame in range(3)]
    assert found[1].image[:, 700:].max() == 0  # the patient's left is at the right, and 0 is stored there
    for one, other in zip(whole, found, strict=True):  # the range is that of the other voxels
        assert np.abs(one.image[:, :700].astype(int) - other.image[:, :700]).max() <= 2
    assert ["NaN or infinite" in " ".join(one.notes) for one in found] == [False, True, False]
    assert "300300 pixels" in found[1].notes[-1]
    with pytest.raises(scan.ScanError, match="every voxel is NaN or infinite"):
        reader.read(save(tmp_path / "c.nii", np.full((9, 9, 2), value, np.float32)))


@pytest.mark.parametrize("side", [2, 5, 12])
@pytest.mark.parametrize("background", [0, 7])
@pytest.mark.parametrize(("dtype", "slope"), [(np.int16, 1), (np.float32, 1), (np.int16, -1)])
def test_a_small_object_in_empty_space_keeps_its_grey_levels(side, background, dtype, slope, tmp_path):
    array = np.full((120, 110, 10), background, dtype)  # at most 1.1 % of the voxels differ
    ramp = np.linspace(100, 1000, side**3).reshape(side, side, side).astype(dtype)
    array[40 : 40 + side, 50 : 50 + side, :side] = ramp[..., :10]
    path = save(tmp_path / "a.nii", array, slope=slope if slope < 0 else None)
    found = [reader.read(path, frame) for frame in range(min(side, 10))]
    grey = np.stack([one.image[..., 0] for one in found]).astype(int)
    grey = grey if slope > 0 else 255 - grey
    stored = np.stack([array[::-1, ::-1, k].T for k in range(len(found))])
    others = array[array != background]
    low, high = min(background, np.percentile(others, 0.5)), np.percentile(others, 99.5)
    assert np.abs(grey - np.clip((stored - low) * (255 / (high - low)), 0, 255)).max() <= 1
    assert len(np.unique(grey)) > min(side**3 // 2, 100)
    assert all("nearly all of its voxels have one value" in " ".join(one.notes) for one in found)


def test_an_object_that_a_sample_of_the_voxels_misses_is_shown(tmp_path):
    array = np.zeros((200, 200, 60), np.uint8)
    array[101, 101, 30], array[101, 102, 30] = 90, 200
    image = reader.read(save(tmp_path / "a.nii", array), 30).image
    assert sorted(image[..., 0].reshape(-1))[-3:] == [0, 115, 255]


def test_a_volume_of_two_values_or_of_one_is_shown_as_before(tmp_path):
    array = np.zeros((50, 60, 8), np.uint8)
    assert reader.read(save(tmp_path / "a.nii", array), 2).image.max() == 0
    array[20:22, 30:33, 2] = 1
    image = reader.read(save(tmp_path / "b.nii", array), 2).image
    assert np.count_nonzero(image[..., 0] == 255) == 6 and np.count_nonzero(image[..., 0] == 0) == 50 * 60 - 6


def test_without_the_extra_an_error_says_how_to_install_it(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(scan.ScanError, match=r"pip install -e '\.\[dicom\]'"):
        reader.read(path)


def test_a_two_dimensional_image_is_one_slice(tmp_path):
    nib = nibabel.Nifti1Image(np.arange(12 * 20, dtype=np.int16).reshape(12, 20), np.eye(4))
    nib.to_filename(tmp_path / "two.nii")
    assert reader.count_frames(tmp_path / "two.nii") == 1
    assert reader.read(tmp_path / "two.nii").image.shape == (20, 12, 3)


def test_slices_of_several_volumes_in_turn_read_each_volume_once(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(reader, "_read_volume", lambda path, real=reader._read_volume: read.append(path) or real(path))
    paths = [tmp_path / f"{k}.nii" for k in range(3)]
    for path in paths:
        nibabel.Nifti1Image(np.ones((30, 30, 4), np.int16), np.eye(4)).to_filename(path)
    for frame in range(4):
        for path in paths:
            reader.read(path, frame)
    assert len(read) == 3
    monkeypatch.setattr(reader, "MAX_BYTES", 10_000)  # room for one volume
    (tmp_path / "3.nii").write_bytes(paths[0].read_bytes())
    reader.read(tmp_path / "3.nii")
    assert len(reader._cache) == 1


def hounsfield(background=-1024, seed=0):
    """A head in Hounsfield units, float (24, 28, 10): air, soft tissue, bone."""
    rng = np.random.default_rng(seed)
    made = np.full((24, 28, 10), float(background))
    made[4:20, 4:24] = rng.integers(500, 649, (16, 20, 10))
    made[6:18, 6:22] = rng.integers(0, 80, (12, 16, 10))
    return made


@pytest.mark.parametrize("background", [-1000, -1024, -1001, -2000, -2048, -3024])
@pytest.mark.parametrize(
    ("dtype", "slope", "intercept"), [("i2", 1, 0), ("f4", 1, 0), ("u2", 1, -4096), ("u2", 0.5, -4000)]
)
def test_a_volume_in_hounsfield_units_is_a_ct(background, dtype, slope, intercept, tmp_path):
    stored = ((hounsfield(background) - intercept) / slope).round().astype(dtype)
    made = nibabel.Nifti1Image(stored, np.eye(4)).header
    made["scl_slope"], made["scl_inter"], made["vox_offset"] = slope, intercept, 352
    path = tmp_path / "a.nii"
    path.write_bytes(made.binaryblock + b"\0" * 4 + stored.tobytes(order="F"))
    (stated,) = reader.read(path, 5).stated
    assert (stated.header, stated.organs) == ("CT by its values", ())


def test_air_that_noise_hides_is_found_by_the_smallest_value(tmp_path):
    rng = np.random.default_rng(1)
    noisy = hounsfield()
    noisy[:4] = rng.integers(-1023, -960, noisy[:4].shape)
    noisy[20:] = rng.integers(-1023, -960, noisy[20:].shape)
    noisy[6:18, 6:22] = 40  # most frequent
    noisy[:, :1] = -1024
    assert [one.header for one in reader.read(save(tmp_path / "a.nii", noisy.astype(np.int16))).stated] == [
        "CT by its values"
    ]


@pytest.mark.parametrize("background", [0, -1, -500, -1010, -1030, 1000, 1024])
def test_other_volumes_state_nothing(background, tmp_path):
    assert reader.read(save(tmp_path / "a.nii", hounsfield(background).astype(np.int16))).stated == ()
    low = np.minimum(hounsfield(-1000), 0)  # nothing above 0
    assert reader.read(save(tmp_path / "b.nii", low.astype(np.int16))).stated == ()
    map_ = np.random.default_rng(2).normal(0, 300, (24, 28, 10)).round()  # as of phases; one voxel is as air
    map_[3, 3, 3] = min(-1024, map_.min())
    assert reader.read(save(tmp_path / "c.nii", map_.clip(-1024).astype(np.int16))).stated == ()


def test_a_ct_as_nifti_is_unsupported_unless_the_organ_is_stated(tmp_path):
    from mcis.organs import UNSUPPORTED
    from tests.fixtures.bundles import numpy_predictor

    large = np.kron(hounsfield(), np.ones((6, 6, 1)))
    path = save(tmp_path / "a.nii", large.astype(np.int16))
    for options in ({}, {"novelty": False}):
        found = numpy_predictor(**options).predict(path, 5).finding
        assert (found.organ, found.header, found.label) == (UNSUPPORTED, "CT by its values", None)
        assert found.reason.startswith("its values are Hounsfield units, so it is a CT; the organs that are analysed")
    found = numpy_predictor(organ="brain").predict(path, 5).finding
    assert found.organ == "brain" and found.header is None
    assert any(note.startswith("its values are Hounsfield units, so it is a CT, which contra") for note in found.notes)


def test_a_label_map_as_nifti_is_no_scan(tmp_path):
    from mcis.organs import UNSUPPORTED
    from tests.fixtures.bundles import numpy_predictor

    labels = np.zeros((120, 120, 3), np.uint8)
    for label in (1, 2, 3):
        labels[20 * label : 20 * label + 30, 30:90] = label
    found = numpy_predictor(organ="brain").predict(save(tmp_path / "a.nii", labels), 1).finding
    assert found.organ == UNSUPPORTED and found.reason.startswith(
        "only 4 grey levels: a mask, a label map or a drawing?"
    )
