"""`mcis predict` from files to findings: once with tiny networks, otherwise with a predictor without networks."""

import dataclasses
import functools
import json
import re
import shutil

import cv2
import jax
import numpy as np
import pytest

from mcis.cli import inputs, predict
from mcis.imaging import formats, image_files, phantom, pool
from mcis.inference import predictor
from mcis.inference.result import result_of
from mcis.organs import ORGANS
from mcis.tasks.table import TASKS
from tests.fixtures.bundles import findings, numpy_predictor

pytestmark = pytest.mark.usefixtures("tiny_models")

NO_NETWORKS = pytest.mark.usefixtures("no_networks")


@pytest.fixture(scope="module")
def report(weights, pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "report"
    arguments = [str(pictures[0]), str(pictures[0] / "missing.png"), "--out", str(out), "--weights", str(weights)]
    status = predict.main([*arguments, "--threshold", "0"])
    return status, out, findings(out)


def test_an_unreadable_scan_has_a_line_with_its_error_and_the_others_continue(report, pictures):
    status, _, lines = report
    assert status == 1
    assert len(lines) == len(pictures[1]) + 1 + 2 + 1  # broken, two pages, missing
    errors = [line for line in lines if line["error"] is not None]
    assert [line["scan"].rsplit("/", 1)[1] for line in errors] == ["broken.png", "missing.png"]
    for line in errors:
        assert all(value is None for key, value in line.items() if key not in ("scan", "error"))
    names = [line["scan"] for line in lines[:-1]]
    assert names == sorted(names)


def test_the_pages_of_a_tiff_are_frames(report):
    pages = [line for line in report[2] if line["scan"].endswith("pages.tif")]
    assert [line["frame"] for line in pages] == [0, 1]
    assert all(line["frame"] is None for line in report[2] if not line["scan"].endswith("pages.tif"))


def test_findings_agree_with_their_masks(report):
    _, out, lines = report
    organs, labels = {organ.name: organ for organ in ORGANS}, set()
    for index, line in enumerate(lines):
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
    assert len(labels) > 1, "with a single label the test shows little"


def test_page_and_run_file_have_the_notice_the_weights_and_the_versions(report):
    _, out, _ = report
    run = json.loads((out / "run.json").read_text())
    assert "not a medical device" in run["notice"].lower()
    assert set(run["weights"]["tasks"]) == set(TASKS)
    assert run["versions"]["jax"] == jax.__version__
    assert "not a medical device" in (out / "index.html").read_text().lower()


@NO_NETWORKS
def test_a_scan_that_crashes_its_reader_has_an_error_and_the_others_continue(tmp_path, monkeypatch):
    reads = functools.partial(pool.read_all, module="tests.fixtures.breaking_worker")
    monkeypatch.setattr(predictor, "read_all", reads)
    paths = phantom.write_examples(tmp_path / "scans", per_class=1)
    (tmp_path / "scans" / "crash.png").write_bytes(b"crashes a decoder")
    assert predict.main([str(tmp_path / "scans"), "--out", str(tmp_path / "out")]) == 1
    lines = findings(tmp_path / "out")
    (error,) = (line for line in lines if line["error"])
    assert len(lines) == len(paths) + 1
    assert error["scan"].endswith("crash.png") and error["error"] == f"{error['scan']}: {pool.CRASHED}"


def test_inference_options_are_passed_on_and_recorded(pictures, tmp_path, monkeypatch):
    passed = []

    def load(weights, **options):
        passed.append({"weights": weights, **options})
        return numpy_predictor(weights, **options)

    monkeypatch.setattr(predict, "load", load)
    none = {"organ": None, "task": None, "threshold": None, "novelty": True, "members": None}
    none |= {"operating_point": "balanced"}
    for number, (options, values) in enumerate(
        [
            (["--organ=breast", "--members=2"], {"organ": "breast", "members": 2}),
            (["--task=segment_brain", "--weights=w"], {"task": "segment_brain", "weights": "w"}),
            (["--threshold=0.25", "--no-novelty"], {"threshold": 0.25, "novelty": False}),
            (["--operating-point=sensitive"], {"operating_point": "sensitive"}),
        ]
    ):
        out = tmp_path / str(number)
        assert predict.main([str(pictures[1][0]), f"--out={out}", *options]) == 0
        recorded = json.loads((out / "run.json").read_text())["options"]
        expected = {"weights": None} | none | values
        assert passed[-1] == expected == {name: recorded[name] for name in expected}
        assert "inference" not in recorded


@NO_NETWORKS
def test_the_operating_point_is_named_once_per_run_and_kept_when_it_is_resumed(pictures, tmp_path, monkeypatch, capsys):
    def load(weights, **options):
        return dataclasses.replace(numpy_predictor(weights, **options), operating_point=options["operating_point"])

    arguments = [str(pictures[1][0]), f"--out={tmp_path / 'out'}"]
    assert predict.main(arguments) == 0  # by weights without points
    assert json.loads((tmp_path / "out" / "run.json").read_text())["operating_point"] is None
    assert "operating point" not in capsys.readouterr().out
    monkeypatch.setattr(predict, "load", load)
    assert predict.main([*arguments, "--overwrite"]) == 0
    assert "Labels at the operating point balanced. " in capsys.readouterr().out
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (
        run["operating_point"] == "balanced"
        and '"operating_point":"balanced"' in (tmp_path / "out" / "index.html").read_text()
    )
    assert predict.main([*arguments, "--resume", "--operating_point=specific"]) == 2
    assert "operating_point: balanced -> specific" in capsys.readouterr().err
    del run["options"]["operating_point"]  # as of a version without points
    (tmp_path / "out" / "run.json").write_text(json.dumps(run))
    assert predict.main([*arguments, "--resume"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--organ=liver"], "brain, breast"),
        (["--members=0"], "--members=0"),
        (["--operating_point=certain"], "balanced, sensitive, specific"),
        (["--task=segment_liver"], "segment_brain"),
        (["--organ=brain", "--task=route"], "exclude each other"),
        (["--threshold=7"], "[0, 1]"),
        (["--organ=brain", "--threshold=0.5"], "router"),
        (["--task=route", "--no-novelty"], "router"),
        (["--weights=/nowhere"], "/nowhere: no such folder of weights"),
    ],
)
def test_invalid_options_are_errors_that_name_the_allowed_values(options, message, pictures, tmp_path, capsys):
    assert predict.main([str(pictures[1][0]), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def expand(*paths):
    with inputs.expanded([str(path) for path in paths]) as found:
        return found.files


def test_paths_may_be_files_folders_and_globs(pictures, tmp_path):
    folder, paths = pictures
    assert len(expand(folder)) == len(paths) + 2
    assert expand(folder / "broken*") == (str(folder / "broken.png"),)
    assert expand("missing.png") == ("missing.png",)
    with pytest.raises(ValueError, match="no scans in"):
        expand(tmp_path)
    with pytest.raises(ValueError, match="no scans given"):
        expand()


@NO_NETWORKS
def test_an_unsupported_scan_has_a_reason_and_the_most_similar_organ(pictures, tmp_path):
    predict.main([str(pictures[0]), "--out", str(tmp_path / "out"), "--threshold=1"])
    lines = [line for line in findings(tmp_path / "out") if line["error"] is None]
    assert lines
    for line in lines:
        assert line["organ"] == "unsupported" and line["label"] is None and "most similar to " in line["reason"]
        prob = float(re.search(r"\(([0-9.]+) %, 100[.0]* % is needed\)", line["reason"])[1])
        assert prob == pytest.approx(100 * line["organ_prob"], abs=0.51) and "use --organ=" in line["reason"]


@NO_NETWORKS
def test_a_thumbnail_is_unsupported_unless_the_organ_is_given(tmp_path):
    image = phantom.make_phantom("brain", 1, 3, size=(180, 180)).image
    for side in (64, 180):
        cv2.imwrite(str(tmp_path / f"{side}.png"), cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))
    assert predict.main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    large, small = findings(tmp_path / "out")
    assert small["organ"] == "unsupported" and small["mask"] is None
    assert large["organ"] != "unsupported"
    assert small["reason"].startswith("a thumbnail: ") and "80" in small["reason"]
    for name, options in {"brain": "--organ=brain", "any": "--no-novelty", "route": "--task=route"}.items():
        assert predict.main([str(tmp_path), "--out", str(tmp_path / name), options]) == 0
        lines = findings(tmp_path / name)
        assert all(line["organ"] != "unsupported" for line in lines)
        assert [any("a thumbnail" in note for note in line["notes"] or ()) for line in lines] == [False, True]


@NO_NETWORKS
def test_changes_made_while_reading_are_noted(tmp_path):
    image = phantom.make_phantom("brain", 1, 3, size=(120, 160)).image
    cv2.imwrite(str(tmp_path / "deep.png"), image.astype(np.uint16) * 100)
    assert predict.main([str(tmp_path / "deep.png"), "--out", str(tmp_path / "out")]) == 0
    assert "to 8 bits" in findings(tmp_path / "out")[0]["notes"][0]


@pytest.mark.parametrize(("label", "mask", "noted"), [(1, 0.0, True), (1, 1.0, False), (0, 0.0, False)])
def test_a_lesion_label_with_an_empty_mask_is_noted(label, mask, noted, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), phantom.make_phantom("breast", 1, 3, size=(120, 160)).image)
    row = {"organ_prob": 1.0, "organ": 1, "label": label, "label_probs": np.eye(3)[label], "confidence": 0.5}
    row |= {"review": 0, "segmented": True, "mask": np.full((256, 256, 1), mask, np.float32)}
    row |= {"label_set": np.zeros(3, bool), "outer": np.nan, "certain": np.nan}
    result = result_of(formats.load(str(tmp_path / "a.png"), None), row)
    assert result.mask is not None and result.mask.any() == bool(mask)
    assert bool(result.finding.notes) == noted
    assert not noted or "benign" in result.finding.notes[0]


@NO_NETWORKS
def test_a_report_in_a_folder_of_scans_is_not_read_as_scans(pictures, tmp_path):
    shutil.copyfile(pictures[1][0], tmp_path / "scan.png")
    arguments = [str(tmp_path), "--out", str(tmp_path / "report")]
    assert predict.main(arguments) == 0
    assert predict.main([*arguments, "--overwrite"]) == 0
    assert [line["scan"] for line in findings(tmp_path / "report")] == [str(tmp_path / "scan.png")]


@NO_NETWORKS
def test_an_interrupt_ends_the_run_and_is_recorded(pictures, tmp_path, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictor, "result_of", interrupt)
    assert predict.main([str(pictures[1][0]), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.strip().endswith("mcis predict: interrupted")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "stopped"


@NO_NETWORKS
def test_an_output_folder_that_cannot_be_written_is_an_error_that_names_it(pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert predict.main([str(pictures[1][0]), "--out", str(tmp_path / "file" / "below")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err
    assert predict.main([str(pictures[1][0]), "--out", "/proc/none"]) == 2  # root cannot write there either
    assert "/proc/none: cannot be written" in capsys.readouterr().err


@NO_NETWORKS
def test_missing_predictions_are_reported(pictures, tmp_path, capsys, monkeypatch):
    lacking = dataclasses.replace(numpy_predictor(), lacking=("breast label", "breast mask"))
    monkeypatch.setattr(predict, "load", lambda *_, **__: lacking)
    assert predict.main([str(pictures[1][0]), "--out", str(tmp_path / "out")]) == 0
    assert "these weights do not predict: breast label, breast mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("organs", "errors", "words"),
    [
        ({"brain": 1, "breast": 0, "unsupported": 0}, 0, "1 scan: 1 brain. Research"),
        ({"brain": 0, "unsupported": 0}, 1, "1 scan: 1 not read. Research"),
        ({"brain": 0, "unsupported": 1}, 0, "1 scan: 1 unsupported. See `reason`"),
        ({}, 0, "1 scan. Research"),
    ],
)
def test_the_summary_leaves_out_what_did_not_occur(tmp_path, organs, errors, words):
    counts = {"scans": 1, "errors": errors, "organs": organs, "labels": {"tumor": 0}}
    assert predict.summary(tmp_path, counts).startswith(words)


def test_the_summary_counts_scans_organs_labels_and_errors(tmp_path):
    organs = {"brain": 3, "breast": 6, "unsupported": 3}
    labels = {"no_tumor": 0, "tumor": 3, "normal": 0, "benign": 5, "malignant": 1}
    reasons = {"blank": 1, "by their header: Modality CT": 2}
    counts = {"scans": 13, "errors": 1, "organs": organs, "labels": labels, "reasons": reasons}
    first, second = predict.summary(tmp_path, counts).splitlines()
    assert first.startswith(
        "13 scans: 3 brain (3 tumor), 6 breast (5 benign, 1 malignant), 3 unsupported (2 by their header: Modality CT; "
        "1 blank), 1 not read. See `reason` in findings.jsonl. "
    )
    assert "Not a medical" in first
    assert str(tmp_path / "index.html") in second and str(tmp_path / "findings.jsonl") in second
