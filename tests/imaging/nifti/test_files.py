"""NIfTI and Analyze volumes as they are found: names, packing, pairs, units, time points, and damaged positions."""

import gzip

import nibabel
import numpy as np
import pytest

from mcis.imaging import formats
from mcis.imaging.nifti import header as nifti_header
from mcis.imaging.nifti import reader
from mcis.imaging.scan import ScanError

ARRAY = np.random.default_rng(0).integers(0, 900, (20, 16, 5)).astype(np.int16)
AFFINE = np.diag([0.5, 0.75, 4.0, 1.0])


def volume(array=ARRAY, kind=nibabel.Nifti1Image, affine=AFFINE, **fields):
    """The bytes of a .nii file; `fields` change its header."""
    made = kind(array, affine)
    made.header.set_xyzt_units("mm")
    data = bytearray(made.to_bytes())
    for name, value in fields.items():
        header = type(made.header)(bytes(data[: made.header.template_dtype.itemsize]), check=False)
        header[name] = value
        data[: len(header.binaryblock)] = header.binaryblock
    return bytes(data)


def pair(folder, name, array=ARRAY, kind=nibabel.Nifti1Pair):
    made = kind(array, AFFINE)
    made.to_filename(folder / f"{name}.hdr")


def expected(tmp_path, array=ARRAY):
    (tmp_path / "expected.nii").write_bytes(volume(array))
    return [reader.read(tmp_path / "expected.nii", frame).image for frame in range(array.shape[2])]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a", "A.NII", "A.NII.GZ", "a.gz", "a.b.c", "brain.1"])
def test_a_volume_is_read_under_any_name(name, packed, kind, tmp_path):
    images = expected(tmp_path)
    data = volume(kind=kind)
    path = tmp_path / "in" / name
    path.parent.mkdir()
    path.write_bytes(gzip.compress(data) if packed else data)
    assert formats.format_of(path).name == "NIfTI"
    assert list(formats.frames(path)) == [(str(path), frame) for frame in range(5)]
    for frame, image in enumerate(images):
        found = formats.read(path, frame)
        np.testing.assert_array_equal(found.image, image)
        assert found.spacing == (0.75, 0.5)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.AnalyzeImage, nibabel.Spm99AnalyzeImage])
@pytest.mark.parametrize("change", [None, "upper", "packed"])
def test_a_pair_is_one_volume_by_either_name(kind, change, tmp_path):
    images = expected(tmp_path)
    (tmp_path / "in").mkdir()
    pair(tmp_path / "in", "a", kind=kind)
    header, voxels = tmp_path / "in" / "a.hdr", tmp_path / "in" / "a.img"
    if change == "upper":
        header, voxels = header.rename(tmp_path / "in" / "a.HDR"), voxels.rename(tmp_path / "in" / "a.IMG")
    elif change == "packed":
        (tmp_path / "in" / "a.img.gz").write_bytes(gzip.compress(voxels.read_bytes()))
        voxels.unlink()
        voxels = tmp_path / "in" / "a.img.gz"
    for path in (header, voxels):
        assert formats.format_of(path).name == "NIfTI"
        found = [formats.read(path, frame) for frame in range(formats.format_of(path).count(path))]
        for one, image in zip(found, images, strict=True):
            flipped = image if kind is nibabel.Nifti1Pair else image[:, ::-1]  # Analyze: from right to left
            np.testing.assert_array_equal(one.image, flipped)
            assert one.spacing == (0.75, 0.5)
        assert ("left and right may be swapped" in " ".join(found[0].notes)) == (kind is not nibabel.Nifti1Pair)
    assert nifti_header.is_second_of_pair(voxels) and not nifti_header.is_second_of_pair(header)
    voxels.unlink()
    reader._cache.clear()
    with pytest.raises(ScanError, match=r"no \.img file of the same name is beside it"):
        formats.read(header)


@pytest.mark.parametrize(("code", "factor"), [(1, 1000.0), (2, 1.0), (3, 0.001), (0, 1.0)])
def test_spacing_and_position_are_in_millimetres_whatever_the_unit(code, factor, tmp_path):
    (tmp_path / "mm.nii").write_bytes(volume())
    scaled = np.diag([*(np.diag(AFFINE)[:3] / factor), 1.0])
    (tmp_path / "a.nii").write_bytes(volume(affine=scaled, xyzt_units=code))
    for frame in range(5):
        millimetres, found = (reader.read(tmp_path / name, frame) for name in ("mm.nii", "a.nii"))
        np.testing.assert_array_equal(found.image, millimetres.image)
        np.testing.assert_allclose(found.spacing, (0.75, 0.5), rtol=1e-5)
        np.testing.assert_allclose(found.slice_geometry.position, 4.0 * frame, atol=1e-4)
        assert any("converted" in note for note in found.notes) == (code in (1, 3))
    mask = np.ones((16, 20), np.uint8)
    written = nibabel.Nifti1Image.from_bytes(gzip.decompress(reader.encode(tmp_path / "a.nii", {1: mask})))
    np.testing.assert_allclose(written.affine, scaled, rtol=1e-5)  # the file's own units
    assert int(written.header["xyzt_units"]) == code
    assert written.get_fdata().sum(axis=(0, 1)).tolist() == [0, 320, 0, 0, 0]


