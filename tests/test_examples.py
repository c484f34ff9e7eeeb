"""The examples in docstrings give the output they show, and the scripts of launch/ import modules that exist."""

import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest

import mcis

MODULES = [module.name for module in pkgutil.walk_packages(mcis.__path__, "mcis.") if module.name != "mcis.__main__"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_the_output_they_show(name):
    failures, _ = doctest.testmod(importlib.import_module(name))
    assert not failures, f"{failures} examples of {name} fail: see the output"


def test_examples_are_found():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test.name for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 15, found


def test_the_scripts_of_launch_import_what_there_is():
    launch = pathlib.Path(__file__).parents[1] / "launch"
    imports = [line for path in launch.glob("*.sh") for line in re.findall(r"(?m)^from mcis.*$", path.read_text())]
    assert len(imports) >= 3, imports
    for line in imports:
        exec(line, {})
