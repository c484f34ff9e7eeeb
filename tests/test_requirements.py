"""The locks: hashed, from nowhere in particular, and in step with pyproject.toml on every Python it supports."""

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


def locked(extra):
    """Requirement -> number of hashes."""
    text = (ROOT / "requirements" / f"{extra}.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    return {Requirement(line.split(" --hash")[0]): line.count("--hash=sha256:") for line in text.splitlines()}


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_package_is_pinned_and_hashed_and_no_place_is_named(extra):
    for requirement, hashes in locked(extra).items():
        assert hashes, requirement
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), requirement
        assert requirement.url is None
    assert not re.search(r"://|^-|^#|/", (ROOT / "requirements" / f"{extra}.lock").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", EXTRAS)
def test_serves_every_python_what_pyproject_asks_for(extra, python):
    marks = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    pins = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in locked(extra)
        if pin.marker is None or pin.marker.evaluate(marks)
    }
    for text in [*PROJECT["dependencies"], *EXTRAS["test"], *EXTRAS[extra]]:
        asked = Requirement(text)
        assert asked.specifier.contains(pins[canonicalize_name(asked.name)]), f"{text}: run `make lock`"
