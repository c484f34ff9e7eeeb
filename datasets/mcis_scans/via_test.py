import json
import math

import numpy as np
import pytest
from mcis_datasets.mcis_scans import via

from mcis.imaging.scan import ScanError

SIZE = (120, 160)
POLYGON: dict = {"name": "polygon", "all_points_x": [10, 90.5, 70, 15], "all_points_y": [20, 30, 100.5, 60]}
TRIANGLE: dict = {"name": "polygon", "all_points_x": [9.63, 101.37, 54.91], "all_points_y": [20.31, 24.77, 110.13]}


def shoelace(shape):
    x, y = np.array(shape["all_points_x"]), np.array(shape["all_points_y"])
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


@pytest.mark.parametrize(
    ("shape", "area", "centre"),
    [
        (POLYGON, shoelace(POLYGON), None),
        (TRIANGLE, shoelace(TRIANGLE), (np.mean(TRIANGLE["all_points_x"]), np.mean(TRIANGLE["all_points_y"]))),
        ({"name": "ellipse", "cx": 80.3, "cy": 55.7, "rx": 50, "ry": 20, "theta": 0.6}, math.pi * 1000, (80.3, 55.7)),
        ({"name": "ellipse", "cx": 80, "cy": 60, "rx": 11, "ry": 40}, math.pi * 440, (80, 60)),
        ({"name": "circle", "cx": 50.5, "cy": 60.2, "r": 30.3}, math.pi * 30.3**2, (50.5, 60.2)),
        ({"name": "rect", "x": 7, "y": 9, "width": 31, "height": 12}, 31 * 12, (22.5, 15)),
    ],
    ids=["polygon", "triangle", "ellipse", "ellipse without angle", "circle", "rect"],
)
def test_shapes_have_their_geometric_area_and_centre(shape, area, centre):
    mask = via.rasterise([shape], SIZE)
    assert mask.shape == (*SIZE, 1)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert mask.sum() == pytest.approx(area, rel=0.01)
    if centre:
        y, x = np.nonzero(mask[..., 0])
        assert (x.mean() + 0.5, y.mean() + 0.5) == pytest.approx(centre, abs=0.1)


def test_a_rectangle_covers_exactly_its_pixels():
    mask = via.rasterise([{"name": "rect", "x": 2, "y": 5, "width": 3, "height": 1}], (8, 9))
    assert np.argwhere(mask[..., 0]).tolist() == [[5, 2], [5, 3], [5, 4]]


def test_the_angle_rotates_x_towards_y():
    mask = via.rasterise([{"name": "ellipse", "cx": 80, "cy": 60, "rx": 50, "ry": 10, "theta": math.pi / 6}], SIZE)
    assert mask[60 + 20, 80 + 35]  # along +x and down the image
    assert not mask[60 - 20, 80 + 35]


def test_a_polygon_is_filled_by_its_winding_number_in_either_direction():
    forward = via.rasterise([POLYGON], SIZE)
    back = {**POLYGON, **{key: POLYGON[key][::-1] for key in ("all_points_x", "all_points_y")}}
    assert np.array_equal(forward, via.rasterise([back], SIZE))
    # A path that runs twice around the same square; the even-odd rule would leave it empty.
    twice = {"name": "polygon", "all_points_x": [5, 25, 25, 5] * 2, "all_points_y": [5, 5, 25, 25] * 2}
    assert via.rasterise([twice], SIZE).sum() == 400


def test_shapes_are_joined_and_clipped_at_the_image():
    shapes = [
        {"name": "rect", "x": -10, "y": -10, "width": 14, "height": 12},
        {"name": "circle", "cx": 160, "cy": 120, "r": 10},
    ]
    mask = via.rasterise(shapes, SIZE)
    assert mask[:2, :4].all()
    assert mask.sum() == pytest.approx(8 + math.pi * 100 / 4, abs=4)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"name": "polyline", "all_points_x": [1, 2], "all_points_y": [1, 2]}, "polygon, ellipse, circle, rect"),
        ({"name": "ellipse", "cx": 1, "cy": 1, "rx": 4}, "damaged ellipse"),
        ({"name": "circle", "cx": 1, "cy": 1, "r": 0}, "damaged circle"),
        ({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]}, "at least 3"),
        ({"name": "polygon", "all_points_x": [1, 2, "a"], "all_points_y": [1, 2, 3]}, "damaged polygon"),
        ({"name": "rect", "x": 500, "y": 0, "width": 5, "height": 5}, "no pixel"),
    ],
)
def test_shapes_without_area_are_an_error(shape, words):
    with pytest.raises(ScanError, match=words):
        via.rasterise([shape], SIZE)


def test_both_versions_of_exports_and_projects_are_read(tmp_path):
    shape = {"name": "circle", "cx": 1, "cy": 2, "r": 3}
    entry = {"filename": "a.jpg", "size": 9, "regions": [{"shape_attributes": shape}]}
    numbered = {**entry, "regions": {"0": {"shape_attributes": shape}}}
    for content in ({"a.jpg9": entry}, {"a.jpg9": numbered}, {"_via_img_metadata": {"a.jpg9": entry}}):
        (tmp_path / "via.json").write_text(json.dumps(content))
        assert via.read_outlines(tmp_path / "via.json") == {"a.jpg": [shape]}


@pytest.mark.parametrize("content", ["", "[1]", '{"a": {"filename": "a.jpg"}}', '{"a": 3}'])
def test_other_files_are_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "via.json").write_text(content)
    with pytest.raises(ValueError, match=r"via\.json: not a VIA"):
        via.read_outlines(tmp_path / "via.json")


@pytest.mark.parametrize(
    "shape",
    [
        {"name": "polygon", "all_points_x": [10**400, 1, 2], "all_points_y": [1, 2, 3]},
        {"name": "circle", "cx": 10**400, "cy": 1, "r": 1},
    ],
)
def test_very_large_numbers_are_damaged_outlines(shape):
    with pytest.raises(ScanError, match="outlined by a damaged"):
        via.rasterise([shape], (4, 4))


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": {"filename": 5, "regions": [5]}}'])
def test_files_that_resemble_annotations_are_an_error(content, tmp_path):
    (tmp_path / "via.json").write_text(content)
    with pytest.raises(ValueError, match="not a VIA annotation file"):
        via.read_outlines(tmp_path / "via.json")
