"""`make bench`: medians of times of mcis and of other packages, measured in turns in one run.

    PYTHONPATH=. python tests/lanes/bench/bench.py [--only networks,crf,...] [--networks unet,...] [--dtypes ...]
        [--batches 1,4,...] [--rounds 7] [--size 256] [--scans 1000] [--out FOLDER]

Machines differ and are noisy, so the ratio of times counts; milliseconds are printed too. Below 1 mcis is faster. Each
side of a network's comparison runs in its own process (networks.py) with its users' settings: mcis with the malloc
settings of `mcis train`, PyTorch with its defaults and again with those settings. Packages that are not installed
(pydensecrf, onnxruntime) are skipped and named. All sections take an hour; rows of an earlier run on the same machine
stay in FOLDER/bench.json and in the figure until they are measured again.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from mcis.imaging import image_files, phantom
from mcis.imaging.letterbox import letterbox, letterbox_mask
from mcis.ops.augment import augment
from mcis.ops.crf import CRF, mean_field
from mcis.organs import ORGANS
from mcis.tasks.apply import prepare
from mcis.tasks.table import TASKS
from tests.lanes.bench.networks import NETWORKS, SIDES
from tests.lanes.parity.densecrf import DenseCRF

DTYPES = ("float32", "bfloat16")
DENSECRF = ".venv-densecrf/bin/python"
LONG = 60
"""Seconds after which the turns of a row end, if there were three."""
PAUSE = 0.05
"""Seconds between turns: idle threads of PyTorch spin for a while on cores that the next side needs."""


def clocked(function):
    """A function that runs `function` and returns its milliseconds."""

    def run():
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)

    return run


def interleaved(functions, rounds):
    """Median of the milliseconds that each function returns, called in turn; the first two calls do not count."""
    for function in functions.values():
        function()
        function()
    times = {name: [] for name in functions}
    began = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - began > LONG:
            break
        for name, function in functions.items():
            times[name].append(function())
            time.sleep(PAUSE)
    return {name: statistics.median(values) for name, values in times.items()}


def row(section, what, times, per=1):
    """One line of the table: section, what, ours (ms), others {name: ms}; times divided by `per`."""
    ours = times["ours"] / per
    others = {name: value / per for name, value in times.items() if name != "ours"}
    return {"section": section, "what": what, "ours": ours, "others": others}


def environment(**more):
    """The environment without settings of malloc and of the compilation cache, which would change the times."""
    settings = ("GLIBC_TUNABLES", "MALLOC_", "JAX_COMPILATION_CACHE_DIR")
    return {name: value for name, value in os.environ.items() if not name.startswith(settings)} | more


class Side:
    """One side of a network's comparison, in its own process."""

    def __init__(self, side, *words):
        """Start the process and wait until it has compiled. RuntimeError with its last line if it fails."""
        command = [sys.executable, str(pathlib.Path(__file__).with_name("networks.py")), side, *map(str, words)]
        self.stderr, self.peak = tempfile.TemporaryFile("w+"), 0  # noqa: SIM115
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=environment(), stdin=pipe, stdout=pipe, stderr=self.stderr, text=True
        )
        for line in self.process.stdout:
            if line.startswith("ready"):
                self.compiled = float(line.split()[1])
                return
        self.fail()

    def fail(self):
        """Raise RuntimeError with the last line of standard error."""
        self.close()
        self.stderr.seek(0)
        raise RuntimeError(self.stderr.read().strip().rsplit("\n", 1)[-1] or f"ended with {self.process.returncode}")

    def __call__(self):
        """Run once; returns milliseconds."""
        with contextlib.suppress(BrokenPipeError):
            print(file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().split()
        if len(answer) != 2:
            self.fail()
        self.peak = int(answer[1])
        return float(answer[0])

    def close(self):
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def networks(options, missing):
    for name, dtype, batch, what in itertools.product(options.networks, options.dtypes, options.batches, SIDES):
        if what == "training" and batch > 4:
            continue  # such a step takes minutes
        words = (name, dtype, batch, options.size, what)
        others = [side for side in SIDES[what] if (side, dtype) != ("onnxruntime", "bfloat16")]
        if (name, batch, what) == ("deeplabv3", 1, "training"):
            others = []  # PyTorch's batch normalisation rejects one value a channel, as in the pooled branch
        sides = {"ours": Side("ours", *words)}
        for other in others:
            try:
                sides[other] = Side(other, *words)
            except RuntimeError as error:
                missing.add(f"{other} of {name}, {dtype}, {what}: {error}")
        per_scan = {"inference": "inference, ms a scan", "training": "training step, ms a scan"}[what]
        yield row(per_scan, f"{name} {dtype}, batch {batch}", interleaved(sides, options.rounds), batch)
        if (dtype, batch) == ("float32", 4):
            compiled = {side: sides[side].compiled for side in ("ours", "torch.compile") if side in sides}
            yield row("first run minus second run, ms", f"{name} {what}, batch {batch}", compiled)
            peaks = {side: process.peak for side, process in sides.items()}
            yield row("peak memory of the process, MiB", f"{name} {what}, batch {batch}", peaks)
        for process in sides.values():
            process.close()


def crf(options, missing):
    one = next(one for one in phantom.make_phantoms(2, seed=1) if one.mask.any())
    square, geometry = letterbox(one.image)
    mask = letterbox_mask(one.mask, geometry)
    rng = np.random.default_rng(0)
    probability = np.clip(0.15 + 0.6 * mask + rng.normal(0, 0.1, mask.shape), 0.03, 0.97).astype(np.float32)
    run = jax.jit(mean_field, static_argnums=2)
    theirs = DenseCRF(DENSECRF) if pathlib.Path(DENSECRF).exists() else None
    grey = np.round(square.mean(-1)).astype(np.uint8)
    for batch in (1, 4, 8):
        images = jnp.asarray(np.stack([square] * batch) / np.float32(255))
        probabilities = jnp.asarray(np.stack([probability] * batch))
        runs = {"ours": clocked(lambda a=probabilities, b=images: run(a, b, CRF()).block_until_ready())}
        if theirs:  # it has no batches: one scan after the other
            runs["pydensecrf"] = lambda n=batch: n * 1e3 * theirs.run(grey, probability[..., 0], CRF())[1]
        else:
            missing.add("pydensecrf (`make densecrf` builds it)")
        yield row("CRF at 256, ms a scan", f"batch {batch}", interleaved(runs, options.rounds), batch)


def cascade(options, missing):
    from mcis.checkpoints.bundle import load_bundle
    from mcis.inference.cascade import make_cascade
    from mcis.inference.options import InferenceOptions
    from mcis.tasks.apply import make_expert, place

    weights = load_bundle()
    scans = [letterbox(one.image)[0] for one in phantom.make_phantoms(3, seed=1)]
    for batch in (1, 8):
        image = jnp.asarray(np.stack([scans[i % len(scans)] for i in range(batch)]))
        for name, one in weights.items():
            run, variables = jax.jit(make_expert(one.task)), place(one.variables)
            times = interleaved(
                {"ours": clocked(lambda r=run, v=variables, x=image: jax.block_until_ready(r(v, x)))}, options.rounds
            )
            yield row("cascade, ms a scan", f"{name}, batch {batch}", times, batch)
        settings = InferenceOptions(novelty=False, threshold=0)
        tasks = {name: one.task for name, one in weights.items()}
        given = {"mixed": image}
        if batch == 1:  # the cost of a scan depends on its organ's networks
            given = {o.name: letterbox(phantom.make_phantom(o.name, 1, 0).image)[0][None] for o in ORGANS}
        run = jax.jit(make_cascade(tasks, settings))
        variables = {name: place(one.variables) for name, one in weights.items()}
        for what, image in given.items():
            times = interleaved(
                {"ours": clocked(lambda r=run, v=variables, x=image: jax.block_until_ready(r(v, x)))}, options.rounds
            )
            yield row("cascade, ms a scan", f"whole, {what}, batch {batch}", times, batch)


def scans(options, missing):
    ones = list(phantom.make_phantoms(4, seed=1))
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i, one in enumerate(ones):
            files.append(pathlib.Path(folder) / f"{i}.png")
            files[-1].write_bytes(image_files.encode_png(one.image))
        times = interleaved({"ours": clocked(lambda: [image_files.read(file) for file in files])}, options.rounds)
        yield row("data, ms a scan", "read from disk", times, len(files))
    times = interleaved({"ours": clocked(lambda: [letterbox(one.image) for one in ones])}, options.rounds)
    yield row("data, ms a scan", "content crop and letterbox", times, len(ones))
    task, squares = TASKS["segment_brain"], np.stack([letterbox(one.image)[0] for one in ones[:16]])
    mask = jnp.zeros((len(squares), task.size, task.size, 1))

    @jax.jit
    def run(x, m):
        keys = jax.random.split(jax.random.key(0), len(x))
        return augment(keys, prepare(x, task.size), m, task.augmentation, task.size)

    times = interleaved({"ours": clocked(lambda: jax.block_until_ready(run(squares, mask)))}, options.rounds)
    yield row("data, ms a scan", f"augmented at {task.size}", times, len(squares))


def frames(options, missing):
    """Frames of a DICOM and a NIfTI file, in a new process each: time, header included, and memory."""
    measure = (
        "import sys, time, nibabel, pydicom.pixels; from mcis.imaging import formats; "
        "peak = lambda: next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')); "
        "used = peak(); began = time.perf_counter(); "
        "count = sum(1 for path, frame in formats.frames(sys.argv[1]) if formats.read(path, frame or 0)); "
        "print(1e3 * (time.perf_counter() - began) / count, (peak() - used) / 1024)"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, what in scan_files(pathlib.Path(folder)):
            runs = []
            for _ in range(min(3, options.rounds)):
                command = [sys.executable, "-c", measure, str(pathlib.Path(folder, name))]
                done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
                runs.append([float(value) for value in done.stdout.split()])
            ms, memory = (statistics.median(values) for values in zip(*runs, strict=True))
            yield row("data, ms a frame", what, {"ours": ms})
            yield row("data, further memory of the reader, MiB", what, {"ours": memory})


def scan_files(folder):
    """Write files of frames of 256 x 256; yields their names and what they are."""
    import nibabel

    from tests.fixtures.dicom_files import enhanced

    images = np.random.default_rng(0).integers(0, 4096, (2000, 256, 256), dtype=np.uint16)
    for count in (200, 2000):
        found = enhanced(images[:count])
        for group in found.PerFrameFunctionalGroupsSequence:
            block = group.private_block(0x2005, "BENCH", create=True)
            for index in range(40):
                block.add_new(index, "LO", "private")
            group.is_undefined_length_sequence_item = True
        found["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
        found.save_as(folder / f"{count}.dcm", enforce_file_format=True)
        yield f"{count}.dcm", f"DICOM, {count} frames with 40 private elements each"
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(images[:200], 0, -1), np.diag([1, 1, 3, 1])), folder / "a.nii.gz")
    yield "a.nii.gz", "NIfTI, 200 slices, .nii.gz"


def predicted(folder, scans, cache):
    """`mcis predict` in its own process: (seconds, peak memory in MiB)."""
    out = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-m", "mcis", "predict", str(scans), "--out", f"{out}/findings"]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment(XDG_CACHE_HOME=str(cache)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return seconds, usage.ru_maxrss >> 10


def start(options, missing):
    with tempfile.TemporaryDirectory() as folder:
        phantom.write_examples(f"{folder}/scans", per_class=1, seed=1)
        first = sorted(path for path in pathlib.Path(folder, "scans").rglob("*") if path.is_file())[0]
        for what in ("compilation cache empty", "compilation cache warm"):
            caches = [f"{folder}/cache{i if what.endswith('empty') else 0}" for i in range(3)]
            seconds = statistics.median(predicted(folder, first, cache)[0] for cache in caches)
            yield row("mcis predict of one scan, ms", what, {"ours": 1e3 * seconds})


def memory(options, missing):
    with tempfile.TemporaryDirectory() as folder:
        ones = [image_files.encode_png(one.image) for one in phantom.make_phantoms(2, seed=1)]
        for count in (10, options.scans):
            scans = pathlib.Path(folder, str(count))
            scans.mkdir()
            for i in range(count):
                (scans / f"{i:05d}.png").write_bytes(ones[i % len(ones)])
            seconds, peak = predicted(folder, scans, f"{folder}/cache")
            yield row("mcis predict, peak memory, MiB", f"{count} scans", {"ours": peak})
            yield row("mcis predict, ms a scan, whole command", f"{count} scans", {"ours": 1e3 * seconds}, count)


def devices(options, missing):
    for count in (1, 2, 4, 8):
        command = [sys.executable, str(pathlib.Path(__file__).with_name("devices.py")), str(count), str(options.rounds)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        times = json.loads(done.stdout.splitlines()[-1])
        plain = {"one device, jitted step alone": times.pop("plain")}
        for what, ms in times.items():
            how = {"jit": "by jit over a mesh", "pmap": "by pmap", "loop": "by jit, in the loop of mcis train"}[what]
            yield row("training step, batch 16 at 128 px, ms", f"{count} devices {how}", {"ours": ms} | plain)


def version(package):
    """A package's version; "none" if it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return "none"


def processor():
    """The processor's name from /proc/cpuinfo, else its architecture."""
    info = pathlib.Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.open() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.machine()


SECTIONS = {
    "networks": networks,
    "crf": crf,
    "cascade": cascade,
    "scans": scans,
    "frames": frames,
    "start": start,
    "memory": memory,
    "devices": devices,
}


def main():
    """Measure, print, and write bench.json and bench.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"sections to measure, from {', '.join(SECTIONS)}")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--scans", type=int, default=1000, help="number of scans in the longer run of mcis predict")
    parser.add_argument("--out", default="bench")
    options = parser.parse_args()
    for name, known in {"only": SECTIONS, "networks": NETWORKS, "dtypes": DTYPES}.items():
        chosen = getattr(options, name).split(",")
        if unknown := set(chosen) - set(known):
            parser.error(f"--{name}={','.join(sorted(unknown))}: allowed are {', '.join(known)}")
        setattr(options, name, chosen)
    options.batches = [int(batch) for batch in options.batches.split(",")]
    machine = {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "torch": version("torch"),
        "devices": [str(device) for device in jax.devices()],
    }
    folder = pathlib.Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    measured, missing = earlier(folder / "bench.json", machine), set()
    for found in itertools.chain.from_iterable(SECTIONS[name](options, missing) for name in options.only):
        measured[found["section"], found["what"]] = found
        rows = list(measured.values())
        ratios = ", ".join(f"{other} {found['ours'] / ms:.2f}" for other, ms in found["others"].items())
        print(f"{found['section']}: {found['what']}: {found['ours']:.1f}; ratio to {ratios or 'none'}", flush=True)
        everything = {"machine": machine, "missing": sorted(missing), "rows": rows}
        (folder / "bench.json").write_text(json.dumps(everything, indent=1))  # after each row, since the run is long
    show(rows)
    draw(rows, machine, folder / "bench.png")
    print(f"skipped: {', '.join(sorted(missing)) or 'none'}\n{folder}/bench.json, {folder}/bench.png")


def earlier(file, machine):
    """Rows that earlier runs on this machine measured, by section and what: a run of some sections adds to them."""
    if not file.exists():
        return {}
    found = json.loads(file.read_text())
    return {(one["section"], one["what"]): one for one in found["rows"]} if found["machine"] == machine else {}


def show(rows):
    """Print the table."""
    table = Table("section", "what", "mcis", "others: ms (mcis / other)")
    for one in rows:
        others = "  ".join(f"{name} {ms:.1f} ({one['ours'] / ms:.2f})" for name, ms in one["others"].items())
        table.add_row(one["section"], one["what"], f"{one['ours']:.1f}", others)
    Console(width=150).print(table)


def draw(rows, machine, file):
    """Plot the ratios of times: one panel a section, one marker a package, a line at 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {}
    for one in rows:
        if one["others"] and "memory" not in one["section"]:
            panels.setdefault(one["section"], []).append(one)
    if not panels:
        return
    names = dict.fromkeys(name for ones in panels.values() for one in ones for name in one["others"])
    heights = [len(ones) + 2 for ones in panels.values()]
    figure, axes = pyplot.subplots(
        len(panels), sharex=True, squeeze=False, figsize=(9, 1 + 0.23 * sum(heights)), height_ratios=heights
    )
    for axis, (section, ones) in zip(axes[:, 0], panels.items(), strict=True):
        for name, marker in zip(names, "osD^vP*X", strict=False):
            seen = [(one["ours"] / one["others"][name], i) for i, one in enumerate(ones) if name in one["others"]]
            axis.plot(*(zip(*seen, strict=True) if seen else ((), ())), marker, label=name, alpha=0.8)
        axis.set_yticks(range(len(ones)), [one["what"] for one in ones])
        axis.set_ylim(len(ones) - 0.4, -0.6)
        axis.set_title(section, loc="left", fontsize="medium")
        axis.axvline(1, color="black", linewidth=1)
        axis.grid(alpha=0.3)
    axis.set_xscale("log", base=2)
    ticks = [0.25, 0.5, 1, 2, 4]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xlabel("time of mcis / time of the other: left of the line mcis is faster")
    top = axes[0, 0].get_legend_handles_labels()
    figure.suptitle(f"{machine['processor']}, {machine['cores']} cores, jax {machine['jax']}, torch {machine['torch']}")
    figure.legend(*top, loc="lower center", ncols=len(names), frameon=False)
    figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1))
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
