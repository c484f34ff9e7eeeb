"""Calibration on folds: what is fitted, to which scans, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mcis import bundle, calibrate, cascade, checkpoint, data
from mcis.organs import ORGANS
from mcis.tasks import TASKS, make_expert, task_to_json

FOLDS = 2
TASK = dataclasses.replace(
    TASKS["segment_breast"], sources=("phantom",), model="light", features=4, size=32, select="last"
).check()
ROUTE = dataclasses.replace(TASKS["route"], sources=("phantom",), features=4, size=32, select="last").check()


@pytest.fixture(scope="module")
def scans(phantom_dir):
    parts = [data.load(("phantom",), split, phantom_dir) for split in ("train", "validation")]
    return data.Scans.join(parts)


@pytest.fixture(scope="module")
def runs(scans, random_variables, tmp_path_factory):
    """Fold runs of a segmenter and a router with random weights, as training leaves them."""
    folder = tmp_path_factory.mktemp("runs")
    for task in (TASK, ROUTE):
        mine = scans if task.organ is None else scans.take(scans.organ == task.organ)
        fold = data.folds_of(mine, FOLDS)
        for k in range(FOLDS):
            variables = random_variables(task, k)
            if task.organ is None:
                features = (
                    task.make_model()
                    .init_with_output(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False)[0]
                    .features.shape[1]
                )
                whiten = np.eye(features, dtype=np.float32)
                novelty = {"mean": np.zeros((1, features), np.float32), "whiten": whiten, "limit": np.float32(1.0)}
                variables = variables | {"novelty": novelty}
            manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": 1, "seed": k}
            seen = {"train": mine.fingerprint[fold != k], "validation": mine.fingerprint[fold == k]}
            manifest |= {"validation": {"accuracy": 0.5}, "fingerprints": {n: sorted(v) for n, v in seen.items()}}
            checkpoint.save(folder / f"{task.name}_{k}" / "best", variables, manifest)
    return {task.name: [folder / f"{task.name}_{k}" for k in range(FOLDS)] for task in (TASK, ROUTE)}


@pytest.fixture
def weights(runs, tmp_path):
    bundle.make_bundle([*runs["segment_breast"], runs["route"][0]], tmp_path / "set", half=False)
    return tmp_path / "set"


def test_every_scan_is_answered_by_the_network_that_has_not_seen_it(runs, scans):
    folds = [bundle.load_weights(run) for run in runs["segment_breast"]]
    breast = scans.take(scans.organ == "breast")
    answers = calibrate.out_of_fold(folds, breast)
    assert sorted(answers["fingerprint"].tolist()) == sorted(breast.fingerprint.tolist())
    for row in (0, len(breast) // 2, len(breast) - 1):
        at = int(np.flatnonzero(breast.fingerprint == answers["fingerprint"][row])[0])
        (own,) = (f for f in folds if answers["fingerprint"][row] in f.manifest["fingerprints"]["validation"])
        outputs = make_expert(TASK)(own.variables, breast.image[at][None])
        np.testing.assert_allclose(answers["probs"][row], outputs.label[0], atol=1e-5)
        np.testing.assert_allclose(answers["expected_dice"][row], cascade.expected_dice(outputs.mask)[0], atol=1e-4)
        assert answers["true"][row] == breast.mask[at].sum()
        assert answers["label"][row] == breast.label[at]
    with pytest.raises(ValueError, match="left out the same scans"):
        calibrate.out_of_fold([folds[0], folds[0]], breast)
    with pytest.raises(ValueError, match=r"of the \d+ scans that a run of segment_breast left out"):
        calibrate.out_of_fold(folds, breast.take(np.arange(3)))


def test_a_calibrated_set_answers_with_its_limits(runs, weights, scans, phantom_dir, tmp_path, capsys):
    before = bundle.load_bundle(weights)
    every = [str(run) for members in runs.values() for run in members]
    done = calibrate.main([str(weights), *every, f"--data_dir={phantom_dir}", f"--out={tmp_path / 'facts.json'}"])
    assert done == 0
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert json.loads(capsys.readouterr().out) == facts
    after = bundle.load_bundle(weights)
    assert after["segment_breast"].manifest["calibration"] == facts["segment_breast"]
    labels, review = (facts["segment_breast"][name] for name in ("labels", "review"))
    assert labels["after"]["nll"] <= labels["before"]["nll"] + 1e-6
    assert review["flagged"] == pytest.approx(0.2, abs=0.06)
    assert facts["route"]["refusal"]["known_refused"] <= 2 / facts["route"]["refusal"]["known"] + 0.01
    assert calibrate.main([str(weights), *every, f"--data_dir={phantom_dir}"]) == 0  # once more changes nothing
    again = bundle.load_bundle(weights)
    for name, one in after.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.variables, again[name].variables)
    tasks = {name: one.task for name, one in after.items()}
    run = jax.jit(cascade.make_predict(tasks, cascade.Settings(organ=1)))
    breast = scans.take(scans.organ == "breast")
    found = run({name: one.variables for name, one in after.items()}, breast.image)
    limit = float(after["segment_breast"].variables["calibration"]["review"])
    np.testing.assert_array_equal(found.review, np.asarray(found.confidence) < limit)
    raw = run({name: one.variables for name, one in before.items()}, breast.image)
    assert (np.asarray(raw.review) == -1).all()  # no limit was set
    slope, bias = (after["segment_breast"].variables["calibration"][name] for name in ("slope", "bias"))
    odds = np.asarray(raw.label_probs)[:, :3] ** slope * np.exp(bias)
    np.testing.assert_allclose(found.label_probs[:, :3], odds / odds.sum(1, keepdims=True), atol=1e-4)


def test_confidence_is_the_label_s_times_what_the_mask_expects(weights, scans):
    loaded = bundle.load_bundle(weights)
    tasks = {name: one.task for name, one in loaded.items()}
    found = jax.jit(cascade.make_predict(tasks, cascade.Settings(organ=1)))(
        {name: one.variables for name, one in loaded.items()}, scans.image[:12]
    )
    for i in range(12):
        p = np.asarray(found.mask[i], np.float64)
        cut = p > 0.5
        expected = (2 * p[cut].sum() + 1) / (p.sum() + cut.sum() + 1) if found.segmented[i] else 1.0
        assert float(found.confidence[i]) == pytest.approx(float(found.label_probs[i].max()) * expected, rel=1e-3)


def test_review_holds_errors_by_hand():
    labels = {
        "fingerprint": np.array(list("abcde")),
        "label": np.array([1, 1, 0, 2, -1]),
        "probs": np.array([[0.1, 0.9, 0], [0.5, 0.4, 0.1], [0.9, 0.1, 0], [0, 0.2, 0.8], [0.3, 0.3, 0.4]]),
    }
    masks = {
        "fingerprint": np.array(list("edcba")),
        "expected_dice": np.array([0.9, 0.5, 0.9, 0.9, 0.9]),
        "has_mask": np.array([True] * 5),
        "both": np.array([0, 1, 0, 8, 8]),
        "predicted": np.array([0, 10, 0, 10, 10]),
        "true": np.array([0, 10, 0, 10, 10]),
    }
    limit, facts = calibrate.fit_review(1, labels, masks)
    # sure: 0.81, 0.5 (called normal: no mask), 0.9, 0.4; wrong: b by its label, d by its mask; e is of unknown label
    assert facts["scans"] == 4 and facts["errors"] == 2
    assert 0.4 < limit < 0.5
    assert facts["errors_flagged"] == 0.5 and facts["error_rate_flagged"] == 1.0
    assert facts["error_rate_others"] == pytest.approx(1 / 3)


def test_the_router_refuses_a_hundredth_of_what_it_knows_and_says_what_else():
    rng = np.random.default_rng(0)
    count = 2000
    known = np.arange(2 * count) < count
    prob = np.where(known, rng.uniform(0.9, 1.0, 2 * count), rng.uniform(0.0, 0.8, 2 * count))
    answers = {
        "label": np.where(known, 0, len(ORGANS)),
        "probs": np.stack([prob, np.zeros(2 * count), 1 - prob], 1),
        "novelty": np.where(known, rng.uniform(0, 1, 2 * count), 0.5),
        "source": np.where(known, "a", "foreign"),
        "group": np.where(np.arange(2 * count) % 2 == 0, "foreign/x", "foreign/y"),
    }
    limits, facts = calibrate.fit_router(answers)
    assert 0.009 <= facts["known_refused"] <= 0.0101
    assert facts["foreign_refused"] == 1.0 and facts["kinds_refused"] == {"foreign/x": 1.0, "foreign/y": 1.0}
    assert limits["threshold"] == pytest.approx(0.9, abs=0.005) and limits["reach"] == pytest.approx(1.0, abs=0.01)
    assert facts["known_to_the_wrong_organ"] == 0
    known = [point["known"] for point in facts["trade_off"]]
    assert known == sorted(known) and known[-1] == pytest.approx(0.2, abs=0.02)


def test_runs_that_say_nothing_of_strangers_are_refused(runs, weights, tmp_path, capsys):
    variables, manifest = checkpoint.load(runs["segment_breast"][0] / "best")

    def refusal(**changes):
        task = dataclasses.replace(TASK, **changes)
        checkpoint.save(tmp_path / "run", variables, manifest | {"task": task_to_json(task)})
        assert calibrate.main([str(weights), str(tmp_path / "run")]) == 2
        return capsys.readouterr().err

    assert "chosen by dice_balanced" in refusal(select="dice_balanced")
    assert "trained otherwise" in refusal(epochs=3)
    del_route = weights.parent / "only"
    bundle.make_bundle(runs["segment_breast"], del_route)
    assert calibrate.main([str(del_route), str(runs["route"][0])]) == 2
    assert "which the set does not have" in capsys.readouterr().err
