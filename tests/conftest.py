"""The environment of every test: two fake CPU devices, our own warnings as errors, no silent rank promotion.

JAX reads environment variables, which are set here before anything imports it: child processes of tests inherit them,
and tests that need no JAX never import it.
"""

import gc
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys
import tempfile

import pytest

DEVICES = 2

pytest_plugins = ["tests.fixtures.data", "tests.fixtures.training", "tests.fixtures.weights"]

if "jax" in sys.modules:
    raise RuntimeError("something imported jax before tests/conftest.py could set its environment")

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["OMP_NUM_THREADS"] = (
    "1"  # scikit-learn's threads wait in a loop for each other, on cores that other workers use
)
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Compilation is most of the cost of these tests, and what they run is small: LLVM need not optimise it.
FLAGS = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # XLA ends the process at a flag that it does not know
    FLAGS += " --xla_cpu_use_fusion_emitters=false"  # a training step compiles in 4 seconds instead of 10
elif not importlib.metadata.version("jaxlib").startswith("0.11."):
    FLAGS += " --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE"  # it saves a tenth
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

# The garbage collector looks at millions of objects of imported modules again and again, and JAX adds a callback to it:
# together 30 seconds. Without it while modules are imported; after that they count as permanent.
gc.disable()


def _environment() -> str:
    """Twelve hex digits that change with everything compiled code depends on: versions, flags, instruction set."""
    parts = [platform.python_version(), platform.machine(), os.environ["XLA_FLAGS"]]
    parts += [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        parts += sorted({line for line in cpuinfo.read_text().splitlines() if line.startswith(("flags", "model name"))})
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def pytest_configure(config: pytest.Config) -> None:
    # Later lines take precedence: warnings of other packages are ignored, ours are errors.
    for line in ("ignore", r"error:::mcis(\.|$)", r"error:::mcis_datasets(\.|$)", r"error:::tests(\.|$)"):
        config.addinivalue_line("filterwarnings", line)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = str(config.cache.mkdir(f"jax-{_environment()}"))
    except (AttributeError, OSError):  # no cache, or a read-only checkout: a program is compiled once per session
        temporary = tempfile.TemporaryDirectory(prefix="mcis-jax-")
        config.add_cleanup(temporary.cleanup)
        folder = temporary.name
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()
