"""The locks: every package pinned and hashed, no registry named, in step with pyproject.toml on every Python."""

import itertools
import pathlib
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
COMMON = ("test", "evaluation", "dicom", "mat", "web")
LOCKS = {"test": COMMON, "cuda12": (*COMMON, "cuda12"), "tf": (*COMMON, "tf", "beam")}
"""Lock -> the extras that it contains."""


def read_lock(name):
    """Requirement -> number of hashes."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    return {Requirement(line.split(" --hash")[0]): line.count("--hash=sha256:") for line in text.splitlines()}


def test_every_extra_is_locked():
    assert {path.stem for path in (ROOT / "requirements").glob("*.lock")} == {*LOCKS, "recipes"}
    assert set(itertools.chain(*LOCKS.values())) == set(EXTRAS)


@pytest.mark.parametrize("lock", [*LOCKS, "recipes"])
def test_every_package_is_pinned_and_hashed_and_no_registry_is_named(lock):
    for requirement, hashes in read_lock(lock).items():
        assert hashes, requirement
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert requirement.url is None
    assert not re.search(r"://|^-|^#|/", (ROOT / "requirements" / f"{lock}.lock").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", LOCKS)
def test_pins_satisfy_pyproject_on_every_python(lock, python):
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    pins = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in read_lock(lock)
        if pin.marker is None or pin.marker.evaluate(environment)
    }
    for text in [*PROJECT["dependencies"], *itertools.chain(*(EXTRAS[extra] for extra in LOCKS[lock]))]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), f"{text}: run `make lock`"


def test_the_supported_pythons_are_the_same_everywhere():
    lowest, highest = (int(python.split(".")[1]) for python in (PYTHONS[0], PYTHONS[-1]))
    assert PROJECT["requires-python"] == f">=3.{lowest},<3.{highest + 1}"
    assert [f"3.{minor}" for minor in range(lowest, highest + 1)] == PYTHONS
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tools["ruff"]["target-version"] == f"py3{lowest}"
    assert f"for version in {' '.join(reversed(PYTHONS))};" in (ROOT / "Makefile").read_text(encoding="utf-8")