@pytest.mark.parametrize("factor", [1000.0, 1e-5])
def test_an_implausible_spacing_costs_the_millimetres_only(factor, tmp_path):
    (tmp_path / "a.nii").write_bytes(volume(affine=np.diag([*(np.diag(AFFINE)[:3] * factor), 1.0])))
    found = reader.read(tmp_path / "a.nii", 1)
    np.testing.assert_array_equal(found.image, expected(tmp_path)[1])
    assert found.spacing is None and any("implausible" in note for note in found.notes)


@pytest.mark.parametrize(
    "fields",
    [
        {"sform_code": 2, "qform_code": 0, "srow_x": [0, 0, 0, 0]},
        {"sform_code": 2, "qform_code": 0, "srow_x": [np.nan, 0, 0, 0]},
        {"sform_code": 2, "qform_code": 0, "srow_x": [1e30, 1e30, 0, 0], "srow_y": [1e30, 1e30, 0, 0]},
        {"sform_code": 0, "qform_code": 1, "quatern_b": 5.0},
        {"sform_code": 0, "qform_code": 1, "pixdim": [0, 0, 0, 0, 0, 0, 0, 0]},
        {"sform_code": 0, "qform_code": 0, "pixdim": [1, 0, np.nan, 1, 1, 1, 1, 1]},
    ],
)
def test_an_invalid_affine_matrix_costs_the_millimetres_and_not_the_scan(fields, tmp_path):
    (tmp_path / "a.nii").write_bytes(volume(**fields))
    assert reader.count_frames(tmp_path / "a.nii") == 5
    found = reader.read(tmp_path / "a.nii", 2)
    assert found.image.shape == (16, 20, 3)
    assert found.spacing is None and found.slice_geometry.position is None
    assert any("no measurements in mm" in note for note in found.notes)
    mask = np.ones((16, 20), np.uint8)
    written = nibabel.Nifti1Image.from_bytes(gzip.decompress(reader.encode(tmp_path / "a.nii", {2: mask})))
    assert np.asarray(written.dataobj).sum() == 320


@pytest.mark.parametrize(
    "fields",
    [
        {"sform_code": 2, "srow_x": [0, 0, 0, 0], "qform_code": 1, "pixdim": [1, 0.5, 0.75, 4, 1, 1, 1, 1]},
        {"sform_code": 0, "qform_code": 0, "pixdim": [1, -0.5, -0.75, 4, 1, 1, 1, 1]},
        {"sform_code": 0, "qform_code": 0},
    ],
)
def test_the_next_best_field_gives_the_spacing(fields, tmp_path):
    (tmp_path / "a.nii").write_bytes(volume(**fields))
    found = reader.read(tmp_path / "a.nii", 2)
    assert found.spacing == (0.75, 0.5)
    assert any("singular" in note or "swapped" in note for note in found.notes)


@pytest.mark.parametrize("sizes", [[0, 0.5, 0.75, 4], [7, 0.5, 0.75, 4], [np.nan, 0.5, -0.75, 4]])
def test_a_quaternion_is_read_whatever_the_signs_of_the_voxel_sizes(sizes, tmp_path):
    quaternion = {"quatern_b": 0, "quatern_c": 0, "quatern_d": 0, "qform_code": 1, "sform_code": 0}
    (tmp_path / "a.nii").write_bytes(volume(pixdim=[*sizes, np.nan, 0, 0, 0], **quaternion))
    for frame, image in enumerate(expected(tmp_path)):
        found = reader.read(tmp_path / "a.nii", frame)
        np.testing.assert_array_equal(found.image, image)
        assert found.spacing == (0.75, 0.5)
    mask = np.ones((16, 20), np.uint8)
    written = nibabel.Nifti1Image.from_bytes(gzip.decompress(reader.encode(tmp_path / "a.nii", {2: mask})))
    np.testing.assert_allclose(np.abs(np.diag(written.affine)), [0.5, 0.75, 4, 1])


@pytest.mark.parametrize(
    ("dim", "frames"),
    [
        ([0, 20, 16, 5, 1, 1, 1, 1], 5),
        ([900, 20, 16, 5, 1, 1, 1, 1], 5),
        ([3, 20, 16, 5, 0, 0, 0, 0], 5),
        ([7, 20, 16, 5, 1, 1, 1, 1], 5),
        ([2, 20, 16, 0, 0, 0, 0, 0], 1),
        ([4, 20, 16, 1, 5, 1, 1, 1], 5),
    ],
)
def test_odd_dimensions_are_read(dim, frames, tmp_path):
    (tmp_path / "a.nii").write_bytes(volume(dim=dim))
    assert reader.count_frames(tmp_path / "a.nii") == frames
    for frame in range(frames):
        assert reader.read(tmp_path / "a.nii", frame).image.shape == (16, 20, 3)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", "<>")
