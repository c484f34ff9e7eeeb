"""The documentation holds: its commands have their options, its code compiles, its worked examples can be followed."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import matplotlib
import pytest

from mcis import organs
from mcis.cli import main
from mcis.evaluation import descriptions
from mcis.report import finding, volume

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "docs").glob("add_*.md"))
EVERY = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def named(paths):
    return pytest.mark.parametrize("page", paths, ids=lambda page: page.stem)


# Commands


def code(text):
    """Fenced blocks of commands, indented lines and code in a sentence."""
    lines = [body for language, body in FENCED.findall(text) if language == "bash"]
    prose = FENCED.sub("", text)
    lines += re.findall(r"(?m)^ {4,}(.*)$", prose.replace("\\\n", " "))
    lines += [span.replace("\n", " ") for span in re.findall(r"`(mcis [^`]+|python -m mcis[^`]+)`", prose)]
    return "\n".join(lines).replace("\\\n", " ")


def commands(text):
    """(command of mcis, options) of each command line in some code."""
    for line in re.split(r"\n|&&|;|\|| {2,}#", code(text)):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # no command, but prose or output with an apostrophe
            continue
        while words and "=" in words[0] and not words[0].startswith("-"):
            del words[0]  # a variable of the environment
        if words[:3] == ["python", "-m", "mcis.launch"]:
            name, rest = "train", words[3:]
        elif len(words) > 1 and words[0] == "mcis":
            name, rest = words[1], words[2:]
        else:
            continue
        yield name, [word.strip("[]").split("=")[0] for word in rest if word.strip("[]").startswith("--")]


@pytest.fixture(scope="module")
def options_of():
    """A command -> the names of its options, written with dashes."""
    found = {}

    def options(name, capsys):
        if name not in found:
            words = ["--task=route"] if name == "train" else []
            capsys.readouterr()
            with pytest.raises(SystemExit):
                main.main([name, *words, "--no_such_option=1"])
            listed = capsys.readouterr().err.rsplit("options of mcis", 1)[1].split(":", 1)[1].split()
            found[name] = {option.replace("_", "-") for option in listed} | {"--task"}
        return found[name]

    return options


@EVERY
def test_every_option_of_every_command_there_is(page, options_of, capsys):
    for name, options in commands(page.read_text(encoding="utf-8")):
        if name.startswith("-"):
            continue  # mcis --help
        assert name in {*main.COMMANDS, "COMMAND"}, f"mcis {name}"
        if name in main.COMMANDS:
            unknown = {option.replace("_", "-") for option in options} - options_of(name, capsys)
            assert not unknown, f"mcis {name} {unknown}"


def test_commands_are_found_in_every_form():
    text = """
    A=1 mcis build busi --from x && mcis evaluate runs/a? --split=test   # --no_comment
    python -m mcis.launch --task=route \\
      --size=64 [--no-crf]

and `mcis predict --shard=0/3`.

```bash
mcis runs one | head --lines=3
```
"""
    found = dict(commands(text))
    assert found == {
        "runs": [],
        "build": ["--from"],
        "evaluate": ["--split"],
        "train": ["--task", "--size", "--no-crf"],
        "predict": ["--shard"],
    }


# Code


@EVERY
def test_python_compiles_and_files_that_are_named_are_there(page):
    text = page.read_text(encoding="utf-8")
    for language, body in FENCED.findall(text):
        if language == "python":
            compile(body, page.name, "exec")
    for block in re.findall(r"(?m)((?:^ {4}.*\n)+)", text):
        if block.lstrip().startswith("import mcis"):
            compile("".join(line[4:] + "\n" for line in block.splitlines()), page.name, "exec")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), f"a link to {target}"


@pytest.mark.slow
def test_the_python_api_is_as_it_is_shown(weights, tmp_path, monkeypatch):
    """Every block runs, in one session as `make pictures` has it, with small random weights in the demo's place."""
    matplotlib.use("agg")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "weights").symlink_to(weights)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for language, body in FENCED.findall((ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(body, "python_api.md", "exec"), names)
    assert names["result"].finding.error is None and names["found"].spacing_mm == [0.9, 0.9]


def test_every_key_of_a_finding_and_of_a_volume_is_told():
    text = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    tables = [re.findall(r"(?m)^\| `(\w+)` \|", table) for table in re.split(r"\n\n(?=\|)", text)]
    assert list(finding.KEYS) in tables and list(volume.KEYS) in tables
    classes = re.search(r"(?m)^\| `label` \| (.*) \|$", text)[1]
    assert re.findall(r'"(\w+)"', classes) == [name for organ in organs.ORGANS for name in organ.classes]


def test_every_metric_is_told():
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", text))
    assert told == descriptions.MEANINGS


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


def follow(kind, text, path, root):
    """Do what a block says in a copy of the checkout; whether it was something to write."""
    if kind == "diff":
        for name, before, after in hunks(text):
            was = (root / name).read_text(encoding="utf-8")
            assert was.count(before) == 1, f"{name} has {was.count(before)} times\n{before}"
            (root / name).write_text(was.replace(before, after), encoding="utf-8")
    elif kind == "file":
        (root / path).write_text(text, encoding="utf-8")
    return kind in ("diff", "file")


@pytest.fixture
def copy(tmp_path):
    """A copy of the checkout, without what others or this run made in it."""
    junk = shutil.ignore_patterns("__pycache__", ".*", "runs", "data", "demo", "bench", "site", "build", "*.egg-info")
    shutil.copytree(ROOT, tmp_path / "mcis", ignore=junk)
    (tmp_path / "as").mkdir()
    (tmp_path / "as" / "mcis_datasets").symlink_to(tmp_path / "mcis" / "datasets")
    return tmp_path / "mcis"


def environment(copy, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{copy}:{copy.parent / 'as'}")
    for name in ("XLA_FLAGS", "JAX_NUMPY_RANK_PROMOTION"):  # the tests' own
        monkeypatch.delenv(name, raising=False)


def test_a_diff_is_applied_as_it_is_read(tmp_path):
    (tmp_path / "a").write_text("one\ntwo\nthree\n")
    (tmp_path / "b").write_text("x\n")
    follow("diff", "--- a\n one\n+half\n@@\n-three\n+four\n--- b\n+w\n x\n", None, tmp_path)
    assert (tmp_path / "a").read_text() == "one\nhalf\ntwo\nfour\n"
    assert (tmp_path / "b").read_text() == "w\nx\n"


@named(EXAMPLES)
def test_a_worked_example_fits_the_code_and_its_style(page, copy, monkeypatch):
    assert sum(follow(*step, copy) for step in steps(page)) >= 3
    environment(copy, monkeypatch)
    tables = "from mcis import models, tasks; from mcis.imaging import phantom\n"
    tables += "from mcis_datasets.mcis_scans import sources; print(tasks.__file__)"
    for command in ([sys.executable, "-c", tables], ["ruff", "check", "."], ["ruff", "format", "--check", "."]):
        command = [str(pathlib.Path(sys.executable).with_name("ruff")) if word == "ruff" else word for word in command]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert command[1] != "-c" or str(copy) in done.stdout  # it was this copy's
