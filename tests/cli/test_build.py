import json
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import pytest
import tensorflow_datasets as tfds
from mcis_datasets.mcis_scans.sources import SOURCES

from mcis.cli import build as build_module
from mcis.cli.build import build, main
from mcis.data import dataset
from mcis.organs import ORGAN_NAMES, ORGANS

DUMMY = pathlib.Path(__file__).parents[2] / "datasets" / "mcis_scans" / "dummy_data"


def contents(place):
    found = tfds.builder_from_directory(place)
    return {row["scan_id"].decode(): split for split in found.info.splits for row in found.as_data_source(split)}


def test_help_and_unknown_names(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "--per-class" in capsys.readouterr().out
    assert main(["busy"]) == 2
    assert (
        "There is no source 'busy'. Did you mean 'busi'? The sources are busi, busbra, lgg" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit) as stop:
        main(["busi", "--form=x"])
    assert stop.value.code == 2
    assert "--from" in capsys.readouterr().err


HELP = """
import sys
from mcis.cli.build import main
try:
    main(["--help"])
finally:
    heavy = {"jax", "tensorflow", "tensorflow_datasets"} & set(sys.modules)
    assert not heavy, heavy
"""


def test_help_takes_less_than_two_seconds():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", HELP], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2  # CPU time: the machine may be busy


def test_phantoms_are_built_and_read_back(tmp_path, capsys):
    place = build("phantom", data_dir=tmp_path, per_class=2)
    assert place == dataset.prepared("phantom", tmp_path)
    scans = dataset.load(["phantom"], "train", tmp_path)
    assert set(scans.organ) == set(ORGAN_NAMES)
    assert scans.has_mask.all()
    count = 2 * sum(len(organ.classes) for organ in ORGANS)
    assert len(contents(place)) == count
    assert sorted(p.name for p in place.parent.iterdir()) == [".lock", place.name, "splits.json"]
    assert f"phantom: {count} scans" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--data_dir", "--data-dir"])
def test_folders_and_zips_give_the_same_set(tmp_path, option):
    path = shutil.make_archive(str(tmp_path / "archive"), "zip", DUMMY / "busbra")
    assert main(["busbra", "--from", path, option, str(tmp_path / "zipped")]) == 0
    assert main(["busbra", f"--from={DUMMY / 'busbra'}", f"{option}={tmp_path / 'plain'}"]) == 0
    assert contents(dataset.prepared("busbra", tmp_path / "zipped")) == contents(
        dataset.prepared("busbra", tmp_path / "plain")
    )


def test_the_default_folder_is_that_of_tfds(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert build("phantom", per_class=1) == dataset.prepared("phantom")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["busi"], "--from is missing"),
        (["busi", "--from", "nowhere"], "nowhere: no such file or folder"),
        (["busi", "--from", "{empty}"], "does not hold the files of 'busi'"),
        (["busi", "--from", "{empty}"], "benign (1)_mask.png"),
        (["phantom", "--from", "{empty}"], "omit --from"),
        (["busi", "--from", "{empty}", "--per_class=3"], "is an option of the source 'phantom' only"),
        (["phantom", "--per-class=0"], "must be 1 or more"),
    ],
)
def test_errors_say_what_to_do_and_leave_no_files(tmp_path, capsys, arguments, words):
    (tmp_path / "empty").mkdir()
    arguments = [a.format(empty=tmp_path / "empty") for a in arguments]
    assert main([*arguments, "--data_dir", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message
    assert not list(tmp_path.rglob("dataset_info.json"))
    assert not list(tmp_path.rglob(".building"))


def test_an_unsafe_zip_is_an_error(tmp_path, capsys):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        made.writestr("../evil.txt", "evil")
    assert main(["busi", "--from", str(tmp_path / "a.zip"), "--data_dir", str(tmp_path / "data")]) == 2
    assert "points outside the folder" in capsys.readouterr().err
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_prepared_set_is_built_again_only_with_overwrite(tmp_path, capsys):
    place = build("phantom", data_dir=tmp_path, per_class=2)
    before = (place / "dataset_info.json").stat().st_mtime_ns
    capsys.readouterr()
    assert build("phantom", data_dir=tmp_path, per_class=3) == place
    assert "prepared already" in capsys.readouterr().out
    assert (place / "dataset_info.json").stat().st_mtime_ns == before
    assert len(contents(place)) == 10
    build("phantom", data_dir=tmp_path, per_class=1, overwrite=True)
    assert len(contents(place)) == 5
    assert sorted(p.name for p in place.parent.iterdir()) == [".lock", place.name, "splits.json"]


def test_a_failed_overwrite_keeps_the_old_set(tmp_path):
    source = tmp_path / "busbra"
    shutil.copytree(DUMMY / "busbra", source)
    place = build("busbra", source, tmp_path)
    before = contents(place)
    (source / "BUSBRA" / "bus_data.csv").write_text("ID,Case\n")
    with pytest.raises(ValueError, match="no column Pathology"):
        build("busbra", source, tmp_path, overwrite=True)
    assert contents(place) == before
    assert not (place.parent / ".building").exists()


def test_rebuilds_keep_the_splits(tmp_path):
    source = tmp_path / "busbra"
    shutil.copytree(DUMMY / "busbra", source)
    first = contents(build("busbra", source, tmp_path))
    history = tmp_path / "mcis_scans" / "busbra" / "splits.json"
    content = json.loads(history.read_text())
    # Other splits than those of the hash: only the file can give them.
    moved = {"train": "validation", "validation": "test", "test": "validation"}
    for table in ("fingerprints", "groups"):
        content[table] = {key: moved[split] for key, split in content[table].items()}
    history.write_text(json.dumps(content))
    expected = {scan_id: moved[split] for scan_id, split in first.items()}
    assert contents(build("busbra", source, tmp_path, overwrite=True)) == expected
    # A scan is missing, then back, and a patient has a new scan.
    base = source / "BUSBRA"
    table = (base / "bus_data.csv").read_text()
    (base / "bus_data.csv").write_text("\n".join(line for line in table.splitlines() if "0001-l" not in line))
    left = contents(build("busbra", source, tmp_path, overwrite=True))
    assert left == {key: split for key, split in expected.items() if key != "bus_0001-l"}
    shutil.copy(base / "Images" / "bus_0002-l.png", base / "Images" / "bus_0001-x.png")
    (base / "Images" / "bus_0001-x.png").write_bytes((DUMMY / "folder" / "images" / "a.png").read_bytes())
    shutil.copy(base / "Masks" / "mask_0001-l.png", base / "Masks" / "mask_0001-x.png")
    (base / "bus_data.csv").write_text(table + "bus_0001-x,1,,malignant,4,,,,,\n")
    back = contents(build("busbra", source, tmp_path, overwrite=True))
    assert back == {**expected, "bus_0001-x": expected["bus_0001-r"]}


def test_rejections_are_printed_and_kept(tmp_path, capsys):
    source = tmp_path / "busi"
    shutil.copytree(DUMMY / "busi", source)
    (source / "Dataset_BUSI_with_GT" / "benign" / "benign (1).png").write_bytes(b"no image")
    place = build("busi", source, tmp_path)
    (entry,) = json.loads((place / "audit.json").read_text())["rejections"]
    assert entry["scan"] == "benign/benign (1)"
    assert f"benign/benign (1): {entry['reason']}" in capsys.readouterr().out


KILLED = """
import pathlib, sys, time
from mcis_datasets.mcis_scans import staging
from mcis.cli.build import build
real = staging.examples
def slow(*arguments):
    for k, example in enumerate(real(*arguments)):
        yield example
        if k == 1:
            print("half way", flush=True)
            time.sleep(60)
staging.examples = slow
build("phantom", data_dir=sys.argv[1], per_class=4, overwrite=True)
"""


@pytest.mark.parametrize("existing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_killed_build_is_not_taken_for_a_prepared_set(tmp_path, existing):
    before = contents(build("phantom", data_dir=tmp_path, per_class=1)) if existing else None
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert any("half way" in line for line in child.stdout)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    if existing:
        assert contents(dataset.prepared("phantom", tmp_path)) == before
    else:
        with pytest.raises(dataset.MissingData):
            dataset.prepared("phantom", tmp_path)
        assert not list(tmp_path.rglob("dataset_info.json"))
    place = build("phantom", data_dir=tmp_path, per_class=2, overwrite=existing)  # the lock ended with its process
    assert len(contents(place)) == 10
    assert sorted(p.name for p in place.parent.iterdir()) == [".lock", place.name, "splits.json"]


def test_a_set_whose_replacement_was_interrupted_is_restored(tmp_path):
    place = build("phantom", data_dir=tmp_path, per_class=1)
    (place.parent / ".replaced").mkdir()
    place.rename(place.parent / ".replaced" / place.name)
    with pytest.raises(dataset.MissingData):
        dataset.prepared("phantom", tmp_path)
    assert build("phantom", data_dir=tmp_path) == place
    assert len(contents(place)) == 5


def test_builds_of_one_source_wait_for_each_other(tmp_path, capsys):
    home = tmp_path / "mcis_scans" / "phantom"
    thread = threading.Thread(target=build, args=("phantom",), kwargs={"data_dir": tmp_path, "per_class": 1})
    with build_module._locked(home):
        thread.start()
        thread.join(timeout=1)
        assert thread.is_alive()
        assert not (home / ".building").exists()
    thread.join(timeout=60)
    assert len(contents(dataset.prepared("phantom", tmp_path))) == 5
    assert "waiting for it" in capsys.readouterr().err


def test_every_source_is_in_the_help():
    assert set(build_module.SOURCES) == set(SOURCES)


def test_a_build_leaves_no_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    build("busbra", DUMMY / "busbra", tmp_path / "data", progress=False)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_help_explains_every_source_and_names_each_default_once(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "foreign (pictures to be rejected); phantom (synthetic scans); folder (your own scans" in text
    assert all(name in text for name in SOURCES) and "(default:" not in text
