"""Shortcuts planted in a data set are found, in the metadata that show them; without a shortcut none is found."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from mcis.cli import shortcuts as shortcuts_command
from mcis.data import dataset
from mcis.evaluation import shortcuts
from mcis.evaluation.shortcuts import ImageMetadata, audit, metadata_of, network_predictions
from mcis.imaging.image_files import encode_png
from mcis.inference.rows import Rows
from mcis.tasks.table import TASKS

pytestmark = pytest.mark.usefixtures("few_draws")

BRAIN, BREAST = TASKS["classify_brain"], TASKS["classify_breast"]


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch):
    monkeypatch.setitem(shortcuts.LEARNER, "max_iter", 8)


def make_record(image, label, number, source="lgg", organ="brain"):
    facts = {
        "organ": organ,
        "group": f"p{number}",
        "source": source,
        "scan_id": f"s{number}",
        "fingerprint": f"f{number}",
    }
    return {"image": encode_png(image), "mask": encode_png(0 * image[..., :1]), "has_mask": True} | {
        "label": label,
        **{name: value.encode() for name, value in facts.items()},
    }


def by_aspect(label, rng):
    """Flat, of any grey and size: wide where the label is 1, else as tall as that is wide."""
    short = int(rng.integers(40, 60))
    shape = (short, short * 3 // 2) if label else (short * 3 // 2, short)
    return np.full((*shape, 3), rng.integers(60, 200), np.uint8)


def by_margin(label, rng):
    """A bright block in a black frame: at the right where the label is 1, else at the left; anywhere in height."""
    image = np.zeros((96, 96, 3), np.uint8)
    x, y = 48 if label else 8, int(rng.integers(4, 52))
    image[y : y + 40, x : x + 40] = rng.integers(60, 200)
    return image


def metadata(picture, seed, n=60):
    rng = np.random.default_rng(seed)
    return metadata_of(BRAIN, [make_record(picture(i % 2, rng), i % 2, i) for i in range(n)])


def made(x, label, source=None, seen=None):
    """Metadata of numbers (N,), the same for every view and family unless `seen` says more."""
    n = len(label)
    every = [f"{view} {family}" for view in shortcuts.VIEWS for family in (*shortcuts.FAMILIES, shortcuts.FRAME)]
    names = np.array([f"s{i}" for i in range(n)])
    source = np.full(n, "lgg") if source is None else np.array(source)
    rows = Rows(source=source, group=names, scan_id=names, label=np.array(label), has_mask=np.ones(n, bool))
    return ImageMetadata(rows, dict.fromkeys(every, x[:, None]) | (seen or {}))


def values(part, metric="balanced_accuracy"):
    return {who: metrics[metric]["value"] for who, metrics in part["metrics"].items() if metric in metrics}


def test_an_aspect_that_tells_the_class_is_found_and_the_letterbox_hands_it_to_the_border():
    found = audit(BRAIN, metadata(by_aspect, 0), metadata(by_aspect, 1), None, draws=50)
    said = values(found["sources"]["lgg"])
    assert said["stored size"] == said["stored frame"] == 1
    assert said["given size"] == said["chance"] == 0.5
    assert said["given border"] == said["given frame"] == 1
    for who in ("stored border", "stored histogram", "given histogram"):
        assert said[who] == pytest.approx(0.5, abs=0.2), who
    assert found["sources"]["lgg"]["metrics"]["stored size"]["auc"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_a_margin_that_tells_the_class_is_found_and_the_crop_takes_it_away():
    found = audit(BRAIN, metadata(by_margin, 0), metadata(by_margin, 1), None, draws=50)
    said = values(found["sources"]["lgg"])
    assert said["stored border"] == said["stored frame"] == 1
    for who in ("stored size", "stored histogram", *(name for name in said if name.startswith("given"))):
        assert said[who] == pytest.approx(0.5, abs=0.2), who


def test_labels_without_a_shortcut_are_predicted_by_chance():
    rng = np.random.default_rng(0)
    train, scored = (made(rng.normal(size=400), rng.integers(0, 2, 400)) for _ in range(2))
    part = audit(BRAIN, train, scored, None, draws=200)["sources"]["lgg"]
    for metric in shortcuts.METRICS:
        assert values(part, metric)["stored frame"] == pytest.approx(0.5, abs=0.06)
        ends = part["metrics"]["stored frame"][metric]
        assert ends["low"] < 0.5 < ends["high"]


def test_a_rare_class_weighs_as_much_as_a_common_one():
    x = np.repeat([0.0, 1.0], [190, 10]) + 0.7 * np.random.default_rng(0).normal(size=200)
    label = np.repeat([0, 1], [190, 10])
    part = audit(BRAIN, made(x, label), made(x, label), None, draws=50)["sources"]["lgg"]
    assert values(part)["chance"] == 0.5
    assert values(part, "accuracy")["chance"] == 0.95
    assert values(part)["stored frame"] > 0.85


def test_a_source_is_scored_by_trees_that_learned_from_the_others():
    label = np.arange(120) % 2
    source = np.repeat(["br35h", "lgg"], 60)
    x = np.where(source == "lgg", label, 1 - label) + 3.0 * (source == "lgg")  # each the other's contrary
    same = made(np.where(source == "lgg", label, 1 - label).astype(float), label, source)
    told = made(x, label, source)
    for both in (told, same):
        found = audit(BRAIN, both, both, None, draws=50)
        left_out = {name: values(part)["stored frame"] for name, part in found["left_out"].items()}
        assert left_out["br35h"] == (0 if both is same else 0.5)
        assert left_out["lgg"] == (0 if both is same else 0.5)
        assert found["left_out"]["lgg"]["trained_on"] == ["br35h"]
        assert not found["notes"]
    assert set(values(audit(BRAIN, told, told, None, draws=50)["sources"]["all"]).values()) == {0.5, 1.0}


def test_a_class_that_the_other_sources_lack_is_not_scored_and_noted():
    label = np.concatenate([np.arange(90) % 3, 1 + np.arange(60) % 2])
    both = made(label.astype(float), label, np.repeat(["busi", "busbra"], [90, 60]))
    found = audit(BREAST, both, both, None, draws=50)
    assert found["left_out"]["busi"]["scans"] == 60
    assert found["left_out"]["busi"]["classes"] == ["benign", "malignant"]
    assert values(found["left_out"]["busi"])["stored frame"] == 1
    assert found["left_out"]["busbra"]["scans"] == 60
    assert found["notes"] == ["busi is scored by the other sources without normal: they have no such scans"]
    one_each = made(label.astype(float), np.repeat([0, 1], [90, 60]), np.repeat(["busi", "busbra"], [90, 60]))
    found = audit(BREAST, one_each, one_each, None, draws=50)
    assert not found["left_out"]
    assert [note.split()[0] for note in found["notes"]] == ["busbra", "busi"]
    assert "auc" not in found["sources"]["busi"]["metrics"]["chance"]


def test_one_class_teaches_nothing():
    one = made(np.arange(20.0), np.ones(20, int))
    with pytest.raises(ValueError, match="all tumor: two classes"):
        audit(BRAIN, one, one, None)


def test_border_and_histogram_by_hand():
    image = np.zeros((100, 200, 3), np.uint8)
    image[10:90, 40:180] = (200, 0, 0)
    image[:2, :30] = 100  # of a rim of two pixels; too small to be content
    grey = round(0.299 * 200)
    rim = 2 * 200 * 2 + 2 * 96 * 2
    mean, deviation, black, *crop = shortcuts.border(image)
    share = 60 / rim
    assert mean == pytest.approx(100 * share)
    assert deviation == pytest.approx(100 * np.sqrt(share * (1 - share)))
    assert black == pytest.approx(1 - share)
    assert crop[1:] == pytest.approx([0.1, 0.1, 0.1], abs=0.03)
    assert crop[0] == pytest.approx(0.2, abs=0.03)
    shares = shortcuts.histogram(image)
    assert shares[grey // 16] == pytest.approx(80 * 140 / 20_000)
    assert shares[100 // 16] == pytest.approx(60 / 20_000)
    assert shares[:16].sum() == pytest.approx(1)
    assert shares[16] == pytest.approx(80 * 140 / 20_000)  # pure red is saturated, black and grey are not
    assert shortcuts.size(image).tolist() == [100, 200, 2]


def test_scans_of_unknown_class_and_of_other_organs_are_left_out():
    flat = np.full((40, 40, 3), 90, np.uint8)
    records = [make_record(flat, -1, 0), make_record(flat, 1, 1), make_record(flat, 1, 2, "busi", "breast")]
    assert metadata_of(BRAIN, records).rows.scan_id.tolist() == ["s1"]
    assert metadata_of(TASKS["segment_brain"], records).rows.label.tolist() == [1]
    assert metadata_of(TASKS["route"], records).rows.label.tolist() == [0, 0, 1]
    assert metadata_of(TASKS["route"], records).rows.group.tolist() == ["lgg/p0", "lgg/p1", "busi/p2"]
    with pytest.raises(ValueError, match=r"none of 1 scans has a class of classify_brain \(no_tumor, tumor\)"):
        metadata_of(BRAIN, records[:1])


def evaluation(scored, probs, task="classify_brain", split="validation"):
    return {"task": task, "split": split, "rows": dataclasses.replace(scored.rows, probs=probs).to_json()}


def test_a_network_is_matched_scan_by_scan_and_compared_with_metadata():
    rng = np.random.default_rng(0)
    label = np.arange(80) % 2
    scored = made(rng.normal(size=80), label)
    right = np.eye(2)[label]
    backwards = np.arange(80)[::-1]
    report = evaluation(scored, right)
    report["rows"] = {name: [column[i] for i in backwards] for name, column in report["rows"].items()}
    network = network_predictions(report, BRAIN, "validation", scored)
    assert (network == right).all()
    part = audit(BRAIN, scored, scored, network, draws=100)["sources"]["lgg"]
    for metric in shortcuts.METRICS:
        said = values(part, metric)
        assert said["network"] == 1
        for view in shortcuts.VIEWS:
            assert said[f"network less {view} frame"] == pytest.approx(1 - said[f"{view} frame"])
    assert part["metrics"]["network less given frame"]["accuracy"]["low"] >= 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda report: report.update(task="route"), "of task route, not classify_brain"),
        (lambda report: report.update(split="test"), "of split test, not validation"),
        (lambda report: report["rows"].pop("probs"), "no label head"),
        (lambda report: report["rows"]["scan_id"].__setitem__(3, "other"), r"lacks 1 of the 8 scans \(lgg/s3"),
        (lambda report: report["rows"]["label"].__setitem__(3, 0), "other labels"),
        (lambda report: report.update(audit={"networks": {"a": {"train": {"scored": 2}}}}), "was trained on 2 of the"),
    ],
)
def test_an_evaluation_of_something_else_is_refused(change, error):
    scored = made(np.arange(8.0), np.arange(8) % 2)
    report = evaluation(scored, np.eye(2)[scored.rows.label])
    network_predictions(report, BRAIN, "validation", scored)
    change(report)
    with pytest.raises(ValueError, match=error):
        network_predictions(report, BRAIN, "validation", scored)


@pytest.fixture
def planted(monkeypatch):
    """Prepared data in which the aspect is the class, and which split was asked for."""
    asked = []

    def records(source, split, data_dir=None):
        asked.append((source, split))
        rng = np.random.default_rng(len(asked))
        return [make_record(by_aspect(i % 2, rng), i % 2, i, source) for i in range(40)]

    monkeypatch.setattr(dataset, "records", records)
    return asked


def test_the_command_prints_and_writes_what_it_found(planted, tmp_path, monkeypatch, capsys):
    scored = metadata_of(BRAIN, dataset.records("lgg", "validation") + dataset.records("br35h", "validation"))
    evaluated = evaluation(scored, np.eye(2)[1 - scored.rows.label])
    (tmp_path / "network.json").write_text(json.dumps(evaluated))
    planted.clear()
    out = tmp_path / "audit.json"
    options = ["--sources=lgg,br35h", f"--against={tmp_path / 'network.json'}", f"--out={out}"]
    assert shortcuts_command.main(["--task=segment_brain", *options]) == 2
    assert "of task classify_brain, not segment_brain" in capsys.readouterr().err
    planted.clear()
    assert shortcuts_command.main(["--task=classify_brain", *options]) == 0
    assert planted == [(s, split) for split in ("validation", "train") for s in ("lgg", "br35h")]
    found = json.loads(out.read_text())
    assert found["task"] == "classify_brain" and found["split"] == "validation"
    assert set(found["sources"]) == {"lgg", "br35h", "all"} and set(found["left_out"]) == {"lgg", "br35h"}
    assert values(found["sources"]["all"])["stored size"] == 1
    assert values(found["left_out"]["lgg"])["stored size"] == 1
    assert "network" not in found["left_out"]["lgg"]["metrics"]  # it has learned from that source
    printed = capsys.readouterr().out
    assert "1.000 [1.000, 1.000]" in printed and "-1.000 [-1.000, -1.000]" in printed
    assert "lgg by the others" in printed and str(out) in printed


def test_the_command_on_prepared_phantoms(phantom_dir, capsys):
    assert shortcuts_command.main(["--task=route", "--sources=phantom", f"--data_dir={phantom_dir}"]) == 0
    printed = capsys.readouterr().out
    assert "stored frame" in printed and "network" not in printed
    assert "phantom is not scored by the other sources" in printed


def test_each_fold_is_predicted_by_trees_that_learned_from_the_others():
    """A scan's own fold knows its answer, the others know nothing: only a leak would be right."""
    rng = np.random.default_rng(0)
    fold = np.repeat(np.arange(4), 30)
    label = rng.integers(0, 2, 120)
    told = made(np.where(fold == 0, label * 9.0, rng.normal(size=120)), label)
    said = shortcuts.cross_predictions(told, fold, 2)
    assert set(said) == {"chance", *told.features}
    assert (said["chance"] == said["chance"][:1]).all()  # shares of each fold's others would tell the folds apart
    first = fold == 0
    for name in told.features:
        assert said[name].shape == (120, 2)
        by_hand = shortcuts.predictions(told.take(~first), told.take(first), 2)[name]
        np.testing.assert_array_equal(said[name][first], by_hand)
        assert (said[name].argmax(1) == label)[first].mean() < 0.8


