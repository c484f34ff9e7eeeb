"""The API reference below ./site, from the docstrings, by pdoc: `make docs`.

Its first page leads through the rooms in the order of the import contracts of pyproject.toml, from what knows of
nothing else upwards.
"""

import importlib
import pathlib
import pkgutil
import re
import tomllib

import jinja2
import mcis_datasets.mcis_scans
import pdoc

import mcis

ROOT = pathlib.Path(__file__).parents[1]
SITE = ROOT / "site"
LEFT_OUT = ("__main__", "_test", "beam")
"""Ends of the names of modules that are none to read, or import what is not installed."""
INDEX = """
{% set root_module_name = false %}
{% extends "default/index.html.jinja2" %}
{% block title %}mcis: the API{% endblock %}
{% block content %}
<header class="pdoc"><input type="search" placeholder="Search..." aria-label="search box"></header>
<main class="pdoc"><section class="module-info">
<h1>mcis</h1>
<p>{{ summary }}</p><p><strong>{{ notice }}</strong></p>
<p>Begin with <a href="mcis/inference/predictor.html">mcis.inference.predictor</a>, which <code>mcis.load()</code>
gives, or with the one flow: <a href="mcis/imaging/scan.html">scan</a>,
<a href="mcis/data/dataset.html">data</a>, <a href="mcis/tasks.html">tasks</a>, <a href="mcis/models.html">models</a>,
<a href="mcis/train/step.html">train.step</a>, <a href="mcis/checkpoints/checkpoint.html">checkpoint</a>,
<a href="mcis/inference/cascade.html">cascade</a>, <a href="mcis/report/finding.html">finding</a>. Below is every
module. Imports go strictly downward: a module imports only from layers listed before its own.</p>
{% for rooms in floors %}<hr><ul>{% for name, line in rooms %}
<li><a href="{{ name.replace('.', '/') }}.html">{{ name }}</a>: {{ line }}</li>
{% endfor %}</ul>{% endfor %}
</section></main>
{% include "search.html.jinja2" %}
{% endblock %}
"""


def modules() -> list[str]:
    """Names of all modules to read, of mcis and of the builder."""
    packages = (mcis, mcis_datasets.mcis_scans)
    found = [one.name for p in packages for one in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    return ["mcis", "mcis_datasets.mcis_scans", *(name for name in found if not name.endswith(LEFT_OUT))]


def floors(names: list[str]) -> list[list[tuple[str, str]]]:
    """(name, first line of its docstring) of the modules, floor by floor, the lowest first; the builder is last."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(one["layers"] for one in linter["contracts"] if one["type"] == "layers")
    tops = [[f"mcis.{room.strip()}" for room in re.split(r"[|:]", layer)] for layer in reversed(layers)]
    told = {name: (importlib.import_module(name).__doc__ or "").split("\n")[0] for name in names}
    rows = [[(n, told[n]) for top in layer for n in names if n == top or n.startswith(f"{top}.")] for layer in tops]
    return [row for row in rows if row] + [[(n, told[n]) for n in names if n.startswith("mcis_datasets")]]


if __name__ == "__main__":
    names = modules()
    pdoc.render.configure(docformat="google", footer_text=mcis.NOTICE)
    own = jinja2.DictLoader({"index.html.jinja2": INDEX})
    pdoc.render.env.loader = jinja2.ChoiceLoader([own, pdoc.render.env.loader])
    pdoc.render.env.globals |= {"floors": floors(names), "summary": mcis.__doc__, "notice": mcis.NOTICE}
    pdoc.pdoc(*names, *(f"!.*{end}$" for end in LEFT_OUT), output_directory=SITE)
    print(f"{SITE / 'index.html'}: {len(names)} modules")
