"""Strata of an evaluation: their values, intervals and tables; all rows are made by hand."""

from dataclasses import replace

import numpy as np
import pytest

from mcis.cli import evaluate
from mcis.evaluation import by_attribute as module
from mcis.evaluation.by_attribute import by_attribute, check_names, names_of
from mcis.evaluation.metrics import measure
from mcis.evaluation.page_by_attribute import attribute_section, metrics_of
from mcis.inference.rows import UNSUPPORTED_INDEX, Rows
from mcis.tasks.table import TASKS

N = 120


def rows_of(attributes, seed=0):
    """A cascade's rows: half brain, half breast, some rejected, some of unknown class; a group is two scans."""
    rng = np.random.default_rng(seed)
    organ = np.arange(N) // 2 % 2
    said = np.where(rng.random(N) < 0.2, UNSUPPORTED_INDEX, organ)
    label = np.where(rng.random(N) < 0.1, -1, rng.integers(0, 2, N) + (organ == 1) * rng.integers(0, 2, N))
    probs = rng.dirichlet([1, 1, 1], N) * (said == organ)[:, None]
    true = np.where(label > 0, rng.integers(1, 400, N), 0)
    both = np.where(said == organ, true * rng.random(N), 0).astype(int)
    return Rows(
        source=np.full(N, "busi"),
        group=np.array([f"g{k // 2}" for k in range(N)]),
        scan_id=np.arange(N).astype(str),
        label=label,
        has_mask=rng.random(N) < 0.9,
        attributes=np.array([attributes(k) for k in range(N)], object),
        both=both,
        predicted=both + 3,
        true=true,
        pixels=np.full(N, 10_000),
        dice_loss=rng.random(N),
        hd95=np.full(N, np.nan),
        surface_distance=np.full(N, np.nan),
        organ=organ,
        said_organ=said,
        said_label=np.where(said == organ, rng.integers(0, 2, N), -1),
        organ_prob=rng.random(N),
        novelty=rng.random(N),
        label_probs=probs,
    )


def by_site(k):
    return {"site": "A" if k < 80 else "B"} if k < 100 else {}


NAMES = {
    "accuracy",
    "sensitivity_brain_tumor",
    "auc_brain_tumor",
    "sensitivity_breast_malignant",
    "auc_breast_malignant",
    "dice_lesion",
    "refused",
}


