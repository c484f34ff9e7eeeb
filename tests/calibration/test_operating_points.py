"""Operating points: the fit on tables whose answer follows by hand."""

import numpy as np
import pytest

from mcis.calibration import operating_points
from mcis.calibration.operating_points import fit_points, grid, not_reached
from mcis.inference.rows import Rows
from mcis.ops.points import POINTS
from mcis.organs import ORGANS

BRAIN, BREAST = ORGANS
TUMOR, NORMAL, BENIGN, MALIGNANT = 1, 0, 1, 2


def table(*scans):
    """Rows of (source, label, logits, how many)."""
    source = np.concatenate([[name] * count for name, _, _, count in scans])
    label = np.concatenate([[label] * count for _, label, _, count in scans])
    odds = np.exp(np.concatenate([[logits] * count for *_, logits, count in scans], dtype=np.float64))
    names = np.arange(len(source)).astype(str)
    probs = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
    return Rows(source=source, group=names, scan_id=names, label=label, has_mask=label > 0, probs=probs)


def two_hospitals(late):
    """`late` of the small one's 6 tumors are found from 0.5 on; 4 others of the large one are false alarms from 0.4."""
    return table(
        ("small", TUMOR, (0, -0.45), late),
        ("small", TUMOR, (0, 2), 6 - late),
        ("small", 0, (0, -2), 6),
        ("large", TUMOR, (0, 2), 40),
        ("large", 0, (0, -0.35), 4),
        ("large", 0, (0, -2), 34),
        ("large", -1, (0, 5), 9),  # of unknown class: left out
    )


def test_a_gain_within_one_standard_error_shifts_nothing():
    """The single tumor that a shift finds is absent from a third of the bootstrap samples."""
    points, facts = fit_points(BRAIN, two_hospitals(late=1))
    assert not points["balanced"].any()
    assert facts["points"]["balanced"]["mean_over_sources"] == facts["most_probable"]["mean_over_sources"]
    shifted, _ = fit_points(BRAIN, table(("x", TUMOR, (0, -0.45), 30), ("x", TUMOR, (0, 2), 30), ("x", 0, (0, -2), 60)))
    np.testing.assert_allclose(shifted["balanced"], [0, 0.5])


def test_the_balanced_point_is_the_mean_of_the_sources_and_the_others_start_from_it(monkeypatch):
    """Pooled, the shift 0 would win: 46 tumors hardly feel three more, 44 others feel four false alarms."""
    monkeypatch.setattr(operating_points, "_standard_error", lambda *_: 0.0)
    points, facts = fit_points(BRAIN, two_hospitals(late=3))
    assert list(points) == list(POINTS)
    assert all(shift.dtype == np.float32 and shift.shape == (2,) for shift in points.values())
    np.testing.assert_allclose(points["balanced"], [0, 0.5])  # the smallest of those that are as good
    np.testing.assert_allclose(points["sensitive"], [0, 0.5])  # it finds enough already
    np.testing.assert_allclose(points["specific"], [0, 0.3])  # the largest without the false alarms
    assert (facts["scans"], facts["groups"], facts["last_class"]) == (90, 90, "tumor")
    found = facts["points"]
    assert found["balanced"]["shift"] == {"no_tumor": 0.0, "tumor": 0.5}
    wanted = {"sensitivity": 1.0, "specificity": 40 / 44, "accuracy": 86 / 90, "balanced_accuracy": (1 + 40 / 44) / 2}
    small, large = np.sqrt([6, 38])
    wanted |= {"mean_over_sources": (1 + (small + large * 34 / 38) / (small + large)) / 2}
    assert {name: found["balanced"][name] for name in wanted} == pytest.approx(wanted)
    assert found["balanced"]["sources"]["large"] == {
        "scans": 78,
        "classes": {"no_tumor": 38, "tumor": 40},
        "sensitivity": 1.0,
        "specificity": pytest.approx(34 / 38),
        "accuracy": pytest.approx(74 / 78),
        "balanced_accuracy": pytest.approx((1 + 34 / 38) / 2),
    }
    assert found["specific"]["specificity"] == 1.0 and found["specific"]["sensitivity"] == pytest.approx(43 / 46)
    assert facts["most_probable"]["sensitivity"] == pytest.approx(43 / 46)
    assert [found[point].get("reached") for point in POINTS] == [None, True, True]
    assert [found[point].get("wanted") for point in POINTS] == [None, 0.90, 0.95] and not_reached(facts) == []


