"""`make bench`: our times as ratios to others', both sides in one run, interleaved, medians.

    python tests/bench/bench.py [--only networks,crf,...] [--batches 1,4] [--rounds 7] [--size 256] [--out FOLDER]

Machines are noisy and differ, so that a ratio is what counts; milliseconds are printed beside it. Below 1 ours is
faster. What is not installed (onnxruntime, pydensecrf) is left out and named.
"""

import argparse
import functools
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: its threads spin on the core that ours needs next

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from mcis import phantom, scan
from mcis.models import MODELS
from mcis.ops import losses
from mcis.ops.augment import augment
from mcis.ops.crf import CRF, mean_field
from mcis.tasks import TASKS, prepare
from tests.parity import references

Row = dict
"""One line of the table: section, what, ours (ms), others {name: ms}."""


def interleaved(functions, rounds):
    """Median milliseconds of each function, called in turn; the first calls, which compile, do not count."""
    for function in functions.values():
        function()
        function()
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def row(section, what, times, per=1):
    """A Row of `interleaved`'s answer; "ours" is ours, times are divided by `per`."""
    ours = times["ours"] / per
    others = {name: value / per for name, value in times.items() if name != "ours"}
    return {"section": section, "what": what, "ours": ours, "others": others}


# Networks


TWINS = {
    "unet": lambda: references.UNet(32),
    "deeplabv3": lambda: references.torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=1
    ),
    "light": references.Light,
}


def our_inference(name, image, dtype):
    model = MODELS[name].clone(dtype=dtype)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), image[:1])
    run = jax.jit(lambda variables, image: model.apply(variables, image).mask)
    return lambda: run(variables, image).block_until_ready()


def our_training(name, image, mask, dtype):
    model = MODELS[name].clone(dtype=dtype)
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), image[:1])
    optimizer = optax.adam(1e-3)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(variables, moments, image, mask):
        def loss(params):
            outputs, updated = model.apply(
                variables | {"params": params},
                image,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            return losses.binary_cross_entropy(outputs.mask, mask).mean(), updated

        (value, updated), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, moments = optimizer.update(gradient, moments)
        return {"params": optax.apply_updates(variables["params"], updates), **updated}, moments, value

    state = [variables, jax.jit(optimizer.init)(variables["params"])]

    def run():
        *state[:], value = step(*state, image, mask)
        value.block_until_ready()

    return run


def mask_of(found):
    return found["out"] if isinstance(found, dict) else found


def their_inference(net, image, dtype):
    def run():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == jnp.bfloat16):
            mask_of(net(image))

    return run


def their_training(net, image, mask, dtype):
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == jnp.bfloat16):
            found = mask_of(net(image))
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(found.float(), mask).backward()
        optimizer.step()

    return run


def onnx_inference(net, image):
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "net.onnx")
        torch.onnx.export(net, (image,), file, dynamo=False)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name, value = session.get_inputs()[0].name, image.contiguous().numpy()
    return lambda: session.run(None, {name: value})


def networks(options, missing):
    for name, twin in TWINS.items():
        for dtype in (jnp.float32, jnp.bfloat16):
            for batch in options.batches:
                rng = np.random.default_rng(0)
                image = rng.normal(size=(batch, options.size, options.size, 3)).astype(np.float32)
                mask = (rng.random((batch, options.size, options.size, 1)) > 0.9).astype(np.float32)
                theirs = torch.from_numpy(image).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
                target = torch.from_numpy(mask).permute(0, 3, 1, 2)
                what = f"{name} {jnp.dtype(dtype).name}, batch {batch}"
                net = twin().to(memory_format=torch.channels_last).eval()
                runs = {"ours": our_inference(name, jnp.asarray(image), dtype)}
                runs["torch"] = their_inference(net, theirs, dtype)
                runs["torch.compile"] = their_inference(torch.compile(net), theirs, dtype)
                if dtype == jnp.float32:
                    try:
                        runs["onnxruntime"] = onnx_inference(net, theirs)
                    except ImportError:
                        missing.add("onnxruntime")
                yield row("inference, ms a scan", what, interleaved(runs, options.rounds), batch)
                if batch == max(options.batches) and batch > 4:
                    continue  # a training step of so many takes minutes
                net = twin().to(memory_format=torch.channels_last).train()
                runs = {"ours": our_training(name, jnp.asarray(image), jnp.asarray(mask), dtype)}
                if batch > 1:  # torchvision's pooled branch normalises no single scan
                    runs["torch"] = their_training(net, theirs, target, dtype)
                    compiled = torch.compile(twin().to(memory_format=torch.channels_last).train())
                    runs["torch.compile"] = their_training(compiled, theirs, target, dtype)
                yield row("training step, ms a scan", what, interleaved(runs, options.rounds), batch)


