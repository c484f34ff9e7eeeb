"""Shares of the scans, each in a folder of its own, and one report of them."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import pytest

from mcis.cli import merge, predict
from mcis.imaging import phantom
from mcis.report import shards
from mcis.report import writer as report_writer
from mcis.report.finding import Finding, ReportError
from mcis.report.shards import Shard
from mcis.report.writer import ReportWriter
from tests.fixtures.bundles import findings

MANY = 400
"""So that a process cannot be through before it is stopped."""


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_shares_are_each_scan_s_once_in_order_and_as_equal_as_can_be(count):
    paths = [f"{i}.png" for i in range(23)]
    parts = [Shard(i, count).share(paths) for i in range(count)]
    assert [path for part in parts for path in part] == paths
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["3", "3/3", "1/0", "-1/3", "a/b", "1/2/3", ""])
def test_a_shard_that_is_none_says_what_is_needed(text):
    with pytest.raises(ValueError, match=r"K from 0 to N - 1, as 0/100 to 99/100"):
        shards.parse_shard(text)


def test_folders_of_shards_sort_as_the_shards(tmp_path):
    for index in (10, 2, 0):
        Shard(index, 11).folder(tmp_path).mkdir()
    (tmp_path / "shard_x_of_y").mkdir()
    assert [shard.index for shard in shards.shards_in(tmp_path)] == [0, 2, 10]
    assert [path.name for path in sorted(tmp_path.glob("shard_*_of_11"))] == [
        path.name for path in shards.shards_in(tmp_path).values()
    ]


def run(folder, weights, out, *options):
    return predict.main([str(folder), "--out", str(out), "--weights", str(weights), "--threshold=0", *options])


@pytest.fixture(scope="module")
def whole(weights, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run(pictures[0], weights, out) == 1  # one is broken
    return out


@pytest.fixture(scope="module")
def parts(weights, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("parts") / "out"
    for index in (2, 0, 1):
        assert run(pictures[0], weights, out, f"--shard={index}/3") in (0, 1)
    return out


@pytest.fixture
def copy(parts, tmp_path):
    return shutil.copytree(parts, tmp_path / "out")


def without_masks(lines):
    return [{name: value for name, value in line.items() if name not in ("mask", "label_probs")} for line in lines]


def test_what_is_merged_is_what_one_process_finds(whole, copy, capsys):
    assert merge.main([str(copy)]) == 1
    said = capsys.readouterr()
    assert "1 scans could not be read" in said.err and "not a medical device" in said.out.lower()
    one, merged = findings(whole), findings(copy)
    assert [line["scan"] for line in merged] == [line["scan"] for line in one]
    for a, b in zip(one, merged, strict=True):
        for name in ("organ_prob", "confidence"):
            assert b.pop(name) == pytest.approx(a.pop(name), abs=1e-4)
        if a["mask"]:
            assert b["mask"].startswith("shard_")
            x, y = (cv2.imread(str(d / line["mask"]), 0) for d, line in ((whole, a), (copy, b)))
            assert (x != y).mean() <= 1e-3
            a["boxes"] = b["boxes"]
            a["lesion_area_px"] = b["lesion_area_px"]
    assert without_masks(one) == without_masks(merged)
    before, after = (json.loads((out / "run.json").read_text()) for out in (whole, copy))
    for name in ("scans", "errors", "organs", "labels"):
        assert before["counts"][name] == after["counts"][name]
    assert after["status"] == "complete" and after["options"]["merged"] == 3
    rows = (copy / "page" / "rows_0000.js").read_text()
    assert rows.count("/overlays/") == len(one) - 1  # every scan that could be read


def test_merging_twice_has_to_be_asked_for(copy, capsys):
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
    ("spoil", "says"),
    [
        (lambda path: shutil.rmtree(path), r"1 of 3 shards are missing or not complete \(1\).*--resume"),
        (lambda path: (path / "run.json").write_text("{"), r"not complete \(1\)"),
        (lambda path: change(path, lambda run: run.update(status="stopped")), r"not complete \(1\)"),
        (
            lambda path: change(path, lambda run: run["options"].update(scans="other")),
            "shards 1 differ from shard 0 in their scans",
        ),
        (
            lambda path: change(path, lambda run: run["options"].update(threshold=0.4)),
            "shards 1 differ from shard 0 in their option threshold",
        ),
        (
            lambda path: change(path, lambda run: run["weights"].update(folder="other")),
            "shards 1 differ from shard 0 in their weights",
        ),
        (lambda path: path.with_name("shard_0_of_2").mkdir(), "shards of 2 and of 3"),
        (lambda path: (path / "findings.jsonl").write_text(""), r"not complete \(1\)"),
        (lambda path: (path / "findings.jsonl").unlink(), r"not complete \(1\)"),
    ],
)
def test_shards_that_make_no_whole_are_refused(copy, spoil, says):
    spoil(copy / "shard_1_of_3")
    with pytest.raises(ValueError, match=f"(?s){says}"):
        shards.merge(copy)
    assert not (copy / "findings.jsonl").exists()


def test_a_folder_without_shards_says_how_to_make_them(tmp_path):
    with pytest.raises(ValueError, match="--shard=K/N"):
        shards.merge(tmp_path)


@pytest.mark.parametrize("cut", [0, 1, 4, 9])
def test_what_was_cut_short_is_gone_on_with_to_the_same_end(whole, pictures, weights, tmp_path, cut, capsys):
    out = shutil.copytree(whole, tmp_path / "out")
    lines = (out / "findings.jsonl").read_bytes().splitlines(keepends=True)
    (out / "findings.jsonl").write_bytes(b"".join(lines[:cut]) + lines[cut][: len(lines[cut]) // 2])  # in a line
    change(out, lambda run: run.update(status="running"))
    assert run(pictures[0], weights, out, "--resume") == 1
    assert (f"goes on after {cut} of {len(lines)} scans" in capsys.readouterr().err) == (cut > 0)
    assert (out / "findings.jsonl").read_bytes().splitlines()[:cut] == [line.rstrip() for line in lines[:cut]]
    assert [line["scan"] for line in findings(out)] == [line["scan"] for line in findings(whole)]
    assert [line["label"] for line in findings(out)] == [line["label"] for line in findings(whole)]
    before, after = (json.loads((folder / "run.json").read_text()) for folder in (whole, out))
    assert after["status"] == "complete"
    assert {**after["counts"], "lesions": 0} == {**before["counts"], "lesions": 0}
    assert (out / "page" / "rows_0000.js").read_text().count("overlays/") == len(lines) - 1
    complete = (out / "findings.jsonl").read_bytes()
    assert run(pictures[0], weights, out, "--resume") == 1  # there is nothing left to do
    assert (out / "findings.jsonl").read_bytes() == complete


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--resume", "--organ=brain"], "was begun otherwise"),
        (["--resume", "--overwrite"], "exclude each other"),
        ([], "--resume to go on with it"),
    ],
)
def test_a_report_begun_otherwise_is_not_gone_on_with(whole, pictures, weights, options, says, capsys):
    before = (whole / "findings.jsonl").read_bytes()
    arguments = [str(pictures[0]), "--out", str(whole), "--weights", str(weights), *options]
    assert predict.main(arguments if "--organ=brain" in options else [*arguments, "--threshold=0"]) == 2
    assert says in capsys.readouterr().err
    assert (whole / "findings.jsonl").read_bytes() == before


def test_a_report_of_other_weights_is_not_gone_on_with(whole, pictures, weights, tmp_path, capsys):
    out = shutil.copytree(whole, tmp_path / "out")
    change(out, lambda run: run["weights"]["tasks"]["route"].update(epoch=7))
    assert run(pictures[0], weights, out, "--resume") == 2
    assert "was begun with other weights" in capsys.readouterr().err


def test_a_report_of_other_scans_is_not_gone_on_with(whole, pictures, weights, tmp_path, capsys):
    folder = shutil.copytree(pictures[0], tmp_path / "scans")
    out = shutil.copytree(whole, tmp_path / "out")
    change(out, lambda run: run["options"].update(paths=[str(folder)]))
    assert run(folder, weights, out, "--resume") == 2
    assert "is of other scans, from line 1 on" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["resume", "overwrite"])
def test_two_processes_never_write_one_report(tmp_path, how):
    with ReportWriter(tmp_path, {}) as writer:
        with pytest.raises(ReportError, match="another process"):
            ReportWriter(tmp_path, {}, **{how: True})
        writer.add(Finding("a.png", organ="brain"))
    assert [line["scan"] for line in findings(tmp_path)] == ["a.png"]


def test_a_disk_that_cannot_lock_takes_reports_all_the_same(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(report_writer.fcntl, "flock", refuses)
    with ReportWriter(tmp_path, {}) as writer:
        writer.add(Finding("a.png", organ="brain"))
    assert len(findings(tmp_path)) == 1


def test_one_that_was_killed_before_its_first_line_is_begun_again(pictures, weights, tmp_path):
    (tmp_path / "findings.jsonl").touch()  # and no run.json yet
    assert run(pictures[0], weights, tmp_path, "--resume") == 1
    assert len(findings(tmp_path)) > 3


def test_a_share_may_be_empty(weights, tmp_path):
    (picture,) = phantom.write_examples(tmp_path / "scans", per_class=1)[:1]
    for other in (tmp_path / "scans").iterdir():
        if other != picture:
            other.unlink()
    for index in range(2):
        assert run(tmp_path / "scans", weights, tmp_path / "out", f"--shard={index}/2") == 0
    assert shards.merge(tmp_path / "out")["scans"] == 1


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_a_real_process_that_is_stopped_or_killed_is_gone_on_with(weights, tmp_path, number):
    scans, out = tmp_path / "scans", tmp_path / "out"
    (picture,) = phantom.write_examples(tmp_path / "one", per_class=1)[:1]
    scans.mkdir()
    for i in range(MANY):
        (scans / f"{i:03d}{picture.suffix}").symlink_to(picture)
    command = [sys.executable, "-m", "mcis", "predict", str(scans), f"--out={out}", f"--weights={weights}"]
    command += ["--threshold=0", "--resume", "--shard=1/2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    lines = out / "shard_1_of_2" / "findings.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (lines.exists() and lines.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.001)
    process.send_signal(number)
    said = process.communicate()[1]
    reached = lines.read_bytes().count(b"\n")
    assert reached < MANY // 2
    assert process.returncode == (75 if number == signal.SIGTERM else -number), said
    assert ("--resume goes on" in said) == (number == signal.SIGTERM)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert f"goes on after {reached} of {MANY // 2} scans" in done.stderr
    assert [line["scan"] for line in findings(lines.parent)] == sorted(map(str, scans.iterdir()))[MANY // 2 :]


@pytest.mark.parametrize("odd", [{"options": 5}, {"options": None}, {"versions": ["a"]}, {"counts": 3}])
def test_a_shard_that_says_odd_things_of_itself_is_missing(odd, tmp_path, capsys):
    for index in (0, 1):
        with ReportWriter(Shard(index, 2).folder(tmp_path), {"shard": f"{index}/2"}) as written:
            written.add(Finding("a.png", organ="brain"))
    path = Shard(1, 2).folder(tmp_path) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | odd))
    assert merge.main([str(tmp_path)]) == 2
    assert "1 of 2 shards are missing or not complete (1)" in capsys.readouterr().err