def test_the_lesion_free_class_and_the_last_are_shifted_and_the_others_are_not():
    rows = table(
        ("x", NORMAL, (0, 0.25, -3), 4),  # right from 0.3 on
        ("x", BENIGN, (-3, 0, -3), 4),
        ("x", MALIGNANT, (-3, 0, 2), 7),
        ("x", MALIGNANT, (-3, 0, -0.95), 1),  # right from 1.0 on
        ("x", MALIGNANT, (-3, 0, -9), 2),  # never
        ("no_normals", BENIGN, (-3, 0, -3), 18),
        ("no_normals", BENIGN, (-3, 0, -0.55), 2),  # wrong from 0.6 on
        ("no_normals", MALIGNANT, (-3, 0, 2), 8),
        ("no_normals", MALIGNANT, (-3, 0, -0.15), 2),  # right from 0.2 on
    )
    points, facts = fit_points(BREAST, rows)
    np.testing.assert_allclose(points["balanced"], [0.3, 0, 0.2], atol=1e-6)
    np.testing.assert_allclose(points["sensitive"], [0.3, 0, 1.0], atol=1e-6)  # 18 of 20
    np.testing.assert_allclose(points["specific"], [0.3, 0, 0.2], atol=1e-6)  # no false alarm there: it stays
    found = facts["points"]
    assert found["balanced"]["sensitivity"] == pytest.approx(17 / 20) and found["balanced"]["specificity"] == 1.0
    assert found["sensitive"]["sensitivity"] == pytest.approx(18 / 20)
    assert found["sensitive"]["specificity"] == pytest.approx(26 / 28)
    assert facts["most_probable"]["accuracy"] == pytest.approx((4 + 7 + 20 + 8) / 48)
    # a source without normals is scored by the classes that it has
    assert found["balanced"]["sources"]["no_normals"]["balanced_accuracy"] == 1.0
    assert found["balanced"]["sources"]["no_normals"]["classes"] == {"normal": 0, "benign": 20, "malignant": 10}


def test_a_source_with_few_scans_of_a_class_is_not_counted_for_it(monkeypatch):
    """A single normal scan that a shift of 0.8 finds must not remove the masks of two lesions elsewhere."""
    monkeypatch.setattr(operating_points, "_standard_error", lambda *_: 0.0)
    large = [("large", NORMAL, (3, 0, 0), 30), ("large", BENIGN, (-0.5, 0, -9), 2), ("large", BENIGN, (-3, 0, -9), 28)]
    points, _ = fit_points(BREAST, table(*large, ("small", NORMAL, (-0.75, 0, -9), 1)))
    assert not points["balanced"].any()
    points, _ = fit_points(BREAST, table(*large, ("small", NORMAL, (-0.75, 0, -9), 5)))
    np.testing.assert_allclose(points["balanced"], [0.8, 0, 0], atol=1e-6)


def test_lesions_are_decided_together():
    """No class has half, but a lesion has: its class is the likelier of the two."""
    rows = table(("a", BENIGN, np.log([0.4, 0.35, 0.25]), 5), ("a", NORMAL, np.log([0.6, 0.3, 0.1]), 5))
    points, facts = fit_points(BREAST, rows)
    assert not points["balanced"].any()
    assert facts["points"]["balanced"]["accuracy"] == 1.0 and facts["most_probable"]["accuracy"] == 0.5


def test_a_target_that_no_shift_reaches_is_said():
    rows = table(("a", TUMOR, (0, 2), 5), ("a", TUMOR, (0, -9), 5), ("a", 0, (0, -2), 3), ("a", 0, (0, 9), 1))
    points, facts = fit_points(BRAIN, rows)
    np.testing.assert_allclose(points["sensitive"], [0, 1.5])
    np.testing.assert_allclose(points["specific"], [0, -1.5])
    assert [facts["points"][point]["reached"] for point in ("sensitive", "specific")] == [False, False]
    assert not_reached(facts) == [
        "sensitive: the sensitivity of tumor is 0.500 at the end of the grid, not 0.90",
        "specific: the specificity of tumor is 0.750 at the end of the grid, not 0.95",
    ]


def test_what_cannot_be_measured_leaves_the_balanced_point():
    points, facts = fit_points(BRAIN, table(("a", 0, (0, 0.15), 4), ("a", 0, (0, -2), 4)))
    for point in ("balanced", "sensitive", "specific"):
        np.testing.assert_allclose(points[point], [0, -0.2])
    assert facts["points"]["sensitive"]["sensitivity"] is None and facts["points"]["specific"]["reached"]
    assert not_reached(facts) == ["sensitive: the sensitivity of tumor cannot be measured, not 0.90"]
    with pytest.raises(ValueError, match="no brain scan has a known class"):
        fit_points(BRAIN, table(("a", -1, (0, 1), 3)))


def test_the_grid_has_one_shift_for_two_classes_and_two_for_three():
    assert len(grid(BRAIN)) == 31 and {steps[0] for steps in grid(BRAIN)} == {0}
    assert len(grid(BREAST)) == 31**2 and {steps[1] for steps in grid(BREAST)} == {0}
    assert min(grid(BREAST)) == (-15, 0, -15) and max(grid(BREAST)) == (15, 0, 15)
