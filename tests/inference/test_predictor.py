"""`mcis.load()` and its results: of files and arrays, DICOM and NIfTI."""

import dataclasses
import json
import subprocess
import sys

import cv2
import nibabel
import numpy as np
import pytest

import mcis
from mcis.cli import predict
from mcis.imaging import formats, phantom
from mcis.imaging.image_files import from_array
from mcis.imaging.letterbox import letterbox
from mcis.inference.options import InferenceOptions
from mcis.inference.predictor import make_predictor
from mcis.inference.result import _router_reason, result_of
from mcis.ops.points import POINTS
from mcis.organs import UNKNOWN
from tests.fixtures.dicom_files import CANARY, items, write
from tests.fixtures.linear import linear_networks, linear_weights

PHANTOM = phantom.make_phantom("brain", 1, 5, size=(120, 160)).image


BATCH = 4
"""The only batch size other than 1, so that little is compiled."""


@pytest.fixture(scope="module")
def bundle():
    """A router and two joint networks."""
    scans = np.stack([letterbox(one.image)[0] for one in phantom.make_phantoms(1, seed=100)])
    return linear_weights(scans, ("route", "segment_brain", "segment_breast"))


def make(bundle, **options):
    with linear_networks():
        return make_predictor(bundle, InferenceOptions(**options), "somewhere")


@pytest.fixture(scope="module")
def predictor(bundle):
    return make(bundle, threshold=0.0, novelty=False)


@pytest.fixture(scope="module")
def segmenter(bundle):
    """One network alone, which gives every scan a mask."""
    return make(bundle, task="segment_brain")


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


def test_many_scans_have_the_same_findings_as_each_alone(predictor, tmp_path):
    paths = []
    for seed, organ in enumerate(["brain", "breast", "brain", "breast", "breast"]):
        paths.append(str(tmp_path / f"{seed}.png"))
        cv2.imwrite(paths[-1], phantom.make_phantom(organ, 1, seed, size=(120, 160)).image)
    (tmp_path / "2.png").write_bytes(b"broken")
    results = list(predictor.predict_all(formats.frames(paths), BATCH))
    assert [result.finding.scan for result in results] == paths
    assert [result.finding.error is None for result in results] == [True, True, False, True, True]
    for path, result in zip(paths, results, strict=True):
        if result.finding.error is None:
            same(predictor.predict(path).finding, result.finding)


def test_a_scan_has_the_same_finding_in_every_file_format(predictor, segmenter, tmp_path):
    grey = PHANTOM[..., 0]
    cv2.imwrite(str(tmp_path / "a.png"), grey)
    expected = predictor.predict(tmp_path / "a.png").finding
    window = {"WindowCenter": "128", "WindowWidth": "256"}
    write(tmp_path / "a.dcm", grey, PixelSpacing=["0.5", "0.5"], **window)
    found = predictor.predict(tmp_path / "a.dcm")
    same(expected, found.finding)
    assert found.finding.spacing_mm == [0.5, 0.5]
    outlined = segmenter.predict(tmp_path / "a.dcm").finding
    assert outlined.lesion_area_mm2 == pytest.approx(0.25 * outlined.lesion_area_px)
    write(tmp_path / "b.dcm", np.stack([grey // 2, grey]), NumberOfFrames=2, **window)
    second = predictor.predict(tmp_path / "b.dcm", 1)
    assert second.finding.frame == 1
    same(expected, second.finding)


def test_every_slice_of_a_volume_has_a_finding(predictor, tmp_path):
    volume = np.stack([PHANTOM[..., 0]] * 3, -1).astype(np.int16)[::-1].transpose(1, 0, 2)[::-1]
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 5.0, 1.0])), tmp_path / "a.nii.gz")
    results = list(predictor.predict_all([tmp_path / "a.nii.gz"], BATCH))
    assert [result.finding.frame for result in results] == [0, 1, 2]
    assert results[0].image.shape == PHANTOM.shape
    assert np.corrcoef(results[1].image.ravel(), PHANTOM.ravel())[0, 1] > 0.99  # scaled between percentiles
    for result in results[1:]:
        same(results[0].finding, result.finding)


def test_a_scan_that_cannot_be_read_gives_a_result_with_an_error(predictor, tmp_path):
    result = predictor.predict(tmp_path / "none.png")
    assert "no such file" in result.finding.error and result.image is None and result.mask is None
    assert "no such file" in result._repr_html_()
    with pytest.raises(ValueError, match="no such file"):
        result.overlay()
    assert "shape (3,)" in predictor.predict(np.ones(3)).finding.error
    assert "NaN" in predictor.predict(np.full((9, 9), np.nan)).finding.error


