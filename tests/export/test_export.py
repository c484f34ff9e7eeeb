"""`mcis export`: what it writes answers as the weights do, where nothing of mcis can be imported."""

import dataclasses
import hashlib
import json
import subprocess
import sys

import cv2
import jax
import jax.export
import numpy as np
import pytest

from mcis.checkpoints import bundle, checkpoint
from mcis.cli import export as export_command
from mcis.cli import predict
from mcis.export import export
from mcis.imaging import phantom
from mcis.imaging.letterbox import INPUT_SIZE, letterbox
from mcis.inference import cascade
from mcis.inference.options import InferenceOptions
from mcis.ops.crf import CRF
from mcis.organs import ORGANS
from mcis.tasks.apply import MEMBERS, make_expert
from mcis.tasks.table import TASKS, task_to_json

TOLERANCE = 1e-4
THRESHOLD = 0.5
"""Of the tiny router, so that some phantoms are unsupported."""
NETWORKS = {
    "route": {},
    "segment_brain": {"model": "light"},  # an ensemble with calibration, which says the label as well
    "classify_breast": {},
    "segment_breast": {"model": "light", "crf": CRF(steps=2)},
}


@pytest.fixture(scope="module")
def weights(random_variables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name, fields in NETWORKS.items():
        task = dataclasses.replace(TASKS[name], features=4, size=32, **fields)
        variables = random_variables(task, seed=1)
        if name == "segment_brain":
            other = jax.tree.map(lambda array: 1.1 * array + 0.01, variables)
            variables = {MEMBERS: jax.tree.map(lambda *arrays: np.stack(arrays), variables, other)}
            variables["calibration"] = {"slope": np.float32(0.7), "review": np.float32(0.5)}
        manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": 3}
        manifest |= {"validation": {"accuracy": 0.5}, "fingerprints": {"train": [], "validation": []}}
        checkpoint.save(folder / name, variables, manifest)
    (folder / "LICENSE").write_text("for tests alone\n")
    return folder


@pytest.fixture(scope="module")
def canvases():
    return np.stack([letterbox(one.image)[0] for one in phantom.make_phantoms(2, seed=100)])


def exported(folder, weights, *options):
    assert export_command.main([f"--out={folder}", f"--weights={weights}", *options]) == 0
    return folder, json.loads((folder / "metadata.json").read_text())


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    return exported(tmp_path_factory.mktemp("exported") / "cascade", weights, f"--threshold={THRESHOLD}")


def model_of(folder):
    """The exported function, compiled: of canvases to named arrays."""
    return jax.jit(jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes())).call)


def assert_equal(found, wanted):
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        np.testing.assert_allclose(found[name], value, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.slow
def test_the_cascade_answers_as_it_did(whole, weights, canvases):
    found = bundle.load_bundle(weights)
    predict_ = cascade.make_cascade({n: one.task for n, one in found.items()}, InferenceOptions(threshold=THRESHOLD))
    wanted = jax.jit(lambda image: dict(vars(predict_({n: one.variables for n, one in found.items()}, image))))
    rows = canvases[[0, 1, 2, 3, 6, 8]]  # more than a chunk; what run.py does below is one
    answer = model_of(whole[0])(rows)
    assert_equal(answer, wanted(rows))
    assert set(np.asarray(answer["organ"]).tolist()) == {0, 1, cascade.UNSUPPORTED_INDEX}
    assert np.asarray(answer["segmented"]).any() and not np.isnan(answer["confidence"]).all()


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        ("route", False),
        ("segment_brain", True),
        pytest.param("segment_brain", False, marks=pytest.mark.slow),
        ("segment_breast", False),
    ],
)
def test_one_network_answers_as_it_did(name, apart, weights, canvases):
    one = bundle.load_bundle(weights)[name]
    outputs = jax.jit(make_expert(one.task))(one.variables, canvases[:3])
    label = "organ_probs" if name == "route" else "label_probs"
    wanted = {key: value for key, value in {label: outputs.label, "mask": outputs.mask}.items() if value is not None}
    serialized = export.to_stablehlo(export.network_function(one, apart))
    model = jax.jit(jax.export.deserialize(bytearray(serialized)).call)
    for rows in (slice(0, 3), slice(1, 2)):
        assert_equal(model(canvases[rows]), {key: value[rows] for key, value in wanted.items()})
    assert ("mask" in wanted) == name.startswith("segment")


