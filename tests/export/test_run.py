"""run.py reads, letterboxes and unletterboxes images exactly as `mcis.imaging` does."""

import json
import pathlib
import random

import cv2
import numpy as np
import pytest

from mcis import MAX_PIXELS
from mcis.export import run
from mcis.imaging import formats, image_files, phantom
from mcis.imaging.letterbox import INPUT_SIZE, MIN_CONTENT, letterbox, unletterbox
from mcis.imaging.scan import ScanError
from mcis.inference.plausibility import picture_reason
from mcis.inference.result import result_of
from mcis.organs import ORGANS
from tests.lanes.fuzz import known_pictures


def images():
    rng = np.random.default_rng(0)
    yield from (one.image for one in phantom.make_phantoms(3, seed=7))
    for size in ((1, 1), (15, 300), (16, 16), (31, 640), (257, 255), (700, 90)):  # H, W
        yield rng.integers(0, 256, (*size, 3), np.uint8)
        yield np.full((*size, 3), 200, np.uint8)
        spot = np.zeros((*size, 3), np.uint8)
        spot[size[0] // 2 :, : size[1] // 3] = 180
        yield spot


def test_images_are_letterboxed_and_unletterboxed_as_in_mcis():
    rng = np.random.default_rng(1)
    boxes = set()
    for image in images():
        square, geometry = letterbox(image)
        other, box, inner = run.letterbox(image)
        assert (box, inner) == (geometry.box, geometry.inner)
        np.testing.assert_array_equal(other, square)
        soft = rng.random((INPUT_SIZE, INPUT_SIZE), np.float32)
        np.testing.assert_array_equal(
            run.unletterbox(soft, image.shape[:2], box, inner), unletterbox(soft, geometry), strict=True
        )
        boxes.add(box)
    assert len(boxes) > 12


def test_pictures_without_content_are_the_same_as_in_mcis():
    rng = np.random.default_rng(3)
    grey = phantom.make_phantom("brain", 1, seed=3, size=(200, 180)).image
    pictures = [np.full((100, 90, 3), 7, np.uint8), rng.integers(60, 64, (90, 90, 3), np.uint8), grey, grey // 10]
    pictures += [(grey > 60).astype(np.uint8) * np.uint8(255), rng.integers(0, 256, (256, 256, 3), np.uint8)]
    for image in (*images(), *pictures):
        square, geometry = letterbox(image)
        reason = picture_reason(square, geometry)
        if geometry.flaw is None:  # only mcis looks for missing parts and few levels
            assert run.without_content(square, geometry.inner) == (reason and reason.split(":")[0])
    empty = run.finding_of({}, False, {"organs": [], "what": "segment_brain"}, "blank")
    assert empty == {"organ": "unsupported", "reason": "blank"}


def test_the_operating_point_of_an_export_is_named(tmp_path, capsys):
    facts = {"what": "cascade", "notice": "Research only.", "model": {"file": "absent"}, "format": "onnx"}
    for point in ("sensitive", None):
        (tmp_path / "metadata.json").write_text(json.dumps(facts | {"operating_point": point}))
        assert run.main(["a.png"], tmp_path) == 2  # there is no model here
        said = capsys.readouterr().err
        assert ("labels are decided at the operating point sensitive" in said) == (point is not None)


def test_label_set_and_outer_outline_have_the_keys_and_values_of_findings(tmp_path, capsys, monkeypatch):
    image = np.full((256, 256, 3), 90, np.uint8)
    image[np.arange(256) // 4 % 2 == 0] = 200
    cv2.imwrite(str(tmp_path / "a.png"), image)
    probability = np.zeros((1, 256, 256, 1), np.float32)
    probability[:, 40:60, 30:80] = 0.2
    probability[:, 50:60, 70:90] = 0.9
    numbers = {"organ": 1, "choice": 1, "organ_prob": 0.9, "novelty": 0.5, "label": 2, "confidence": 0.4, "review": 0}
    outputs = {name: np.array([value]) for name, value in numbers.items()} | {"mask": probability}
    outputs |= {"segmented": np.array([True]), "label_probs": np.float32([[0.1, 0.3, 0.6]])}
    facts = {"what": "cascade", "notice": "Research only.", "refuses_thumbnails": True, "thresholds": {"mask": 0.5}}
    facts["organs"] = [{"name": organ.name, "classes": organ.classes} for organ in ORGANS]
    (tmp_path / "metadata.json").write_text(json.dumps(facts))

    def found(**more):
        row = outputs | {name: np.array([value]) for name, value in more.items()}
        monkeypatch.setattr(run, "load_model", lambda *_: lambda square: row)
        assert run.main([str(tmp_path / "a.png")], tmp_path) == 0
        return json.loads(capsys.readouterr().out)

    line = found(label_set=[False, True, True], outer=np.float32(0.1))
    row = {name: value[0] for name, value in outputs.items()} | {"label_set": [0, 1, 1], "outer": np.float32(0.1)}
    row |= {"certain": np.nan}
    expected = json.loads(result_of(formats.load(str(tmp_path / "a.png"), None), row).finding.to_json())
    assert line["label_set"] == ["benign", "malignant"] and line["outer_box"] == [30, 40, 60, 20]
    for name in ("label_set", "lesion_area_px", "outer_area_px", "outer_area_share", "outer_box"):
        assert line[name] == expected[name], name
    empty = {"label_set": [False] * 3, "outer": np.float32(np.nan)}
    assert not {"label_set", "outer_area_px", "outer_box", "organ_certain"} & set(found(**empty))  # an older export
    assert "organ_certain" not in found(**empty, certain=np.float32(np.nan))
    assert [found(**empty, certain=np.float32(limit))["organ_certain"] for limit in (0.5, 0.95)] == [True, False]


def files(folder):
    yield from phantom.write_examples(folder, per_class=2)
    rng = np.random.default_rng(2)
    arrays = {
        "alpha.png": rng.integers(0, 256, (40, 50, 4), np.uint8),
        "deep_alpha.png": rng.integers(0, 1 << 16, (40, 50, 4), np.uint16),
        "deep.png": rng.integers(100, 5000, (40, 50), np.uint16),
        "flat.png": np.full((40, 50), 300, np.uint16),
        "float.tif": rng.normal(size=(40, 50)).astype(np.float32),
        "holes.tif": np.where(rng.random((40, 50)) < 0.1, np.nan, rng.normal(size=(40, 50))).astype(np.float32),
        "colour_holes.tif": np.where(rng.random((40, 50, 3)) < 0.1, np.inf, 1 + rng.random((40, 50, 3))).astype("f4"),
    }
    for name, array in arrays.items():
        assert cv2.imwrite(str(folder / name), array)
        yield folder / name


def test_files_are_read_as_in_mcis(tmp_path):
    for path in files(tmp_path):
        np.testing.assert_array_equal(run.read(path), image_files.read(path).image, err_msg=path.name, strict=True)


def test_files_that_mcis_cannot_read_are_errors(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture at all")
    (tmp_path / "empty.png").write_bytes(b"")
    cv2.imwrite(str(tmp_path / "nan.tif"), np.full((20, 20), np.nan, np.float32))
    for name in ("broken.png", "empty.png", "nan.tif"):
        with pytest.raises(ScanError):
            image_files.read(tmp_path / name)
        with pytest.raises(ValueError, match=r"readable|NaN"):
            run.read(tmp_path / name)


def test_limits_are_equal_to_those_of_mcis():
    assert (run.INPUT_SIZE, run.MIN_CONTENT) == (INPUT_SIZE, MIN_CONTENT)
    assert run.MAX_BYTES == image_files.MAX_BYTES
    assert f"1 << {MAX_PIXELS.bit_length() - 1}" in pathlib.Path(run.__file__).read_text()


@pytest.mark.parametrize(
    "make", [known_pictures.turned, known_pictures.stored_tiff, known_pictures.cut], ids=lambda one: one.__name__
)
def test_a_file_is_turned_as_in_mcis_and_never_read_wrongly(make, tmp_path):
    equal = 0
    for seed in range(60):
        tree = make(random.Random(seed))
        (name,) = (name for name in tree if name.startswith("a."))
        (tmp_path / name).write_bytes(tree[name])
        try:
            found = run.read(tmp_path / name).astype(int)
        except ValueError:
            continue
        expected = image_files.read(tmp_path / name).image
        assert found.shape == expected.shape and np.abs(found - expected).max() <= 1
        equal += 1
    assert equal >= {known_pictures.turned: 60, known_pictures.stored_tiff: 3, known_pictures.cut: 0}[make]
