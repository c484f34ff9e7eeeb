"""`make onnx`: ONNX Runtime computes the same from an export of `mcis export --format=onnx` as JAX from the weights.

For every task with bundled weights, every network of MODELS with small random weights, and the CRF, the filters and the
edge maps: the largest difference of each output over phantoms in batches of 1 and 3. For bundled weights also the time
per scan (medians of alternating runs; needs a quiet machine), and the results of run.py in a process without mcis.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import onnx
import onnxruntime
from flax.traverse_util import flatten_dict, unflatten_dict

from mcis.checkpoints import bundle, checkpoint
from mcis.cli import export as export_command
from mcis.export import export
from mcis.imaging import image_files, phantom
from mcis.imaging.letterbox import letterbox, unletterbox
from mcis.models import MODELS
from mcis.ops.crf import CRF
from mcis.tasks.apply import make_expert, place
from mcis.tasks.config import Task
from mcis.tasks.table import task_to_json
from tests.fixtures.tasks import small_task

TOLERANCE = 1e-4
BATCHES = (1, 3)
ROUNDS = 7
ALONE = "import sys, runpy; sys.modules.update(dict.fromkeys(('mcis', 'jax', 'flax'))); sys.argv = sys.argv[1:]; " + (
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Program in which neither mcis nor JAX can be imported."""


def small_tasks() -> dict[str, Task]:
    """Name -> a task: every network, and a network with each filter, edge map and the CRF."""
    found = {}
    for name, model in MODELS.items():
        what = "segment_breast" if model.segments else "classify_breast"
        found[name] = small_task(what, model=name, size=64)
    unet = found["unet"]
    return found | {
        "unet, CRF": dataclasses.replace(unet, crf=CRF(steps=3)),
        "deeplabv3_resnet18, CRF": dataclasses.replace(found["deeplabv3_resnet18"], crf=CRF(steps=3)),
        "unet, median, Sobel": dataclasses.replace(unet, denoise="median", edges="sobel"),
        "unet, gaussian, Canny": dataclasses.replace(unet, denoise="gaussian", edges="canny"),
    }


def write_weights(folder: pathlib.Path, task: Task) -> None:
    """Write random weights of one small network."""
    image = np.zeros((1, task.size, task.size, task.channels), np.float32)
    shapes = jax.eval_shape(task.make_model().init, jax.random.key(0), image)
    rng = np.random.default_rng(0)

    def draw(path: str, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path.endswith("var"):
            return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        wide = np.prod(leaf.shape[:-1]) if path.endswith("kernel") else 25
        value = rng.normal(0, np.sqrt(2 / wide), leaf.shape).astype(np.float32)
        return value + 0.5 if path.endswith("scale") else value  # with 1 the outputs of a deep network are all 0 or 1

    variables = {path: draw(path, leaf) for path, leaf in flatten_dict(shapes, sep="/").items()}
    manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": 0, "validation": {}}
    manifest["fingerprints"] = {"train": [], "validation": []}
    checkpoint.save(folder / task.name, unflatten_dict(variables, sep="/"), manifest)


def differences(out: pathlib.Path, one: bundle.Weights, canvases: np.ndarray) -> dict[str, float]:
    """Largest difference of each output between ONNX Runtime and the weights in JAX."""
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    expert, found = jax.jit(make_expert(one.task)), dict.fromkeys(names, 0.0)
    for batch in BATCHES:
        image = canvases[:batch]
        answer = dict(zip(names, session.run(names, {"image": image}), strict=True))
        outputs = expert(one.variables, image)
        label = "organ_probs" if one.task.organ is None else "label_probs"
        for name, value in {label: outputs.label, "mask": outputs.mask}.items():
            assert (value is None) == (name not in answer), name
            if value is not None:
                assert np.std(value) > 1e-4, f"{name} is constant: the comparison means nothing"
                found[name] = max(found[name], float(np.abs(answer[name] - np.asarray(value)).max()))
    return found


def times(out: pathlib.Path, one: bundle.Weights, canvases: np.ndarray, batch: int) -> tuple[float, float]:
    """Milliseconds per scan of ONNX Runtime and of JAX, on all cores, in alternating runs."""
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    expert, variables, image = jax.jit(make_expert(one.task)), place(one.variables), canvases[:batch]
    runs = (lambda: session.run(None, {"image": image}), lambda: jax.block_until_ready(expert(variables, image)))
    taken: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 1):
        for run, milliseconds in zip(runs, taken, strict=True):
            start = time.perf_counter()
            run()
            if turn:  # the first compiles
                milliseconds.append(1e3 * (time.perf_counter() - start) / batch)
    return statistics.median(taken[0]), statistics.median(taken[1])


