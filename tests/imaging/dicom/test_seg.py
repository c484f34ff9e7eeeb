"""DICOM SEG: positions of voxels as other software reads them, references, and no patient data unless requested."""

import datetime
import io
import pathlib
import shutil
import subprocess
import sys

import highdicom
import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread
from pydicom.data import get_testdata_file

import mcis
from mcis.imaging import image_files, scan
from mcis.imaging.dicom import seg
from tests.fixtures.dicom_files import CANARY, OBLIQUE, ORIGIN, dataset, enhanced, ultrasound, write_series

SHAPE = (20, 31)
ORDER = (3, 0, 5, 1, 4, 2)


def grey(count=6, shape=SHAPE):
    return list(np.random.default_rng(0).integers(0, 1000, (count, *shape)).astype(np.uint16))


def lesions(count=6, shape=SHAPE):
    """Different masks without symmetry; the second is empty."""
    masks = [np.zeros(shape, np.uint8) for _ in range(count)]
    for i, mask in enumerate(masks):
        mask[3 + i : 5 + 2 * i, 2 : 9 + i] = mask[4 + i, 1] = i != 1
    return masks


def patient_points(masks, spacing=(0.5, 0.75), step=2.5):
    """Centres of the lesions' voxels, of masks in order along the normal: (N, 3), millimetres."""
    slices, rows, columns = np.nonzero(np.stack(masks))
    steps = np.stack([columns * spacing[1], rows * spacing[0], slices * step], 1)
    return ORIGIN + steps @ OBLIQUE.T


def by_name(points):
    return points[np.lexsort(np.round(points, 3).T)]


def read(data):
    return highdicom.seg.segread(io.BytesIO(data))


def points_of_pydicom(data):
    """The same from the functional groups of a file."""
    found = dcmread(io.BytesIO(data))
    shared = found.SharedFunctionalGroupsSequence[0]
    right, down = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(float)
    apart = [float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing]
    points = []
    for plane, group in zip(found.pixel_array.reshape(-1, *SHAPE), found.PerFrameFunctionalGroupsSequence, strict=True):
        first = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        points += [first + right * x * apart[1] + down * y * apart[0] for y, x in zip(*np.nonzero(plane), strict=True)]
    return np.array(points)


def points_of_itk(path):
    image = SimpleITK.ReadImage(str(path))
    slices, rows, columns = np.nonzero(SimpleITK.GetArrayFromImage(image))
    return np.array(
        [
            image.TransformIndexToPhysicalPoint((int(x), int(y), int(z)))
            for z, y, x in zip(slices, rows, columns, strict=True)
        ]
    )


@pytest.fixture(params=["series", "enhanced"])
def written(request, tmp_path):
    """The bytes of a SEG of six oblique slices whose sources are shuffled."""
    if request.param == "series":
        paths = write_series(tmp_path / "scans", grey(), order=ORDER)
        shuffled = [2, 4, 0, 5, 3, 1]
        return seg.encode([paths[i] for i in shuffled], [lesions()[i] for i in shuffled], organ="brain")
    enhanced(grey()).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    return seg.encode([tmp_path / "a.dcm"], lesions(), organ="brain")


def test_every_voxel_keeps_its_position_in_the_patient(written, tmp_path):
    (tmp_path / "seg.dcm").write_bytes(written)
    expected = by_name(patient_points(lesions()))
    for found in (points_of_pydicom(written), points_of_itk(tmp_path / "seg.dcm")):
        np.testing.assert_allclose(by_name(found), expected, atol=2e-3)
    volume = read(written).get_volume(combine_segments=True)
    where = volume.map_indices_to_reference(np.argwhere(volume.array))
    np.testing.assert_allclose(by_name(where), expected, atol=2e-3)


def test_the_frames_refer_to_the_files_of_their_series(tmp_path):
    paths = write_series(tmp_path, grey(), order=ORDER)
    found = read(seg.encode(paths, lesions(), organ="brain"))
    sources = [dcmread(path) for path in paths]
    uids = [source.SOPInstanceUID for source in sources]
    assert [item.ReferencedSOPInstanceUID for item in found.SourceImageSequence] == uids
    (series,) = found.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == sources[0].SeriesInstanceUID
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence] == uids
    assert found.StudyInstanceUID == sources[0].StudyInstanceUID
    assert found.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert found.SeriesInstanceUID != sources[0].SeriesInstanceUID
    frames = found.get_pixels_by_source_instance(uids, combine_segments=True)
    np.testing.assert_array_equal(frames, np.stack(lesions()))


