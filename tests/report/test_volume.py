"""Slices summed up by volume: by hand, in any order, and honest about what is not known."""

import dataclasses
import itertools
import json
import math
import random

import pytest

from mcis.report import volume
from mcis.report.finding import Finding
from mcis.report.volume import summarise


def slice_at(position, label="tumor", area=None, series="a", **fields):
    """A slice at a place, of pixels of 0.5 x 0.25 mm, with so many pixels of a lesion."""
    found = Finding(f"{series}/{position}.dcm", None, "brain", 0.9, label, series=series, position_mm=position)
    found = dataclasses.replace(
        found, slice_normal=[0.0, 0.0, 1.0], spacing_mm=[0.5, 0.25], confidence=0.9, review=False
    )
    if area is not None:
        measured = {"lesion_area_px": area, "lesion_area_mm2": area * 0.125}
        longest = {"diameter_px": math.sqrt(area), "diameter_mm": math.sqrt(area) / 4}
        found = dataclasses.replace(found, mask="masks/x.png", boxes=[[0, 0, 1, 1]], **measured, **longest)
    return dataclasses.replace(found, **fields)


HEAD = [
    slice_at(0.0, "no_tumor"),
    slice_at(3.0, area=40),
    slice_at(6.0, area=100),
    slice_at(9.0, area=16),
    slice_at(12.0, "no_tumor", review=True),
    slice_at(15.0, None, organ="unsupported", review=None),
]


def only(findings):
    (volume,) = summarise(findings)
    return volume


def test_a_volume_by_hand():
    found = only([Finding("other.png", organ="brain"), *HEAD])
    assert (found.series, found.kind, found.scan, found.lines) == ("a", "series", "a/0.0.dcm", [1, 6])
    assert (found.slices, found.errors, found.organs) == (6, 0, {"brain": 5, "unsupported": 1})
    assert (found.organ, found.label, found.labels, found.review) == ("brain", "tumor", {"no_tumor": 1, "tumor": 3}, 1)
    assert (found.lesion_slices, found.first, found.last, found.largest, found.longest) == (3, 2, 4, 3, 3)
    assert found.lesion_volume_mm3 == pytest.approx((40 + 100 + 16) * 0.5 * 0.25 * 3)
    assert found.diameter_mm == pytest.approx(2.5) and found.spacing_mm == [3.0, 0.5, 0.25]
    assert found.notes == ["unsupported slices, on which nothing was looked for: 1"]


def test_the_order_of_slices_changes_nothing_but_their_lines():
    rng, expected = random.Random(0), only(HEAD)
    for _ in range(20):
        order = rng.sample(range(len(HEAD)), len(HEAD))
        found = only([HEAD[i] for i in order])
        for name in ("first", "last", "largest", "longest"):
            assert order[getattr(found, name)] == getattr(expected, name)
        for name in ("organs", "organ", "label", "labels", "lesion_volume_mm3", "spacing_mm", "notes"):
            assert getattr(found, name) == getattr(expected, name)


def test_volumes_may_lie_one_within_another():
    other = [dataclasses.replace(one, series="b", frame=i, scan="b.nii") for i, one in enumerate(HEAD)]
    mixed = list(itertools.chain(*zip(HEAD, other, strict=True)))
    first, second = summarise(mixed)
    assert (first.series, second.series, second.kind) == ("a", "b", "file")
    assert first.lesion_volume_mm3 == second.lesion_volume_mm3 == only(HEAD).lesion_volume_mm3
    assert (first.lines, second.lines) == ([0, 10], [1, 11])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda found: found[:2] + found[3:], "missing or unevenly spaced: one lies 6 mm after that at 3 mm, where 3"),
        (lambda found: [*found, slice_at(15.2)], "unevenly spaced"),
        (lambda found: [*found, slice_at(3.0, area=5)], "lie where another does: 1"),
        (lambda found: [*found, slice_at(None)], "without a position: 1"),
        (lambda found: [*found, slice_at(18.0, slice_normal=[0.0, 0.6, 0.8])], "not parallel to the first: 1"),
    ],
)
def test_slices_that_are_not_even_have_no_volume_and_a_note(change, says):
    found = only(change(HEAD))
    assert found.lesion_volume_mm3 is None and found.spacing_mm[0] is None
    assert any(says in note for note in found.notes)
    assert found.lesion_slices >= 2 and found.diameter_mm is not None