def test_a_notebook_shows_the_outlined_scan_and_the_notice(segmenter):
    result = segmenter.predict(PHANTOM)
    assert result.mask is not None and result.mask.shape == PHANTOM.shape[:2]
    result = dataclasses.replace(result, mask=np.pad(np.ones((40, 40), np.uint8), ((40, 40), (60, 60))))
    assert (result.overlay() != PHANTOM).any()
    shown = dataclasses.replace(result, finding=dataclasses.replace(result.finding, scan="<b>.png"))._repr_html_()
    assert "data:image/png;base64," in shown and mcis.NOTICE in shown and "&lt;b&gt;.png" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"organ": "liver"}, "liver"),
        ({"organ": "brain", "task": "route"}, "exclude each other"),
        ({"threshold": 1.5}, "probability"),
        ({"members": 0}, "must be 1 or more"),
        ({"operating_point": "safe"}, "--operating_point=safe: must be one of balanced, sensitive, specific"),
        ({"operating_point": "specific", "task": "segment_brain"}, "runs one network, which gives its most probable"),
    ],
)
def test_options_that_are_wrong_or_exclude_each_other_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        mcis.load(**options)


def test_weights_without_a_network_or_a_head_are_said_to_lack_it(bundle):
    only = {"segment_brain": bundle["segment_brain"]}
    assert make(only, organ="breast").lacking == ("breast label", "breast mask")
    assert make(bundle).lacking == ()
    with pytest.raises(ValueError, match="no router"):
        make(only)
    with pytest.raises(ValueError, match="these weights have no segment_breast; they have: segment_brain"):
        make(only, task="segment_breast")
    with pytest.raises(ValueError, match="segment_liver"):
        make(only, task="segment_liver")


def test_the_operating_point_is_known_and_one_that_weights_lack_is_an_error(bundle):
    assert make(bundle).operating_point is None
    with pytest.raises(ValueError, match="no operating points for brain, breast"):
        make(bundle, operating_point="sensitive")
    shift = {name: np.zeros(3, np.float32) for name in POINTS}
    breast = bundle["segment_breast"]
    fitted = dataclasses.replace(breast, variables=breast.variables | {"calibration": {"points": shift}})
    both = bundle | {"segment_breast": fitted}
    assert make(both).operating_point == "balanced"
    assert make(both, organ="breast", operating_point="specific").operating_point == "specific"
    assert make(both, task="segment_breast").operating_point is None


def test_a_label_that_is_not_the_most_probable_class_is_noted():
    loaded = formats.prepare("a.png", None, lambda: from_array(PHANTOM))
    nothing = {"organ_prob": np.nan, "novelty": np.nan, "needed": np.nan, "choice": 1, "organ": 1}
    row = nothing | {"segmented": False, "confidence": 0.4, "review": UNKNOWN, "mask": np.zeros((256, 256, 1))}
    row |= {"label_set": np.zeros(3, bool), "outer": np.nan, "certain": np.nan}

    def notes(label, *probs):
        fields = row | {"label": label, "label_probs": np.float32(probs)}
        return result_of(loaded, fields).finding.notes

    assert notes(1, 0.1, 0.55, 0.35) is None
    assert notes(2, 0.1, 0.55, 0.35) == [
        "malignant (35 %) by the operating point of this run, although benign is more probable (55 %)"
    ]
    assert notes(2, 0, 0.501, 0.499) == [
        "malignant (49.9 %) by the operating point of this run, although benign is more probable (50.1 %)"
    ]


@pytest.mark.parametrize(("certain", "flag"), [(np.nan, None), (0.9, True), (0.95, False)])
def test_an_uncertain_organ_is_flagged_and_noted(certain, flag):
    loaded = formats.prepare("a.png", None, lambda: from_array(PHANTOM))
    row = {"organ_prob": 0.9, "organ": 0, "label": 0, "label_probs": np.float32([0.8, 0.2, 0]), "confidence": 0.4}
    row |= {"review": 0, "segmented": False, "mask": np.zeros((256, 256, 1)), "certain": np.float64(certain)}
    found = result_of(loaded, row | {"label_set": np.zeros(3, bool), "outer": np.nan}).finding
    assert found.organ == "brain" and found.label == "no_tumor" and found.organ_certain is flag
    wanted = ["organ uncertain: similar to brain MRI (90 %; certain from 95 %). Check that it is one"]
    assert found.notes == (wanted if flag is False else None)