def check_file(out: pathlib.Path) -> None:
    """The file is valid, has standard operators alone, and holds the metadata of metadata.json."""
    model = onnx.load(out / "model.onnx")
    onnx.checker.check_model(model)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", export.OPSET)], model.opset_import
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    metadata = json.loads((out / "metadata.json").read_text())
    assert {one.key: json.loads(one.value) for one in model.metadata_props} == {
        name: value for name, value in metadata.items() if name != "model"
    }


def check_alone(out: pathlib.Path, one: bundle.Weights, folder: pathlib.Path) -> None:
    """run.py gives the results of the weights for phantoms, without mcis and JAX."""
    paths = phantom.write_examples(folder / "scans")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-I", "-c", ALONE, out / "run.py", *paths, "--masks", folder / "masks"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(paths)
    expert = jax.jit(make_expert(one.task))
    for path, line in zip(paths, lines, strict=True):
        square, geometry = letterbox(image_files.read(path).image)
        outputs = expert(one.variables, square[None])
        said = line["organ_probs" if one.task.organ is None else "label_probs"]
        np.testing.assert_allclose(list(said.values()), outputs.label[0], atol=TOLERANCE)
        if outputs.mask is not None:
            area = int((unletterbox(np.asarray(outputs.mask[0, ..., 0]), geometry) > 0.5).sum())
            assert abs(line["lesion_area_px"] - area) <= 2, (line, area)


def main() -> int:
    """Exit status 1 where something differs by more than TOLERANCE."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", choices=("shipped", "networks"), help="the bundled weights or the small networks alone"
    )
    only = parser.parse_args().only
    canvases = np.stack([letterbox(one.image)[0] for one in phantom.make_phantoms(1, seed=100)])
    failed = False
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        rows: list[tuple[str, pathlib.Path, str]] = []
        if only != "networks":
            rows += [(f"shipped {name}", bundle.BUNDLED, name) for name in bundle.load_bundle()]
        if only != "shipped":
            for number, (name, task) in enumerate(small_tasks().items()):
                write_weights(folder / f"weights{number}", task)
                rows.append((name, folder / f"weights{number}", task.name))
        print("| network | MB | label | mask | ms a scan, batch 1: ONNX Runtime; JAX | batch 4 |", flush=True)
        print("|---|---|---|---|---|---|", flush=True)
        for number, (name, weights, task) in enumerate(rows):
            out, said = folder / f"out{number}", io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                options = ["--format=onnx", f"--task={task}", f"--weights={weights}", f"--out={out}"]
                status = export_command.main(options)
            if status:
                failed = True
                print(f"| {name} | not exportable: {said.getvalue().strip().splitlines()[-1]} | | | | |", flush=True)
                continue
            one = bundle.load_weights(weights / task)
            check_file(out)
            found = differences(out, one, canvases)
            failed |= max(found.values()) > TOLERANCE
            label, mask = found.get("label_probs", found.get("organ_probs")), found.get("mask")
            cells = ["" if value is None else f"{value:.1e}" for value in (label, mask)]
            if weights == bundle.BUNDLED:
                check_alone(out, one, folder / f"alone{number}")
                cells += ["{:.1f}; {:.1f}".format(*times(out, one, canvases, batch)) for batch in (1, 4)]
            else:
                cells += ["", ""]
            size = (out / "model.onnx").stat().st_size / 1e6
            print(f"| {name} | {size:.1f} | {' | '.join(cells)} |", flush=True)
    print(f"a difference is larger than {TOLERANCE:g}, or an export failed" if failed else f"all within {TOLERANCE:g}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
