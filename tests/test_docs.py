"""The documentation matches the code: options, keys, metrics, the package map, and the worked examples."""

import ast
import itertools
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import matplotlib
import pytest

from mcis import organs
from mcis.cli import main
from mcis.evaluation import descriptions
from mcis.report import finding, volume

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "docs").glob("add_*.md"))
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def for_each(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: f"{page.parent.name}/{page.stem}")


# Commands


def code_of(text):
    """Fenced blocks of commands, indented lines, and code in sentences."""
    lines = [body for language, body in FENCED.findall(text) if language == "bash"]
    prose = FENCED.sub("", text)
    lines += re.findall(r"(?m)^ {4,}(.*)$", prose.replace("\\\n", " "))
    lines += [span.replace("\n", " ") for span in re.findall(r"`(mcis [^`]+|python -m mcis[^`]+)`", prose)]
    return "\n".join(lines).replace("\\\n", " ")


def commands_of(text):
    """(mcis command, options) of each command line in a page."""
    for line in re.split(r"\n|&&|;|\|| {2,}#", code_of(text)):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # prose or output with an apostrophe
            continue
        while words and "=" in words[0] and not words[0].startswith("-"):
            del words[0]  # an environment variable
        if words[:3] == ["python", "-m", "mcis.launch"]:
            name, rest = "train", words[3:]
        elif len(words) > 1 and words[0] == "mcis":
            name, rest = words[1], words[2:]
        else:
            continue
        yield name, [word.strip("[]").split("=")[0] for word in rest if word.strip("[]").startswith("--")]


@pytest.fixture(scope="module")
def options_of():
    """A function: command -> names of its options, written with dashes."""
    known = {}

    def options(name, capsys):
        if name not in known:
            words = ["--task=route"] if name == "train" else []
            capsys.readouterr()
            with pytest.raises(SystemExit):
                main.main([name, *words, "--no_such_option=1"])
            listed = re.findall(r"--[a-z][\w.-]*", capsys.readouterr().err)
            known[name] = {option.replace("_", "-") for option in listed} | {"--task"}
        return known[name]

    return options


@for_each(PAGES)
def test_documented_commands_and_options_exist(page, options_of, capsys):
    for name, options in commands_of(page.read_text(encoding="utf-8")):
        if name.startswith("-"):
            continue  # mcis --help
        assert name in {*main.COMMANDS, "COMMAND"}, f"mcis {name}"
        if name in main.COMMANDS:
            unknown = {option.replace("_", "-") for option in options} - options_of(name, capsys)
            assert not unknown, f"mcis {name} {unknown}"


def test_commands_are_recognised_in_every_notation():
    text = """
    A=1 mcis build busi --from x && mcis evaluate runs/a? --split=test   # --no_comment
    python -m mcis.launch --task=route \\
      --size=64 [--no-crf]

and `mcis predict --shard=0/3`.

```bash
mcis runs one | head --lines=3
```
"""
    assert dict(commands_of(text)) == {
        "runs": [],
        "build": ["--from"],
        "evaluate": ["--split"],
        "train": ["--task", "--size", "--no-crf"],
        "predict": ["--shard"],
    }


# Code, links and tables


@for_each(PAGES)
def test_python_code_compiles_and_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for language, body in FENCED.findall(text):
        if language == "python":
            compile(body, page.name, "exec")
    for block in re.findall(r"(?m)((?:^ {4}.*\n)+)", text):
        if block.lstrip().startswith("import mcis"):
            compile("".join(line[4:] + "\n" for line in block.splitlines()), page.name, "exec")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), f"a link to {target}"
    written = {path for _, _, path in steps(page)}
    for path in re.findall(r"`((?:datasets|docs|launch|mcis|tests)/[\w./]+)`", text):
        assert path in written or (ROOT / path).exists(), path


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_models")
def test_python_api_page_runs_in_one_session(weights, tmp_path, monkeypatch):
    """As `make pictures` runs it, but with small random weights instead of the demo's."""
    matplotlib.use("agg")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "weights").symlink_to(weights)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for language, body in FENCED.findall((ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(body, "python_api.md", "exec"), names)
    assert names["result"].finding.error is None and names["found"].spacing_mm == [0.9, 0.9]


def test_every_key_of_findings_and_volumes_is_documented():
    text = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    tables = [re.findall(r"(?m)^\| `(\w+)` \|", table) for table in re.split(r"\n\n(?=\|)", text)]
    assert list(finding.KEYS) in tables and list(volume.KEYS) in tables
    classes = re.search(r"(?m)^\| `label` \| (.*) \|$", text)[1]
    assert re.findall(r'"(\w+)"', classes) == [name for organ in organs.ORGANS for name in organ.classes]


def test_every_metric_is_documented():
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", text)) == descriptions.MEANINGS


def test_the_package_map_equals_the_import_contract_and_the_docstrings():
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in linter["contracts"] if contract["type"] == "layers")
    rows = []
    for number, layer in zip(itertools.count(len(layers), -1), layers, strict=False):
        for name in re.split(r" [|:] ", layer):
            path = ROOT / "mcis" / name / "__init__.py"
            source = (path if path.exists() else ROOT / "mcis" / f"{name}.py").read_text(encoding="utf-8")
            rows.append((str(number), name, ast.get_docstring(ast.parse(source)).splitlines()[0]))
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^\| (\d) \| `(\w+)` \| (.*) \|$", text) == rows


