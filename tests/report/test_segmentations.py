"""`mcis predict` of volumes: volumes.jsonl, DICOM SEG and NIfTI files, also after resuming and merging."""

import json
import shutil

import cv2
import highdicom
import nibabel
import numpy as np
import pytest
import SimpleITK
from pydicom import dcmread

from mcis.cli import predict
from mcis.imaging import phantom, search
from mcis.report import finding, segmentations, shards, volume
from tests.fixtures.bundles import findings
from tests.fixtures.dicom_files import CANARY, dataset, write_series

pytestmark = pytest.mark.usefixtures("no_networks_in_module")

SPACING, STEP = (0.5, 0.75), 2.5
ORDER = (4, 1, 3, 0, 2)
TIMES = ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime", "ContributingEquipmentSequence")


def slices(count=5, size=(96, 130)):
    """Different slices with a lesion each, uint8 (H, W)."""
    return [phantom.make_phantom("brain", 1, seed, size=size).image[..., 0] for seed in range(count)]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """An unordered series, a series of two files, an image without a position, a NIfTI volume, a broken file, PNGs."""
    folder = tmp_path_factory.mktemp("volumes")
    write_series(folder / "a", slices(), order=ORDER)
    write_series(folder / "b", slices(2))
    dataset(slices(1)[0], Modality="US", FrameOfReferenceUID=None).save_as(folder / "c.dcm", enforce_file_format=True)
    (folder / "a" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + CANARY.encode())
    affine = np.array([[0.0, 0, -4.5, 11], [0.8, 0, 0, 7], [0, -0.9, 0, -3], [0, 0, 0, 1]])  # sagittal, by its spacing
    image = nibabel.Nifti1Image(np.stack(slices(4), -1).astype(np.int16), affine)
    image.header["descrip"] = image.header["db_name"] = CANARY
    image.set_qform(affine, 1)
    image.set_sform(affine, 2)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, folder / "d.nii.gz")
    phantom.write_examples(folder / "e", per_class=1)
    return folder


def run(folder, out, *options):
    return predict.main([str(folder), f"--out={out}", "--task=segment_brain", *options])


@pytest.fixture(scope="module")
def report(no_networks_in_module, scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "out"
    assert run(scans, out, "--dicom_seg=unnamed") == 1  # one is broken
    return out


def lines_of(out):
    return [json.loads(line) for line in (out / "volumes.jsonl").read_text().splitlines()]


def mask_of(out, line):
    return cv2.imread(str(out / line["mask"]), cv2.IMREAD_UNCHANGED) > 0


def test_every_volume_has_a_line_and_a_file(report, scans):
    found = {line["scan"][len(str(scans)) + 1 :]: line for line in lines_of(report)}
    assert list(found) == ["a/IM0000.dcm", "b/IM0000.dcm", "c.dcm", "d.nii.gz"]
    assert [line["slices"] for line in found.values()] == [5, 2, 1, 4]
    assert [line["kind"] for line in found.values()] == ["series", "series", "series", "file"]
    names = [line["segmentations"] for line in found.values()]
    assert names == [
        [f"segmentations/{name}"]
        for name in ("000000_IM0000.dcm", "000006_IM0000.dcm", "000008_c.dcm", "000009_d.nii.gz")
    ]
    assert sorted(path.name for path in (report / "segmentations").iterdir()) == [
        name[0].split("/")[1] for name in names
    ]
    assert all(line["series"] is None for line in findings(report) if line["scan"].endswith((".png", "broken.dcm")))
    areas = sum(int(mask_of(report, line).sum()) for line in findings(report)[:5])
    assert areas > 100, "without lesions the test shows nothing"
    series = found["a/IM0000.dcm"]
    assert series["lesion_volume_mm3"] == pytest.approx(areas * 0.5 * 0.75 * STEP, rel=1e-5)
    assert series["spacing_mm"] == pytest.approx([STEP, *SPACING], abs=1e-4)
    assert found["d.nii.gz"]["spacing_mm"] == pytest.approx([4.5, 0.9, 0.8], abs=1e-4)


def test_masks_have_the_geometry_of_their_scans(report, scans):
    series, *_, volume = lines_of(report)
    seg = highdicom.seg.segread(report / series["segmentations"][0])
    for line in findings(report)[:5]:
        uid = dcmread(line["scan"]).SOPInstanceUID
        (plane,) = seg.get_pixels_by_source_instance([uid], combine_segments=True)
        np.testing.assert_array_equal(plane > 0, mask_of(report, line))
    mask, image = (SimpleITK.ReadImage(str(path)) for path in (report / volume["segmentations"][0], scans / "d.nii.gz"))
    for name in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(mask, name)(), getattr(image, name)(), atol=1e-5)
    values = SimpleITK.GetArrayFromImage(mask)  # slices, columns, rows in the order of the file
    assert values.any() and set(np.unique(values)) == {0, 1}
    for line in [line for line in findings(report) if line["scan"].endswith("d.nii.gz")]:
        at = len(values) - 1 - line["frame"]  # slices run leftward in the file, rightward in the report
        # in the file rows run forward and columns downward; in the report the front is left and the head is at the top
        np.testing.assert_array_equal(values[at][:, ::-1] > 0, mask_of(report, line))