def test_a_stratum_has_the_metrics_of_its_scans_alone():
    rows = rows_of(by_site)
    found = by_attribute(None, rows, draws=50)
    assert list(found) == ["site"] and list(found["site"]["values"]) == ["A", "B"]
    assert found["site"]["not_stated"] == {"scans": 20, "groups": 10}
    for value, chosen in (("A", slice(0, 80)), ("B", slice(80, 100))):
        part = found["site"]["values"][value]
        own = rows.take(np.arange(N)[chosen])
        measured = measure(None, own)
        assert (part["scans"], part["groups"], part["few"]) == (len(own), len(own) // 2, False)
        assert set(part["metrics"]) == NAMES
        for name, metric in part["metrics"].items():
            assert metric["value"] == pytest.approx(measured[name], abs=1e-12), name
            assert metric["low"] is None or metric["low"] <= metric["value"] <= metric["high"]
        assert part["metrics"]["accuracy"]["low"] < part["metrics"]["accuracy"]["high"]


@pytest.mark.parametrize("name", ["route", "classify_breast", "segment_breast"])
def test_strata_of_one_network_have_the_metrics_of_its_task(name):
    task, rng = TASKS[name], np.random.default_rng(1)
    rows = rows_of(by_site)
    probs = rng.dirichlet([1] * len(task.classes), N)
    label = rows.organ if task.organ is None else rows.label
    rows = replace(rows, label=label, probs=probs, refused=rng.random(N) < 0.3 if task.organ is None else None)
    part = by_attribute(task, rows, draws=20)["site"]["values"]["B"]["metrics"]
    measured = measure(task, rows.take(np.arange(80, 100)))
    expected = {
        "route": {"accuracy", "refused"},
        "classify_breast": {"accuracy", "sensitivity_malignant", "auc_malignant"},
    }
    expected["segment_breast"] = expected["classify_breast"] | {"dice_lesion"}
    assert set(part) == expected[name]
    assert {key: metric["value"] for key, metric in part.items()} == pytest.approx({key: measured[key] for key in part})


def test_intervals_are_by_group():
    """All scans of a group alike: the interval is that of the groups, wider than that of as many lone scans."""
    rows = rows_of(lambda k: {"site": "A" if k < 60 else "B"})
    group = np.array([f"g{k // 5}" for k in range(N)])
    right = np.arange(N) // 5 % 2 == 0
    rows = replace(rows, label=np.ones(N, int), said_organ=rows.organ, said_label=right * 1)
    alone = by_attribute(None, rows, draws=300)["site"]["values"]["A"]["metrics"]["accuracy"]
    grouped = by_attribute(None, replace(rows, group=group), draws=300)["site"]["values"]["A"]["metrics"]["accuracy"]
    assert alone["value"] == grouped["value"] == 0.5
    assert grouped["high"] - grouped["low"] > 1.4 * (alone["high"] - alone["low"])


def test_fewer_than_ten_groups_have_no_interval_and_are_marked():
    rows = rows_of(lambda k: {"site": "A" if k < 18 else "B" if k < 38 else "C"})
    values = by_attribute(None, rows, draws=20)["site"]["values"]
    assert [(part["groups"], part["few"]) for part in values.values()] == [(9, True), (10, False), (41, False)]
    few = values["A"]["metrics"]
    assert few["accuracy"]["value"] == measure(None, rows.take(np.arange(18)))["accuracy"]
    assert all((metric["low"], metric["high"]) == (None, None) for metric in few.values())


def test_attributes_of_one_value_or_of_more_than_twenty_have_no_strata_and_by_chooses(monkeypatch):
    def stated(k):
        return {"one": "x", "many": str(k % 21), "birads": ("10", "4a", "2")[k % 3], "site": str(k % 20)}

    rows = rows_of(stated)
    monkeypatch.setattr(module, "intervals", lambda score, group, draws: {})
    assert list(by_attribute(None, rows)) == ["birads", "site"]
    assert list(by_attribute(None, rows)["birads"]["values"]) == ["2", "4a", "10"]
    assert list(by_attribute(None, rows, ["birads"])) == ["birads"]
    assert by_attribute(None, replace(rows, attributes=None)) == {}
    assert by_attribute(None, rows_of(lambda k: {})) == {}


def test_names_that_cannot_be_chosen_are_errors_that_list_the_others():
    records = [{"attributes": f'{{"site": "{k % 2}", "one": "x", "id": "{k}"}}'.encode()} for k in range(30)]
    check_names(names_of(" Site,"), records)
    check_names((), iter(()))
    for name, words in {
        "birads": "--by=birads: the attribute birads is stated of none of the scans; .* These scans have: site$",
        "one": "the attribute one has 1 different values here; --by takes attributes with 2 to 20",
        "id": "has 30 different values here",
    }.items():
        with pytest.raises(ValueError, match=words):
            check_names(("site", name), records)


def test_columns_have_one_order_whatever_the_first_value_lacks():
    values = {"1": {"metrics": {"refused": 0, "accuracy": 0}}, "2": {"metrics": {"dice_lesion": 0, "auc_x": 0}}}
    assert metrics_of({"values": values}) == ["accuracy", "auc_x", "dice_lesion", "refused"]


def test_the_page_and_the_terminal_show_each_attribute_once(capsys):
    rows = rows_of(lambda k: {"site": "<b>A" if k < 18 else "B", "birads": "2" if k % 2 else "5"} if k < 100 else {})
    found = {"by_attribute": by_attribute(None, rows, draws=20)}
    page = attribute_section(found)
    assert page.index("<h3>birads</h3>") < page.index("<h3>site</h3>") and page.count("<table>") == 2
    accuracy = found["by_attribute"]["site"]["values"]["<b>A"]["metrics"]["accuracy"]["value"]
    assert f"{accuracy:.3f} <small>few</small>" in page
    assert "&lt;b&gt;A" in page and "<b>A" not in page
    assert page.count("<th>not stated</th>") == 2
    evaluate.print_by_attribute(found["by_attribute"])
    printed = capsys.readouterr().out
    assert "by site: value [95 % interval by group]" in printed and f"{accuracy:.3f} (few)" in printed
    assert attribute_section({}) == attribute_section({"by_attribute": {}}) == ""