def test_rounding_of_positions_is_no_unevenness():
    found = only([slice_at(round(0.6249 * i, 2), area=8) for i in range(30)])
    assert found.spacing_mm[0] == pytest.approx(0.6249, abs=1e-3) and not found.notes
    assert found.lesion_volume_mm3 == pytest.approx(30 * 8 * 0.125 * 0.6249, rel=1e-3)


def test_without_any_position_slices_stand_in_order_of_their_lines():
    found = only([dataclasses.replace(one, position_mm=None, frame=i) for i, one in enumerate(HEAD)])
    assert (found.first, found.last, found.lesion_volume_mm3, found.kind) == (1, 3, None, "file")
    assert found.notes[0] == "slices without a position: 6"


def test_without_a_spacing_of_pixels_areas_are_compared_in_pixels():
    blank = {"spacing_mm": None, "lesion_area_mm2": None, "diameter_mm": None}
    found = only([dataclasses.replace(one, **blank) for one in HEAD])
    assert (found.largest, found.longest, found.diameter_mm, found.lesion_volume_mm3) == (2, 2, None, None)
    assert found.spacing_mm == [3.0, None, None]


def test_pixels_that_are_spaced_otherwise_are_noted_and_counted_by_their_own():
    changed = dataclasses.replace(HEAD[1], spacing_mm=[1.0, 1.0], lesion_area_mm2=40.0, diameter_mm=9.0)
    found = only([HEAD[0], changed, *HEAD[2:]])
    assert found.spacing_mm == [3.0, None, None] and "spaced otherwise" in " ".join(found.notes)
    assert found.lesion_volume_mm3 == pytest.approx((40 + 100 * 0.125 + 16 * 0.125) * 3) and found.largest == 1


def test_one_slice_and_one_that_could_not_be_read():
    found = only([slice_at(0.0, area=10), Finding("a/x.dcm", error="broken", series="a")])
    assert (found.slices, found.errors, found.lesion_volume_mm3, found.spacing_mm[0]) == (1, 1, None, None)
    broken = only([Finding("a/x.dcm", error="broken", series="a")])
    assert (broken.slices, broken.errors, broken.kind, broken.organ, broken.label) == (0, 1, None, None, None)


def test_what_could_not_be_read_may_have_had_a_lesion():
    found = only([*HEAD, Finding("a/x.dcm", series="a", error="damaged")])
    assert found.lesion_volume_mm3 is None and found.lesion_slices == 3
    assert "slices that could not be read: 1" in found.notes


def breast(label, position, **fields):
    return slice_at(position, label, organ="breast", **fields)


@pytest.mark.parametrize(
    ("findings", "organ", "label"),
    [
        ([breast("benign", 0.0), breast("malignant", 1.0, review=True), breast("normal", 2.0)], "breast", "benign"),
        ([breast("normal", 0.0), breast("malignant", 1.0), breast("benign", 2.0)], "breast", "malignant"),
        ([breast("normal", 0.0), breast("benign", 1.0, review=None)], "breast", "benign"),
        ([breast("benign", 0.0, review=True)], "breast", None),
        ([breast("malignant", 0.0), slice_at(1.0, "no_tumor")], "brain", "no_tumor"),  # a tie: the first of ORGANS
        ([slice_at(float(i), None, organ="unsupported") for i in range(3)], "unsupported", None),
        (
            [slice_at(0.0, None, organ="unsupported"), slice_at(1.0, None, organ="unsupported"), HEAD[0]],
            "brain",
            "no_tumor",
        ),
    ],
)
def test_organ_and_label_of_a_volume(findings, organ, label):
    found = only(findings)
    assert (found.organ, found.label) == (organ, label)
    assert ("no slice is sure of its label" in found.notes) == (organ == "breast" and label is None)


def test_lesions_of_another_organ_are_left_out_and_noted():
    found = only([*HEAD, breast("malignant", 18.0, area=900)])
    assert (found.lesion_slices, found.largest, found.label) == (3, 2, "tumor")
    assert "slices of another organ, left out of all that follows: 1 breast" in found.notes


def test_a_line_holds_every_key():
    line = json.loads(only(HEAD).to_json())
    assert tuple(line) == volume.KEYS and line["segmentations"] == []


def test_many_slices_take_little_memory():
    import tracemalloc

    def stream():
        for i in range(5000):
            yield slice_at(float(i % 1000), series=f"{i // 1000}", area=9)

    tracemalloc.start()
    assert sum(volume.slices for volume in summarise(stream())) == 5000
    assert tracemalloc.get_traced_memory()[1] < 5000 * 100
    tracemalloc.stop()
