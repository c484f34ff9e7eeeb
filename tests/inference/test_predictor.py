"""`mcis.load()` and what it answers: files and arrays, DICOM and NIfTI, the same findings as the command's."""

import dataclasses
import json

import cv2
import nibabel
import numpy as np
import pytest

import mcis
from mcis.cli import predict
from mcis.imaging import formats, phantom
from tests.fixtures.dicom_files import CANARY, items, write

PHANTOM = phantom.make_phantom("brain", 1, 5, size=(120, 160)).image


@pytest.fixture(scope="module")
def predictor(weights):
    return mcis.load(weights, threshold=0.0, novelty=False)


@pytest.fixture(scope="module")
def segmenter(weights):
    """One network alone: every scan has a mask."""
    return mcis.load(weights, task="segment_brain")


def same(finding, other, but=()):
    ignored = {"scan", "frame", "notes", "spacing_mm", "lesion_area_mm2", "diameter_mm", *but}
    ignored |= {"series", "position_mm", "normal"}
    for name, value in vars(finding).items():
        if name not in ignored:
            expected = pytest.approx(value, abs=1e-5) if isinstance(value, float | dict) else value
            assert getattr(other, name) == expected, name


def test_a_file_and_an_array_have_the_same_finding(predictor, segmenter, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), PHANTOM[..., ::-1])
    result = predictor.predict(tmp_path / "a.png")
    np.testing.assert_array_equal(result.image, PHANTOM)
    assert result.finding.scan == str(tmp_path / "a.png") and result.finding.error is None
    same(result.finding, predictor.predict(PHANTOM).finding)
    masks = [segmenter.predict(given).mask for given in (PHANTOM, tmp_path / "a.png")]
    np.testing.assert_array_equal(*masks)
    assert masks[0].shape == PHANTOM.shape[:2]
    grey = predictor.predict(PHANTOM[..., 0].astype(np.float32) / 255)
    assert "scaled from" in grey.finding.notes[0]


def test_all_of_many_have_the_findings_of_each_alone(predictor, tmp_path):
    paths = []
    for seed, organ in enumerate(["brain", "breast", "brain", "breast", "breast"]):
        paths.append(str(tmp_path / f"{seed}.png"))
        cv2.imwrite(paths[-1], phantom.make_phantom(organ, 1, seed, size=(120, 160)).image)
    (tmp_path / "2.png").write_bytes(b"broken")
    results = list(predictor.predict_all(formats.frames(paths), batch_size=4))
    assert [result.finding.scan for result in results] == paths
    assert [result.finding.error is None for result in results] == [True, True, False, True, True]
    for path, result in zip(paths, results, strict=True):
        if result.finding.error is None:
            same(predictor.predict(path).finding, result.finding)


def test_a_scan_has_its_finding_whatever_file_it_is_in(predictor, segmenter, tmp_path):
    grey = PHANTOM[..., 0]
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    expected = predictor.predict(tmp_path / "a.png").finding
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    write(tmp_path / "a.dcm", grey, PixelSpacing=["0.5", "0.25"], **window)
    found = predictor.predict(tmp_path / "a.dcm")
    same(expected, found.finding)
    assert found.finding.spacing_mm == [0.5, 0.25]
    outlined = segmenter.predict(tmp_path / "a.dcm").finding
    assert outlined.lesion_area_mm2 == pytest.approx(0.125 * outlined.lesion_area_px)
    write(tmp_path / "b.dcm", np.stack([grey // 2, grey]), NumberOfFrames=2, **window)
    second = predictor.predict(tmp_path / "b.dcm", 1)
    assert second.finding.frame == 1
    same(expected, second.finding)


def test_a_slice_of_a_volume_has_its_finding(predictor, tmp_path):
    volume = np.stack([PHANTOM[..., 0]] * 3, -1).astype(np.int16)[::-1].transpose(1, 0, 2)[::-1]
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 5.0, 1.0])), tmp_path / "a.nii.gz")
    results = list(predictor.predict_all(formats.frames([str(tmp_path / "a.nii.gz")])))
    assert [result.finding.frame for result in results] == [0, 1, 2]
    assert results[0].image.shape == PHANTOM.shape
    assert np.corrcoef(results[1].image.ravel(), PHANTOM.ravel())[0, 1] > 0.99  # its range is that of percentiles
    for result in results[1:]:
        same(results[0].finding, result.finding)


