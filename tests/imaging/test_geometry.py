"""Where a slice lies."""

import numpy as np
import pytest

from mcis.imaging import dicom, geometry, nifti
from tests.fixtures.dicom_files import CANARY, OBLIQUE, ORIGIN, enhanced, ultrasound, write, write_series
from tests.imaging.test_dicom_seg import grey
from tests.imaging.test_nifti import save


def test_the_position_is_along_the_normal():
    position, normal = geometry.along_normal([1.0, 2.0, 3.0], [2.0, 0.0, 0.0], [0.0, 5.0, 0.0])
    assert (position, normal) == (3.0, (0.0, 0.0, 1.0))
    assert geometry.along_normal([1.0, 2.0, 3.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]) is None
    assert geometry.along_normal([1.0, np.nan, 3.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]) is None


def test_slices_of_a_series_lie_along_its_normal(tmp_path):
    paths = write_series(tmp_path, grey(4), order=(2, 0, 3, 1))
    places = [dicom.read(path).place for path in paths]
    assert len({one.series for one in places}) == 1 and len(places[0].series) == 16
    expected = ORIGIN @ OBLIQUE[:, 2] + 2.5 * np.arange(4)
    np.testing.assert_allclose([one.position for one in places], expected, atol=1e-4)
    np.testing.assert_allclose(places[0].normal, OBLIQUE[:, 2], atol=1e-6)
    enhanced(grey(4)).save_as(tmp_path / "e", enforce_file_format=True)
    framed = [dicom.read(tmp_path / "e", frame).place for frame in range(4)]
    np.testing.assert_allclose([one.position for one in framed], expected, atol=1e-4)
    assert len({one.series for one in framed}) == 1 and framed[0].series != places[0].series


def test_what_says_no_position_stands_alone(tmp_path):
    uid = "1.2.3.4"
    for name in "ab":
        write(tmp_path / name, grey(1)[0], SeriesInstanceUID=uid)
    places = [dicom.read(tmp_path / name).place for name in "ab"]
    assert places[0].series != places[1].series and {one.position for one in places} == {None}
    ultrasound(grey(3)).save_as(tmp_path / "us", enforce_file_format=True)
    assert len({dicom.read(tmp_path / "us", frame).place.series for frame in range(3)}) == 1
    write(tmp_path / "c", grey(1)[0], SeriesInstanceUID=None)
    assert dicom.read(tmp_path / "c").place is None


def test_a_position_that_is_no_number_is_none_and_the_picture_is_read(tmp_path):
    (path,) = write_series(tmp_path, grey(1))
    damaged = path.read_bytes().replace(b"-50.000000\\", b"-5x.000000\\")
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    found = dicom.read(path)
    assert found.place.position is None and found.place.series and found.spacing == (0.5, 0.75)


def test_no_uid_is_kept(tmp_path):
    (path,) = write_series(tmp_path, grey(1))
    header = dicom.header(path)
    found = dicom.read(path)
    for uid in (header.SeriesInstanceUID, header.SOPInstanceUID):
        assert uid not in repr(found)
    assert CANARY not in repr(found)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL"])
def test_slices_of_a_nifti_lie_where_its_affine_matrix_says(codes, tmp_path):
    path = save(tmp_path / "a.nii", spacing=(1.0, 1.0, 3.0), codes=codes)
    places = [nifti.read(path, frame).place for frame in range(10)]
    np.testing.assert_allclose([one.position for one in places], 3.0 * np.arange(10), atol=1e-4)  # towards the head
    np.testing.assert_allclose(places[0].normal, (0, 0, 1), atol=1e-6)
    assert len({one.series for one in places}) == 1
