"""Volumes from findings: sums by hand, any order of slices, and notes about what is unknown."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcis.report import volume
from mcis.report.finding import Finding
from mcis.report.volume import summarise


def slice_at(position, label="tumor", area=None, series="a", **fields):
    """A slice with pixels of 0.5 x 0.25 mm and a lesion of `area` pixels."""
    finding = Finding(f"{series}/{position}.dcm", None, "brain", 0.9, label, series=series, position_mm=position)
    finding = dataclasses.replace(
        finding, slice_normal=[0.0, 0.0, 1.0], spacing_mm=[0.5, 0.25], confidence=0.9, review=False
    )
    if area is not None:
        areas = {"lesion_area_px": area, "lesion_area_mm2": area * 0.125}
        diameters = {"diameter_px": math.sqrt(area), "diameter_mm": math.sqrt(area) / 4}
        finding = dataclasses.replace(finding, mask="masks/x.png", boxes=[[0, 0, 1, 1]], **areas, **diameters)
    return dataclasses.replace(finding, **fields)


HEAD = [
    slice_at(0.0, "no_tumor"),
    slice_at(3.0, area=40),
    slice_at(6.0, area=100),
    slice_at(9.0, area=16),
    slice_at(12.0, "no_tumor", review=True),
    slice_at(15.0, None, organ="unsupported", review=None),
]


def only(findings):
    (result,) = summarise(findings)
    return result


def test_a_volume_computed_by_hand():
    result = only([Finding("other.png", organ="brain"), *HEAD])
    assert (result.series, result.kind, result.scan, result.lines) == ("a", "series", "a/0.0.dcm", [1, 6])
    assert (result.slices, result.errors, result.organs) == (6, 0, {"brain": 5, "unsupported": 1})
    assert (result.organ, result.label, result.review) == ("brain", "tumor", 1)
    assert result.labels == {"no_tumor": 1, "tumor": 3}
    assert (result.lesion_slices, result.first, result.last, result.largest, result.longest) == (3, 2, 4, 3, 3)
    assert result.lesion_volume_mm3 == pytest.approx((40 + 100 + 16) * 0.5 * 0.25 * 3)
    assert result.diameter_mm == pytest.approx(2.5) and result.spacing_mm == [3.0, 0.5, 0.25]
    assert result.notes == ["unsupported slices, not analysed: 1"]


AREAS = st.lists(st.none() | st.integers(1, 2000), min_size=2, max_size=12).filter(any)
STEPS = st.floats(0.5, 20)
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)


def stack(areas, step, start=0.0):
    """Evenly spaced slices with lesions of these areas; None is a slice without a lesion."""
    labels = ["tumor" if area else "no_tumor" for area in areas]
    return [slice_at(start + k * step, labels[k], area) for k, area in enumerate(areas)]


@PROPERTY
@given(AREAS, STEPS, st.randoms(use_true_random=False))
def test_the_order_of_slices_changes_only_line_numbers(areas, step, rng):
    findings = stack(areas, step)
    order = list(range(len(findings)))
    rng.shuffle(order)
    expected, result = only(findings), only([findings[k] for k in order])
    for name in ("first", "last"):
        assert order[getattr(result, name)] == getattr(expected, name)
    for name in ("largest", "longest"):  # of equal ones the first line
        assert areas[order[getattr(result, name)]] == areas[getattr(expected, name)]
    assert result.lesion_volume_mm3 == pytest.approx(expected.lesion_volume_mm3)
    for name in ("slices", "organs", "organ", "label", "labels", "lesion_slices", "diameter_mm", "spacing_mm", "notes"):
        assert getattr(result, name) == getattr(expected, name)


@PROPERTY
@given(AREAS, STEPS)
def test_the_volume_of_evenly_spaced_slices_is_the_sum_of_areas_times_the_spacing(areas, step):
    result = only(stack(areas, step))
    assert result.lesion_volume_mm3 == pytest.approx(sum(area or 0 for area in areas) * 0.125 * step)
    assert result.spacing_mm == [pytest.approx(step), 0.5, 0.25] and not result.notes
    assert result.lesion_slices == sum(area is not None for area in areas)


@PROPERTY
@given(AREAS, STEPS, st.floats(-500, 500), st.booleans())
def test_shifted_or_flipped_positions_give_the_same_volume(areas, step, shift, flip):
    expected, moved = only(stack(areas, step)), stack(areas, step, shift)
    if flip:
        moved = [dataclasses.replace(finding, position_mm=-finding.position_mm) for finding in moved]
    result = only(moved)
    ends = (result.last, result.first) if flip else (result.first, result.last)
    assert ends == (expected.first, expected.last)
    assert result.lesion_volume_mm3 == pytest.approx(expected.lesion_volume_mm3)
    assert result.notes == expected.notes and result.spacing_mm[0] == pytest.approx(step)


@PROPERTY
@given(st.integers(4, 12), STEPS, st.data())
def test_a_missing_inner_slice_is_reported_and_leaves_the_volume_unknown(count, step, data):
    missing = data.draw(st.integers(1, count - 2))
    findings = stack([10] * count, step)
    del findings[missing]
    result = only(findings)
    assert result.lesion_volume_mm3 is None and result.spacing_mm[0] is None
    assert result.notes[0].startswith("slices are missing or unevenly spaced: ")
    assert result.lesion_slices == result.slices == count - 1


@PROPERTY
@given(st.sets(st.integers(0, 15), min_size=2), STEPS)
def test_any_uneven_gap_is_reported(places, step):
    result = only([slice_at(place * step, area=10) for place in places])
    gaps = set(np.diff(sorted(places)))
    assert (result.lesion_volume_mm3 is None) == (len(gaps) > 1) == bool(result.notes)


def test_volumes_may_interleave():
    other = [dataclasses.replace(finding, series="b", frame=i, scan="b.nii") for i, finding in enumerate(HEAD)]
    first, second = summarise(itertools.chain(*zip(HEAD, other, strict=True)))
    assert (first.series, second.series, second.kind) == ("a", "b", "file")
    assert first.lesion_volume_mm3 == second.lesion_volume_mm3 == only(HEAD).lesion_volume_mm3
    assert (first.lines, second.lines) == ([0, 10], [1, 11])


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda head: head[:2] + head[3:], "the slice after 3 mm is 6 mm away, the median is 3 mm"),
        (lambda head: [*head, slice_at(15.2)], "unevenly spaced"),
        (lambda head: [*head, slice_at(3.0, area=5)], "slices at the same position as another: 1"),
        (lambda head: [*head, slice_at(None)], "slices without a position: 1"),
        (lambda head: [*head, slice_at(18.0, slice_normal=[0.0, 0.6, 0.8])], "not parallel to the first: 1"),
    ],
)
def test_without_even_spacing_the_volume_is_unknown_and_a_note_says_why(change, note):
    result = only(change(HEAD))
    assert result.lesion_volume_mm3 is None and result.spacing_mm[0] is None
    assert any(note in text for text in result.notes)
    assert result.lesion_slices >= 2 and result.diameter_mm is not None


def test_rounded_positions_count_as_even():
    result = only([slice_at(round(0.6249 * i, 2), area=8) for i in range(30)])
    assert result.spacing_mm[0] == pytest.approx(0.6249, abs=1e-3) and not result.notes
    assert result.lesion_volume_mm3 == pytest.approx(30 * 8 * 0.125 * 0.6249, rel=1e-3)


def test_slices_without_positions_are_in_order_of_their_lines():
    result = only([dataclasses.replace(finding, position_mm=None, frame=i) for i, finding in enumerate(HEAD)])
    assert (result.first, result.last, result.lesion_volume_mm3, result.kind) == (1, 3, None, "file")
    assert result.notes[0] == "slices without a position: 6"


def test_without_pixel_spacing_areas_are_compared_in_pixels():
    unknown = {"spacing_mm": None, "lesion_area_mm2": None, "diameter_mm": None}
    result = only([dataclasses.replace(finding, **unknown) for finding in HEAD])
    assert (result.largest, result.longest, result.diameter_mm, result.lesion_volume_mm3) == (2, 2, None, None)
    assert result.spacing_mm == [3.0, None, None]


def test_varying_pixel_spacing_is_noted_and_each_slice_counts_with_its_own():
    changed = dataclasses.replace(HEAD[1], spacing_mm=[1.0, 1.0], lesion_area_mm2=40.0, diameter_mm=9.0)
    result = only([HEAD[0], changed, *HEAD[2:]])
    assert result.spacing_mm == [3.0, None, None]
    assert "slices with another pixel spacing than the first: 1" in result.notes
    assert result.lesion_volume_mm3 == pytest.approx((40 + 100 * 0.125 + 16 * 0.125) * 3) and result.largest == 1


def test_a_single_slice_and_unreadable_slices():
    broken = Finding("a/x.dcm", error="broken", series="a")
    result = only([slice_at(0.0, area=10), broken])
    assert (result.slices, result.errors, result.lesion_volume_mm3, result.spacing_mm[0]) == (1, 1, None, None)
    result = only([broken])
    assert (result.slices, result.errors, result.kind, result.organ, result.label) == (0, 1, None, None, None)


def test_an_unreadable_slice_leaves_the_volume_unknown():
    result = only([*HEAD, Finding("a/x.dcm", series="a", error="damaged")])
    assert result.lesion_volume_mm3 is None and result.lesion_slices == 3
    assert "slices that could not be read: 1" in result.notes


def breast(label, position, **fields):
    return slice_at(position, label, organ="breast", **fields)


def unsupported(position):
    return slice_at(position, None, organ="unsupported")


@pytest.mark.parametrize(
    ("findings", "organ", "label"),
    [
        ([breast("benign", 0.0), breast("malignant", 1.0, review=True), breast("normal", 2.0)], "breast", "benign"),
        ([breast("normal", 0.0), breast("malignant", 1.0), breast("benign", 2.0)], "breast", "malignant"),
        ([breast("normal", 0.0), breast("benign", 1.0, review=None)], "breast", "benign"),
        ([breast("benign", 0.0, review=True)], "breast", None),
        ([breast("malignant", 0.0), slice_at(1.0, "no_tumor")], "brain", "no_tumor"),  # a tie: the first of ORGANS
        ([unsupported(float(i)) for i in range(3)], "unsupported", None),
        ([unsupported(0.0), unsupported(1.0), HEAD[0]], "brain", "no_tumor"),
    ],
)
def test_organ_and_label_of_a_volume(findings, organ, label):
    result = only(findings)
    assert (result.organ, result.label) == (organ, label)
    assert ("no slice with a confident label" in result.notes) == (organ == "breast" and label is None)


def test_lesions_of_another_organ_are_noted_and_not_counted():
    result = only([*HEAD, breast("malignant", 18.0, area=900)])
    assert (result.lesion_slices, result.largest, result.label) == (3, 2, "tumor")
    assert "slices of another organ, not counted in label and lesions: 1 breast" in result.notes


def test_a_line_has_every_key_in_order():
    line = json.loads(only(HEAD).to_json())
    assert tuple(line) == volume.KEYS and line["segmentations"] == []


def test_many_slices_need_little_memory():
    import tracemalloc

    def stream():
        for i in range(5000):
            yield slice_at(float(i % 1000), series=f"{i // 1000}", area=9)

    tracemalloc.start()
    assert sum(result.slices for result in summarise(stream())) == 5000
    assert tracemalloc.get_traced_memory()[1] < 5000 * 100
    tracemalloc.stop()
