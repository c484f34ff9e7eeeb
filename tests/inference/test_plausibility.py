"""Scans that are unsupported whatever the networks predict: empty pictures, headers that contradict, thumbnails."""

import json

import cv2
import numpy as np
import pytest

from mcis.imaging import phantom
from mcis.imaging.letterbox import letterbox
from mcis.inference.plausibility import picture_reason
from mcis.organs import ORGANS, UNSUPPORTED
from tests.fixtures.bundles import numpy_predictor
from tests.fixtures.dicom_files import items, write

RNG = np.random.default_rng(0)
GREY = phantom.make_phantom("brain", 1, seed=3, size=(200, 180)).image[..., 0]
OPTIONS = (
    {},
    {"organ": "brain"},
    {"organ": "breast"},
    {"task": "segment_brain"},
    {"task": "route"},
    {"novelty": False},
)


def cut_jpeg(grey, share):
    """`grey` as a decoder shows its JPEG file where the entropy-coded data end early."""
    _, data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, 90])
    start = data.tobytes().index(b"\xff\xda")
    end = start + int((len(data) - start) * share)
    return cv2.imdecode(np.append(data[:end], [0xFF, 0xD9]).astype(np.uint8), cv2.IMREAD_GRAYSCALE)


EMPTY_PICTURES = {
    "black": (np.zeros((256, 256), np.uint8), "blank"),
    "grey": (np.full((300, 200), 128, np.uint8), "blank"),
    "white": (np.full((128, 256), 255, np.uint8), "blank"),
    "one pixel": (np.pad(np.array([[255]], np.uint8), 120), "blank"),
    "one bright line": (np.pad(np.full((1, 256), 255, np.uint8), ((100, 155), (0, 0))), "blank"),
    "two levels": (np.full((256, 256), 90, np.uint8) + (np.indices((256, 256))[0] > 99).astype(np.uint8), "nearly"),
    "faint noise": (RNG.integers(100, 105, (256, 256), np.uint8), "nearly"),
    "faint gradient": (np.tile(np.linspace(60, 66, 256).astype(np.uint8), (256, 1)), "nearly"),
    "black and white": ((GREY > 60).astype(np.uint8) * np.uint8(255), "black and white only ("),
    "a mask": (
        np.pad(np.full((50, 40), 255, np.uint8), 100),
        "black and white only (86% black, 13% white): perhaps a mask",
    ),
    "a mask of a dark grey": (np.pad(np.full((50, 40), 90, np.uint8), 100), "only 2 grey levels"),
    "labels": (np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4) // 3, np.full((60, 60), 40, np.uint8)), "only 6"),
    "overexposed": (np.clip((GREY.astype(int) - 40) * 8, 0, 255).astype(np.uint8), "saturated"),
    "stripes": (np.tile((np.arange(400) // 10 % 2 * 150 + 30).astype(np.uint8), (400, 1)), "only 2 grey levels"),
    "a ramp": (np.tile(np.arange(256, dtype=np.uint8), (256, 1)), "stripes: all its rows are alike"),
    "a ramp downwards": (np.tile(np.arange(256, dtype=np.uint8), (300, 1)).T, "stripes: all its columns are alike"),
    "noise": (RNG.integers(0, 256, (256, 256), np.uint8), "noise"),
    "noise of two levels": (RNG.integers(0, 2, (512, 512), np.uint8) * np.uint8(255), "noise"),
    "cut": (np.concatenate([GREY[:150], np.full((50, 180), 128, np.uint8)]), "cut"),
    "cut in the upper third": (np.concatenate([GREY[:60], np.full((140, 180), 128, np.uint8)]), "cut"),
}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", EMPTY_PICTURES)
def test_a_picture_without_content_is_unsupported_under_every_option(name, options):
    grey, word = EMPTY_PICTURES[name]
    found = numpy_predictor(**options).predict(grey).finding
    assert found.organ == UNSUPPORTED and found.reason.startswith(word), found.reason
    assert found.label is found.label_probs is found.confidence is found.review is found.boxes is found.header is None


@pytest.mark.parametrize("organ", ORGANS, ids=lambda organ: organ.name)
@pytest.mark.parametrize("contrast", [1.0, 0.3, 0.1])
@pytest.mark.parametrize("offset", [0, 100, 220])
def test_scans_of_low_contrast_are_answered(organ, contrast, offset):
    for label in range(len(organ.classes)):
        image = phantom.make_phantom(organ.name, label, seed=label).image
        image = np.clip(image * contrast + offset, 0, 255).astype(np.uint8)
        if contrast < 1 or offset == 0:
            assert picture_reason(*letterbox(image)) is None


@pytest.mark.parametrize("angle", [0, 1, 2])
def test_scans_in_other_frames_are_answered(angle):
    image = np.rot90(phantom.make_phantom("breast", 1, seed=4).image, angle)
    assert picture_reason(*letterbox(255 - image)) is None
    for border in (0, 90, 255):  # a page around a scan is not a cut
        assert picture_reason(*letterbox(np.pad(image, ((30, 30), (30, 30), (0, 0)), constant_values=border))) is None


def test_an_ultrasound_may_end_between_bars_or_fade_and_a_head_at_the_edge():
    grey = phantom.make_phantom("breast", 1, seed=1, size=(240, 240)).image[..., 0]
    faded = (grey * np.clip(np.linspace(3, -1, 240), 0, 1)[:, None]).astype(np.uint8)
    for whole in (np.pad(grey, ((30, 60), (0, 0))), np.pad(grey, ((4, 12), (0, 0))), faded):
        assert numpy_predictor(organ="breast").predict(whole).finding.organ == "breast"
    assert numpy_predictor(organ="brain").predict(GREY[:150]).finding.organ == "brain"


@pytest.mark.parametrize("sides", [(0, 0, 0, 60), (40, 0, 0, 0), (0, 30, 30, 0), (20, 20, 20, 20)], ids=str)
def test_a_small_slice_beside_a_white_margin_is_answered(sides):
    small = cv2.resize(GREY, (60, 70), interpolation=cv2.INTER_AREA)
    slice_ = np.pad(small, ((60, 70), (70, 70)))
    assert picture_reason(*letterbox(slice_[..., None].repeat(3, 2))) is None
    white = cv2.copyMakeBorder(slice_, *sides, cv2.BORDER_CONSTANT, value=255)
    assert picture_reason(*letterbox(white[..., None].repeat(3, 2))) is None


def test_few_pixels_that_are_far_brighter_are_named_as_the_cause():
    deep = GREY.astype(np.uint16) * 4
    deep[40, 50] = 65535
    found = numpy_predictor().predict((deep >> 8).astype(np.uint8)).finding  # as 16 bits are scaled to 8
    assert found.reason.startswith(("blank", "nearly constant"))
    assert "a few pixels that are far brighter than the others may be the cause" in found.reason
    assert "brighter" not in numpy_predictor().predict(np.zeros((200, 180), np.uint8)).finding.reason


def test_a_cut_scan_is_unsupported_under_every_option():
    grey = phantom.make_phantom("breast", 1, seed=1, size=(240, 240)).image[..., 0].copy()
    grey[100:] = 128
    assert letterbox(np.repeat(grey[..., None], 3, 2))[1].box[3] < 160  # the crop hides most of the filled area
    for options in OPTIONS:
        found = numpy_predictor(**options).predict(grey).finding
        assert found.organ == UNSUPPORTED and found.reason.startswith("cut") and found.label is None


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.85])
def test_what_a_decoder_fills_in_is_recognised(share):
    square, geometry = letterbox(np.repeat(cut_jpeg(GREY, share)[..., None], 3, axis=2))
    reason = picture_reason(square, geometry)
    assert reason is not None and reason.startswith("cut")


@pytest.mark.parametrize(
    "header",
    [
        {"RescaleSlope": 0, "RescaleIntercept": 7},
        {"WindowCenter": 5000, "WindowWidth": 10},
        {"WindowCenter": -5000, "WindowWidth": 10},
        {"WindowCenter": 60, "WindowWidth": 1},
        {"ModalityLUTSequence": items(LUTDescriptor=[256, 0, 16], LUTData=b"\t\0" * 256, ModalityLUTType="US")},
    ],
    ids=["slope 0", "window above", "window below", "window of width 1", "constant table"],
)
def test_a_window_or_scaling_that_leaves_nothing_is_unsupported(tmp_path, header):
    write(tmp_path / "a.dcm", GREY, **header)
    for options in OPTIONS:
        found = numpy_predictor(**options).predict(tmp_path / "a.dcm").finding
        assert found.error is None and found.organ == UNSUPPORTED
        assert (
            found.reason.startswith(("blank", "nearly constant", "saturated", "black and white only"))
            and "window" in found.reason
        )


def finding(tmp_path, grey, options, **header):
    write(tmp_path / "a.dcm", grey, **header)
    return numpy_predictor(**options).predict(tmp_path / "a.dcm").finding


def picture_of(organ):
    """A picture that `numpy_predictor` takes for an organ."""
    for odd in range(2):
        grey = GREY.copy()
        grey[:8, :8] = grey[:8, :8] // 2 * 2 + odd
        grey[0, 0] += odd
        for value in range(8):
            grey[100, 90] = 100 + value
            if numpy_predictor().predict(grey).finding.organ == organ:
                return grey
    raise AssertionError("none")


@pytest.mark.parametrize("options", [{}, {"novelty": False}, {"task": "route"}, {"threshold": 0.99}], ids=str)
@pytest.mark.parametrize("organ", ["brain", "breast"])
def test_a_header_that_names_another_modality_is_unsupported_whatever_the_router_thinks(tmp_path, options, organ):
    for code in ("CT", "XA", "MG"):
        found = finding(tmp_path, picture_of(organ), options, Modality=code)
        assert found.organ == UNSUPPORTED and found.header == f"Modality {code}" and found.label is None
        assert found.reason == (
            f"its header says Modality {code}; the organs that are analysed are brain MRI and breast ultrasound"
        )
        assert json.loads(found.to_json())["header"] == f"Modality {code}"


@pytest.mark.parametrize(("organ", "modality", "other"), [("brain", "MR", "US"), ("breast", "US", "MR")])
def test_the_organ_must_be_one_of_the_headers_modality(tmp_path, organ, modality, other):
    grey = picture_of(organ)
    found = finding(tmp_path, grey, {}, Modality=modality)
    assert (found.organ, found.header, found.reason) == (organ, None, None)
    found = finding(tmp_path, grey, {}, Modality=other)
    scan = next(one.scan for one in ORGANS if one.name == organ)
    assert (found.organ, found.header) == (UNSUPPORTED, f"Modality {other}")
    assert found.reason == f"the router takes it for a {scan}, but its header says Modality {other}"
    found = finding(tmp_path, grey, {"threshold": 0.99}, Modality=other)  # the router rejects it by itself
    assert found.organ == UNSUPPORTED and found.header is None and "organ uncertain" in found.reason


def test_a_header_without_modality_is_answered_with_a_note(tmp_path):
    for value in (None, "OT", "ZEPHYR"):
        found = finding(tmp_path, picture_of("brain"), {}, Modality=value, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
        assert found.organ == "brain" and any("judged by the picture" in note for note in found.notes)


@pytest.mark.parametrize("options", [{"organ": "brain"}, {"task": "segment_brain"}], ids=str)
def test_an_organ_that_the_user_states_overrides_the_header_with_a_note(tmp_path, options):
    found = finding(tmp_path, GREY, options, Modality="CT")
    assert found.organ == "brain" and found.label is not None and found.header is None
    assert any("its header says Modality CT, which contradicts brain MRI" in note for note in found.notes)
    found = finding(tmp_path, GREY, options, Modality="MR")
    assert not any("header" in note for note in found.notes)


@pytest.mark.parametrize("shape", [(1, 300), (400, 20)])
def test_a_strip_is_no_scan(shape):
    strip = np.random.default_rng(0).integers(0, 250, (*shape, 1)).astype(np.uint8).repeat(3, 2)
    assert picture_reason(*letterbox(strip)).startswith("a strip: ")
