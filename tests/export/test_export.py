"""`mcis export`: its files give the same results as the weights, in a process that cannot import mcis."""

import dataclasses
import hashlib
import json
import shutil
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
from mcis.export import export, run
from mcis.imaging import phantom
from mcis.imaging.letterbox import INPUT_SIZE, letterbox
from mcis.inference import cascade
from mcis.inference.options import InferenceOptions
from mcis.ops.crf import CRF
from mcis.organs import ORGANS
from mcis.tasks.apply import MEMBERS, make_expert
from mcis.tasks.table import task_to_json
from tests.fixtures.tasks import small_task

pytestmark = pytest.mark.usefixtures("tiny_models")

TOLERANCE = 1e-4
THRESHOLD = 0.5
"""Of the tiny router, so that some phantoms are unsupported."""
NETWORKS = {
    "route": {"model": "cnn"},
    # an ensemble with calibration that predicts label and mask
    "segment_brain": {"each_channel": True, "inside": True},
    "classify_breast": {"model": "cnn"},
    "segment_breast": {"crf": CRF(steps=2)},
}


@pytest.fixture(scope="module")
def weights(random_variables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name, fields in NETWORKS.items():
        task = small_task(name, **fields)
        variables = random_variables(task, seed=1)
        if name == "segment_brain":
            other = jax.tree.map(lambda array: 1.1 * array + 0.01, variables)
            variables = {MEMBERS: jax.tree.map(lambda *arrays: np.stack(arrays), variables, other)}
            variables["calibration"] = {"slope": np.float32(0.7), "review": np.float32(0.5)}
            variables["calibration"] |= {"label_set": np.float32([0.25, 0.125])}
            variables["outer"] = np.float32(0.25)
        manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": 3}
        manifest |= {"validation": {"accuracy": 0.5}, "fingerprints": {"train": [], "validation": []}}
        checkpoint.save(folder / name, variables, manifest)
    (folder / "LICENSE").write_text("for tests only\n")
    return folder


@pytest.fixture(scope="module")
def images():
    return np.stack([letterbox(one.image)[0] for one in phantom.make_phantoms(2, seed=100)])


def exported(folder, weights, *options):
    assert export_command.main([f"--out={folder}", f"--weights={weights}", *options]) == 0
    return folder, json.loads((folder / "metadata.json").read_text())


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    return exported(tmp_path_factory.mktemp("exported") / "cascade", weights, f"--threshold={THRESHOLD}")


def compiled(serialized):
    """The exported function, compiled: from model inputs to named arrays."""
    return jax.jit(jax.export.deserialize(bytearray(serialized)).call)


def assert_equal(values, expected):
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert values[name].dtype == value.dtype and values[name].shape == value.shape, name
        np.testing.assert_allclose(values[name], value, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.slow
def test_the_exported_cascade_gives_the_same_results(whole, weights, images):
    loaded = bundle.load_bundle(weights)
    predict_ = cascade.make_cascade({n: one.task for n, one in loaded.items()}, InferenceOptions(threshold=THRESHOLD))
    expected = jax.jit(lambda image: dict(vars(predict_({n: one.variables for n, one in loaded.items()}, image))))
    rows = images[[0, 1, 2, 3, 6, 8]]  # more than one chunk
    values = compiled((whole[0] / "model.stablehlo").read_bytes())(rows)
    assert_equal(values, expected(rows))
    assert set(np.asarray(values["organ"]).tolist()) == {0, 1, cascade.UNSUPPORTED_INDEX}
    assert np.asarray(values["segmented"]).any() and not np.isnan(values["confidence"]).all()


def check_network(one, serialized, images):
    """Compare an exported network with its weights, for another batch size."""
    outputs = jax.jit(make_expert(one.task))(one.variables, images[:3])
    label = "organ_probs" if one.task.organ is None else "label_probs"
    expected = {key: value for key, value in {label: outputs.label, "mask": outputs.mask}.items() if value is not None}
    assert_equal(compiled(serialized)(images[1:3]), {key: value[1:3] for key, value in expected.items()})
    assert ("mask" in expected) == one.task.name.startswith("segment")


@pytest.mark.parametrize("name", ["segment_breast", pytest.param("route", marks=pytest.mark.slow)])
def test_an_exported_network_gives_the_same_results(name, weights, images):
    one = bundle.load_bundle(weights)[name]
    check_network(one, export.to_stablehlo(export.network_function(one)), images)


@pytest.mark.slow
@pytest.mark.parametrize("unrolled", [False, True])
def test_an_exported_ensemble_gives_the_same_results(unrolled, weights, images):
    one = bundle.load_bundle(weights)["segment_brain"]
    check_network(one, export.to_stablehlo(export.network_function(one, unrolled)), images)


@pytest.fixture(scope="module")
def brain(weights, tmp_path_factory):
    return exported(tmp_path_factory.mktemp("brain") / "out", weights, "--task=segment_brain")


def test_members_of_an_ensemble_can_be_left_out(brain, weights, tmp_path):
    both, first = brain[1], exported(tmp_path / "first", weights, "--task=segment_brain", "--members=1")[1]
    assert [one["weights"]["tasks"]["segment_brain"]["networks"] for one in (both, first)] == [2, 1]
    assert first["model"]["bytes"] < both["model"]["bytes"] and first["asked"]["members"] == 1


WITHOUT_MCIS = """
import runpy, sys
for name in ("mcis", "flax", "orbax", "optax", "grain", "tensorflow_datasets"):
    sys.modules[name] = None  # importing it raises ImportError
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_alone(folder, *arguments):
    """Exit status, lines and standard error of run.py in a process that cannot import mcis."""
    command = [sys.executable, "-I", "-c", WITHOUT_MCIS, folder / "run.py", *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=folder.parent)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def compare(lines, report):
    """Compare the lines of run.py with the findings of `mcis predict`; the number of equal masks."""
    findings = [json.loads(line) for line in (report / "findings.jsonl").read_text().splitlines()]
    assert len(lines) == len(findings)
    masks = 0
    for expected, line in zip(findings, lines, strict=True):
        assert expected["scan"] == line["scan"] and (expected["error"] is None) == ("error" not in line)
        for name in ("organ", "label", "review", "label_set"):
            assert expected[name] == line.get(name), name
        for name in ("organ_prob", "confidence", "label_probs"):
            if name in line:
                assert expected[name] == pytest.approx(line[name], abs=TOLERANCE), name
        if expected["mask"] is not None:
            mask = cv2.imread(str(report / expected["mask"]), cv2.IMREAD_UNCHANGED)
            # of the probabilities of random weights some are 0.5 to the last bit, which rounding tells apart
            assert (mask != cv2.imread(line["mask"], cv2.IMREAD_UNCHANGED)).mean() < 1e-3
            assert abs(expected["lesion_area_px"] - line["lesion_area_px"]) < 1e-3 * mask.size
            assert (expected["outer_area_px"] is None) == ("outer_area_px" not in line)
            if "outer_area_px" in line:
                assert abs(expected["outer_area_px"] - line["outer_area_px"]) < 1e-3 * mask.size
                assert expected["outer_area_share"] == pytest.approx(line["outer_area_share"], abs=1e-3)
            masks += 1
    return masks


@pytest.mark.slow
def test_run_py_without_mcis_gives_the_findings_of_mcis_predict(whole, weights, tmp_path):
    folder, metadata = whole
    paths = phantom.write_examples(tmp_path / "scans", per_class=2, seed=100)
    (tmp_path / "scans" / "broken.png").write_bytes(b"no picture at all")
    cv2.imwrite(str(tmp_path / "scans" / "small.png"), phantom.make_phantom("brain", 1, 5, size=(64, 64)).image)
    paths = [str(path) for path in [*paths, tmp_path / "scans" / "broken.png", tmp_path / "scans" / "small.png"]]
    status, lines, errors = run_alone(folder, *paths, "--masks", tmp_path / "masks")
    options = [f"--weights={weights}", f"--threshold={THRESHOLD}"]
    assert predict.main([*paths, f"--out={tmp_path / 'report'}", *options]) == status == 1
    assert compare(lines, tmp_path / "report") > 1
    assert {line.get("organ") for line in lines} == {"brain", "breast", "unsupported", None}
    assert lines[-1]["reason"] == "a thumbnail" and metadata["notice"] in errors


def check_alone(folder, weights, tmp_path):
    """Compare run.py of one task's export with `mcis predict` on one scan; the number of equal masks."""
    (path,) = phantom.write_examples(tmp_path / "scans")[1:2]
    status, lines, _ = run_alone(folder, str(path), "--masks", tmp_path / "masks")
    name = json.loads((folder / "metadata.json").read_text())["what"]
    assert predict.main([str(path), f"--out={tmp_path / 'report'}", f"--weights={weights}", f"--task={name}"]) == 0
    assert status == 0
    return compare(lines, tmp_path / "report")


def test_run_py_without_mcis_runs_an_ensemble(brain, weights, tmp_path):
    assert check_alone(brain[0], weights, tmp_path) == 1


@pytest.mark.slow
def test_run_py_without_mcis_runs_a_router(router, weights, tmp_path):
    assert check_alone(router, weights, tmp_path) == 0


@pytest.fixture(scope="module")
def router(weights, tmp_path_factory):
    """An exported router, which has not been compiled: the cheapest export. Not to be modified."""
    return exported(tmp_path_factory.mktemp("router") / "out", weights, "--task=route")[0]


def test_a_damaged_model_is_not_run(router, tmp_path, capsys):
    folder = shutil.copytree(router, tmp_path / "copy")
    with open(folder / "model.stablehlo", "r+b") as file:
        file.seek(100)
        file.write(b"\0\1\2\3")
    assert run.main(["scan.png"], folder) == 2
    printed = capsys.readouterr()
    assert "is damaged" in printed.err and not printed.out


def test_a_model_that_jax_no_longer_reads_must_be_exported_again(router, capsys, monkeypatch):
    def deserialize(data):
        raise ValueError("Exported being deserialized seems to be older than the 6-month window")

    monkeypatch.setattr(jax.export, "deserialize", deserialize)
    assert run.main(["scan.png"], router) == 2
    printed = capsys.readouterr()
    assert "was exported by an older JAX" in printed.err and jax.__version__ in printed.err
    assert "6-month" in printed.err and "`mcis export`" in printed.err and not printed.out


def test_a_file_in_the_format_of_an_expired_jax_is_read_or_reported(tmp_path, capsys, monkeypatch):
    """Until November 2025 JAX stored the number of devices in another field; JAX 0.11 and newer reject such files."""
    format_ = pytest.importorskip("jax._src.export.serialization_generated")
    if not hasattr(format_, "ExportedAddNrDevicesShort"):
        pytest.skip("this JAX does not know the old field at all")
    monkeypatch.setattr(format_, "ExportedAddNrDevices", format_.ExportedAddNrDevicesShort)
    model = export.to_stablehlo(lambda image: {"organ_probs": image.mean((1, 2)) / 255})
    metadata = {"format": "stablehlo", "what": "route", "notice": "", "classes": ["a", "b", "c"], "organs": []}
    export.write(tmp_path / "old", metadata | {"versions": {"jax": "0.8.0"}}, model, None)
    blobs = cv2.resize(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8), (100, 100))
    cv2.imwrite(str(tmp_path / "a.png"), blobs // np.array([2, 2, 1], np.uint8))  # mostly red, which is class "a"
    status = run.main([str(tmp_path / "a.png")], tmp_path / "old")
    printed = capsys.readouterr()
    if status == 0:  # this JAX still reads it
        assert json.loads(printed.out)["organ"] == "a"
    else:
        assert status == 2 and "older JAX (0.8.0)" in printed.err and "`mcis export`" in printed.err


@pytest.mark.slow
def test_metadata_describes_the_model(whole, weights):
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
    limits |= {"label_set": {"segment_brain": {"no_tumor": 0.25, "tumor": 0.125}}, "outer": {"segment_brain": 0.25}}
    assert metadata["thresholds"] == limits
    assert metadata["weights"]["licence"] == (folder / "LICENSE").read_text() == "for tests only\n"
    tasks = metadata["weights"]["tasks"]
    assert set(tasks) == set(NETWORKS)
    assert tasks["segment_brain"]["networks"] == 2 and tasks["segment_brain"]["validation"] == {"accuracy": 0.5}
    manifest = json.loads((weights / "route" / "manifest.json").read_text())
    assert tasks["route"]["sha256"] == manifest["files"]
    model = jax.export.deserialize(bytearray(model))
    assert model.platforms == export.PLATFORMS and str(model.in_avals[0].shape) == "(batch, 256, 256, 3)"


@pytest.mark.slow
def test_an_export_names_the_operating_point_that_it_decides_at(weights):
    found = {name: one for name, one in bundle.load_bundle(weights).items() if name.endswith("_breast")}
    options = InferenceOptions(organ="breast", operating_point="specific")
    with pytest.raises(
        ValueError, match="--operating_point=specific: these weights have no operating points for breast"
    ):
        export.cascade_function(found, options)
    assert export.metadata_of(found, InferenceOptions(organ="breast"), {}, None)["operating_point"] is None
    points = {"balanced": np.float32([0, 0, 0]), "specific": np.float32([0.5, 0, -1])}
    one = found["classify_breast"]
    fitted = dataclasses.replace(one, variables=one.variables | {"calibration": {"points": points}})
    metadata = export.metadata_of(found | {"classify_breast": fitted}, options, {}, None)
    assert metadata["operating_point"] == metadata["asked"]["operating_point"] == "specific"
    shift = {"normal": 0.5, "benign": 0.0, "malignant": -1.0}
    assert metadata["thresholds"]["shift"] == {"classify_breast": shift}


def test_the_export_of_one_organ_contains_no_other_networks(whole, weights, tmp_path):
    _, metadata = exported(tmp_path / "breast", weights, "--organ=breast")
    assert set(metadata["weights"]["tasks"]) == {"classify_breast", "segment_breast"}
    assert not metadata["refuses_thumbnails"] and "organ_prob" not in metadata["thresholds"]
    assert metadata["model"]["bytes"] < whole[1]["model"]["bytes"]


def test_invalid_options_are_errors_that_name_the_allowed_ones(weights, tmp_path, monkeypatch, capsys):
    loaded = bundle.load_bundle(weights)
    monkeypatch.setattr(bundle, "load_bundle", lambda _: loaded)

    def error(*options):
        assert export_command.main([f"--out={tmp_path / 'out'}", f"--weights={weights}", *options]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "needs one network, --task=NAME" in error("--format=onnx")
    assert "they have: route, classify_breast" in error("--task=classify_brain")
    assert "no task" in error("--task=segment_liver")
    assert "exclude each other" in error("--task=route", "--organ=brain")
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert "make .venv-onnx/.installed" in error("--task=route", "--format=onnx")


def test_only_an_export_is_replaced(router, weights, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("other")
    metadata, model = json.loads((router / "metadata.json").read_text()), (router / "model.stablehlo").read_bytes()
    assert export_command.main([f"--out={folder}", f"--weights={weights}", "--task=route"]) == 2
    assert "is not an export (notes.txt)" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    for content in (model, model[:100]):
        export.write(folder, metadata, content, None)
        assert (folder / "model.stablehlo").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (folder / "masks").mkdir()
    with pytest.raises(ValueError, match=r"is not an export \(masks\)"):
        export.write(folder, metadata, model, None)
    assert (folder / "masks").is_dir()


def test_the_version_of_jax2onnx_is_that_of_the_makefile():
    makefile = (bundle.BUNDLED.parents[1] / "Makefile").read_text()
    assert "jax2onnx==0.17.0" in makefile and "jax2onnx==0.17.0" in export.GET_JAX2ONNX


@pytest.mark.slow
def test_the_exported_bundled_weights_give_the_same_results(tmp_path, images):
    folder, _ = exported(tmp_path / "bundled", bundle.BUNDLED)
    model = compiled((folder / "model.stablehlo").read_bytes())
    expected = jax.jit(export.cascade_function(bundle.load_bundle(), InferenceOptions()))
    black = np.zeros((1, INPUT_SIZE, INPUT_SIZE, 3), np.uint8)
    for batch in (images[:1], np.concatenate([images, black])):
        assert_equal(model(batch), expected(batch))
    assert np.asarray(model(batch)["organ"])[-1] == cascade.UNSUPPORTED_INDEX
    paths = [str(path) for path in phantom.write_examples(tmp_path / "scans", per_class=2)]
    _, lines, _ = run_alone(folder, *paths, "--masks", tmp_path / "masks")
    assert predict.main([*paths, f"--out={tmp_path / 'report'}"]) == 0
    assert compare(lines, tmp_path / "report") > 0
