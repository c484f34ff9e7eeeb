"""What every test runs under: two fake CPU devices, our own warnings as errors, no silent rank promotion.

JAX is told by environment variables, before anything imports it, so that child processes of tests are told as well and
tests that need no JAX never pay for it.
"""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys

import numpy as np
import pytest

DEVICES = 2

pytest_plugins = ["tests.fixtures.bundles"]

if "jax" in sys.modules:
    raise RuntimeError("something imported jax before tests/conftest.py could set its environment")

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Compiling is most of what these tests cost, and what they run is small: LLVM need not optimise it.
FLAGS = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # a flag that XLA does not know ends the process
    FLAGS += " --xla_cpu_use_fusion_emitters=false"  # a training step compiles in 4 seconds instead of 10
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()


def _environment() -> str:
    """Twelve hex digits that change with whatever compiled code depends on: versions, flags, instruction set."""
    parts = [platform.python_version(), platform.machine(), os.environ["XLA_FLAGS"]]
    parts += [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        parts += sorted({line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "model name"))})
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def pytest_configure(config: pytest.Config) -> None:
    # Later lines win: other people's warnings are theirs, ours are errors.
    for line in ("ignore", r"error:::mcis(\.|$)", r"error:::mcis_datasets(\.|$)", r"error:::tests(\.|$)"):
        config.addinivalue_line("filterwarnings", line)
    cache = getattr(config, "cache", None)
    if cache is not None and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            folder = cache.mkdir(f"jax-{_environment()}")
        except OSError:  # a read-only checkout: compile anew
            return
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A data folder with the phantom source prepared in it, ten scans a class, by the real builder."""
    from mcis.cli.build import build

    folder = tmp_path_factory.mktemp("data")
    build("phantom", data_dir=folder, per_class=10, progress=False)
    return folder


@pytest.fixture(scope="session")
def random_variables():
    """Makes a network's variables from a task and a seed: random, yet its label head tells phantoms apart.

    The head's logits are centred and scaled over a few phantoms, so that every class occurs. Kernels come from NumPy,
    because compiling a network's initialisation costs more than the network.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mcis.imaging import phantom
    from mcis.imaging.letterbox import letterbox
    from mcis.ops.image import standardise
    from mcis.tasks.apply import prepare

    images = np.stack([letterbox(one.image)[0] for one in phantom.make_phantoms(2, seed=100)])

    def fill(path, leaf, rng):
        name = path[-1].key
        if name != "kernel":
            return np.full(leaf.shape, float(name in ("scale", "var")), np.float32)
        return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)

    def make(task, seed):
        model, rng = task.make_model(), np.random.default_rng(seed)
        empty = jax.ShapeDtypeStruct((1, task.size, task.size, 3), jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), empty)
        variables = jax.tree_util.tree_map_with_path(lambda path, leaf: fill(path, leaf, rng), shapes)
        apply = jax.jit(lambda variables, x: model.apply(variables, standardise(prepare(x, task.size))).label)
        logits = np.asarray(apply(variables, images))
        head = variables["params"]["label"]["dense"]
        scale = 1.0 / logits.std(0)
        head["kernel"] = head["kernel"] * scale[None]
        head["bias"] = (head["bias"] - logits.mean(0)) * scale
        return variables

    return make


@pytest.fixture(scope="session")
def scans(phantom_dir):
    """The phantoms to train on, and those to validate on."""
    from mcis.data import dataset

    return tuple(dataset.load(("phantom",), split, phantom_dir) for split in ("train", "validation"))


@pytest.fixture(scope="session")
def phantom_scans(scans):
    """The phantoms of training and validation."""
    from mcis.data import dataset

    return dataset.Scans.join(scans)


@pytest.fixture(scope="session")
def finished(scans, tmp_path_factory):
    """The folder of a finished run of `small_run.SMALL`, not to be written to, and the log's line of its best epoch."""
    from mcis.train import loop
    from tests.fixtures.runs import SMALL

    run_dir = tmp_path_factory.mktemp("runs") / "route"
    return run_dir, loop.train(SMALL, *scans, run_dir)


@pytest.fixture(scope="session")
def fold_runs(phantom_scans, random_variables, tmp_path_factory):
    """Task -> folders of two fold runs with random weights, of a joint segmenter and a router."""
    import dataclasses

    import jax
    import numpy as np

    from mcis.checkpoints import checkpoint
    from mcis.data import dataset
    from mcis.tasks.config import LAST
    from mcis.tasks.table import TASKS, task_to_json

    def novelty(task):  # whitened by nothing
        shapes = jax.eval_shape(
            task.make_model().init_with_output, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
        )
        features = shapes[0].features.shape[1]
        whiten = np.eye(features, dtype=np.float32)
        return {"mean": np.zeros((1, features), np.float32), "whiten": whiten, "limit": np.float32(1.0)}

    small = {"sources": ("phantom",), "features": 4, "size": 32, "select": LAST}
    segment = dataclasses.replace(TASKS["segment_breast"], model="light", **small).check()
    route = dataclasses.replace(TASKS["route"], **small).check()
    folder, folds, made = tmp_path_factory.mktemp("folds"), 2, {}
    for task in (segment, route):
        mine = phantom_scans if task.organ is None else phantom_scans.take(phantom_scans.organ == task.organ)
        fold, made[task.name] = dataset.folds_of(mine, folds), []
        for k in range(folds):
            variables = random_variables(task, k) | ({"novelty": novelty(task)} if task.organ is None else {})
            manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": task.epochs, "seed": k}
            seen = {"train": mine.fingerprint[fold != k], "validation": mine.fingerprint[fold == k]}
            manifest |= {"validation": {"accuracy": 0.5}, "fingerprints": {n: sorted(v) for n, v in seen.items()}}
            made[task.name].append(folder / f"{task.name}_{k}")
            checkpoint.save(made[task.name][k] / "best", variables, manifest)
    return made


def _buda(features=4, channels=3):
    """A state dict as Buda's U-Net of this width has it, with other numbers in each array."""
    rng, state = np.random.default_rng(0), {}

    def pair(block, name, before, after):
        for i, width in ((1, before), (2, after)):
            state[f"{block}.{name}conv{i}.weight"] = rng.normal(size=(after, width, 3, 3))
            for leaf in ("weight", "bias", "running_mean"):
                state[f"{block}.{name}norm{i}.{leaf}"] = rng.normal(size=after)
            state[f"{block}.{name}norm{i}.running_var"] = rng.uniform(0.5, 2, after)
            state[f"{block}.{name}norm{i}.num_batches_tracked"] = np.array(7)

    widths = [features << level for level in range(5)]
    for level in (1, 2, 3, 4):
        pair(f"encoder{level}", f"enc{level}", channels if level == 1 else widths[level - 2], widths[level - 1])
        pair(f"decoder{level}", f"dec{level}", widths[level], widths[level - 1])
        state[f"upconv{level}.weight"] = rng.normal(size=(widths[level], widths[level - 1], 2, 2))
        state[f"upconv{level}.bias"] = rng.normal(size=widths[level - 1])
    pair("bottleneck", "bottleneck", widths[3], widths[4])
    state["conv.weight"], state["conv.bias"] = rng.normal(size=(1, features, 1, 1)), rng.normal(size=1)
    return {name: np.float32(value) if value.ndim else value for name, value in state.items()}


@pytest.fixture(scope="session")
def buda():
    """A function of (features, channels): a state dict of the U-Net that others published."""
    return _buda
