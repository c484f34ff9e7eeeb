"""Scans whose pixels are not square: the networks are given square ones, masks keep the scan's own grid."""

import itertools

import cv2
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcis.imaging import formats, phantom
from mcis.imaging.letterbox import letterbox, letterbox_mask, unletterbox
from mcis.imaging.pool import read_all
from tests.fixtures.bundles import numpy_predictor
from tests.fixtures.dicom_files import enhanced, items, write

GREY = phantom.make_phantom("brain", 1, seed=2, size=(256, 256)).image[..., 0]
ASPECTS = [0.25, 0.5, 0.8, 1 / 1.02, 1.05, 1.25, 1.5, 4.0]


def squeezed(grey, aspect):
    """A picture on a grid whose pixels are `aspect` times as high as wide."""
    height, width = grey.shape
    size = (round(width * aspect), height) if aspect < 1 else (width, round(height / aspect))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def disc(shape, centre, radius, aspect):
    """uint8 {0,1} (H, W): pixels whose centre is within `radius` of (x, y); lengths in pixel widths, edges at 0."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return ((x - centre[0]) ** 2 + (y * aspect - centre[1]) ** 2 <= radius**2).astype(np.uint8)


def centroid(mask):
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    return np.array([(mask * x).sum(), (mask * y).sum()]) / mask.sum()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    width=st.integers(60, 300),
    height=st.integers(60, 300),
    aspect=st.floats(0.25, 4.0),
    where=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.integers(64, 256),
    crop=st.booleans(),
)
def test_a_disc_is_round_in_the_square_and_comes_back_to_its_place(width, height, aspect, where, size, crop):
    extent = np.array([width, height * aspect])
    radius = 0.3 * extent.min()
    centre = radius + np.array(where) * (extent - 2 * radius)
    mask = disc((height, width), centre, radius, aspect)
    image = np.repeat(mask[..., None] * np.uint8(200), 3, axis=2)
    square, geometry = letterbox(image, size, crop, aspect)
    assert square.shape == (size, size, 3) and geometry.shape == (height, width) and geometry.aspect == aspect
    there = letterbox_mask(mask[..., None], geometry)[..., 0]
    (box_x, box_y, box_w, box_h), (inner_x, inner_y, inner_w, inner_h) = geometry.box, geometry.inner
    scale = np.array([inner_w / box_w, inner_h / box_h])
    expected = np.array([inner_x, inner_y]) + (centroid(mask) - (box_x, box_y)) * scale
    assert np.abs(centroid(there) - expected).max() < 0.5
    columns, rows = (int(there.any(axis).sum()) for axis in (0, 1))
    coarsest = max(*scale, scale[0] / scale[1], scale[1] / scale[0], 1)
    assert abs(columns - rows) <= 2 + coarsest + 0.02 * columns, (columns, rows)
    back = (unletterbox(there.astype(np.float32), geometry) >= 0.5).astype(np.uint8)
    assert back.shape == mask.shape
    assert (np.abs(centroid(back) - centroid(mask)) < 0.5 * np.maximum(1, 1 / scale)).all()
    if radius * scale[0] >= 3:  # the area of a smaller one changes with every pixel of the square
        assert int(back.sum()) == pytest.approx(int(mask.sum()), rel=0.15, abs=8 * coarsest)


@pytest.mark.parametrize("aspect", [0.5, 1 / 1.5, 0.8, 1.25, 1.5])
def test_a_squeezed_scan_is_shown_as_it_would_be_with_square_pixels(aspect):
    smooth = cv2.GaussianBlur(GREY, (0, 0), 2)  # noise does not survive the squeezing
    expected, _ = letterbox(np.repeat(smooth[..., None], 3, axis=2), 256, False)
    small = np.repeat(squeezed(smooth, aspect)[..., None], 3, axis=2)
    square, _ = letterbox(small, 256, False, small.shape[1] / small.shape[0])
    error = np.abs(square.astype(int) - expected).mean()
    wrong = np.abs(letterbox(small, 256, False)[0].astype(int) - expected).mean()
    assert error < 2 and wrong > 5 * error


def test_square_pixels_are_resized_as_ever():
    rng = np.random.default_rng(0)
    for shape in ((300, 140), (31, 40), (259, 195), (600, 21)):
        image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
        for crop in (False, True):
            square, geometry = letterbox(image, 128, crop)
            x, y, w, h = geometry.box
            _, _, inner_w, inner_h = inner = geometry.inner
            how = cv2.INTER_AREA if max(w, h) > 128 else cv2.INTER_LINEAR
            content = cv2.resize(image[y : y + h, x : x + w], (inner_w, inner_h), interpolation=how)
            np.testing.assert_array_equal(square[inner[1] : inner[1] + inner_h, inner[0] : inner[0] + inner_w], content)


def load(path):
    loaded = formats.load(str(path), None)
    assert loaded.error is None and loaded.image.shape[:2] == loaded.geometry.shape
    return loaded


def test_a_worker_tells_the_shape_of_pixels_as_it_is_read_here(tmp_path):
    write(tmp_path / "a.dcm", GREY, PixelSpacing=["0.9", "1.125"])
    write(tmp_path / "b.dcm", GREY, PixelAspectRatio=["4", "5"])
    paths = [tmp_path / "a.dcm", tmp_path / "b.dcm"]
    for path, found in zip(paths, read_all([(str(path), None) for path in paths], ahead=1), strict=True):
        here = load(path)
        assert found.error is None and found.geometry == here.geometry and found.geometry.aspect == 0.8
        assert found.notes == here.notes and found.spacing == here.spacing
        np.testing.assert_array_equal(found.square, here.square)


@pytest.mark.parametrize(
    ("header", "aspect", "spacing"),
    [
        ({"PixelSpacing": ["0.9", "1.125"]}, 0.8, (0.9, 1.125)),
        ({"PixelSpacing": ["1.35", "0.9"]}, 1.5, (1.35, 0.9)),
        ({"PixelSpacing": ["0.9", "0.909"]}, 1.0, (0.9, 0.909)),  # 1 %
        ({"PixelSpacing": ["0.9", "0.9"]}, 1.0, (0.9, 0.9)),
        ({"NominalScannedPixelSpacing": ["0.2", "0.25"]}, 0.8, (0.2, 0.25)),
        ({"ImagerPixelSpacing": ["0.2", "0.25"]}, 0.8, None),
        ({"PixelAspectRatio": ["4", "5"]}, 0.8, None),
        ({"PixelAspectRatio": ["1", "1"]}, 1.0, None),
        ({"PixelAspectRatio": ["4", "5"], "PixelSpacing": ["0.5", "0.5"]}, 1.0, (0.5, 0.5)),
        (
            {
                "SequenceOfUltrasoundRegions": items(
                    PhysicalUnitsXDirection=3, PhysicalUnitsYDirection=3, PhysicalDeltaX=0.02, PhysicalDeltaY=0.01
                )
            },
            0.5,
            (0.1, 0.2),
        ),
        ({}, 1.0, None),
    ],
    ids=str,
)
def test_a_dicom_file_states_the_shape_of_its_pixels(tmp_path, header, aspect, spacing):
    write(tmp_path / "a.dcm", GREY, **header)
    loaded = load(tmp_path / "a.dcm")
    assert loaded.geometry.aspect == pytest.approx(aspect)
    assert loaded.spacing == (None if spacing is None else pytest.approx(spacing))
    noted = [note for note in loaded.notes if "square" in note]
    assert len(noted) == (aspect != 1)
    if noted:
        ratio = f"1 : {1 / aspect:g}" if aspect < 1 else f"{aspect:g} : 1"
        assert ratio in noted[0] and "mask keeps its own grid" in noted[0]


@pytest.mark.parametrize("value", [["0.9", "9"], ["40", "1"], ["1e-9", "1"]], ids=str)
@pytest.mark.parametrize("name", ["PixelSpacing", "ImagerPixelSpacing"])
def test_a_ratio_that_cannot_be_is_not_believed(tmp_path, name, value):
    write(tmp_path / "a.dcm", GREY, **{name: value})
    loaded = load(tmp_path / "a.dcm")
    assert loaded.geometry.aspect == 1 and loaded.spacing is None
    assert any("not believed" in note or "implausible" in note for note in loaded.notes)


@pytest.mark.parametrize("value", [["0", "1"], ["1", "-2"], ["1"], "", None], ids=str)
def test_a_ratio_that_is_none_says_nothing(tmp_path, value):
    write(tmp_path / "a.dcm", GREY, PixelAspectRatio=value)
    loaded = load(tmp_path / "a.dcm")
    assert loaded.geometry.aspect == 1 and not any("square" in note for note in loaded.notes)


def test_a_frame_has_the_spacing_of_its_functional_group(tmp_path):
    enhanced([GREY, GREY], spacing=(0.5, 0.75)).save_as(tmp_path / "a.dcm", enforce_file_format=True)
    for loaded in itertools.starmap(formats.load, formats.frames(tmp_path / "a.dcm")):
        assert loaded.geometry.aspect == pytest.approx(2 / 3) and loaded.spacing == (0.5, 0.75)


@pytest.mark.parametrize(("zooms", "aspect"), [((1.0, 1.5, 5.0), 1.5), ((1.2, 0.8, 5.0), 2 / 3), ((1, 1.01, 5), 1.0)])
def test_a_nifti_volume_states_the_shape_of_its_pixels(tmp_path, zooms, aspect):
    volume = np.repeat(GREY[..., None], 3, axis=2).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([*zooms, 1])), tmp_path / "a.nii.gz")
    found = list(itertools.starmap(formats.load, formats.frames(tmp_path / "a.nii.gz")))
    assert [loaded.geometry.aspect for loaded in found] == pytest.approx([aspect] * 3)


@pytest.mark.usefixtures("no_networks")
@pytest.mark.parametrize("aspect", ASPECTS)
def test_the_mask_has_the_grid_of_the_scan_and_the_size_in_mm_does_not_change(tmp_path, aspect):
    found = {}
    for name, sides in (("square", (1.0, 1.0)), ("squeezed", (max(aspect, 1.0), max(1 / aspect, 1.0)))):
        grey = GREY if name == "square" else squeezed(GREY, aspect)
        write(tmp_path / "a.dcm", grey, PixelSpacing=[str(side) for side in sides])
        found[name] = numpy_predictor(task="segment_brain").predict(tmp_path / "a.dcm")
        assert found[name].mask.shape == grey.shape == found[name].overlay().shape[:2]
    areas = [one.finding.lesion_area_mm2 for one in found.values()]
    assert areas[1] == pytest.approx(areas[0], rel=0.05)
    assert found["squeezed"].finding.diameter_mm == pytest.approx(found["square"].finding.diameter_mm, rel=0.15)
