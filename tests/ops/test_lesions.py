"""Single lesions and their matches, by hand."""

import numpy as np
import pytest

from mcis.ops.lesions import SMALLEST, components, match_lesions

SHAPE = (40, 60)


def boxes(*places, shape=SHAPE):
    """A mask of rectangles, each (top, left, height, width)."""
    mask = np.zeros(shape, np.uint8)
    for top, left, height, width in places:
        mask[top : top + height, left : left + width] = 1
    return mask


def match(predicted, true, probability=None):
    return match_lesions(predicted, true, predicted.astype(np.float32) if probability is None else probability)


def test_parts_that_touch_at_a_corner_are_one_and_specks_are_none():
    corner = boxes((0, 0, 4, 4), (4, 4, 4, 4))
    assert components(corner).max() == 1
    assert components(boxes((0, 0, 4, 4), (5, 5, 4, 4))).max() == 2
    speck = boxes((0, 0, 1, SMALLEST - 1), (20, 0, 1, SMALLEST))
    assert components(speck).max() == 1 and components(speck)[0].max() == 0


def test_a_lesion_is_found_once_and_its_second_part_is_false():
    true = boxes((0, 0, 10, 20))
    broken = boxes((0, 0, 10, 8), (0, 12, 10, 8))  # two halves: each overlaps by 80 of 200
    found = match(broken, true)
    assert found.lesions == 1 and len(found.found) == 1 and len(found.false) == 1


def test_a_part_over_two_lesions_finds_one_of_them():
    found = match(boxes((0, 0, 10, 30)), boxes((0, 0, 10, 12), (0, 18, 10, 12)))
    assert found.lesions == 2 and len(found.found) == 1 and not found.false


@pytest.mark.parametrize(("width", "hit"), [(10, True), (9, False)])
def test_a_lesion_is_found_from_a_tenth_of_the_union_on(width, hit):
    true, predicted = boxes((0, 0, 10, 50)), boxes((0, 0, 5, width))  # 50 of 500 pixels, and 45
    found = match(predicted, true)
    assert (len(found.found), len(found.false)) == ((1, 0) if hit else (0, 1))


def test_as_many_lesions_as_possible_are_matched():
    """The first part overlaps both lesions (0.33 and 0.35 of the unions), the second the second lesion alone (0.2).

    To start with the largest overlap would leave the first lesion and the second part alone.
    """
    true = boxes((0, 0, 10, 10), (0, 12, 10, 20))
    first, second = (0, 0, 7, 26), (8, 12, 2, 20)
    probability = 0.6 * boxes(first) + 0.9 * boxes(second)
    assert match(boxes(first), true, probability).found == [0.6]
    assert match(boxes(first, second), true, probability) == (2, [0.6, 0.9], [])


def test_the_score_is_the_mean_probability_of_the_part():
    true, predicted = boxes((0, 0, 10, 10)), boxes((0, 0, 10, 10), (20, 20, 4, 5))
    probability = np.where(predicted, 0.6, 0.1)
    probability[:5, :10] = 1.0
    assert match(predicted, true, probability) == (1, [0.8], [0.6])


def test_nothing_predicted_and_nothing_there():
    empty, lesion = boxes(), boxes((0, 0, 10, 10))
    assert match(empty, empty) == (0, [], [])
    assert match(empty, lesion) == (1, [], [])
    assert match(lesion, empty) == (0, [], [1.0])