def test_label_set_and_outer_outline_of_a_finding():
    image = np.full((256, 256, 3), 90, np.uint8)
    image[::2] = 200
    loaded = formats.prepare("a.png", None, lambda: from_array(image))  # as large as the model input
    probability = np.zeros((256, 256, 1), np.float32)
    probability[40:60, 30:80] = 0.2
    probability[50:60, 70:90] = 0.9
    row = {"organ_prob": 0.9, "organ": 1, "label": 2, "label_probs": np.float32([0.1, 0.3, 0.6]), "confidence": 0.4}
    row |= {"review": 0, "segmented": True, "mask": probability, "certain": np.nan}
    fitted = row | {"label_set": np.array([False, True, True]), "outer": np.float32(0.1)}
    found = result_of(loaded, fitted)
    assert found.finding.label_set == ["benign", "malignant"] and found.finding.label == "malignant"
    assert found.finding.lesion_area_px == found.mask.sum() == 10 * 20
    assert found.finding.outer_area_px == found.outer.sum() == 20 * 50 + 10 * 10
    assert found.finding.outer_area_share == (20 * 50 + 10 * 10) / 256**2
    assert found.finding.outer_box == [30, 40, 60, 20] and found.finding.boxes == [[70, 50, 20, 10]]
    drawn = dataclasses.replace(found, outer=None).overlay()
    changed = (found.overlay() != drawn).any(2)
    assert changed.any() and not changed[41:59, 31:69].any() and not changed[:38].any()  # a line around the area
    above = changed[39, 32:66]
    assert above.any() and not above.all()  # of dashes
    empty = result_of(loaded, fitted | {"mask": 0 * probability}).finding
    assert empty.outer_area_px == 0 and empty.outer_area_share == 0.0 and empty.outer_box is None
    old = result_of(loaded, row | {"label_set": np.zeros(3, bool), "outer": np.float32(np.nan)})
    assert old.finding.label_set is old.finding.outer_area_px is old.finding.outer_box is old.outer is None
    assert old.finding.lesion_area_px == 200


def test_a_plausibility_rule_rejects_thumbnails_and_nothing_else(predictor, segmenter):
    small = cv2.resize(PHANTOM, (64, 48), interpolation=cv2.INTER_AREA)
    squares, geometries = zip(*map(letterbox, (PHANTOM, small, PHANTOM)), strict=True)
    images = np.zeros((BATCH, *squares[0].shape), np.uint8)
    images[:3] = squares
    raw, reasons = predictor.predict_batch(images, geometries)
    assert reasons == [None] * 3 and len(raw.organ) == 3
    strict = dataclasses.replace(predictor, options=dataclasses.replace(predictor.options, novelty=True))
    checked, reasons = strict.predict_batch(images, geometries)
    assert [reason is None for reason in reasons] == [True, False, True]
    assert reasons[1].reason.startswith("a thumbnail: ") and "80 along one side" in reasons[1].reason
    assert reasons[1].header is None
    for name, values in vars(checked).items():
        np.testing.assert_array_equal(values[[0, 2]], getattr(raw, name)[[0, 2]], err_msg=name)
    assert checked.organ[1] == 2 and checked.label[1] == UNKNOWN and checked.review[1] == UNKNOWN
    assert not checked.label_probs[1].any() and not checked.segmented[1] and not checked.mask[1].any()
    assert np.isnan(checked.confidence[1])
    np.testing.assert_array_equal(checked.organ_prob, raw.organ_prob)  # what the router predicted stays
    notes = segmenter.predict(small).finding.notes  # where the organ is given it is only noted
    assert any("a thumbnail" in note for note in notes)


def test_no_written_file_names_a_patient(segmenter, tmp_path, capfd, monkeypatch):
    """The canary stands in every identifying field of every file, whole, damaged, or with odd values."""
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
    monkeypatch.setattr(predict, "load", lambda *_, **__: segmenter)
    assert predict.main([str(scans), "--out", str(out), "--task=segment_brain"]) in (0, 1)
    printed = capfd.readouterr()
    found = [json.loads(line) for line in (out / "findings.jsonl").read_text().splitlines()]
    assert sum(line["error"] is None for line in found) >= 4 and any(line["error"] for line in found)
    for piece in ("CANARY", "ZEPHYR"):
        assert piece not in printed.out.upper() and piece not in printed.err.upper()
        for path in out.rglob("*"):
            assert piece not in path.name.upper()
            if path.is_file():
                assert piece.encode() not in path.read_bytes().upper(), path


def test_the_public_names_of_the_package_are_imported_on_first_use():
    script = (
        "import sys, mcis; assert not {'jax', 'numpy', 'cv2'} & sys.modules.keys(); mcis.Finding; "
        "assert all(hasattr(mcis, name) for name in mcis.__all__) and 'jax' not in sys.modules; "
        "assert not hasattr(mcis, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize(
    ("novelty", "prob", "needed", "words"),
    [
        (1.36, 0.9, 0.5, "(unlike all scans that mcis was trained on: 1.36 times the limit)"),
        (1.0004, 0.9, 0.5, "1.0004 times the limit)"),
        (0.5, 0.5, 0.81, "most similar to brain MRI (50 %, 81 % is needed). If it is one, use --organ=brain"),
        (0.5, 0.8099, 0.81, "(80.99 %, 81.00 % is needed)"),
    ],
)
def test_the_reason_of_the_router_is_in_plain_words(novelty, prob, needed, words):
    row = {"novelty": novelty, "organ_prob": prob, "needed": needed, "choice": 0}
    reason = _router_reason({name: np.float64(value) for name, value in row.items()})
    start = "looks like neither brain MRI nor breast ultrasound" if novelty > 1 else "organ uncertain: "
    assert reason.startswith(start) and words in reason
