"""The search for a CRF, and the command on a run."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from mcis import bundle, checkpoint, evaluate, tune
from mcis.ops.crf import CRF
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
    assert tune.choose(tried) == goal
    assert tried[0] == (CRF(steps=0), 0.5)


def test_a_gain_too_small_is_none():
    none, some = CRF(steps=0), CRF()
    assert tune.choose([(none, 0.7), (some, 0.7 + tune.GAIN / 2)]) == none
    assert tune.choose([(none, 0.7), (some, 0.7 + 2 * tune.GAIN)]) == some
    assert tune.choose([(none, 0.7), (some, 0.2)]) == none
    assert tune.choose([(none, 0.7), (some, 0.2), (CRF(sigma=5.0), 0.1)], always=True) == some


def test_what_lesion_scans_lose_counts_against_a_crf():
    without = {"dice_patient": 0.6, "dice_lesion": 0.7}
    assert tune.worth({"dice_patient": 0.7, "dice_lesion": 0.75}, without, "dice_patient") == 0.7
    assert tune.worth({"dice_patient": 0.7, "dice_lesion": 0.5}, without, "dice_patient") == pytest.approx(0.5)
    assert tune.worth(without, without, "dice_patient") == 0.6


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
    monkeypatch.setattr(tune, "VALUES", {"weight": (1.0,)})
    chosen = CRF(weight=1.0)
    monkeypatch.setattr(tune, "choose", lambda tried, always: chosen)
    before = bundle.load_weights(run)
    assert tune.main([str(run), f"--data_dir={phantom_dir}", "--dry_run"]) == 0
    assert bundle.load_weights(run).task == before.task
    assert tune.main([str(run), f"--data_dir={phantom_dir}"]) == 0
    after = bundle.load_weights(run)
    with_crf, without = (evaluate.evaluate(run, "validation", (), phantom_dir, crf) for crf in (True, False))
    dice = [found["sources"]["phantom"]["metrics"]["dice_loss"]["value"] for found in (with_crf, without)]
    assert dice[0] != dice[1]
    assert after.task == dataclasses.replace(before.task, crf=chosen)
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("changed"), before.variables, after.variables)
    assert "weight 1" in capsys.readouterr().out


def test_a_classifier_has_nothing_to_tune(run, tmp_path, capsys):
    task = dataclasses.replace(TASKS["route"], sources=("phantom",), features=4, size=32)
    variables = jax.jit(task.make_model().init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, 32, 32, 3)))
    manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": 1}
    manifest |= {"validation": {"accuracy": 0.5}, "fingerprints": {"train": ["a"], "validation": ["b"]}}
    checkpoint.save(tmp_path / "route", variables, manifest)
    assert tune.main([str(tmp_path / "route")]) == 2
    assert "only a mask has a CRF" in capsys.readouterr().err
