"""`mcis predict` from files to findings, with small random weights."""

import functools
import json
import shutil

import cv2
import jax
import numpy as np
import pytest

from mcis.checkpoints import checkpoint
from mcis.cli import predict
from mcis.imaging import formats, image_files, phantom, pool
from mcis.inference import predictor
from mcis.organs import ORGANS
from mcis.tasks.table import TASKS
from tests.fixtures.bundles import findings


@pytest.fixture(scope="module")
def report(weights, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report"
    arguments = [str(pictures[0]), str(pictures[0] / "missing.png"), "--out", str(out), "--weights", str(weights)]
    status = predict.main([*arguments, "--threshold", "0"])
    return status, out, findings(out)


def test_a_broken_scan_has_its_line_and_the_others_go_on(report, pictures):
    status, _, found = report
    assert status == 1
    assert len(found) == len(pictures[1]) + 1 + 2 + 1  # broken, two pages, missing
    broken = [line for line in found if line["error"] is not None]
    assert [line["scan"].rsplit("/", 1)[1] for line in broken] == ["broken.png", "missing.png"]
    for line in broken:
        assert all(value is None for key, value in line.items() if key not in ("scan", "error"))
    names = [line["scan"] for line in found[:-1]]
    assert names == sorted(names), "findings stand in input order"


def test_a_scan_that_ends_the_process_that_reads_it_has_its_line_and_the_others_go_on(weights, tmp_path, monkeypatch):
    reads = functools.partial(pool.read_all, module="tests.fixtures.breaking_worker")
    monkeypatch.setattr(predictor, "read_all", reads)
    paths = phantom.write_examples(tmp_path / "scans", per_class=1)
    (tmp_path / "scans" / "crash.png").write_bytes(b"what a decoder falls over")
    options = ["--out", str(tmp_path / "out"), "--weights", str(weights), "--task=segment_brain"]
    assert predict.main([str(tmp_path / "scans"), *options]) == 1
    lines = findings(tmp_path / "out")
    (broken,) = (line for line in lines if line["error"])
    assert len(lines) == len(paths) + 1
    assert broken["scan"].endswith("crash.png") and broken["error"] == f"{broken['scan']}: {pool.CRASHED}"


def test_pages_of_a_tiff_are_frames(report):
    pages = [line for line in report[2] if line["scan"].endswith("pages.tif")]
    assert [line["frame"] for line in pages] == [0, 1]
    assert all(line["frame"] is None for line in report[2] if not line["scan"].endswith("pages.tif"))


def test_findings_agree_with_their_masks(report):
    _, out, found = report
    organs, labels = {organ.name: organ for organ in ORGANS}, set()
    for index, line in enumerate(found):
        if line["error"] or line["organ"] == "unsupported":
            continue
        organ = organs[line["organ"]]
        assert list(line["label_probs"]) == list(organ.classes)
        assert sum(line["label_probs"].values()) == pytest.approx(1, abs=1e-4)
        assert line["label"] == max(line["label_probs"], key=line["label_probs"].get)
        labels.add(line["label"])
        if line["label"] not in organ.lesions:
            assert line["mask"] is None and line["boxes"] is None and line["lesion_area_px"] is None
            continue
        assert line["mask"].startswith(f"masks/{index:06d}_")
        mask = cv2.imread(str(out / line["mask"]), cv2.IMREAD_UNCHANGED)
        image = image_files.read(line["scan"], line["frame"] or 0).image
        assert mask.shape == image.shape[:2]
        assert set(np.unique(mask)) <= {0, 255}
        assert line["lesion_area_px"] == int((mask > 0).sum())
        assert len(line["boxes"]) == cv2.connectedComponents(mask, connectivity=8)[0] - 1
    assert len(labels) > 1, "random weights must call more than one class for this test to mean something"


def test_a_scan_alone_gives_the_same_finding(report, weights, tmp_path):
    _, out, found = report
    for line in [one for one in found if one["error"] is None and one["frame"] is None][:4]:
        alone_out = tmp_path / str(len(list(tmp_path.iterdir())))
        arguments = ["--out", str(alone_out), "--weights", str(weights), "--threshold", "0"]
        assert predict.main([line["scan"], *arguments]) == 0
        (alone,) = findings(alone_out)
        assert (alone["organ"], alone["label"]) == (line["organ"], line["label"])
        for name, value in (line["label_probs"] or {}).items():
            assert alone["label_probs"][name] == pytest.approx(value, abs=1e-5)
        if line["mask"]:
            one, other = (cv2.imread(str(d / m["mask"]), 0) for d, m in ((out, line), (alone_out, alone)))
            assert (one != other).mean() <= 1e-4


def test_the_page_and_the_run_are_there_with_the_notice(report):
    _, out, _ = report
    run = json.loads((out / "run.json").read_text())
    assert "not a medical device" in run["notice"].lower()
    assert set(run["weights"]["tasks"]) == set(TASKS)
    assert run["versions"]["jax"] == jax.__version__
    assert "not a medical device" in (out / "index.html").read_text().lower()


def test_a_forced_organ_and_a_single_task(weights, pictures, tmp_path):
    path = str(pictures[1][0])
    common = ["--weights", str(weights)]
    assert predict.main([path, "--organ=breast", "--out", str(tmp_path / "a"), *common]) == 0
    (forced,) = findings(tmp_path / "a")
    assert forced["organ"] == "breast" and forced["organ_prob"] is None
    assert predict.main([path, "--task=segment_brain", "--out", str(tmp_path / "b"), *common]) == 0
    (alone,) = findings(tmp_path / "b")
    assert alone["organ"] == "brain" and alone["organ_prob"] is None and alone["label"] in ("no_tumor", "tumor")
    assert alone["mask"] is not None and alone["lesion_area_px"] is not None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--organ=liver"], "brain, breast"),
        (["--members=0"], "--members=0: must be 1 or more"),
        (["--task=segment_liver"], "segment_brain"),
        (["--organ=brain", "--task=route"], "exclude each other"),
        (["--threshold=7"], r"[0, 1]"),
        (["--organ=brain", "--threshold=0.5"], "router"),
        (["--task=route", "--no-novelty"], "router"),
        (["--weights=/nowhere"], "/nowhere: no such folder of weights"),
    ],
)
def test_wrong_options_say_what_there_is(options, says, pictures, tmp_path, capsys):
    assert predict.main([str(pictures[1][0]), "--out", str(tmp_path / "out"), *options]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_paths_may_be_files_folders_and_globs(pictures, tmp_path):
    folder, paths = pictures
    assert len(predict.expand([str(folder)])) == len(paths) + 2
    assert predict.expand([str(folder / "broken*")]) == [str(folder / "broken.png")]
    assert predict.expand(["missing.png"]) == ["missing.png"]
    with pytest.raises(ValueError, match="no pictures"):
        predict.expand([str(tmp_path)])
    with pytest.raises(ValueError, match="no scans given"):
        predict.expand([])


def test_an_unsupported_scan_says_why_and_what_it_is_most_like(weights, pictures, tmp_path):
    arguments = [str(pictures[0]), "--weights", str(weights), "--out"]
    predict.main([*arguments, str(tmp_path / "sure"), "--threshold=1"])
    refused = [line for line in findings(tmp_path / "sure") if line["error"] is None]
    assert refused
    for line in refused:
        assert line["reason"].startswith("the router is unsure: most like ")
        assert line["reason"].endswith(f"probability {line['organ_prob']:.6f}, 1.000000 is needed")
    variables, manifest = checkpoint.load(weights / "route")
    width = variables["params"]["label"]["dense"]["kernel"].shape[0]
    variables["novelty"] = {"mean": np.zeros((1, width)), "whiten": np.eye(width), "limit": np.float64(1e-6)}
    shutil.copytree(weights, tmp_path / "weights")
    checkpoint.save(tmp_path / "weights" / "route", variables, manifest)
    arguments[2] = str(tmp_path / "weights")
    for options, refused in ((["--threshold=0"], True), (["--threshold=0", "--no-novelty"], False)):
        out = tmp_path / f"novel{refused}"
        predict.main([*arguments, str(out), *options])
        for line in [line for line in findings(out) if line["error"] is None]:
            assert (line["organ"] == "unsupported") == refused
            assert line["organ_prob"] is not None
            assert refused == (line["reason"] or "").startswith("unlike the scans the router learned from")


def test_a_thumbnail_is_refused_unless_the_organ_is_given(weights, tmp_path):
    image = phantom.make_phantom("brain", 1, 3, size=(180, 180)).image
    for side in (64, 180):
        cv2.imwrite(str(tmp_path / f"{side}.png"), cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))
    arguments = [str(tmp_path), "--weights", str(weights), "--out"]
    assert predict.main([*arguments, str(tmp_path / "out"), "--threshold=0"]) == 0
    large, small = findings(tmp_path / "out")
    assert small["organ"] == "unsupported" and small["mask"] is None
    assert not (large["reason"] or "").startswith("a thumbnail")
    assert small["reason"].startswith("a thumbnail: ") and "80 along one side" in small["reason"]
    for name, options in {"brain": ["--organ=brain"], "any": ["--threshold=0", "--no-novelty"]}.items():
        assert predict.main([*arguments, str(tmp_path / name), *options]) == 0
        assert all(line["organ"] != "unsupported" for line in findings(tmp_path / name))
        assert [any("a thumbnail" in note for note in line["notes"] or ()) for line in findings(tmp_path / name)] == [
            False,
            True,
        ]
    assert predict.main([*arguments, str(tmp_path / "route"), "--task=route"]) == 0
    assert not any((line["reason"] or "").startswith("a thumbnail") for line in findings(tmp_path / "route"))


