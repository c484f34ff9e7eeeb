"""The search for a CRF, and the command on a run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis import bundle, checkpoint, evaluate, tune
from mcis.ops.crf import CRF
from mcis.ops.metrics import mask_scores
from mcis.tasks import TASKS, task_to_json


def test_the_search_climbs_to_the_best_of_its_values_and_asks_for_none_twice():
    goal = CRF(weight=4.0, sigma=20.0, grey_sigma=6.0, smooth_weight=1.0, smooth_sigma=2.0)
    asked = []

    def score(crf):
        asked.append(crf)
        if not crf.steps:
            return 0.5
        return 0.9 - 0.01 * sum(abs(a - b) for a, b in zip(vars(crf).values(), vars(goal).values(), strict=True))

    tried = tune.search(score)
    assert len(asked) == len(set(asked)) == len(tried)
    assert max(tried, key=lambda one: one[1])[0] == goal
    assert tried[0] == (CRF(steps=0), 0.5)


def counts(both, predicted, true, patients):
    group = np.array([f"patient {i}" for i in patients])
    return dict(zip(("both", "predicted", "true"), map(np.array, (both, predicted, true)), strict=True), group=group)


# Two patients with a large and a small lesion each, and an empty scan; the last two scans are theirs as well.
WITHOUT = counts([80, 5, 80, 5, 0], [100, 10, 100, 10, 4], [100, 10, 100, 10, 0], [0, 0, 1, 1, 1])


def test_a_small_lesion_that_is_lost_counts_against_a_crf():
    lost = counts([95, 0, 95, 0, 0], [100, 0, 100, 0, 0], [100, 10, 100, 10, 0], [0, 0, 1, 1, 1])
    before, after = mask_scores(**WITHOUT), mask_scores(**lost)
    assert after["dice_patient"] > before["dice_patient"] + 0.1
    assert before["dice_lesion"] == pytest.approx(0.65)
    assert after["dice_lesion"] == pytest.approx(0.475)
    assert tune.worth(lost, WITHOUT, "dice_patient") == pytest.approx(after["dice_patient"] - 0.175)
    assert tune.worth(WITHOUT, WITHOUT, "dice_patient") == before["dice_patient"]


def test_a_gain_counts_where_every_patient_has_it():
    patients = np.arange(12)
    none = counts(*[np.full(12, n) for n in (50, 100, 100)], patients)
    all_gain = counts(np.full(12, 55), *[np.full(12, 100)] * 2, patients)
    one_gains = counts(np.where(patients == 0, 100, 50), *[np.full(12, 100)] * 2, patients)
    more, low, high = tune.gain(all_gain, none, "dice_patient")
    assert (more, low, high) == pytest.approx((0.05, 0.05, 0.05))
    more, low, high = tune.gain(one_gains, none, "dice_patient")
    assert more == pytest.approx(0.5 / 12)
    assert low == 0 < high  # a draw without that patient gains nothing


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    task = dataclasses.replace(TASKS["segment_brain"], sources=("phantom",), features=4, size=32)
    variables = jax.jit(task.make_model().init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, 32, 32, 3)))
    manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": 1}
    manifest |= {"validation": {"dice": 0.5}, "fingerprints": {"train": ["a"], "validation": ["b"]}}
    folder = tmp_path_factory.mktemp("runs") / "segment_brain"
    checkpoint.save(folder / "best", variables, manifest)
    return folder


def test_the_command_keeps_what_it_chose_with_the_weights(run, phantom_dir, monkeypatch, capsys):
    monkeypatch.setattr(tune, "VALUES", {"weight": (4.0,)})
    chosen = CRF(weight=4.0)
    before = bundle.load_weights(run)
    command = [str(run), f"--data_dir={phantom_dir}"]
    assert tune.main([*command, "--always", "--dry_run"]) == 0
    assert bundle.load_weights(run).task == before.task
    monkeypatch.setattr(tune, "gain", lambda *_: (0.1, -0.1, 0.3))
    assert tune.main(command) == 0
    assert bundle.load_weights(run).task == before.task
    assert "may be chance" in capsys.readouterr().out
    monkeypatch.setattr(tune, "gain", lambda *_: (0.1, 0.05, 0.2))
    assert tune.main(command) == 0
    after = bundle.load_weights(run)
    with_crf, without = (evaluate.evaluate(run, "validation", (), phantom_dir, crf) for crf in (True, False))
    dice = [found["sources"]["phantom"]["metrics"]["dice_loss"]["value"] for found in (with_crf, without)]
    assert dice[0] != dice[1]
    assert after.task == dataclasses.replace(before.task, crf=chosen)
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("changed"), before.variables, after.variables)
    assert "weight 4" in capsys.readouterr().out


def test_a_classifier_has_nothing_to_tune(run, tmp_path, capsys):
    task = dataclasses.replace(TASKS["route"], sources=("phantom",), features=4, size=32)
    variables = jax.jit(task.make_model().init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, 32, 32, 3)))
    manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": 1}
    manifest |= {"validation": {"accuracy": 0.5}, "fingerprints": {"train": ["a"], "validation": ["b"]}}
    checkpoint.save(tmp_path / "route", variables, manifest)
    assert tune.main([str(tmp_path / "route")]) == 2
    assert "only a mask has a CRF" in capsys.readouterr().err
