"""Positions of slices in their volumes."""

import numpy as np
import pytest

from mcis.imaging import geometry
from mcis.imaging.dicom import header as dicom_header
from mcis.imaging.dicom import reader as dicom_reader
from mcis.imaging.nifti import reader as nifti_reader
from tests.fixtures.dicom_files import CANARY, OBLIQUE, ORIGIN, enhanced, ultrasound, write, write_series
from tests.imaging.dicom.test_seg import grey
from tests.imaging.nifti.test_reader import save


def test_the_position_is_measured_along_the_normal():
    def position_and_normal(first_pixel, right, down):
        found = geometry.slice_geometry("a", first_pixel, right, down)
        assert found.series == geometry.digest("a")
        return found.position, found.normal

    assert position_and_normal([1.0, 2.0, 3.0], [2.0, 0.0, 0.0], [0.0, 5.0, 0.0]) == (3.0, (0.0, 0.0, 1.0))
    assert position_and_normal([1.0, 2.0, 3.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]) == (None, None)
    assert position_and_normal([1.0, np.nan, 3.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]) == (None, None)


def test_slices_of_a_series_are_ordered_along_its_normal(tmp_path):
    paths = write_series(tmp_path, grey(4), order=(2, 0, 3, 1))
    geometries = [dicom_reader.read(path).slice_geometry for path in paths]
    assert len({one.series for one in geometries}) == 1 and len(geometries[0].series) == 16
    expected = ORIGIN @ OBLIQUE[:, 2] + 2.5 * np.arange(4)
    np.testing.assert_allclose([one.position for one in geometries], expected, atol=1e-4)
    np.testing.assert_allclose(geometries[0].normal, OBLIQUE[:, 2], atol=1e-6)
    enhanced(grey(4)).save_as(tmp_path / "e", enforce_file_format=True)
    framed = [dicom_reader.read(tmp_path / "e", frame).slice_geometry for frame in range(4)]
    np.testing.assert_allclose([one.position for one in framed], expected, atol=1e-4)
    assert len({one.series for one in framed}) == 1 and framed[0].series != geometries[0].series


def test_a_file_without_a_position_is_a_volume_by_itself(tmp_path):
    uid = "1.2.3.4"
    for name in "ab":
        write(tmp_path / name, grey(1)[0], SeriesInstanceUID=uid)
    geometries = [dicom_reader.read(tmp_path / name).slice_geometry for name in "ab"]
    assert geometries[0].series != geometries[1].series and {one.position for one in geometries} == {None}
    ultrasound(grey(3)).save_as(tmp_path / "us", enforce_file_format=True)
    assert len({dicom_reader.read(tmp_path / "us", frame).slice_geometry.series for frame in range(3)}) == 1
    write(tmp_path / "c", grey(1)[0], SeriesInstanceUID=None)
    assert dicom_reader.read(tmp_path / "c").slice_geometry is None


def test_a_position_that_is_no_number_is_none_and_the_image_is_read(tmp_path):
    (path,) = write_series(tmp_path, grey(1))
    damaged = path.read_bytes().replace(b"-50.000000\\", b"-5x.000000\\")
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    found = dicom_reader.read(path)
    assert found.slice_geometry.position is None and found.slice_geometry.series and found.spacing == (0.5, 0.75)


def test_a_scan_contains_no_uid_and_no_name(tmp_path):
    (path,) = write_series(tmp_path, grey(1))
    header = dicom_header.read_header(path)
    found = dicom_reader.read(path)
    for uid in (header.SeriesInstanceUID, header.SOPInstanceUID):
        assert uid not in repr(found)
    assert CANARY not in repr(found)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_positions_of_nifti_slices_follow_the_affine_matrix(codes, tmp_path):
    path = save(tmp_path / "a.nii", spacing=(1.0, 1.0, 3.0), codes=codes)
    geometries = [nifti_reader.read(path, frame).slice_geometry for frame in range(10)]
    np.testing.assert_allclose([one.position for one in geometries], 3.0 * np.arange(10), atol=1e-4)  # towards the head
    np.testing.assert_allclose(geometries[0].normal, (0, 0, 1), atol=1e-6)
    assert len({one.series for one in geometries}) == 1
