"""The package as installed: a wheel in its own virtual environment, outside the checkout."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = {"mcis": "mcis", "datasets": "mcis_datasets"}
"""Folder of the checkout -> name of the installed package."""


def run(*command, **options):
    # without PYTHONPATH, so that nothing is imported from the checkout
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, because a build writes files into the source folder and reuses older ones."""
    place = tmp_path_factory.mktemp("wheel")
    copy = place / "copy"
    for folder in SOURCES:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(place)!r})"  # as pip would, without pip
    run(sys.executable, "-c", build, cwd=copy)
    (built,) = place.glob("mcis-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The bin folder of an environment that has the wheel installed and takes its dependencies from this one."""
    place = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", place)
    programs = place / ("Scripts" if os.name == "nt" else "bin")
    (packages,) = place.glob("[lL]ib/**/site-packages")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", programs / "python")
    run(*pip, "install", "--no-deps", "--no-index", "--no-compile", wheel)
    # Paths of a .pth file come after site-packages, and .pth files below them are not read: so the wheel's mcis is
    # imported, not the editable one of this environment.
    here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in here))
    return programs


def test_the_wheel_has_every_file_of_the_checkout(wheel):
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = set()
    for folder, package in SOURCES.items():
        root = wheel.parent / "copy" / folder
        expected |= {f"{package}/{path.relative_to(root).as_posix()}" for path in root.rglob("*") if path.is_file()}
    assert inside == expected
    assert {"mcis/report/page.html", "mcis/py.typed", "mcis_datasets/mcis_scans/TAGS.txt"} < inside


def test_the_wheel_works_outside_the_checkout(installed, tmp_path):
    assert "segment_brain" in run(installed / "mcis", "info", f"--data_dir={tmp_path}", cwd=tmp_path)
    program = (
        "import json, pathlib, mcis, mcis_datasets, mcis_datasets.mcis_scans.mcis_scans_dataset_builder as builder;"
        "print(json.dumps([mcis.__file__, mcis_datasets.__file__]));"
        "assert builder.Builder.builder_configs"
    )
    places = json.loads(run(installed / "python", "-c", program, cwd=tmp_path))
    for place in places:
        assert pathlib.Path(place).is_relative_to(installed.parent)