# The rest


def crf(options, missing):
    one = next(one for one in phantom.make_phantoms(2, seed=1) if one.mask.any())
    square, geometry = scan.fit(one.image)
    mask = scan.fit_mask(one.mask, geometry)
    rng = np.random.default_rng(0)
    probability = np.clip(0.15 + 0.6 * mask + rng.normal(0, 0.1, mask.shape), 0.03, 0.97).astype(np.float32)
    run = jax.jit(mean_field, static_argnums=2)
    for batch in (1, 4, 8):
        images = jnp.asarray(np.stack([square] * batch) / np.float32(255))
        probabilities = jnp.asarray(np.stack([probability] * batch))
        runs = {"ours": lambda a=probabilities, b=images: run(a, b, CRF()).block_until_ready()}
        try:
            runs["pydensecrf"] = dense_crf(square, probability[..., 0], batch)
        except ImportError:
            missing.add("pydensecrf")
        yield row("CRF at 256, ms a scan", f"batch {batch}", interleaved(runs, options.rounds), batch)


def dense_crf(square, probability, batch):
    import pydensecrf.densecrf
    from pydensecrf.utils import create_pairwise_bilateral, unary_from_softmax

    def run():
        for _ in range(batch):
            field = pydensecrf.densecrf.DenseCRF2D(square.shape[1], square.shape[0], 2)
            field.setUnaryEnergy(unary_from_softmax(np.stack([1 - probability, probability])))
            field.addPairwiseGaussian(sxy=3, compat=3)
            grey = create_pairwise_bilateral((60, 60), (13,), square[..., :1], chdim=2)
            field.addPairwiseEnergy(grey, compat=10)
            field.inference(5)

    return run


def cascade(options, missing):
    from mcis.bundle import load_bundle
    from mcis.cascade import Settings, make_predict
    from mcis.tasks import make_expert

    weights = load_bundle()
    scans = [scan.fit(one.image)[0] for one in phantom.make_phantoms(3, seed=1)]
    for batch in (1, 8):
        image = jnp.asarray(np.stack([scans[i % len(scans)] for i in range(batch)]))
        for name, one in weights.items():
            run, variables = jax.jit(make_expert(one.task)), jax.device_put(one.variables)
            times = interleaved(
                {"ours": lambda r=run, v=variables, x=image: jax.block_until_ready(r(v, x))}, options.rounds
            )
            yield row("cascade, ms a scan", f"{name}, batch {batch}", times, batch)
        run = jax.jit(make_predict({name: one.task for name, one in weights.items()}, Settings()))
        variables = jax.device_put({name: one.variables for name, one in weights.items()})
        times = interleaved(
            {"ours": lambda r=run, v=variables, x=image: jax.block_until_ready(r(v, x))}, options.rounds
        )
        yield row("cascade, ms a scan", f"whole, batch {batch}", times, batch)


def scans(options, missing):
    ones = list(phantom.make_phantoms(4, seed=1))
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i, one in enumerate(ones):
            files.append(pathlib.Path(folder) / f"{i}.png")
            files[-1].write_bytes(scan.encode_png(one.image))
        times = interleaved({"ours": lambda: [scan.read(file) for file in files]}, options.rounds)
        yield row("data, ms a scan", "read from disk", times, len(files))
    times = interleaved({"ours": lambda: [scan.fit(one.image) for one in ones]}, options.rounds)
    yield row("data, ms a scan", "content crop and letterbox", times, len(ones))
    task, squares = TASKS["segment_brain"], np.stack([scan.fit(one.image)[0] for one in ones[:16]])
    mask = jnp.zeros((len(squares), task.size, task.size, 1))
    run = jax.jit(lambda x, m: augment(jax.random.key(0), prepare(x, task.size), m, task.augmentation))
    times = interleaved({"ours": lambda: jax.block_until_ready(run(squares, mask))}, options.rounds)
    yield row("data, ms a scan", f"augmented at {task.size}", times, len(squares))


