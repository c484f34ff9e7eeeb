"""Evaluators: fold runs predict the scans that each holds out, as they do alone."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from mcis.checkpoints import bundle, checkpoint, provenance
from mcis.cli import evaluate
from mcis.data import dataset
from mcis.data.records import read_records
from mcis.evaluation import evaluator, metrics, scoring, several
from mcis.inference.rows import Rows
from mcis.inference.saliency import class_maps
from mcis.tasks.table import TASKS, task_to_json

pytestmark = pytest.mark.usefixtures("tiny_models", "few_draws", "no_figures")


@pytest.fixture(scope="module")
def folds(fold_runs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "class_maps", functools.partial(class_maps, cells=4, reach=2))
        yield several.load_folds(fold_runs["segment_breast"])


def test_every_scan_is_predicted_by_the_run_that_holds_it_out(folds, phantom_dir):
    records, _ = several.read_held_out(folds, ("phantom",), phantom_dir)
    rows = scoring.score(folds, records)
    assert rows.fingerprint.tolist() == list(records.fingerprints)
    by_run = folds.predicted_by(records.fingerprints)
    assert sorted(np.concatenate(list(by_run.values())).tolist()) == list(range(len(records)))
    for name, index in by_run.items():
        assert len(index)
        assert {records.fingerprints[i] for i in index} <= set(
            folds.weights[name].manifest["fingerprints"]["validation"]
        )
        alone = scoring.score(folds.runs[name], records.take(index.tolist()))
        for column, values in alone.columns.items():
            np.testing.assert_array_equal(getattr(rows, column)[index], values, err_msg=column)
    shown = [2, len(records) - 1, 0]
    for at, scan in zip(shown, folds.predict(records.take(shown)), strict=True):
        assert (scan.probability > 0.5).sum() == rows.predicted[at] and scan.mask.sum() == rows.true[at]


def test_a_leak_is_counted_for_the_run_that_predicts_the_scan(folds, phantom_dir):
    records, _ = several.read_held_out(folds, ("phantom",), phantom_dir)
    counts = evaluator.leaks(folds, records.fingerprints)
    assert [uses["train"]["scored"] for uses in counts.values()] == [0, 0]
    first = next(iter(folds.runs))
    leaked = sorted(folds.weights[first].manifest["fingerprints"]["validation"])[:2]
    runs = {}
    for name, run in folds.runs.items():  # the other run does not predict them, and was trained on them as it should
        (weights,) = run.weights.values()
        manifest = json.loads(json.dumps(weights.manifest))
        manifest["fingerprints"]["train"] = sorted({*manifest["fingerprints"]["train"], *leaked})
        changed = dataclasses.replace(weights, manifest=manifest)
        runs[name] = dataclasses.replace(run, weights={folds.task.name: changed})
    counts = evaluator.leaks(dataclasses.replace(folds, runs=runs), records.fingerprints)
    assert [uses["train"]["scored"] for uses in counts.values()] == [2, 0]


def test_the_command_reports_folds_with_label_and_mask(fold_runs, folds, phantom_dir, tmp_path, capsys, monkeypatch):
    runs = [str(run) for run in fold_runs["segment_breast"]]
    by_path = dict(zip(runs, folds.runs.values(), strict=True))
    monkeypatch.setattr(several, "load_evaluator", lambda path, *_: by_path[path])  # they are compiled already
    arguments = [*runs, f"--data_dir={phantom_dir}", f"--out={tmp_path / 'out'}"]
    assert evaluate.main([*arguments, "--heat=1", "--split=left_out"]) == 0
    assert "held out by 2 runs (26 scans of 26)" in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["split"] == dataset.LEFT_OUT and set(found["weights"]) == {"segment_breast_0", "segment_breast_1"}
    reported = found["sources"]["phantom"]["metrics"]
    assert {"accuracy", "sensitivity_malignant", "dice_lesion", "gated_dice"} <= set(reported)
    assert "confusion" in found["sources"]["phantom"] and found["heat"]["scans"] == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no network was trained on these scans" in page
    assert evaluate.main(runs) == 2  # never the test split by mistake
    assert "several runs need --split=left_out (each fold run on its held-out scans)" in capsys.readouterr().err
    assert evaluate.main([]) == 2
    assert "name a run's folder" in capsys.readouterr().err
    one = [runs[0], "--split=left_out", f"--data_dir={phantom_dir}", "--heat=0", f"--out={tmp_path / 'one'}"]
    assert evaluate.main(one) == 0
    left_out = json.loads((tmp_path / "one" / "report.json").read_text())["left_out"]
    assert left_out["runs"] == 1 and 0 < left_out["scans"] < left_out["of"] == 26


@pytest.fixture
def without(fold_runs, folds, tmp_path, monkeypatch):
    """A function that makes a weights folder of the first fold run, trained without phantoms as far as it says."""
    monkeypatch.setattr(bundle, "check_arrays", lambda *_: None)  # it traces a network each time
    variables, manifest = checkpoint.load(fold_runs["segment_breast"][0] / "best")

    def make(name, *sources, train=()):
        task = dataclasses.replace(folds.task, sources=sources)
        manifest["fingerprints"] = {"train": [*train], "validation": []}
        checkpoint.save(tmp_path / name, variables, manifest | {"task": task_to_json(task), "names": {}})
        return str(tmp_path / name)

    return make


def test_networks_trained_without_a_source_are_scored_on_all_its_scans(without, phantom_dir, tmp_path, capsys):
    run = without("a", "busi")
    command = [run, "--split=unseen", f"--data_dir={phantom_dir}", "--heat=0", f"--out={tmp_path / 'out'}"]
    assert evaluate.main([*command, "--sources=phantom"]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    every = read_records(["phantom"], dataset.SPLITS, phantom_dir, "breast")
    assert found["unseen"] == {"runs": 1, "scans": len(every), "near_duplicates": 0, "not_compared": ["busi"]}
    assert "near-duplicates of busi, not prepared here" in " ".join(capsys.readouterr().out.split())
    assert found["rows"]["fingerprint"] == list(every.fingerprints)
    leak = [without("b", "busi", train=every.fingerprints[:1]), *command[1:], "--sources=phantom"]
    assert evaluate.main(leak) == 2
    assert "1 of the" in capsys.readouterr().err
    assert evaluate.main([without("c", "phantom"), *command[1:], "--sources=phantom"]) == 2
    assert "was trained on all of phantom; nothing is unseen" in capsys.readouterr().err
    assert evaluate.main([run, without("d", "lgg"), *command[1:], "--sources=phantom"]) == 2
    assert "phantom is unseen by a and by d" in capsys.readouterr().err


def test_sources_of_other_organs_are_left_to_others(without, phantom_dir, monkeypatch):
    """Two networks of one organ were both trained without the sources of another; without --sources none is named."""
    monkeypatch.setattr(several, "SYNTHETIC", ())
    monkeypatch.setattr(several, "_holds", lambda source, organ, _: source == "phantom")
    monkeypatch.setattr(dataset, "sources_in", lambda _: [phantom_dir / "phantom", phantom_dir / "lgg"])
    both, records, _ = several.load_unseen([without("a", "busi")], data_dir=str(phantom_dir))
    assert len(records) and set(both.runs) == {"a"}
    monkeypatch.undo()
    assert several._holds("phantom", "breast", phantom_dir) and several._holds("phantom", None, phantom_dir)
    assert not several._holds("phantom", "knee", phantom_dir)


def test_each_network_is_scored_on_its_own_unseen_source_and_near_duplicates_are_left_out(
    without, phantom_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(dataset, "PUBLISHED", (*dataset.PUBLISHED, "phantom", "second"))
    stored = dataset.records("phantom", "train", phantom_dir)
    breasts = [one for one in (stored[row] for row in range(len(stored))) if dataset.text(one["organ"]) == "breast"]
    first, near, own = ({**breasts[row], "source": "second", "fingerprint": f"{row:016}"} for row in (0, 1, 2))
    near["group"] = f"@phantom/{dataset.text(breasts[5]['group'])}"  # a near-duplicate of a phantom
    first["group"], own["group"] = "x", "y"
    monkeypatch.setattr(
        dataset, "records", lambda source, split, _: {"phantom": breasts, "second": [first, near, own]}[source]
    )
    monkeypatch.setattr(dataset, "sources_in", lambda _: [tmp_path / "phantom", tmp_path / "second"])
    monkeypatch.setattr(dataset, "SPLITS", ("train",))
    runs = [without("a", "phantom"), without("b", "second")]
    both, records, facts = several.load_unseen(runs, ("phantom", "second"))
    assert facts["near_duplicates"] == 2 and facts["not_compared"] == []
    rows = scoring.score(both, records)
    assert rows.source.tolist() == ["second"] * 2 + ["phantom"] * (len(breasts) - 1)
    assert {name: len(index) for name, index in both.predicted_by(records.fingerprints).items()} == {
        "a": 2,
        "b": len(breasts) - 1,
    }


def test_runs_that_are_no_folds_of_one_task_are_errors(fold_runs, phantom_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "check_arrays", lambda *_: None)  # it traces a network each time
    first, second = fold_runs["segment_breast"]
    with pytest.raises(ValueError, match="name each fold once"):
        several.load_folds([first, first])
    with pytest.raises(ValueError, match=r"was trained (with other settings|otherwise) than "):
        several.load_folds([first, fold_runs["route"][0]])
    variables, manifest = checkpoint.load(second / "best")
    task = dataclasses.replace(bundle.load_weights(second).task, select="dice_balanced")
    checkpoint.save(tmp_path / "chosen", variables, manifest | {"task": task_to_json(task)})
    with pytest.raises(ValueError, match="chosen by dice_balanced"):
        several.load_folds([first, tmp_path / "chosen"])
    checkpoint.save(tmp_path / "early", variables, manifest | {"epoch": 3})
    with pytest.raises(ValueError, match="unfinished, at epoch 3 of 20"):
        several.load_folds([first, tmp_path / "early"])
    with pytest.raises(ValueError, match="unfinished"):
        bundle.make_bundle([tmp_path / "early"], tmp_path / "unfinished")
    nothing = manifest["fingerprints"] | {"validation": []}
    checkpoint.save(tmp_path / "ensemble", variables, manifest | {"fingerprints": nothing})
    with pytest.raises(ValueError, match=r"(has left no scan out|has no held-out scans)"):
        several.load_folds([first, tmp_path / "ensemble"])
    both = manifest["fingerprints"] | {"validation": manifest["fingerprints"]["train"][:1]}
    checkpoint.save(tmp_path / "leak", variables, manifest | {"fingerprints": both})
    with pytest.raises(provenance.LeakError, match="trained on 1 of the scans"):
        several.load_folds([tmp_path / "leak"])
    bundle.make_bundle([first], tmp_path / "set")
    with pytest.raises(ValueError, match="is a bundle"):
        several.load_folds([tmp_path / "set", second])
    strange = manifest["fingerprints"] | {"validation": [*manifest["fingerprints"]["validation"], "f" * 16]}
    checkpoint.save(tmp_path / "far", variables, manifest | {"fingerprints": strange})
    with pytest.raises(ValueError, match=r"1 of the \d+ held-out scans of the runs are not prepared here"):
        several.read_held_out(several.load_folds([first, tmp_path / "far"]), ("phantom",), phantom_dir)


def test_validation_scans_that_chose_nothing_are_a_test(fold_runs):
    manifest = bundle.load_weights(fold_runs["segment_breast"][0]).manifest

    def check(scans, manifest):
        provenance.check_unseen(scans, [None] * len(scans), manifest)

    check(manifest["fingerprints"]["validation"], manifest)  # the last epoch was kept whatever they scored
    with pytest.raises(provenance.LeakError, match="used for train"):
        check(manifest["fingerprints"]["train"], manifest)
    chosen = manifest | {"task": manifest["task"] | {"select": "dice_balanced"}}
    tuned = manifest | {"task": manifest["task"] | {"crf": {"steps": 5}}}
    router = bundle.load_weights(fold_runs["route"][0]).manifest
    for used in (chosen, tuned, router, manifest | {"calibration": {}}):
        with pytest.raises(provenance.LeakError, match="used for validation"):
            check(used["fingerprints"]["validation"], used)


def test_a_copy_of_another_size_is_identified_by_its_name(fold_runs, phantom_dir, monkeypatch):
    monkeypatch.setattr(dataset, "PUBLISHED", ("phantom",))
    weights = bundle.load_weights(fold_runs["segment_breast"][0])
    manifest = weights.manifest

    def check(records, manifest):
        changed = {"segment_breast": dataclasses.replace(weights, manifest=manifest)}
        evaluator.check_unseen(evaluator.NetworkEvaluator(weights.task, changed, {}, None), records)

    records = read_records(("phantom",), ("train",), phantom_dir, "breast")
    assert len(set(records.names)) == len(records) and None not in records.names
    copies = dataclasses.replace(records, fingerprints=tuple(f"{i}" for i in range(len(records))))
    check(copies, manifest)  # weights older than names do not identify them
    named = manifest | {"names": {"train": [records.names[2]], "validation": []}}
    with pytest.raises(provenance.LeakError, match=rf"1 of the {len(records)} scans.*used for train"):
        check(copies, named)
    kept = copies.take([0, 1, 3])
    assert kept.names == (*records.names[:2], records.names[3])
    check(kept, named)


def test_only_published_scans_have_names_that_identify_them(phantom_scans):
    assert dataset.public_names(phantom_scans) == []
    assert dataset.public_name("folder", "1") is None
    busi = dataset.public_name("busi", "benign/benign (1)")
    assert busi is not None and len(busi) == 12 and busi != dataset.public_name("busbra", "benign/benign (1)")


def test_gated_dice_drops_the_masks_of_scans_classified_as_free_of_lesions():
    names = np.array(list("abcd"))
    rows = Rows(
        source=names,
        group=names,
        scan_id=names,
        label=np.array([1, 1, 0, 0]),
        probs=np.eye(3)[[1, 0, 0, 2]],  # the second lesion is predicted normal, the last normal malignant
        has_mask=np.ones(4, bool),
        both=np.array([80, 80, 0, 0]),
        predicted=np.array([80, 80, 50, 50]),
        true=np.array([80, 80, 0, 0]),
    )
    assert metrics.gated_metrics(TASKS["segment_breast"], rows) == {
        "gated_dice": 0.5,
        "gated_dice_lesion": 0.5,
        "gated_false_masks": 0.5,
    }
