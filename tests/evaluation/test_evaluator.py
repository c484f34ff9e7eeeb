"""What is scored: fold runs answer what each has left out, as they answer it alone."""

import dataclasses
import json

import numpy as np
import pytest

from mcis.checkpoints import bundle, checkpoint, provenance
from mcis.cli import evaluate
from mcis.data import dataset
from mcis.data.records import read_records
from mcis.evaluation import evaluator, metrics
from mcis.tasks.table import task_to_json


@pytest.fixture(scope="module")
def folds(fold_runs):
    return evaluator.load_folds(fold_runs["segment_breast"])


def test_every_scan_is_answered_by_the_run_that_has_left_it_out(folds, fold_runs, phantom_dir):
    records, _ = evaluator.read_left_out(folds, ("phantom",), phantom_dir)
    rows = evaluator.score(folds, records)
    assert rows["fingerprint"].tolist() == list(records.fingerprints)
    for run, mine in zip(fold_runs["segment_breast"], folds.left_out().values(), strict=True):
        alone = evaluator.load_subject(run)
        here = np.isin(rows["fingerprint"], list(mine))
        assert here.sum() == len(mine) > 0
        expected = evaluator.score(alone, records.take(np.flatnonzero(here).tolist()))
        for name, column in expected.items():
            np.testing.assert_array_equal(rows[name][here], column, err_msg=name)
    shown = [2, len(records) - 1, 0]
    for at, seen in zip(shown, evaluator.look(folds, records, shown), strict=True):
        assert seen.said.sum() == rows["predicted"][at] and seen.true.sum() == rows["true"][at]
    counts = folds.seen(records.fingerprints)
    assert [uses["train"]["scored"] for uses in counts.values()] == [0, 0]
    leaky, other = (
        dataclasses.replace(run, manifests=json.loads(json.dumps(run.manifests))) for run in folds.runs.values()
    )
    names = list(folds.runs)
    mine = sorted(folds.left_out()[names[0]])[:2]
    for run in (leaky, other):  # the other run is not asked about them, and trained on them as it should
        seen = run.manifests["segment_breast"]["fingerprints"]
        seen["train"] = sorted({*seen["train"], *mine})
    counts = evaluator.Folds(dict(zip(names, (leaky, other), strict=True))).seen(records.fingerprints)
    assert [uses["train"]["scored"] for uses in counts.values()] == [2, 0]