def test_frames_refer_to_the_frames_of_a_multi_frame_file_with_positions_and_without(tmp_path):
    masks = lesions(3)
    for name, found in (("mr", enhanced(grey(6))), ("us", ultrasound(grey(6)))):
        found.save_as(tmp_path / name, enforce_file_format=True)
        made = read(seg.encode([tmp_path / name], masks, frames=[4, 0, 2], organ="breast"))
        by_frame = {}
        for plane, group in zip(made.pixel_array, made.PerFrameFunctionalGroupsSequence, strict=True):
            (source,) = group.DerivationImageSequence[0].SourceImageSequence
            assert (source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID) == (
                found.SOPClassUID,
                found.SOPInstanceUID,
            )
            by_frame[source.ReferencedFrameNumber] = plane
        assert list(by_frame) == ([5, 3, 1] if name == "mr" else [5, 1, 3])  # by position, or in the order given
        for frame, mask in zip((5, 1, 3), masks, strict=True):
            np.testing.assert_array_equal(by_frame[frame], mask)
        assert ("FrameOfReferenceUID" in made) == (name == "mr")
        assert len(made.SourceImageSequence) == 1


def test_a_single_ultrasound_image_has_no_position(tmp_path):
    image = dataset(grey(1)[0], Modality="US", FrameOfReferenceUID=None)
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    found = read(seg.encode([tmp_path / "a.dcm"], lesions(1), organ="breast"))
    np.testing.assert_array_equal(found.pixel_array.reshape(SHAPE), lesions(1)[0])
    assert not {"PlaneOrientationSequence", "PixelMeasuresSequence"} & set(
        found.SharedFunctionalGroupsSequence[0].dir()
    )
    (segment,) = found.SegmentSequence
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lesion"
    assert segment.AnatomicRegionSequence[0].CodeValue == "76752008"  # breast


def test_the_segment_names_its_algorithm_and_anatomy(written):
    found = read(written)
    (segment,) = found.SegmentSequence
    (algorithm,) = segment.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("mcis", mcis.__version__)
    assert segment.SegmentDescription == mcis.NOTICE and "not a medical device" in found.SeriesDescription
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Neoplasm"
    assert segment.AnatomicRegionSequence[0].CodeMeaning == "Brain"
    assert (found.Modality, found.SegmentationType, found.file_meta.TransferSyntaxUID.name) == (
        "SEG",
        "BINARY",
        "Explicit VR Little Endian",
    )


def test_patient_data_are_copied_only_if_requested(written, tmp_path):
    assert not any(part.encode() in written.upper() for part in CANARY.split("^"))
    found = dcmread(io.BytesIO(written))
    for name in seg.PERSON:
        assert not found[name].value
    assert b"19000101" not in written and b"20200101" not in written
    paths = write_series(tmp_path / "named", grey(), PatientName="Îé^Zoë", SpecificCharacterSet="ISO_IR 192")
    named = dcmread(io.BytesIO(seg.encode(paths, lesions(), organ="brain", named=True)))
    assert (
        str(named.PatientName) == "Îé^Zoë" and named.PatientID == CANARY[:16] and named.PatientBirthDate == "19000101"
    )
    source = dcmread(paths[0])
    assert all(named[name].value == source[name].value for name in seg.PERSON)
    assert "InstitutionName" not in named and "PatientComments" not in named and (0x0011, 0x0010) not in named


def test_equal_masks_give_equal_files(tmp_path):
    paths = write_series(tmp_path, grey())
    made = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    first, again = (seg.encode(paths, lesions(), organ="brain", made=made) for _ in range(2))
    assert first == again and read(first).ContentTime == "030405"
    changed = lesions()
    changed[3][0, 0] ^= 1
    other = seg.encode(paths, changed, organ="brain", made=made)
    assert read(other).SOPInstanceUID != read(first).SOPInstanceUID