def test_what_cannot_be_read_is_a_result_with_an_error(predictor, tmp_path):
    result = predictor.predict(tmp_path / "none.png")
    assert "no such file" in result.finding.error and result.image is None and result.mask is None
    assert "no such file" in result._repr_html_()
    with pytest.raises(ValueError, match="no such file"):
        result.overlay()
    assert "of shape (3,)" in predictor.predict(np.ones(3)).finding.error
    assert "NaN" in predictor.predict(np.full((9, 9), np.nan)).finding.error


def test_a_notebook_shows_the_outlined_scan_and_the_notice(weights, tmp_path):
    result = mcis.load(weights, task="segment_breast").predict(PHANTOM)
    assert result.mask is not None and result.mask.shape == PHANTOM.shape[:2]
    result = dataclasses.replace(result, mask=np.pad(np.ones((40, 40), np.uint8), ((40, 40), (60, 60))))
    assert (result.overlay() != PHANTOM).any()
    shown = dataclasses.replace(result, finding=dataclasses.replace(result.finding, scan="<b>.png"))._repr_html_()
    assert "data:image/png;base64," in shown and mcis.NOTICE in shown and "&lt;b&gt;.png" in shown


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"organ": "liver"}, "liver"),
        ({"organ": "brain", "task": "route"}, "exclude each other"),
        ({"threshold": 1.5}, "probability"),
        ({"members": 0}, "1 network or more"),
        ({"task": "segment_liver"}, "segment_liver"),
    ],
)
def test_what_contradicts_itself_is_refused(asked, says, weights):
    with pytest.raises(ValueError, match=says):
        mcis.load(weights, **asked)


def test_nobody_is_named_by_anything_that_is_written(weights, tmp_path, capfd):
    """The canary stands in every identifying field of every file, whole, damaged, or of odd values."""
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    grey = PHANTOM[..., 0]
    regions = items(PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3, PhysicalDeltaX=0.01, PhysicalDeltaY=0.01)
    write(scans / "mr.dcm", grey)
    write(scans / "us.dcm", PHANTOM, Modality="US", SequenceOfUltrasoundRegions=regions)
    write(scans / "IM0001", np.stack([grey, grey]), NumberOfFrames=2)
    write(scans / "modality.dcm", grey, Modality="CANARY", PixelData=None)
    write(scans / "kind.dcm", grey, PhotometricInterpretation="CANARY")
    whole = (scans / "mr.dcm").read_bytes()
    for at, end in enumerate(range(300, len(whole), len(whole) // 8)):
        (scans / f"cut{at}.dcm").write_bytes(whole[:end])
    for at, word in enumerate((b"PatientName", b"IS", b"DS", b"CS", b"UI", b"DA")):
        (scans / f"odd{at}.dcm").write_bytes(whole.replace(word, CANARY.encode()[: len(word)]))
    (scans / "swapped.dcm").write_bytes(whole.replace(b"20200101", b"CANARY^Z").replace(b"MONOCHROME2", b"CANARY^ZEPH"))
    assert predict.main([str(scans), "--weights", str(weights), "--out", str(out)]) in (0, 1)
    said = capfd.readouterr()
    found = [json.loads(line) for line in (out / "findings.jsonl").read_text().splitlines()]
    assert sum(line["error"] is None for line in found) >= 4 and any(line["error"] for line in found)
    for piece in ("CANARY", "ZEPHYR"):
        assert piece not in said.out.upper() and piece not in said.err.upper()
        for path in out.rglob("*"):
            assert piece not in path.name.upper()
            if path.is_file():
                assert piece.encode() not in path.read_bytes().upper(), path