def test_what_was_changed_in_reading_is_noted(weights, tmp_path):
    image = phantom.make_phantom("brain", 1, 3, size=(120, 160)).image
    cv2.imwrite(str(tmp_path / "deep.png"), image.astype(np.uint16) * 100)
    assert predict.main([str(tmp_path / "deep.png"), "--weights", str(weights), "--out", str(tmp_path / "out")]) == 0
    assert "to 8 bits" in findings(tmp_path / "out")[0]["notes"][0]


@pytest.mark.parametrize(("label", "lit", "noted"), [(1, False, True), (1, True, False), (0, False, False)])
def test_a_lesion_without_an_outline_is_noted(label, lit, noted, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), phantom.make_phantom("breast", 1, 3, size=(120, 160)).image)
    row = {
        "organ_prob": 1.0,
        "organ": 1,
        "label": label,
        "label_probs": np.eye(3)[label],
        "confidence": 0.5,
        "review": 0,
    }
    row |= {"segmented": True, "mask": np.full((256, 256, 1), float(lit), np.float32)}
    result = predictor.result_of(formats.load(str(tmp_path / "a.png"), None), row)
    assert result.mask is not None and result.mask.any() == lit
    assert (result.finding.notes or []) == (["predicted benign, but the mask is empty"] if noted else [])