def test_every_type_and_byte_order_gives_the_same_slices(dtype, order, tmp_path):
    array = (ARRAY % 100).astype(np.int16)
    made = nibabel.Nifti1Image(array.astype(dtype), AFFINE, dtype=np.dtype(dtype))
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(order + dtype))
    made = nibabel.Nifti1Image(array.astype(order + dtype), AFFINE, header)
    (tmp_path / "a.nii").write_bytes(made.to_bytes())
    images = expected(tmp_path, array)
    for frame in range(5):
        np.testing.assert_array_equal(reader.read(tmp_path / "a.nii", frame).image, images[frame])


@pytest.mark.parametrize("order", "<>")
def test_a_wrong_size_of_the_header_does_not_change_the_byte_order(order, tmp_path):
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(f"{order}i2"))
    data = bytearray(nibabel.Nifti1Image(ARRAY.astype(f"{order}i2"), AFFINE, header).to_bytes())
    data[:4] = b"\7\7\7\7"
    (tmp_path / "a.nii").write_bytes(data)
    np.testing.assert_array_equal(reader.read(tmp_path / "a.nii", 3).image, expected(tmp_path)[3])


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf, 2.0])
def test_an_invalid_slope_is_no_scaling(slope, tmp_path):
    (tmp_path / "a.nii").write_bytes(volume(scl_slope=slope, scl_inter=7.0))
    np.testing.assert_array_equal(reader.read(tmp_path / "a.nii", 3).image, expected(tmp_path)[3])


@pytest.mark.parametrize("offset", [0.0, -5.0, np.nan, 352.0])
def test_voxels_follow_the_header_where_their_offset_is_invalid(offset, tmp_path):
    (tmp_path / "a.nii").write_bytes(volume(vox_offset=offset))
    np.testing.assert_array_equal(reader.read(tmp_path / "a.nii", 3).image, expected(tmp_path)[3])


@pytest.mark.parametrize("packed", [False, True])
def test_each_time_point_is_a_volume(packed, tmp_path):
    array = np.stack([ARRAY, ARRAY[::-1] * 3, ARRAY[:, ::-1] + 7], axis=3)
    data = volume(array)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(data) if packed else data)
    assert reader.count_frames(path) == 15
    found = [reader.read(path, frame) for frame in range(15)]
    for time in range(3):
        for frame, image in enumerate(expected(tmp_path, array[..., time])):
            np.testing.assert_array_equal(found[5 * time + frame].image, image)
            assert f"time point {time + 1} of 3" in found[5 * time + frame].notes
    assert len({one.slice_geometry.series for one in found}) == 3
    assert [one.slice_geometry.position for one in found[:5]] == [one.slice_geometry.position for one in found[10:]]
    masks = {5: np.ones((16, 20), np.uint8), 9: np.ones((16, 20), np.uint8)}
    written = nibabel.Nifti1Image.from_bytes(gzip.decompress(reader.encode(path, masks)))
    assert written.shape == (20, 16, 5) and np.asarray(written.dataobj).sum(axis=(0, 1)).tolist() == [320, 0, 0, 0, 320]
    with pytest.raises(ScanError, match="has no frame 15"):
        reader.read(path, 15)


def test_a_packed_volume_with_a_wrong_checksum_or_too_few_voxels_is_an_error(tmp_path):
    packed = bytearray(gzip.compress(volume()))
    packed[-8] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(bytes(packed))
    (tmp_path / "b.nii").write_bytes(volume()[:-1])
    for name in ("a.nii.gz", "b.nii"):
        with pytest.raises(ScanError, match="truncated or damaged"):
            reader.read(tmp_path / name)


def test_other_files_are_no_volumes(tmp_path):
    radiance = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 8\n" + bytes(400)
    for name, data in (("a.hdr", radiance), ("a.img", b"x" * 900), ("a.gz", gzip.compress(b"x" * 900)), ("a", b"")):
        (tmp_path / name).write_bytes(data)
        assert formats.format_of(tmp_path / name).name == "image", name


def test_slices_of_a_volume_of_two_thousand_take_one_reading(tmp_path, monkeypatch):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(volume(np.zeros((8, 8, 2000), np.int16)), 1))
    headers, volumes = [], []
    monkeypatch.setattr(reader, "open_volume", lambda path, real=reader.open_volume: headers.append(path) or real(path))
    monkeypatch.setattr(
        reader, "_read_volume", lambda path, real=reader._read_volume: volumes.append(path) or real(path)
    )
    for path, frame in formats.frames(tmp_path / "a.nii.gz"):
        reader.read(path, frame)
    assert (len(headers), len(volumes)) == (2, 1)  # once to count, once to read


@pytest.mark.parametrize("slices", [1, 3])
def test_a_volume_of_one_slice_or_a_few_is_cut_along_them(slices, tmp_path):
    stored = np.random.default_rng(0).integers(0, 100, (40, 30, slices)).astype(np.int16)
    coronal = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(stored, coronal), tmp_path / "few.nii")
    assert reader.count_frames(tmp_path / "few.nii") == slices
    assert reader.read(tmp_path / "few.nii").image.shape == (30, 40, 3)
