"""Bundles of weights: gathered from runs, halved, checked; and the one that is part of the package."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from mcis.checkpoints import bundle, checkpoint
from mcis.cli import bundle as bundle_command
from mcis.inference import cascade
from mcis.organs import ORGANS
from mcis.tasks.apply import make_expert
from mcis.tasks.table import TASKS, task_to_json
from tests.fixtures.runs import tiny_network
from tests.fixtures.tasks import small_task
from tests.fixtures.weights import drawn_variables

pytestmark = pytest.mark.usefixtures("tiny_models")


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    with tiny_network():
        yield


@functools.cache
def expert(task):
    return jax.jit(make_expert(task))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with random weights, as training leaves them."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("route", "classify_brain"):
        task = small_task(name)
        manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": task.epochs}
        manifest |= {"validation": {"accuracy": 0.5}, "fingerprints": {"train": ["a"], "validation": ["b"]}}
        checkpoint.save(folder / name / "best", drawn_variables(task), manifest)
    return folder


def test_a_bundle_holds_each_run_in_half_precision_and_predicts_nearly_the_same(runs, tmp_path):
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
    found, expected = (expert(whole.task)(weights.variables, scans).label for weights in (half, whole))
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert half.half and not whole.half


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    """Three runs of one task with different seeds and held-out scans."""
    folder = tmp_path_factory.mktemp("folds")
    task = small_task("segment_breast").check()
    for k in range(3):
        variables = drawn_variables(task, k)
        seen = {"train": [f"{i}" for i in range(3) if i != k], "validation": [f"{k}"]}
        manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": task.epochs, "seed": k}
        manifest |= {"validation": {"accuracy": k / 2}, "fingerprints": seen}
        checkpoint.save(folder / f"fold{k}" / "best", variables, manifest)
    return [folder / f"fold{k}" for k in range(3)]


def test_runs_of_one_task_make_an_ensemble_that_predicts_their_mean(folds, tmp_path):
    bundle.make_bundle(folds, tmp_path / "set", half=False)
    made = bundle.load_bundle(tmp_path / "set")["segment_breast"]
    scans = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    each = [expert(made.task)(bundle.load_weights(fold).variables, scans) for fold in folds]
    found = expert(made.task)(made.variables, scans)
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
    assert "calibration" not in bundle.ensemble(fitted).manifest  # it was fitted to one member
    with pytest.raises(ValueError, match="cannot be a member of another"):
        bundle.make_bundle([tmp_path / "set" / "segment_breast"] * 2, tmp_path / "nested")


def test_the_first_networks_of_an_ensemble_can_be_used_alone(folds, tmp_path):
    bundle.make_bundle(folds, tmp_path / "set", half=False)
    found = bundle.load_bundle(tmp_path / "set")
    two = bundle.first_networks(found, 2)["segment_breast"]
    assert (found["segment_breast"].networks, two.networks, bundle.load_weights(folds[0]).networks) == (3, 2, 1)
    scans = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    mean = np.mean([expert(two.task)(bundle.load_weights(fold).variables, scans).label for fold in folds[:2]], 0)
    np.testing.assert_allclose(expert(two.task)(two.variables, scans).label, mean, atol=1e-5)
    assert bundle.first_networks(found, None) == found
    with pytest.raises(ValueError, match="--members=4: it must be 1 to 3, the largest ensemble of segment_breast"):
        bundle.first_networks(found, 4)
    with pytest.raises(ValueError, match="--members=2: these weights have no ensemble; leave the option out"):
        bundle.first_networks({"segment_breast": bundle.load_weights(folds[0])}, 2)


def test_runs_with_other_settings_make_no_ensemble(folds, tmp_path):
    variables, manifest = checkpoint.load(folds[0] / "best")
    manifest["task"]["batch_size"] += 1
    checkpoint.save(tmp_path / "other", variables, manifest)
    with pytest.raises(ValueError, match="runs of segment_breast make an ensemble only with the same batch_size"):
        bundle.make_bundle([folds[0], tmp_path / "other"], tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_an_ensemble_with_ragged_arrays_is_an_error(folds, tmp_path):
    bundle.make_bundle(folds, tmp_path / "set")
    variables, manifest = checkpoint.load(tmp_path / "set" / "segment_breast")
    flat = checkpoint.flatten(variables)
    name = next(iter(flat))
    checkpoint.save(tmp_path / "bad", checkpoint.unflatten(flat | {name: flat[name][:2]}), manifest)
    with pytest.raises(checkpoint.CheckpointError, match="an ensemble's arrays"):
        bundle.load_weights(tmp_path / "bad")


def test_a_second_router_is_an_error(runs, tmp_path):
    with pytest.raises(ValueError, match="a second run of route"):
        bundle.make_bundle([runs / "route", runs / "route"], tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("folder", ["route", "route/best"])
def test_a_single_run_is_not_a_bundle(runs, folder, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="is the run of a single task, not a bundle: `mcis bundle"):
        bundle.load_bundle(runs / folder)
    with pytest.raises(checkpoint.CheckpointError, match="nothing: no such folder of weights"):
        bundle.load_bundle(runs / "nothing")
    with pytest.raises(checkpoint.CheckpointError, match="holds no weights: `mcis bundle"):
        bundle.load_bundle(tmp_path)


def test_a_folder_with_the_weights_of_another_task_is_an_error(runs, tmp_path):
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
def test_an_edited_manifest_is_an_error_that_names_it(runs, tmp_path, change):
    shutil.copytree(runs / "route" / "best", tmp_path / "route")
    file = tmp_path / "route" / checkpoint.MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(checkpoint.CheckpointError, match=checkpoint.MANIFEST):
        bundle.load_bundle(tmp_path)


@pytest.mark.parametrize("sources", ["busi", [1], None])
def test_sources_must_be_a_list_of_names(runs, tmp_path, sources):
    shutil.copytree(runs / "route" / "best", tmp_path / "route")
    file = tmp_path / "route" / checkpoint.MANIFEST
    manifest = json.loads(file.read_text())
    manifest["task"]["sources"] = sources
    file.write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.CheckpointError, match="sources"):
        bundle.load_weights(tmp_path / "route")


def test_weights_must_be_finite(runs, tmp_path):
    variables, manifest = checkpoint.load(runs / "route" / "best")
    dense = variables["params"]["label"]["dense"]
    dense["kernel"] = dense["kernel"] * np.float32(np.nan)
    checkpoint.save(tmp_path / "route", variables, manifest)
    with pytest.raises(checkpoint.CheckpointError, match=r"label/dense/kernel is not finite"):
        bundle.load_weights(tmp_path / "route")


def test_a_bundle_never_replaces_a_run(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    (tmp_path / "runs" / "route" / checkpoint.MANIFEST).write_text("{}")  # other programs write files of that name
    files = sorted((tmp_path / "runs").rglob("*"))
    with pytest.raises(ValueError, match="exists and is not a weights folder"):
        bundle.make_bundle([tmp_path / "runs" / "route", tmp_path / "runs" / "classify_brain"], tmp_path / "runs")
    assert sorted((tmp_path / "runs").rglob("*")) == files


def test_missing_tasks_are_printed_for_the_bundle_as_a_whole(runs, tmp_path, capsys):
    for name in ("route", "classify_brain"):
        assert bundle_command.main([str(runs / name), "--out", str(tmp_path)]) == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith("not in the bundle"))
    assert "classify_brain" in first and "classify_brain" not in second and "segment_brain" in second


def test_a_weights_folder_whose_replacement_was_killed_is_still_found(runs, tmp_path):
    shutil.copytree(runs / "route" / "best", tmp_path / "run" / ".best.old")
    shutil.copytree(runs / "route" / "best", tmp_path / "set" / ".route.old")
    assert bundle.load_weights(tmp_path / "run").task.name == "route"
    assert set(bundle.load_bundle(tmp_path / "set")) == {"route"}


def test_a_failed_save_leaves_the_old_bundle(runs, tmp_path, monkeypatch):
    bundle.make_bundle([runs / "route"], tmp_path)
    monkeypatch.setattr(checkpoint.ocp.StandardCheckpointer, "save", None)
    with pytest.raises(TypeError):
        bundle.make_bundle([runs / "route"], tmp_path)
    monkeypatch.undo()
    assert set(bundle.load_bundle(tmp_path)) == {"route"}


def test_missing_and_unusable_runs_are_errors(tmp_path):
    with pytest.raises(ValueError, match="no runs given"):
        bundle.make_bundle([], tmp_path / "set")
    with pytest.raises(checkpoint.CheckpointError, match="not a weights folder"):
        bundle.make_bundle([tmp_path], tmp_path / "set")
    with pytest.raises(checkpoint.CheckpointError, match="mcis bundle"):
        bundle.load_bundle(tmp_path)


def test_weights_of_another_width_are_an_error_that_names_an_array(runs, tmp_path):
    shutil.copytree(runs / "route" / "best", tmp_path / "route")
    variables, manifest = checkpoint.load(tmp_path / "route")
    manifest["task"]["features"] = 8
    checkpoint.save(tmp_path / "route", variables, manifest)
    with pytest.raises(checkpoint.CheckpointError, match=r"array batch_stats/conv1/norm/mean is \(4,\)"):
        bundle.load_weights(tmp_path / "route")


@pytest.mark.parametrize(
    ("task", "name", "value", "message"),
    [
        ("segment_breast", "calibration", {"review": 1.0}, r"calibration/slope is missing, the network has \(\)"),
        ("segment_breast", "calibration", {"slope": np.ones(2)}, r"calibration/slope is \(2,\)"),
        ("segment_breast", "reach", 1.0, "reach is .*, the network has none"),
        ("segment_breast", "outer", np.ones(2), r"outer is \(2,\), the network has \(\)"),
        ("route", "outer", 0.1, "outer is .*, the network has none"),
        (
            "segment_breast",
            "calibration",
            {"slope": 1.0, "label_set": np.ones(2)},
            r"calibration/label_set is \(2,\), the network has \(3,\)",
        ),
        (
            "segment_breast",
            "calibration",
            {"slope": 1.0, "points": {"balanced": np.ones(3), "sensitive": np.ones(2), "specific": np.ones(3)}},
            r"calibration/points/sensitive is \(2,\), the network has \(3,\)",
        ),
        (
            "segment_breast",
            "calibration",
            {"slope": 1.0, "points": {"balanced": np.ones(3), "specific": np.ones(3)}},
            r"calibration/points/sensitive is missing",
        ),
        ("segment_breast", "calibration", {"slope": 1.0, "points": np.ones(3)}, r"calibration/points is \(3,\)"),
        (
            "route",
            "calibration",
            {"slope": 1.0, "points": {"balanced": np.ones(3)}},
            "points/balanced is .3,., the .* none",
        ),
        ("route", "novelty", {"mean": np.ones((2, 3)), "limit": 1.0}, "novelty/mean is .2, 3."),
        ("route", "threshold", np.ones(2), "threshold is .2,., the network has .."),
        ("route", "certain", np.ones(2), "certain is .2,., the network has .."),
        ("segment_breast", "certain", 1.0, "certain is .*, the network has none"),
    ],
)
def test_arrays_fitted_after_training_are_checked(fold_runs, tmp_path, task, name, value, message):
    variables, manifest = checkpoint.load(fold_runs[task][0] / "best")
    value = jax.tree.map(np.float32, value)
    checkpoint.save(tmp_path / "odd", variables | {name: value}, manifest)
    with pytest.raises(checkpoint.CheckpointError, match=message):
        bundle.load_weights(tmp_path / "odd")


def test_operating_points_are_kept_as_they_were_fitted(fold_runs, tmp_path):
    variables, manifest = checkpoint.load(fold_runs["segment_breast"][0] / "best")
    points = {name: np.float32([0.1 * k, 0, -0.3]) for k, name in enumerate(("balanced", "sensitive", "specific"))}
    fitted = variables | {"calibration": {"slope": np.float32(1), "review": np.float32(0.5), "points": points}}
    checkpoint.save(tmp_path / "whole", fitted, manifest, half=True)
    found = bundle.load_weights(tmp_path / "whole").variables["calibration"]["points"]
    assert set(found) == set(points)
    for name, shift in points.items():
        np.testing.assert_array_equal(found[name], shift, strict=True)


def test_limits_of_sets_and_outlines_are_kept_as_they_were_fitted(fold_runs, tmp_path):
    variables, manifest = checkpoint.load(fold_runs["segment_breast"][0] / "best")
    limits = np.float32([0.0123456, 0.3, 0])
    fitted = variables | {"calibration": {"slope": np.float32(1), "label_set": limits}, "outer": np.float32(0.123456)}
    checkpoint.save(tmp_path / "whole", fitted, manifest, half=True)
    found = bundle.load_weights(tmp_path / "whole").variables
    np.testing.assert_array_equal(found["calibration"]["label_set"], limits, strict=True)
    assert found["outer"].dtype == np.float32 and found["outer"] == np.float32(0.123456)


def test_the_command(runs, tmp_path, capsys):
    assert bundle_command.main([str(runs / "route"), "--out", str(tmp_path / "set")]) == 0
    printed = capsys.readouterr().out
    assert "route" in printed and "not in the bundle: classify_brain" in printed
    assert bundle_command.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "set")]) == 2
    assert "no such folder; name a run or a weights folder" in capsys.readouterr().err


def test_the_bundled_weights_serve_every_organ_and_are_small():
    weights = bundle.load_bundle()
    tasks = {name: one.task for name, one in weights.items()}
    assert "route" in tasks
    assert set(cascade.label_experts(tasks)) == set(cascade.mask_experts(tasks)) == set(range(len(ORGANS)))
    files = [path for path in bundle.BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert "not a medical device" in (bundle.BUNDLED / "LICENSE").read_text()
    for name, one in weights.items():
        bundle.check_arrays(one.task, one.variables, bundle.BUNDLED / name)
        row = TASKS[name].check()  # docs/model_card.md says how long these networks were trained
        assert dataclasses.replace(one.task, epochs=row.epochs, start=row.start) == row
        seen = one.manifest["fingerprints"]
        assert seen["train"] and (seen["validation"] or bundle.MEMBERS in one.variables)
        assert not set(seen["train"]) & set(seen["validation"])