def test_a_nifti_mask_has_the_codes_and_units_of_its_volume(report, scans):
    (path,) = lines_of(report)[-1]["segmentations"]
    stored, seen = (nibabel.load(path) for path in (report / path, scans / "d.nii.gz"))
    assert [int(stored.header[f"{form}_code"]) for form in ("qform", "sform")] == [1, 2]
    np.testing.assert_allclose(stored.get_qform(), seen.get_qform(), atol=1e-6)
    assert stored.header.get_xyzt_units()[0] == "mm" and stored.shape == seen.shape


def test_no_file_identifies_a_patient(report):
    import gzip

    for path in [path for path in report.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        content += gzip.decompress(content) if path.suffix == ".gz" else b""
        assert not [part for part in CANARY.split("^") if part.encode() in content.upper()], path


def test_names_are_written_on_request(scans, tmp_path):
    assert run(scans / "b", tmp_path / "out", "--dicom_seg=named") == 0
    (line,) = lines_of(tmp_path / "out")
    assert dcmread(tmp_path / "out" / line["segmentations"][0]).PatientName == CANARY
    with pytest.raises(SystemExit):
        run(scans / "b", tmp_path / "no", "--dicom_seg=perhaps")


def test_without_the_option_only_nifti_masks_are_written(scans, tmp_path):
    assert run(scans, tmp_path / "out") == 1
    assert [path.name for path in (tmp_path / "out" / "segmentations").iterdir()] == ["000009_d.nii.gz"]
    assert [len(line["segmentations"]) for line in lines_of(tmp_path / "out")] == [0, 0, 0, 1]
    assert not any(line["notes"] for line in lines_of(tmp_path / "out")[:2])


def contents(out):
    """Content of the segmentations without their dates."""
    found = {}
    for path in sorted((out / "segmentations").iterdir()):
        if path.suffix == ".dcm":
            values = dcmread(path)
            for name in TIMES:
                del values[name]
            found[path.name] = values.to_json()
        else:
            found[path.name] = path.read_bytes()
    return found


@pytest.mark.parametrize("moment", ["a scan", "a segmentation"])
def test_a_run_killed_at_any_moment_is_resumed_to_the_same_files(report, scans, tmp_path, moment):
    out = shutil.copytree(report, tmp_path / "out")
    (out / "volumes.jsonl").unlink()
    if moment == "a scan":
        shutil.rmtree(out / "segmentations")
        lines = (out / "findings.jsonl").read_bytes().splitlines(keepends=True)
        (out / "findings.jsonl").write_bytes(b"".join(lines[:3]))
    else:
        (out / "segmentations" / "000006_IM0000.dcm").unlink()
        (out / "segmentations" / "000009_d.nii.gz").rename(out / "segmentations" / ".000009_d.nii.gz.123.tmp")
    assert run(scans, out, "--dicom_seg=unnamed", "--resume") == 1
    assert contents(out) == contents(report)
    assert (out / "volumes.jsonl").read_bytes() == (report / "volumes.jsonl").read_bytes()
    assert run(scans, out, "--dicom_seg=named", "--resume") == 2  # would give files of two kinds
    assert contents(out) == contents(report)


def test_overwriting_removes_old_volumes_and_segmentations(report, scans, tmp_path):
    out = shutil.copytree(report, tmp_path / "out")
    (out / "segmentations" / "other.dcm").write_text("other")
    assert run(scans / "e", out, "--overwrite") == 0
    assert not (out / "volumes.jsonl").exists() and not list((out / "page").glob("volumes_*"))
    assert [path.name for path in (out / "segmentations").iterdir()] == ["other.dcm"]


def test_a_merged_report_has_the_volumes_of_a_single_one(report, scans, tmp_path):
    out = tmp_path / "out"
    for index in range(4):
        assert run(scans, out, "--dicom_seg=unnamed", f"--shard={index}/4") in (0, 1)
    shards.merge(out)
    for one, merged in zip(lines_of(report), lines_of(out), strict=True):
        for path in merged["segmentations"]:
            assert path.startswith("shard_") and (out / path).is_file()
        assert {**one, "segmentations": []} == {**merged, "segmentations": []}
    parts = [highdicom.seg.segread(out / path) for path in lines_of(out)[0]["segmentations"]]
    assert len(parts) > 1 and sum(int(part.NumberOfFrames) for part in parts) == 5


def test_a_series_that_cannot_be_encoded_is_reported_and_the_others_are_written(scans, tmp_path, capsys):
    folder = shutil.copytree(scans, tmp_path / "scans")
    again = dcmread(folder / "b" / "IM0000.dcm")
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    again.save_as(folder / "b" / "IM0009.dcm")
    (folder / "a" / "broken.dcm").unlink()
    assert run(folder, tmp_path / "out", "--dicom_seg=unnamed") == 1
    printed = capsys.readouterr().err
    assert "no segmentation: " in printed and "volumes without a segmentation: 1" in printed
    first, second, *_ = lines_of(tmp_path / "out")
    assert first["segmentations"] and not second["segmentations"]
    assert [note.split(":")[0] for note in second["notes"]] == [
        "slices at the same position as another",
        "no segmentation",
    ]


def test_segmentations_of_a_report_are_not_read_as_scans(report):
    assert search.in_folder(report) == ([], {})


def test_volumes_can_be_computed_again_from_the_findings(report):
    again = list(volume.summarise(finding.read_findings(report / "findings.jsonl")))
    assert [one.series for one in again] == [line["series"] for line in lines_of(report)]
    assert list(segmentations.write(report, False)) == [(one.series, None) for one in again]  # nothing is left to do