def test_the_command_reports_folds_with_label_and_mask(fold_runs, phantom_dir, tmp_path, capsys):
    runs = [str(run) for run in fold_runs["segment_breast"]]
    arguments = [*runs, f"--data_dir={phantom_dir}", f"--out={tmp_path / 'out'}"]
    assert evaluate.main([*arguments, "--heat=2", "--split=left_out"]) == 0
    assert "left out by 2 runs (26 scans of 26)" in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["split"] == dataset.LEFT_OUT and set(found["weights"]) == {"segment_breast_0", "segment_breast_1"}
    metrics = found["sources"]["phantom"]["metrics"]
    assert {"accuracy", "sensitivity_malignant", "dice_lesion", "gated_dice"} <= set(metrics)
    assert "confusion" in found["sources"]["phantom"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no network was trained on one of these pictures" in page
    assert evaluate.main(runs) == 2  # never the test split by mistake
    assert "several runs are scored as folds" in capsys.readouterr().err
    assert evaluate.main([]) == 2
    assert "name a run's folder" in capsys.readouterr().err
    one = [runs[0], "--split=left_out", f"--data_dir={phantom_dir}", "--heat=0", f"--out={tmp_path / 'one'}"]
    assert evaluate.main(one) == 0
    left_out = json.loads((tmp_path / "one" / "report.json").read_text())["left_out"]
    assert left_out["runs"] == 1 and 0 < left_out["scans"] < left_out["of"] == 26


def test_runs_that_are_no_folds_of_one_task_are_refused(fold_runs, folds, phantom_dir, tmp_path):
    first, second = fold_runs["segment_breast"]
    with pytest.raises(ValueError, match="name each fold once"):
        evaluator.load_folds([first, first])
    with pytest.raises(ValueError, match=r"was trained otherwise than .*, in name, "):
        evaluator.load_folds([first, fold_runs["route"][0]])
    variables, manifest = checkpoint.load(second / "best")
    task = dataclasses.replace(bundle.load_weights(second).task, select="dice_balanced")
    checkpoint.save(tmp_path / "chosen", variables, manifest | {"task": task_to_json(task)})
    with pytest.raises(ValueError, match="chosen by dice_balanced"):
        evaluator.load_folds([first, tmp_path / "chosen"])
    checkpoint.save(tmp_path / "early", variables, manifest | {"epoch": 3})
    with pytest.raises(ValueError, match="unfinished, at epoch 3 of 20"):
        evaluator.load_folds([first, tmp_path / "early"])
    with pytest.raises(ValueError, match="unfinished"):
        bundle.make_bundle([tmp_path / "early"], tmp_path / "unfinished")
    nothing = manifest["fingerprints"] | {"validation": []}
    checkpoint.save(tmp_path / "ensemble", variables, manifest | {"fingerprints": nothing})
    with pytest.raises(ValueError, match="has left no scan out"):
        evaluator.load_folds([first, tmp_path / "ensemble"])
    both = manifest["fingerprints"] | {"validation": manifest["fingerprints"]["train"][:1]}
    checkpoint.save(tmp_path / "leak", variables, manifest | {"fingerprints": both})
    with pytest.raises(provenance.LeakError, match="trained on 1 of the scans"):
        evaluator.load_folds([tmp_path / "leak"])
    bundle.make_bundle([first], tmp_path / "set")
    with pytest.raises(ValueError, match="is a set of weights"):
        evaluator.load_folds([tmp_path / "set", second])
    strange = manifest["fingerprints"] | {"validation": [*manifest["fingerprints"]["validation"], "f" * 16]}
    checkpoint.save(tmp_path / "far", variables, manifest | {"fingerprints": strange})
    with pytest.raises(ValueError, match=r"1 of the \d+ scans that the runs left out are not prepared here"):
        evaluator.read_left_out(evaluator.load_folds([first, tmp_path / "far"]), ("phantom",), phantom_dir)


def test_scans_that_only_watched_the_training_are_a_test(fold_runs):
    manifest = bundle.load_weights(fold_runs["segment_breast"][0]).manifest

    def check(scans, manifest):
        provenance.check_unseen(scans, [None] * len(scans), manifest)

    check(manifest["fingerprints"]["validation"], manifest)  # the last epoch was kept whatever they said
    with pytest.raises(provenance.LeakError, match="used for train"):
        check(manifest["fingerprints"]["train"], manifest)
    chosen = manifest | {"task": manifest["task"] | {"select": "dice_balanced"}}
    tuned = manifest | {"task": manifest["task"] | {"crf": {"steps": 5}}}
    router = bundle.load_weights(fold_runs["route"][0]).manifest
    for used in (chosen, tuned, router, manifest | {"calibration": {}}):
        with pytest.raises(provenance.LeakError, match="used for validation"):
            check(used["fingerprints"]["validation"], used)


def test_a_copy_of_another_size_is_known_by_its_name(fold_runs, phantom_dir, monkeypatch):
    monkeypatch.setattr(dataset, "PUBLISHED", ("phantom",))
    manifest = bundle.load_weights(fold_runs["segment_breast"][0]).manifest
    records = read_records(("phantom",), ("train",), phantom_dir, "breast")
    assert len(set(records.names)) == len(records) and None not in records.names
    copies = dataclasses.replace(records, fingerprints=tuple(f"{i}" for i in range(len(records))))
    evaluator.check_all_unseen(copies, {"segment_breast": manifest})  # weights older than names know no better
    named = manifest | {"names": {"train": [records.names[2]], "validation": []}}
    with pytest.raises(provenance.LeakError, match=rf"1 of the {len(records)} scans were used for train .*or copies"):
        evaluator.check_all_unseen(copies, {"segment_breast": named})
    kept = copies.take([0, 1, 3])
    assert kept.names == (*records.names[:2], records.names[3])
    evaluator.check_all_unseen(kept, {"segment_breast": named})


def test_only_published_scans_have_names_that_say_which_they_are(phantom_scans):
    assert dataset.public_names(phantom_scans) == []
    assert dataset.public_name("folder", "1") is None
    busi = dataset.public_name("busi", "benign/benign (1)")
    assert busi is not None and len(busi) == 12 and busi != dataset.public_name("busbra", "benign/benign (1)")


def test_gated_dice_drops_the_masks_of_what_is_called_free_of_lesions(folds):
    rows = {
        "label": np.array([1, 1, 0, 0]),
        "probs": np.eye(3)[[1, 0, 0, 2]],  # the second lesion is called normal, the last normal malignant
        "has_mask": np.ones(4, bool),
        "group": np.array(list("abcd")),
        "both": np.array([80, 80, 0, 0]),
        "predicted": np.array([80, 80, 50, 50]),
        "true": np.array([80, 80, 0, 0]),
    }
    assert metrics.gated_metrics(folds.task, rows) == {
        "gated_dice": 0.5,
        "gated_dice_lesion": 0.5,
        "gated_false_masks": 0.5,
    }