def test_members_are_counted(weights, canvases):
    found = bundle.load_bundle(weights)
    one = found["segment_brain"]
    first = jax.jit(export.network_function(bundle.first_networks(found, 1)["segment_brain"]))(canvases[:1])["mask"]
    alone = jax.tree.map(lambda array: array[0], one.variables[MEMBERS])
    np.testing.assert_allclose(first, jax.jit(make_expert(one.task))(alone, canvases[:1]).mask, atol=TOLERANCE)
    both = jax.jit(make_expert(one.task))(one.variables, canvases[:1]).mask
    assert np.abs(first - both).max() > 0.01


WITHOUT_MCIS = """
import runpy, sys
for name in ("mcis", "flax", "orbax", "optax", "grain", "tensorflow_datasets"):
    sys.modules[name] = None  # to import it is an error
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_alone(folder, *arguments):
    """run.py in a process that can import nothing of mcis and nothing beside run.py."""
    command = [sys.executable, "-I", "-c", WITHOUT_MCIS, folder / "run.py", *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=folder.parent)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def compare(lines, report):
    """What run.py printed beside the findings of `mcis predict`; the number of masks that were equal."""
    findings = [json.loads(line) for line in (report / "findings.jsonl").read_text().splitlines()]
    assert len(lines) == len(findings)
    masks = 0
    for ours, theirs in zip(findings, lines, strict=True):
        assert ours["scan"] == theirs["scan"] and (ours["error"] is None) == ("error" not in theirs)
        for name in ("organ", "label", "review", "lesion_area_px"):
            assert ours[name] == theirs.get(name), name
        for name in ("organ_prob", "confidence", "label_probs"):
            if name in theirs:
                assert ours[name] == pytest.approx(theirs[name], abs=TOLERANCE), name
        if ours["mask"] is not None:
            mask = cv2.imread(str(report / ours["mask"]), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(mask, cv2.imread(theirs["mask"], cv2.IMREAD_UNCHANGED))
            masks += 1
    return masks


@pytest.mark.slow
def test_run_py_alone_finds_what_mcis_predict_finds(whole, weights, tmp_path):
    folder, metadata = whole
    paths = phantom.write_examples(tmp_path / "scans", per_class=2, seed=100)
    (tmp_path / "scans" / "broken.png").write_bytes(b"no picture at all")
    cv2.imwrite(str(tmp_path / "scans" / "small.png"), phantom.make_phantom("brain", 1, 5, size=(64, 64)).image)
    paths = [str(path) for path in [*paths, tmp_path / "scans" / "broken.png", tmp_path / "scans" / "small.png"]]
    status, lines, errors = run_alone(folder, *paths, "--masks", tmp_path / "masks")
    asked = [f"--weights={weights}", f"--threshold={THRESHOLD}"]
    assert predict.main([*paths, f"--out={tmp_path / 'report'}", *asked]) == status == 1
    assert compare(lines, tmp_path / "report") > 1
    assert {line.get("organ") for line in lines} == {"brain", "breast", "unsupported", None}
    assert lines[-1]["reason"] == "a thumbnail" and metadata["notice"] in errors


@pytest.mark.parametrize("name", ["route", "segment_brain"])
def test_run_py_alone_runs_one_task(name, weights, tmp_path):
    folder, metadata = exported(tmp_path / name, weights, f"--task={name}")
    paths = [str(path) for path in phantom.write_examples(tmp_path / "scans")]
    status, lines, _ = run_alone(folder, *paths, "--masks", tmp_path / "masks")
    assert predict.main([*paths, f"--out={tmp_path / 'report'}", f"--weights={weights}", f"--task={name}"]) == 0
    assert status == 0 and metadata["what"] == name
    assert compare(lines, tmp_path / "report") == (len(paths) if name == "segment_brain" else 0)


@pytest.mark.slow
def test_a_damaged_model_is_not_run(whole, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in whole[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    with open(folder / "model.stablehlo", "r+b") as file:
        file.seek(100)
        file.write(b"\0\1\2\3")
    status, lines, errors = run_alone(folder, "scan.png")
    assert status == 2 and not lines and "is damaged" in errors


@pytest.mark.slow
def test_metadata_says_what_there_is(whole, weights):
    folder, metadata = whole
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "metadata.json", "model.stablehlo", "run.py"]
    model = (folder / "model.stablehlo").read_bytes()
    assert metadata["model"]["sha256"] == hashlib.sha256(model).hexdigest()
    assert metadata["format"] == "stablehlo" and "Not a medical device" in metadata["notice"]
    assert metadata["input"]["shape"] == ["batch", 256, 256, 3] and metadata["input"]["dtype"] == "uint8"
    assert set(metadata["outputs"]) == {field.name for field in dataclasses.fields(cascade.Prediction)}
    assert metadata["outputs"]["mask"]["shape"] == ["batch", 256, 256, 1]
    assert [organ["classes"] for organ in metadata["organs"]] == [list(organ.classes) for organ in ORGANS]
    limits = {"mask": 0.5, "content_px": 80, "organ_prob": THRESHOLD, "review": {"segment_brain": 0.5}}
    assert metadata["thresholds"] == limits
    assert metadata["weights"]["licence"] == (folder / "LICENSE").read_text() == "for tests alone\n"
    tasks = metadata["weights"]["tasks"]
    assert set(tasks) == set(NETWORKS)
    assert tasks["segment_brain"]["networks"] == 2 and tasks["segment_brain"]["validation"] == {"accuracy": 0.5}
    manifest = json.loads((weights / "route" / "manifest.json").read_text())
    assert tasks["route"]["sha256"] == manifest["files"]
    model = jax.export.deserialize(bytearray(model))
    assert model.platforms == export.PLATFORMS and str(model.in_avals[0].shape) == "(batch, 256, 256, 3)"


@pytest.mark.slow
def test_one_organ_takes_nothing_of_the_others_along(whole, weights, tmp_path):
    _, metadata = exported(tmp_path / "breast", weights, "--organ=breast")
    assert set(metadata["weights"]["tasks"]) == {"classify_breast", "segment_breast"}
    assert not metadata["refuses_thumbnails"] and "organ_prob" not in metadata["thresholds"]
    assert metadata["model"]["bytes"] < whole[1]["model"]["bytes"]


def test_what_cannot_be_done_is_said(weights, tmp_path, monkeypatch, capsys):
    def said(*options):
        assert export_command.main([f"--out={tmp_path / 'out'}", f"--weights={weights}", *options]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "takes one network, --task=NAME" in said("--format=onnx")
    assert "they have: route, classify_breast" in said("--task=classify_brain")
    assert "no task" in said("--task=segment_liver")
    assert "exclude each other" in said("--task=route", "--organ=brain")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert "make .venv-onnx/.installed" in said("--task=route", "--format=onnx")


def test_only_an_export_is_replaced(weights, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    command = [f"--out={folder}", f"--weights={weights}", "--task=classify_breast"]
    assert export_command.main(command) == 2
    assert "is no export (notes.txt)" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    assert export_command.main(command) == 0
    before = (folder / "model.stablehlo").read_bytes()
    assert export_command.main([*command[:2], "--task=route"]) == 0
    assert (folder / "model.stablehlo").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (folder / "masks").mkdir()
    assert export_command.main(command) == 2 and (folder / "masks").is_dir()


def test_the_pin_is_that_of_the_makefile():
    makefile = (bundle.BUNDLED.parents[1] / "Makefile").read_text()
    assert "jax2onnx==0.17.0" in makefile and "jax2onnx==0.17.0" in export.GET_JAX2ONNX


def test_plain_forms_are_for_a_conversion_alone():
    before = jax.lax.platform_dependent
    with export._plain_forms():
        assert jax.lax.platform_dependent(1, cpu=lambda x: x + 1, default=lambda x: x + 2) == 3
    assert jax.lax.platform_dependent is before


@pytest.mark.slow
def test_what_ships_answers_as_it_did(tmp_path, canvases):
    folder, _ = exported(tmp_path / "shipped", bundle.BUNDLED)
    model = model_of(folder)
    wanted = jax.jit(export.cascade_function(bundle.load_bundle(), InferenceOptions()))
    black = np.zeros((1, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    for batch in (canvases[:1], np.concatenate([canvases, black])):
        assert_equal(model(batch), wanted(batch))
    assert np.asarray(model(batch)["organ"])[-1] == cascade.UNSUPPORTED_INDEX
    paths = [str(path) for path in phantom.write_examples(tmp_path / "scans", per_class=2)]
    _, lines, _ = run_alone(folder, *paths, "--masks", tmp_path / "masks")
    assert predict.main([*paths, f"--out={tmp_path / 'report'}"]) == 0
    assert compare(lines, tmp_path / "report") > 0