def test_fold_runs_are_compared_with_metadata_on_their_held_out_scans(planted, tmp_path, monkeypatch, capsys):
    every = [dataset.records(source, split) for source in ("lgg", "br35h") for split in ("train", "validation")]
    scans = metadata_of(BRAIN, [r | {"scan_id": f"{i}_{r['scan_id']}"} for i, part in enumerate(every) for r in part])
    some = scans.take(np.arange(len(scans)) % 3 > 0)
    evaluated = evaluation(some, np.eye(2)[some.rows.label]) | {"split": "left_out"}
    monkeypatch.setattr(shortcuts, "metadata_of", lambda *_: scans)
    (tmp_path / "folds.json").write_text(json.dumps(evaluated))
    options = ["--task=classify_brain", "--sources=lgg,br35h", f"--out={tmp_path / 'audit.json'}"]
    options += [f"--against={tmp_path / 'folds.json'}"]
    assert shortcuts_command.main([*options, "--split=left_out", "--folds=3"]) == 0
    assert f"{len(some)} of {len(scans)} training and validation scans" in capsys.readouterr().out
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["split"] == "left_out" and found["sources"]["all"]["scans"] == len(some)
    assert values(found["sources"]["all"])["network"] == 1
    assert values(found["sources"]["all"])["stored size"] == 1
    other = dataclasses.replace(scans, rows=dataclasses.replace(scans.rows, scan_id=scans.rows.group))
    monkeypatch.setattr(shortcuts, "metadata_of", lambda *_: other)
    assert shortcuts_command.main([*options, "--split=left_out"]) == 2
    assert "--against has none of the scans" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--task=classify_liver"], "The tasks are route, classify_brain"),
        (["--task=route", "--split=train"], "--split=train: allowed are validation, test, left_out"),
        (["--task=route", "--split=dev"], "--split=dev: allowed are validation, test, left_out"),
        (["--task=route", "--split=left_out", "--folds=1"], "--folds=1: must be at least 2"),
        (["--task=route", "--out=no/such/folder/a.json"], "--out=no/such/folder/a.json cannot be written"),
        (["--task=route", "--out=mcis/weights/route/a.json"], "lies in a weights folder"),
        (["--task=route", "--against=no_such.json"], "no_such.json: no such file"),
        (["--task=route", "--sources=busi", "--data_dir=no_such"], "mcis build busi"),
    ],
)
def test_wrong_options_are_errors_before_any_work(options, error, monkeypatch, capsys):
    monkeypatch.chdir(shortcuts_command.pathlib.Path(__file__).parents[2])
    monkeypatch.setattr(shortcuts, "metadata_of", lambda *_: pytest.fail("work was done"))
    assert shortcuts_command.main(options) == 2
    assert error in capsys.readouterr().err


def test_sources_without_scans_of_the_split_are_said(monkeypatch, capsys):
    monkeypatch.setattr(dataset, "records", lambda *_: [])
    assert shortcuts_command.main(["--task=route", "--sources=busi"]) == 2
    assert "split 'validation' of busi holds no scans" in capsys.readouterr().err


def test_scikit_learn_waits_until_something_is_learned():
    script = "import sys, mcis.evaluation.shortcuts; print([m for m in ('sklearn', 'joblib') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert run.stdout.strip() == "[]", run.stderr
