"""The examples in docstrings give what they say, in every module."""

import doctest
import importlib
import pkgutil

import pytest

import mcis

MODULES = [one.name for one in pkgutil.walk_packages(mcis.__path__, "mcis.") if one.name != "mcis.__main__"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed, f"{failed} examples of {name}: see above"


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test.name for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 15, found