def test_the_index_lists_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


# The worked examples


def steps(page):
    """(kind, text, path) of each block: a "diff", a "file" to write, or "bash" and "python" to run."""
    text = page.read_text(encoding="utf-8")
    for block in FENCED.finditer(text):
        written = re.search(r"Write `([^`]+)`:\s*\Z", text[: block.start()])
        yield ("file" if written else block[1]), block[2], written and written[1]


def hunks(diff):
    """(path, lines before, lines after) of each hunk."""
    path = None
    for part in re.split(r"(?m)^(?:--- (.*)|@@)\n", diff):
        if part and not part.startswith((" ", "+", "-")):
            path = part
        elif part:
            lines = part.splitlines(keepends=True)
            yield path, *("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))


def apply_step(kind, text, path, root):
    """Write what a block says into a copy of the checkout; returns the paths written, () for a block to run."""
    if kind == "file":
        (root / path).write_text(text, encoding="utf-8")
        return (path,)
    if kind != "diff":
        return ()
    paths = []
    for name, before, after in hunks(text):
        content = (root / name).read_text(encoding="utf-8")
        assert content.count(before) == 1, f"{name} contains {content.count(before)} times\n{before}"
        (root / name).write_text(content.replace(before, after), encoding="utf-8")
        paths.append(name)
    return tuple(paths)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the checkout without generated files."""
    hidden = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
    outputs = {"bench", "browser", "build", "data", "demo", "fuzz", "runs", "site"}  # of commands, in the top folder

    def generated(folder, names):
        return hidden(folder, names) | (outputs.intersection(names) if pathlib.Path(folder) == ROOT else set())

    shutil.copytree(ROOT, tmp_path / "mcis", ignore=generated)
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "mcis_datasets").symlink_to(tmp_path / "mcis" / "datasets")
    return tmp_path / "mcis"


def use_checkout(checkout, monkeypatch):
    """Let child processes import the copy, without the tests' own JAX settings."""
    monkeypatch.setenv("PYTHONPATH", f"{checkout}:{checkout.parent / 'path'}")
    for name in ("XLA_FLAGS", "JAX_NUMPY_RANK_PROMOTION"):
        monkeypatch.delenv(name, raising=False)


def test_a_diff_block_is_applied_hunk_by_hunk(tmp_path):
    (tmp_path / "a").write_text("one\ntwo\nthree\n")
    (tmp_path / "b").write_text("x\n")
    diff = "--- a\n one\n+half\n@@\n-three\n+four\n--- b\n+w\n x\n"
    assert apply_step("diff", diff, None, tmp_path) == ("a", "a", "b")
    assert (tmp_path / "a").read_text() == "one\nhalf\ntwo\nfour\n"
    assert (tmp_path / "b").read_text() == "w\nx\n"


def test_the_worked_examples_apply_and_their_modules_import(checkout, monkeypatch):
    """All in one copy, since importing JAX takes most of the time."""
    written = set()
    for page in EXAMPLES:
        paths = {path for step in steps(page) for path in apply_step(*step, checkout) if path.endswith(".py")}
        assert len(paths) >= 3, page.name
        written |= paths
        for kind, text, _ in steps(page):
            for path in re.findall(r"tests/[\w/]+\.py", text if kind == "bash" else ""):
                assert (checkout / path).exists(), path
    use_checkout(checkout, monkeypatch)
    packages = {"mcis": "mcis", "datasets": "mcis_datasets"}
    modules = sorted(
        ".".join((packages[top], *rest)).removesuffix(".__init__")
        for top, *rest in (path.removesuffix(".py").split("/") for path in written)
        if top in packages and not rest[-1].endswith(("_test", "_generator"))
    )
    lines = [f"import {name}; print({name}.__file__)" for name in modules]
    imported = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=checkout, capture_output=True, text=True)
    assert imported.returncode == 0, imported.stderr
    assert imported.stdout.count(str(checkout.parent)) == len(modules), imported.stdout  # not those of this checkout
    ruff = str(pathlib.Path(sys.executable).with_name("ruff"))
    for words in ((ruff, "check"), (ruff, "format", "--check")):
        style = subprocess.run([*words, *sorted(written)], cwd=checkout, capture_output=True, text=True)
        assert style.returncode == 0, style.stdout + style.stderr