def test_a_report_below_a_folder_of_scans_is_not_read_as_scans(weights, pictures, tmp_path):
    shutil.copyfile(pictures[1][0], tmp_path / "scan.png")
    arguments = [str(tmp_path), "--weights", str(weights), "--out", str(tmp_path / "report")]
    assert predict.main(arguments) == 0
    assert predict.main([*arguments, "--overwrite"]) == 0
    assert [line["scan"] for line in findings(tmp_path / "report")] == [str(tmp_path / "scan.png")]


def test_an_interrupt_ends_the_report_and_says_so(weights, pictures, tmp_path, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictor, "result_of", interrupt)
    assert predict.main([str(pictures[1][0]), "--weights", str(weights), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.strip().endswith("mcis predict: interrupted")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "stopped"


def test_a_place_that_cannot_be_written_is_named_before_anything_is_done(weights, pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    common = [str(pictures[1][0]), "--weights", str(weights)]
    assert predict.main([*common, "--out", str(tmp_path / "file" / "below")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert predict.main([*common, "--out", "/proc/none"]) == 2  # nobody may write there, root neither
    assert "/proc/none: cannot be written" in capsys.readouterr().err


def test_what_no_network_says_is_named_and_a_joint_one_says_both(weights, pictures, tmp_path, capsys):
    shutil.copytree(weights, tmp_path / "set")
    one = [str(pictures[1][0]), f"--weights={tmp_path / 'set'}"]
    shutil.rmtree(tmp_path / "set" / "classify_breast")  # the segmenter has a label too
    assert predict.main([*one, f"--out={tmp_path / 'joint'}"]) == 0
    assert "stays unknown" not in capsys.readouterr().err
    shutil.rmtree(tmp_path / "set" / "segment_breast")
    assert predict.main([*one, f"--out={tmp_path / 'less'}"]) == 0
    assert "say nothing of: breast label, breast mask" in capsys.readouterr().err
    assert predict.main([*one, "--organ=brain", f"--out={tmp_path / 'brain'}"]) == 0
    assert "stays unknown" not in capsys.readouterr().err


def test_what_was_found_is_said_in_a_line():
    counts = {"scans": 3, "errors": 1, "lesions": 4, "organs": {"brain": 2, "unsupported": 0}, "labels": {"tumor": 1}}
    said = predict.summary(counts)
    assert said.startswith("3 scans: 2 brain, 0 unsupported, 1 not read; 1 tumor. ") and "Not a medical device" in said