def predicted(folder, scans, cache):
    """`mcis predict` in a process of its own: (seconds, its largest memory in MiB)."""
    code = (
        "import resource, sys; from mcis import cli; status = cli.main(sys.argv[1:]); "
        "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10); sys.exit(status)"
    )
    out = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-c", code, "predict", str(scans), "--out", f"{out}/findings"]
    began = time.perf_counter()
    done = subprocess.run(
        command, check=True, env=os.environ | {"XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True
    )
    return time.perf_counter() - began, int(done.stdout.rsplit("PEAK", 1)[1])


def start(options, missing):
    with tempfile.TemporaryDirectory() as folder:
        phantom.write_examples(f"{folder}/scans", per_class=1, seed=1)
        first = sorted(path for path in pathlib.Path(folder, "scans").rglob("*") if path.is_file())[0]
        for what in ("compilation cache empty", "compilation cache warm"):
            seconds, _ = predicted(folder, first, f"{folder}/cache")
            yield row("mcis predict of one scan, ms", what, {"ours": 1e3 * seconds})
    for name in TWINS:
        image, mask = (jnp.zeros((4, options.size, options.size, channels)) for channels in (3, 1))
        for what, make in (("inference", our_inference), ("training", our_training)):
            run = make(name, image, mask, jnp.float32) if make is our_training else make(name, image, jnp.float32)
            began = time.perf_counter()
            run()
            once = time.perf_counter()
            run()
            twice = time.perf_counter()
            yield row("compile time, ms", f"{name}, {what}", {"ours": 1e3 * (2 * once - began - twice)})


def memory(options, missing):
    for name in TWINS:
        peaks = {}
        for side in ("ours", "torch"):
            command = [sys.executable, __file__, "--peak", f"{side},{name}", "--size", str(options.size)]
            peaks[side] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        yield row("peak memory of a training step, batch 4, MiB", name, peaks)
    with tempfile.TemporaryDirectory() as folder:
        ones = [scan.encode_png(one.image) for one in phantom.make_phantoms(2, seed=1)]
        for count in (10, options.scans):
            scans = pathlib.Path(folder, str(count))
            scans.mkdir()
            for i in range(count):
                (scans / f"{i:05d}.png").write_bytes(ones[i % len(ones)])
            seconds, peak = predicted(folder, scans, f"{folder}/cache")
            yield row("mcis predict, peak memory, MiB", f"{count} scans", {"ours": peak})
            yield row("mcis predict, ms a scan, all of it", f"{count} scans", {"ours": 1e3 * seconds}, count)


def peak(options):
    """The largest memory of this process after two training steps of one side; printed."""
    side, name = options.peak.split(",")
    image = np.zeros((4, options.size, options.size, 3), np.float32)
    mask = np.zeros((4, options.size, options.size, 1), np.float32)
    if side == "ours":
        run = our_training(name, jnp.asarray(image), jnp.asarray(mask), jnp.float32)
    else:
        net = TWINS[name]().to(memory_format=torch.channels_last).train()
        image, mask = (torch.from_numpy(array).permute(0, 3, 1, 2) for array in (image, mask))
        run = their_training(net, image, mask, jnp.float32)
    run()
    run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)


SECTIONS = {"networks": networks, "crf": crf, "cascade": cascade, "scans": scans, "start": start, "memory": memory}


def main():
    """Measure, print, and write bench.json and bench.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--scans", type=int, default=1000, help="of the longer run of mcis predict")
    parser.add_argument("--out", default="bench")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        return peak(options)
    options.batches = [int(batch) for batch in options.batches.split(",")]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows, missing = [], set()
    for name in options.only.split(","):
        for found in SECTIONS[name](options, missing):
            rows.append(found)
            ratios = ", ".join(f"{other} {found['ours'] / ms:.2f}" for other, ms in found["others"].items())
            print(
                f"{found['section']}: {found['what']}: {found['ours']:.1f}; ratio to {ratios or 'nobody'}", flush=True
            )
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "devices": [str(device) for device in jax.devices()],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    folder = pathlib.Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(
        json.dumps({"machine": machine, "missing": sorted(missing), "rows": rows}, indent=1)
    )
    show(rows)
    draw(rows, folder / "bench.png")
    print(
        f"not installed, left out: {', '.join(sorted(missing)) or 'nothing'}\n{folder}/bench.json, {folder}/bench.png"
    )


def show(rows):
    """The table."""
    table = Table("section", "what", "ours", "others: ms (ours / theirs)")
    for one in rows:
        others = "  ".join(f"{name} {ms:.1f} ({one['ours'] / ms:.2f})" for name, ms in one["others"].items())
        table.add_row(one["section"], one["what"], f"{one['ours']:.1f}", others)
    Console(width=150).print(table)


def draw(rows, file):
    """Ratios as bars, the line at 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bars = [(f"{one['what']} / {name}", one["ours"] / ms) for one in rows for name, ms in one["others"].items()]
    if not bars:
        return
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.22 * len(bars)))
    names, ratios = zip(*reversed(bars), strict=True)
    axes.barh(names, ratios, color=["tab:green" if ratio <= 1 else "tab:orange" for ratio in ratios])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("our time / theirs")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
