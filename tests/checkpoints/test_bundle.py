"""Sets of weights: gathered from runs, halved, checked, and those that ship."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis.checkpoints import bundle, checkpoint
from mcis.cli import bundle as bundle_command
from mcis.inference import cascade
from mcis.organs import ORGANS
from mcis.tasks.apply import make_expert
from mcis.tasks.table import TASKS, task_to_json


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with random weights, as training leaves them."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("route", "classify_brain"):
        task = dataclasses.replace(TASKS[name], features=4, size=32)
        variables = jax.jit(task.make_model().init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, 32, 32, 3)))
        manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": task.epochs}
        manifest |= {"validation": {"accuracy": 0.5}, "fingerprints": {"train": ["a"], "validation": ["b"]}}
        checkpoint.save(folder / name / "best", variables, manifest)
    return folder


def test_a_set_holds_each_run_in_half_precision_and_answers_nearly_the_same(runs, tmp_path):
    sizes = bundle.make_bundle([runs / "route", runs / "classify_brain" / "best"], tmp_path)
    assert list(sizes) == ["route", "classify_brain"]
    weights = bundle.load_bundle(tmp_path)
    assert set(weights) == {"route", "classify_brain"}
    whole = bundle.load_weights(runs / "route")
    half = weights["route"]
    assert half.task == whole.task and half.manifest["fingerprints"] == whole.manifest["fingerprints"]
    arrays = half.manifest["arrays"]
    assert {dtype for key, (dtype, _) in arrays.items() if key.startswith("params/")} == {"float16"}
    assert {dtype for key, (dtype, _) in arrays.items() if key.startswith("batch_stats/")} == {"float32"}
    scans = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    expert = make_expert(whole.task)
    np.testing.assert_allclose(expert(half.variables, scans).label, expert(whole.variables, scans).label, atol=2e-3)


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """Three runs of one task that differ in their seed and in the scans they have left out."""
    folder = tmp_path_factory.mktemp("folds")
    task = dataclasses.replace(TASKS["segment_breast"], model="light", features=4, size=32, select="last").check()
    for k in range(3):
        variables = jax.jit(task.make_model().init)(jax.random.key(k, impl="rbg"), jnp.zeros((1, 32, 32, 3)))
        seen = {"train": [f"{i}" for i in range(3) if i != k], "validation": [f"{k}"]}
        manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": task.epochs, "seed": k}
        manifest |= {"validation": {"accuracy": k / 2}, "fingerprints": seen}
        checkpoint.save(folder / f"fold{k}" / "best", variables, manifest)
    return [folder / f"fold{k}" for k in range(3)]


def test_runs_of_one_task_make_an_ensemble_that_answers_with_the_mean(folds, tmp_path):
    bundle.make_bundle(folds, tmp_path / "set", half=False)
    made = bundle.load_bundle(tmp_path / "set")["segment_breast"]
    scans = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    expert = make_expert(made.task)
    each = [expert(bundle.load_weights(fold).variables, scans) for fold in folds]
    found = expert(made.variables, scans)
    assert np.ptp([one.label for one in each], axis=0).max() > 1e-3
    np.testing.assert_allclose(found.label, np.mean([one.label for one in each], 0), atol=1e-5)
    np.testing.assert_allclose(found.mask, np.mean([one.mask for one in each], 0), atol=1e-4)
    assert made.manifest["fingerprints"] == {"train": ["0", "1", "2"], "validation": []}
    assert made.manifest["validation"] == {"accuracy": 0.5} and made.manifest["seeds"] == [0, 1, 2]
    halved = bundle.make_bundle(folds, tmp_path / "half")
    assert (
        halved["segment_breast"] < 1.9 * bundle.make_bundle(folds[:1], tmp_path / "one", half=False)["segment_breast"]
    )
    fitted = [
        dataclasses.replace(one, manifest=one.manifest | {"calibration": {}}) for one in map(bundle.load_weights, folds)
    ]
    assert "calibration" not in bundle.ensemble(fitted).manifest  # it was one member's
    with pytest.raises(ValueError, match="cannot be a member of another"):
        bundle.make_bundle([tmp_path / "set" / "segment_breast"] * 2, tmp_path / "nested")


def test_the_first_networks_of_a_set_answer_for_it(folds, tmp_path):
    bundle.make_bundle(folds, tmp_path / "set", half=False)
    found = bundle.load_bundle(tmp_path / "set")
    two = bundle.first_networks(found, 2)["segment_breast"]
    assert (found["segment_breast"].networks, two.networks, bundle.load_weights(folds[0]).networks) == (3, 2, 1)
    scans = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    expert = make_expert(two.task)
    mean = np.mean([expert(bundle.load_weights(fold).variables, scans).label for fold in folds[:2]], 0)
    np.testing.assert_allclose(expert(two.variables, scans).label, mean, atol=1e-5)
    assert bundle.first_networks(found, None) == found
    with pytest.raises(ValueError, match="--members=4: 1 to 3 is needed, more have none of segment_breast"):
        bundle.first_networks(found, 4)


def test_runs_that_learned_otherwise_make_no_ensemble(folds, tmp_path):
    variables, manifest = checkpoint.load(folds[0] / "best")
    manifest["task"]["batch_size"] += 1
    checkpoint.save(tmp_path / "other", variables, manifest)
    with pytest.raises(ValueError, match="runs of segment_breast make an ensemble only where they agree in batch_size"):
        bundle.make_bundle([folds[0], tmp_path / "other"], tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_an_ensemble_of_ragged_arrays_is_refused(folds, tmp_path):
    bundle.make_bundle(folds, tmp_path / "set")
    variables, manifest = checkpoint.load(tmp_path / "set" / "segment_breast")
    flat = checkpoint.flatten(variables)
    name = next(iter(flat))
    checkpoint.save(tmp_path / "bad", checkpoint.unflatten(flat | {name: flat[name][:2]}), manifest)
    with pytest.raises(checkpoint.CheckpointError, match="an ensemble's arrays"):
        bundle.load_weights(tmp_path / "bad")


def test_two_routers_are_refused(runs, tmp_path):
    with pytest.raises(ValueError, match="a second run of route"):
        bundle.make_bundle([runs / "route", runs / "route"], tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("folder", ["route", "route/best"])
def test_a_run_alone_is_called_a_run_and_no_set(runs, folder, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="is one task's run, no set of weights: `mcis bundle"):
        bundle.load_bundle(runs / folder)
    with pytest.raises(checkpoint.CheckpointError, match="nothing: no such folder of weights"):
        bundle.load_bundle(runs / "nothing")
    with pytest.raises(checkpoint.CheckpointError, match="holds no weights: `mcis bundle"):
        bundle.load_bundle(tmp_path)


def test_a_set_with_two_folders_swapped_is_refused(runs, tmp_path):
    shutil.copytree(runs / "route" / "best", tmp_path / "classify_brain")
    with pytest.raises(checkpoint.CheckpointError, match="classify_brain holds weights of route"):
        bundle.load_bundle(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"task": {"name": "../../elsewhere"}},
        {"task": None},
        {"epoch": "three"},
        {"epoch": None},
        {"validation": {"accuracy": "high"}},
        {"validation": [1]},
        {"fingerprints": {"train": []}},
        {"fingerprints": {"train": [1], "validation": []}},
        {"classes": ["brain"]},
        {"versions": None},
    ],
    ids=str,
)
def test_a_manifest_that_was_edited_is_an_error_that_names_it(runs, tmp_path, change):
    shutil.copytree(runs / "route" / "best", tmp_path / "route")
    file = tmp_path / "route" / checkpoint.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(checkpoint.CheckpointError, match=checkpoint.MANIFEST):
        bundle.load_bundle(tmp_path)


@pytest.mark.parametrize("sources", ["busi", [1], None])
def test_sources_that_are_no_names_are_refused(runs, tmp_path, sources):
    shutil.copytree(runs / "route" / "best", tmp_path / "route")
    file = tmp_path / "route" / checkpoint.MANIFEST
    manifest = json.loads(file.read_text())
    manifest["task"]["sources"] = sources
    file.write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.CheckpointError, match="sources"):
        bundle.load_weights(tmp_path / "route")


def test_weights_that_are_not_finite_are_refused(runs, tmp_path):
    variables, manifest = checkpoint.load(runs / "route" / "best")
    dense = variables["params"]["label"]["dense"]
    dense["kernel"] = dense["kernel"] * np.float32(np.nan)
    checkpoint.save(tmp_path / "route", variables, manifest)
    with pytest.raises(checkpoint.CheckpointError, match=r"label/dense/kernel is not finite"):
        bundle.load_weights(tmp_path / "route")


def test_a_set_never_takes_the_place_of_a_run(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs" / "route" / checkpoint.MANIFEST).write_text("{}")  # a name that others use, too
    files = sorted((tmp_path / "runs").rglob("*"))
    with pytest.raises(ValueError, match="holds no weights that could be replaced"):
        bundle.make_bundle([tmp_path / "runs" / "route", tmp_path / "runs" / "classify_brain"], tmp_path / "runs")
    assert sorted((tmp_path / "runs").rglob("*")) == files


def test_what_a_set_lacks_is_told_from_what_is_there(runs, tmp_path, capsys):
    for name in ("route", "classify_brain"):
        assert bundle_command.main([str(runs / name), "--out", str(tmp_path)]) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("not in the set"))
    assert "classify_brain" in first and "classify_brain" not in second and "segment_brain" in second


def test_a_weights_folder_whose_replacement_was_killed_is_still_found(runs, tmp_path):
    shutil.copytree(runs / "route" / "best", tmp_path / "run" / ".best.old")
    shutil.copytree(runs / "route" / "best", tmp_path / "set" / ".route.old")
    assert bundle.load_weights(tmp_path / "run").task.name == "route"
    assert set(bundle.load_bundle(tmp_path / "set")) == {"route"}


def test_a_set_that_cannot_be_saved_leaves_the_old_one(runs, tmp_path, monkeypatch):
    bundle.make_bundle([runs / "route"], tmp_path)
    monkeypatch.setattr(checkpoint.ocp.StandardCheckpointer, "save", None)
    with pytest.raises(TypeError):
        bundle.make_bundle([runs / "route"], tmp_path)
    monkeypatch.undo()
    assert set(bundle.load_bundle(tmp_path)) == {"route"}


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="no runs given"):
        bundle.make_bundle([], tmp_path / "set")
    with pytest.raises(checkpoint.CheckpointError, match="no weights folder"):
        bundle.make_bundle([tmp_path], tmp_path / "set")
    with pytest.raises(checkpoint.CheckpointError, match="mcis bundle"):
        bundle.load_bundle(tmp_path)


def test_weights_of_another_width_name_the_array(runs, tmp_path):
    shutil.copytree(runs / "route" / "best", tmp_path / "route")
    variables, manifest = checkpoint.load(tmp_path / "route")
    manifest["task"]["features"] = 8
    checkpoint.save(tmp_path / "route", variables, manifest)
    with pytest.raises(checkpoint.CheckpointError, match=r"array batch_stats/level1_block1/norm1/mean is \(4,\)"):
        bundle.load_weights(tmp_path / "route")


@pytest.mark.parametrize(
    ("task", "name", "value", "said"),
    [
        ("segment_breast", "calibration", {"review": 1.0}, r"calibration/slope is missing, the network has \(\)"),
        ("segment_breast", "calibration", {"slope": np.ones(2)}, r"calibration/slope is \(2,\)"),
        ("segment_breast", "reach", 1.0, "reach is .*, the network has none"),
        ("route", "novelty", {"mean": np.ones((2, 3)), "limit": 1.0}, "novelty/mean is .2, 3."),
        ("route", "threshold", np.ones(2), "threshold is .2,., the network has .."),
    ],
)
def test_what_was_fitted_is_checked_before_it_is_used(fold_runs, tmp_path, task, name, value, said):
    variables, manifest = checkpoint.load(fold_runs[task][0] / "best")
    value = jax.tree.map(np.float32, value)
    checkpoint.save(tmp_path / "odd", variables | {name: value}, manifest)
    with pytest.raises(checkpoint.CheckpointError, match=said):
        bundle.load_weights(tmp_path / "odd")


def test_the_command(runs, tmp_path, capsys):
    assert bundle_command.main([str(runs / "route"), "--out", str(tmp_path / "set")]) == 0
    printed = capsys.readouterr().out
    assert "route" in printed and "not in the set: classify_brain" in printed
    assert bundle_command.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "set")]) == 2
    assert "no weights folder" in capsys.readouterr().err


def test_the_weights_that_ship_serve_every_organ_and_are_small():
    weights = bundle.load_bundle()
    tasks = {name: one.task for name, one in weights.items()}
    assert "route" in tasks
    assert set(cascade.label_experts(tasks)) == set(cascade.mask_experts(tasks)) == set(range(len(ORGANS)))
    files = [path for path in bundle.BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert "not a medical device" in (bundle.BUNDLED / "LICENSE").read_text()
    for name, one in weights.items():
        bundle.check_arrays(one.task, one.variables, bundle.BUNDLED / name)
        assert one.task == TASKS[name].check(), "README says that these commands train what ships"
        seen = one.manifest["fingerprints"]
        assert seen["train"] and (seen["validation"] or bundle.MEMBERS in one.variables)  # folds have all but test
        assert not set(seen["train"]) & set(seen["validation"])
