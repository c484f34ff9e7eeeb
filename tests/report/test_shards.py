"""Shards of the scans, each with a report of its own; their merged report; and reports that are resumed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mcis.cli import merge, predict
from mcis.imaging import phantom
from mcis.report import shards
from mcis.report import writer as report_writer
from mcis.report.finding import Finding, ReportError
from mcis.report.shards import Shard
from mcis.report.writer import ReportWriter
from tests.fixtures.bundles import findings

pytestmark = pytest.mark.usefixtures("no_networks_in_module")

MANY = 200
"""More scans than a process can finish before it is stopped."""


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_shards_contain_each_scan_once_in_order_and_have_nearly_equal_sizes(count):
    paths = [f"{i}.png" for i in range(23)]
    parts = [Shard(i, count).share(paths) for i in range(count)]
    assert [path for part in parts for path in part] == paths
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["3", "3/3", "1/0", "-1/3", "a/b", "1/2/3", ""])
def test_an_invalid_shard_is_an_error_with_the_allowed_form(text):
    with pytest.raises(ValueError, match=r"K from 0 to N - 1, as 0/100 to 99/100"):
        shards.parse_shard(text)


def test_folders_sort_as_their_shards(tmp_path):
    for index in (10, 2, 0):
        Shard(index, 11).folder(tmp_path).mkdir()
    (tmp_path / "shard_x_of_y").mkdir()
    assert [shard.index for shard in shards.shards_in(tmp_path)] == [0, 2, 10]
    names = [path.name for path in shards.shards_in(tmp_path).values()]
    assert [path.name for path in sorted(tmp_path.glob("shard_*_of_11"))] == names


def run(folder, out, *options):
    return predict.main([str(folder), "--out", str(out), *options])


@pytest.fixture(scope="module")
def whole(no_networks_in_module, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(pictures[0], out) == 1  # one is broken
    return out


@pytest.fixture(scope="module")
def parts(no_networks_in_module, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("parts") / "out"
    for index in (2, 0, 1):
        assert run(pictures[0], out, f"--shard={index}/3") in (0, 1)
    return out


@pytest.fixture
def copy(parts, tmp_path):
    return shutil.copytree(parts, tmp_path / "out")


def test_a_merged_report_equals_that_of_one_process(whole, copy, capsys):
    assert merge.main([str(copy)]) == 1
    printed = capsys.readouterr()
    assert "scans that could not be read: 1" in printed.err and "not a medical device" in printed.out.lower()
    expected, merged = findings(whole), findings(copy)
    assert len({line["label"] for line in expected}) > 2 and any(line["lesion_area_px"] for line in expected)
    for one, other in zip(expected, merged, strict=True):
        masks = one.pop("mask"), other.pop("mask")
        assert one == other
        if masks[0]:
            assert masks[1].startswith("shard_")
            assert (whole / masks[0]).read_bytes() == (copy / masks[1]).read_bytes()
    before, after = (json.loads((out / "run.json").read_text()) for out in (whole, copy))
    assert before["counts"] == after["counts"]
    assert after["status"] == "complete" and after["options"]["merged"] == 3
    rows = (copy / "page" / "rows_0000.js").read_text()
    assert rows.count("/overlays/") == len(expected) - 1  # every scan that could be read


def test_merging_again_needs_overwrite(copy, capsys):
    assert merge.main([str(copy)]) == 1
    lines = (copy / "findings.jsonl").read_bytes()
    assert merge.main([str(copy)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert merge.main([str(copy), "--overwrite"]) == 1
    assert (copy / "findings.jsonl").read_bytes() == lines
    assert all(any((path / "overlays").iterdir()) for path in shards.shards_in(copy).values())


def change(path, edit):
    values = json.loads((path / "run.json").read_text())
    edit(values)
    (path / "run.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: shutil.rmtree(path), r"1 of 3 shards are missing or incomplete \(1\).*--resume"),
        (lambda path: (path / "run.json").write_text("{"), r"incomplete \(1\)"),
        (lambda path: change(path, lambda run: run.update(status="stopped")), r"incomplete \(1\)"),
        (
            lambda path: change(path, lambda run: run["options"].update(scans="other")),
            "shards 1 differ from shard 0 in scans",
        ),
        (
            lambda path: change(path, lambda run: run["options"].update(threshold=0.4)),
            "shards 1 differ from shard 0 in option threshold",
        ),
        (
            lambda path: change(path, lambda run: run["weights"].update(folder="other")),
            "shards 1 differ from shard 0 in weights",
        ),
        (lambda path: path.rename(path.with_name("shard_1_of_4")), "shards of 3 and of 4"),
        (lambda path: path.with_name("shard_0_of_2").mkdir(), "shards of 2 and of 3"),
        (lambda path: shutil.copytree(path.with_name("shard_0_of_3"), path, dirs_exist_ok=True), "moved or renamed"),
        (lambda path: (path / "findings.jsonl").write_text(""), r"incomplete \(1\)"),
        (lambda path: (path / "findings.jsonl").unlink(), r"incomplete \(1\)"),
    ],
)
def test_shards_that_do_not_belong_together_are_not_merged(copy, spoil, message):
    spoil(copy / "shard_1_of_3")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        shards.merge(copy)
    assert not (copy / "findings.jsonl").exists()


def test_the_error_for_a_folder_without_shards_names_the_command(tmp_path):
    with pytest.raises(ValueError, match="--shard=K/N"):
        shards.merge(tmp_path)


@pytest.mark.parametrize("cut", [0, 1, 4, 9])
def test_a_truncated_report_is_resumed_to_the_same_result(whole, pictures, tmp_path, cut, capsys):
    out = shutil.copytree(whole, tmp_path / "out")
    lines = (out / "findings.jsonl").read_bytes().splitlines(keepends=True)
    (out / "findings.jsonl").write_bytes(b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])  # within a line
    change(out, lambda run: run.update(status="running"))
    assert run(pictures[0], out, "--resume") == 1
    assert (f"continues after {cut} of {len(lines)} scans" in capsys.readouterr().err) == (cut > 0)
    assert (out / "findings.jsonl").read_bytes() == b"".join(lines)
    before, after = (json.loads((folder / "run.json").read_text()) for folder in (whole, out))
    assert after["status"] == "complete" and after["counts"] == before["counts"]
    assert (out / "page" / "rows_0000.js").read_text().count("overlays/") == len(lines) - 1
    assert run(pictures[0], out, "--resume") == 1  # nothing is left to do
    assert (out / "findings.jsonl").read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "--organ=brain"], "was started with other options (organ: None -> brain)"),
        (["--resume", "--overwrite"], "exclude each other"),
        ([], "--resume to continue it"),
    ],
)
def test_a_report_with_other_options_is_not_resumed(whole, pictures, options, message, capsys):
    before = (whole / "findings.jsonl").read_bytes()
    assert run(pictures[0], whole, *options) == 2
    assert message in capsys.readouterr().err
    assert (whole / "findings.jsonl").read_bytes() == before


def test_a_report_of_other_weights_is_not_resumed(whole, pictures, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "out")
    change(out, lambda run: run["weights"]["tasks"]["route"].update(epoch=7))
    assert run(pictures[0], out, "--resume") == 2
    assert "was started with other weights" in capsys.readouterr().err


def test_a_report_of_other_scans_is_not_resumed(whole, pictures, tmp_path, capsys):
    folder = shutil.copytree(pictures[0], tmp_path / "scans")
    out = shutil.copytree(whole, tmp_path / "out")
    change(out, lambda run: run["options"].update(paths=[str(folder)]))
    assert run(folder, out, "--resume") == 2
    assert "is of other scans, from line 1 on" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_two_processes_never_write_one_report(tmp_path, how):
    with ReportWriter(tmp_path, {}) as writer:
        with pytest.raises(ReportError, match="another process"):
            ReportWriter(tmp_path, {}, **{how: True})
        writer.add(Finding("a.png", organ="brain"))
    assert [line["scan"] for line in findings(tmp_path)] == ["a.png"]


def test_a_disk_without_locks_can_hold_reports(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(report_writer.fcntl, "flock", unsupported)
    with ReportWriter(tmp_path, {}) as writer:
        writer.add(Finding("a.png", organ="brain"))
    assert len(findings(tmp_path)) == 1


def test_a_run_that_was_killed_before_its_first_line_is_started_again(pictures, tmp_path):
    (tmp_path / "findings.jsonl").touch()  # without a run.json
    assert run(pictures[0], tmp_path, "--resume") == 1
    assert len(findings(tmp_path)) > 3


def test_a_shard_may_be_empty(tmp_path):
    for path in phantom.write_examples(tmp_path / "scans", per_class=1)[1:]:
        path.unlink()
    for index in range(2):
        assert run(tmp_path / "scans", tmp_path / "out", f"--shard={index}/2") == 0
    assert shards.merge(tmp_path / "out")["scans"] == 1


START = """
import sys
from mcis.cli import main, predict
from tests.fixtures.bundles import numpy_predictor
predict.load = numpy_predictor
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_process_that_was_stopped_or_killed_is_resumed(tmp_path, number, capsys):
    scans, out = tmp_path / "scans", tmp_path / "out"
    first = phantom.write_examples(tmp_path / "one", per_class=1)[0]
    scans.mkdir()
    for i in range(MANY):
        (scans / f"{i:03d}{first.suffix}").symlink_to(first)
    command = [sys.executable, "-c", START, "predict", str(scans), f"--out={out}", "--resume", "--shard=1/2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    lines = out / "shard_1_of_2" / "findings.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (lines.exists() and lines.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.send_signal(number)
    printed = process.communicate()[1]
    reached = lines.read_bytes().count(b"\n")
    assert reached < MANY // 2
    assert process.returncode == (75 if number == signal.SIGTERM else -number), printed
    assert ("--resume continues" in printed) == (number == signal.SIGTERM)
    assert run(scans, out, "--resume", "--shard=1/2") == 0
    assert f"continues after {reached} of {MANY // 2} scans" in capsys.readouterr().err
    assert [line["scan"] for line in findings(lines.parent)] == sorted(map(str, scans.iterdir()))[MANY // 2 :]


@pytest.mark.parametrize(
    "value", [{"options": 5}, {"options": None}, {"versions": ["a"]}, {"counts": 3}, {"passed_over": 0.5}]
)
def test_a_shard_with_an_invalid_run_file_counts_as_missing(value, tmp_path, capsys):
    for index in (0, 1):
        with ReportWriter(Shard(index, 2).folder(tmp_path), {"shard": f"{index}/2"}) as writer:
            writer.add(Finding("a.png", organ="brain"))
    path = Shard(1, 2).folder(tmp_path) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | value))
    assert merge.main([str(tmp_path)]) == 2
    assert "1 of 2 shards are missing or incomplete (1)" in capsys.readouterr().err