def check(path):
    """Errors that dciodvfy (dicom3tools by David Clunie) reports for a file."""
    tool = pathlib.Path(sys.executable).with_name("dciodvfy")
    program = str(tool) if tool.exists() else shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed")
    run = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    assert "Segmentation" in run.stdout + run.stderr
    return [line for line in (run.stdout + run.stderr).splitlines() if line.startswith("Error")]


def test_a_validator_finds_no_errors(written, tmp_path):
    (tmp_path / "seg.dcm").write_bytes(written)
    assert check(tmp_path / "seg.dcm") == []
    for name, found in (("us", ultrasound(grey(6))), ("one", ultrasound(grey(1)))):
        found.save_as(tmp_path / name, enforce_file_format=True)
        data = seg.encode([tmp_path / name], lesions(len(found.pixel_array[:6])), organ="breast", named=True)
        (tmp_path / "seg.dcm").write_bytes(data)
        assert check(tmp_path / "seg.dcm") == []


@pytest.mark.parametrize("count", [1, 6])
def test_slices_of_unknown_thickness_get_the_distance_between_slices(count, tmp_path):
    paths = write_series(tmp_path / "scans", grey(count), SliceThickness=None)
    data = seg.encode(paths, lesions(count), organ="brain")
    np.testing.assert_allclose(by_name(points_of_pydicom(data)), by_name(patient_points(lesions(count))), atol=2e-3)
    shared = dcmread(io.BytesIO(data)).SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].get("SliceThickness") == (None if count == 1 else pytest.approx(2.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SeriesInstanceUID": "1.2.3"}, "of another series"),
        ({"Rows": 31, "Columns": 20}, "its mask is 20 x 31"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, "not parallel"),
        ({"ImagePositionPatient": [f"{value:.6f}" for value in ORIGIN]}, "has the position of"),
        ({"PixelSpacing": [1, 1]}, "another pixel spacing"),
        ({"SOPInstanceUID": None}, "lacks a UID"),
    ],
)
def test_files_that_form_no_series_are_rejected(change, message, tmp_path):
    paths = write_series(tmp_path, grey())
    found = dcmread(paths[4])
    for name, value in change.items():
        if value is None:
            delattr(found, name)
        else:
            setattr(found, name, value)
    found.save_as(paths[4])
    with pytest.raises(scan.ScanError, match=message) as raised:
        seg.encode(paths, lesions(), organ="brain")
    assert "CANARY" not in str(raised.value)


def test_sources_and_masks_of_a_wrong_kind_are_rejected(tmp_path):
    (tmp_path / "a.png").write_bytes(image_files.encode_png(np.zeros(SHAPE, np.uint8)))
    with pytest.raises(scan.ScanError, match=r"a\.png"):
        seg.encode([tmp_path / "a.png"], lesions(1), organ="brain")
    path = get_testdata_file("MR_small.dcm")
    good = np.zeros((64, 64), np.uint8)
    for masks, options, message in (
        ([good * 1.0], {}, "uint8"),
        ([good + 2], {}, "uint8"),
        ([good[..., None]], {}, "uint8"),
        ([], {}, "at least one mask"),
        ([good, good], {"frames": [0]}, "numbers must be equal"),
        ([good], {"frames": [1]}, "no frame 1"),
        ([good], {"frames": [-1]}, "no frame -1"),
        ([good], {"organ": "liver"}, "no organ"),
    ):
        with pytest.raises(ValueError, match=message):
            seg.encode([path], masks, **{"organ": "brain", **options})
    with pytest.raises(scan.ScanError, match="no such file"):
        seg.encode([tmp_path / "b.dcm"], [good], organ="brain")


def test_too_many_pixels_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(seg, "MAX_PIXELS", 6 * 20 * 31 - 1)
    with pytest.raises(scan.ScanError, match="6 masks with more than"):
        seg.encode(write_series(tmp_path, grey()), lesions(), organ="brain")


def test_without_the_extra_an_error_says_how_to_install_it(tmp_path, monkeypatch):
    paths = write_series(tmp_path, grey())
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(scan.ScanError, match=r"pip install -e '\.\[dicom\]'"):
        seg.encode(paths, lesions(), organ="brain")
