"""Write the API reference to ./site from the docstrings, by pdoc: `make docs`.

Its index lists all modules by the layers of the import contract in pyproject.toml, the lowest first.
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
EXCLUDED = ("__main__", "_test", "beam")
"""Endings of module names to skip: scripts, tests, and what imports optional packages."""
INDEX = """
{% set root_module_name = false %}
{% extends "default/index.html.jinja2" %}
{% block title %}mcis: the API{% endblock %}
{% block content %}
<header class="pdoc"><input type="search" placeholder="Search..." aria-label="search box"></header>
<main class="pdoc"><section class="module-info">
<h1>mcis</h1>
<p>{{ summary }}</p><p><strong>{{ notice }}</strong></p>
<p>Start with <a href="mcis/inference/predictor.html">mcis.inference.predictor</a>, which <code>mcis.load()</code>
returns, or follow the data: <a href="mcis/imaging.html">imaging</a>, <a href="mcis/data.html">data</a>,
<a href="mcis/tasks.html">tasks</a>, <a href="mcis/models.html">models</a>, <a href="mcis/train.html">train</a>,
<a href="mcis/checkpoints.html">checkpoints</a>, <a href="mcis/inference.html">inference</a>,
<a href="mcis/report.html">report</a>. All modules are listed below by layer. A module imports only from layers listed
before its own.</p>
{% for rows in layers %}<hr><ul>{% for name, line in rows %}
<li><a href="{{ name.replace('.', '/') }}.html">{{ name }}</a>: {{ line }}</li>
{% endfor %}</ul>{% endfor %}
</section></main>
{% include "search.html.jinja2" %}
{% endblock %}
"""


def modules() -> list[str]:
    """Names of all documented modules of mcis and of the builder."""
    packages = (mcis, mcis_datasets.mcis_scans)
    found = [module.name for p in packages for module in pkgutil.walk_packages(p.__path__, f"{p.__name__}.")]
    return ["mcis", "mcis_datasets.mcis_scans", *(name for name in found if not name.endswith(EXCLUDED))]


def modules_by_layer(names: list[str]) -> list[list[tuple[str, str]]]:
    """(name, first line of its docstring) of the modules of each layer, the lowest layer first and the builder last."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(one["layers"] for one in linter["contracts"] if one["type"] == "layers")
    packages = [[f"mcis.{name.strip()}" for name in re.split(r"[|:]", layer)] for layer in reversed(layers)]
    first = {name: (importlib.import_module(name).__doc__ or "").split("\n")[0] for name in names}
    rows = [[(n, first[n]) for p in layer for n in names if n == p or n.startswith(f"{p}.")] for layer in packages]
    return [row for row in rows if row] + [[(n, first[n]) for n in names if n.startswith("mcis_datasets")]]


if __name__ == "__main__":
    names = modules()
    pdoc.render.configure(docformat="google", footer_text=mcis.NOTICE)
    templates = jinja2.DictLoader({"index.html.jinja2": INDEX})
    pdoc.render.env.loader = jinja2.ChoiceLoader([templates, pdoc.render.env.loader])
    pdoc.render.env.globals |= {"layers": modules_by_layer(names), "summary": mcis.__doc__, "notice": mcis.NOTICE}
    pdoc.pdoc(*names, *(f"!.*{end}$" for end in EXCLUDED), output_directory=SITE)
    print(f"{SITE / 'index.html'}: {len(names)} modules")
