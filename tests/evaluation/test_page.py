"""The report of an evaluation: the page, its curves, gallery and saliency maps; and a user's own folder scored."""

import contextlib
import csv
import functools
import html.parser
import json
import re
from dataclasses import replace
from html import escape

import cv2
import numpy as np
import pytest

import mcis
from mcis.checkpoints import checkpoint
from mcis.cli import evaluate
from mcis.data import dataset, storage
from mcis.data.records import BATCH
from mcis.evaluation import evaluator, figures, gallery, scoring
from mcis.evaluation import page as evaluation_page
from mcis.evaluation.comparison import compare_reports
from mcis.evaluation.descriptions import MEANINGS, NAMES, meaning, plain_name
from mcis.evaluation.headline import cautions
from mcis.evaluation.html import cell
from mcis.evaluation.metrics import measure, report
from mcis.evaluation.page_clinical import clinical_section
from mcis.evaluation.pointing_game import pointing_game
from mcis.evaluation.strata import FEW
from mcis.imaging import formats, image_files, phantom, scan
from mcis.imaging.letterbox import letterbox
from mcis.inference.rows import Rows
from mcis.inference.saliency import class_maps
from mcis.ops.metrics import auc
from mcis.organs import ORGANS, UNSUPPORTED, organ_index
from mcis.tasks.table import TASKS, task_to_json
from tests.fixtures.data import without_figures
from tests.fixtures.linear import linear_networks, linear_variables

pytestmark = pytest.mark.usefixtures("few_draws")


class Tags(html.parser.HTMLParser):
    """Every tag with its attributes, and the text outside of tags."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.ids = [], [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids |= {value for name, value in attrs if name == "id"}

    def handle_data(self, text):
        self.text.append(text)


@pytest.fixture(scope="module", autouse=True)
def _linear():
    with linear_networks():
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A bundle of networks that were trained on other scans."""
    folder = tmp_path_factory.mktemp("set")
    scans = np.stack([letterbox(one.image)[0] for one in phantom.make_phantoms(3, seed=100)])
    for name, variables in linear_variables(scans).items():
        task = TASKS[name]
        manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": task.epochs, "validation": {}}
        manifest |= {"fingerprints": {"train": ["a"], "validation": ["b"]}}
        limits = {"threshold": np.float32(0)} if name == "route" else {}
        checkpoint.save(folder / name, variables | limits, manifest)
    return folder


@pytest.fixture(scope="module")
def pages(weights, phantom_dir, tmp_path_factory):
    """Kind -> (report's values, page) of evaluations of the phantoms' training split."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "class_maps", functools.partial(class_maps, cells=4, reach=2))
        for kind, options in {
            "cascade": [str(weights), "--heat=2"],
            "router": [str(weights / "route"), "--heat=0"],
            "classifier": [str(weights / "classify_breast"), "--heat=0"],
            "segmenter": [str(weights / "segment_breast"), "--heat=0"],
        }.items():
            out = tmp_path_factory.mktemp("reports") / kind
            arguments = [*options, "--split=train", "--sources=phantom", f"--data_dir={phantom_dir}", f"--out={out}"]
            # the cascade has every figure that the others have
            with contextlib.nullcontext() if kind == "cascade" else without_figures():
                assert evaluate.main(arguments) == 0
            assert {file.name for file in out.iterdir()} == {"report.json", "report.html"}
            page = (out / "report.html").read_text(encoding="utf-8")
            made[kind] = json.loads((out / "report.json").read_text()), page
    return made


def test_evaluate_scores_what_predict_finds(weights, phantom_dir, tmp_path):
    """Organ, label, probabilities and mask of each scan, thumbnails included."""
    records = list(dataset.records("phantom", "validation", phantom_dir))
    small = image_files.encode_png(cv2.resize(storage.decode(records[0])[0], (64, 64), interpolation=cv2.INTER_AREA))
    records.append(records[0] | {"image": small, "mask": image_files.encode_png(np.zeros((64, 64, 1), np.uint8))})
    loaded = evaluator.load_evaluator(weights)
    scans, rows = list(loaded.predict(records)), scoring.score(loaded, records)
    paths = [tmp_path / f"{i}.png" for i in range(len(records))]
    for path, record in zip(paths, records, strict=True):
        path.write_bytes(record["image"])
    masks = 0
    results = mcis.load(weights).results([formats.load(str(path), None) for path in paths], BATCH)
    for i, (result, scored) in enumerate(zip(results, scans, strict=True)):
        finding = result.finding
        organ = organ_index(finding.organ)
        assert organ == rows.said_organ[i]
        assert finding.organ_prob == pytest.approx(float(rows.organ_prob[i]), abs=1e-5)
        label, probs = int(rows.said_label[i]), rows.label_probs[i]
        if finding.label is None:
            assert label == -1 and not probs.any()
        else:
            assert finding.label == ORGANS[organ].classes[label]
            assert list(finding.label_probs.values()) == pytest.approx(probs[: len(finding.label_probs)], abs=1e-5)
        right = result.mask is not None and organ == rows.organ[i]  # else the mask does not count
        mask = result.mask if right else np.zeros_like(scored.mask)
        np.testing.assert_array_equal(scored.probability > 0.5, mask)
        assert rows.predicted[i] == mask.sum()
        masks += right
    assert masks > 1 and rows.thumbnail.tolist() == [False] * (len(records) - 1) + [True]
    assert rows.said_organ[-1] == len(ORGANS) and "a thumbnail" in finding.reason


SECTIONS = {
    "cascade": {"headline", "figures", "lost", "clinical", "classes", "heat", "masks", "subsets", "gallery", "audit"},
    "router": {"headline", "figures", "classes", "subsets", "gallery", "audit", "weights"},
    "classifier": {"headline", "figures", "clinical", "classes", "gallery", "audit", "weights"},
    "segmenter": {"headline", "figures", "classes", "masks", "subsets", "gallery", "audit", "weights"},
}


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_page_needs_no_other_file_and_has_its_sections(pages, kind):
    _, page = pages[kind]
    tags = Tags(page)
    assert SECTIONS[kind] <= tags.ids
    for _, attributes in tags.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    assert not {tag for tag, _ in tags.tags} & {"script", "link", "iframe", "object"}
    assert not re.search(r"url\(\s*['\"]?(?!#|data:)", page)
    assert "Not a medical device" in " ".join(tags.text)


@pytest.mark.parametrize("kind", SECTIONS)
def test_every_metric_of_the_report_is_on_its_page_with_its_definition(pages, kind):
    found, page = pages[kind]
    text = " ".join(" ".join(Tags(page).text).split())
    for part in found["sources"].values():
        for name, value in part["metrics"].items():
            assert name in text and f"{value['value']:.3f}" in text, name
            assert meaning(name) in text and meaning(name) in MEANINGS.values(), name
            assert plain_name(name) in text and f'<th title="{escape(meaning(name))}">' in page, name
    assert all(entry["scored"] == 0 for one in found["audit"]["networks"].values() for entry in one.values())


def test_a_page_shows_the_values_of_its_report_and_escapes_texts(pages):
    found, page = pages["cascade"]
    changed = json.loads(json.dumps(found))
    changed["sources"]["phantom"]["metrics"]["accuracy"]["value"] = 0.123456
    name = "<script>alert(1)</script>$body&amp;"
    changed["run"] = name
    changed["audit"]["networks"]["route"]["train"]["scored"] = 7
    made = evaluation_page.page(changed, Rows.from_json(found["rows"]), [])
    assert "0.123" in made and "0.123 " not in page
    assert "<script>" not in made and "&lt;script&gt;alert(1)&lt;/script&gt;$body&amp;amp;" in made
    assert "some of these scans were trained on; see below" in made
    assert "no network was trained on these scans" in page


def rows_of(count=40):
    rng = np.random.default_rng(0)
    lesion = np.arange(count) % 4 != 0
    true = np.where(lesion, 100, 0)
    both = np.where(lesion, rng.integers(0, 100, count), 0)
    return Rows(
        source=np.array(["a"] * count),
        group=np.array([f"a/{i}" for i in range(count)]),
        scan_id=np.array([f"s{i}" for i in range(count)]),
        has_mask=np.ones(count, bool),
        label=np.where(lesion, 1 + np.arange(count) % 2, 0),
        probs=rng.dirichlet([1, 1, 1], count),
        true=true,
        both=both,
        predicted=np.where(np.arange(count) % 8 == 0, 50, both),
        pixels=np.full(count, 1000),
    )


def test_every_metric_has_a_name_and_a_definition():
    assert set(NAMES) == {*MEANINGS, "ppv", "npv"}
    assert plain_name("sensitivity_brain_no_tumor") == "Sensitivity, brain no tumor"
    assert plain_name("specificity_at_90_malignant") == "Specificity at 90 % sensitivity, malignant"


def cell_text(made):
    return re.sub("<[^>]*>", "", made)


def test_an_interval_that_pretends_is_not_shown():
    value = {"value": 0.5, "low": 0.4, "high": 0.6}
    assert cell_text(cell(value)) == cell_text(cell(value, groups=FEW)) == "0.500 [0.400, 0.600]"
    assert cell_text(cell(value, groups=FEW - 1)) == "0.500 few" and "fewer than 10 groups" in cell(value, groups=9)
    zero = {"value": 0.0, "low": 0.0, "high": 0.0}
    assert cell_text(cell(zero)) == "0.000 no width" and "3 / n" in cell(zero)
    assert cell_text(cell(zero, "+")) == "+0.000 [+0.000, +0.000]"  # a difference may be exactly nothing
    assert cell_text(cell({"value": 0.5, "low": None, "high": None})) == "0.500 [no interval]"


def scored(rows, **facts):
    """The report of a classifier, with what a page needs besides."""
    return report(TASKS["classify_breast"], rows, "test", draws=20) | {"audit": {"networks": {}}} | facts


def test_the_headline_says_what_to_distrust():
    rows = replace(rows_of(120), true=None, both=None, predicted=None)
    assert cautions(scored(rows), rows) == []
    used = {"networks": {"a": {"train": {"used": 9, "scored": 2}}}}
    assert "Some of these scans were trained on" in cautions(scored(rows, audit=used), rows)[0]
    few = replace(rows, group=np.array([f"a/{i % 9}" for i in range(120)]))
    assert (
        cautions(scored(few), few)[0] == "Sources of fewer than 10 groups, whose numbers may be due to chance: a (9)."
    )
    rare = replace(rows, label=np.where(np.arange(120) < 7, 2, np.minimum(rows.label, 1)))
    assert cautions(scored(rare), rare) == [
        "Classes of fewer than 20 scans or 10 groups: malignant (7 scans, 7 groups)."
    ]
    parted = replace(rows, source=np.where(rows.label == 0, "clinic", "archive"))
    (doubt,) = cautions(scored(parted), parted)
    assert doubt.startswith("clinic (25% of the scans) holds one class only.")
    for kind in ("left_out", "unseen"):
        pooled = cautions(scored(rows, **{kind: {"runs": 5}}), rows)
        assert pooled == ["Several networks are pooled, each on scans of its own; no single one of them was scored."]


def test_the_headline_has_the_suspicious_class_of_each_organ(pages):
    found, page = pages["cascade"]
    start = page.index('<section id="headline">')
    text = " ".join(re.sub("<[^>]*>", " ", page[start : page.index("</section>", start)]).split())
    part = found["sources"]["phantom"]
    for organ in ("brain", "breast"):
        assert f"{part['subsets'][organ]['scans']} scans" in text
        assert f"{part['clinical'][organ]['metrics']['sensitivity']['value']:.3f}" in text
        assert f"{part['metrics'][f'mcc_{organ}']['value']:.3f}" in text
    assert "Sensitivity, tumor or malignant" in text and "the whole cascade on" in text


def test_a_decision_curve_has_a_band_only_of_enough_groups():
    rows = rows_of(200)
    for groups, note in ((200, "the band: 95 % by group"), (8, "no band: too few groups")):
        grouped = replace(rows, group=(np.arange(200) % groups).astype(str))
        section = clinical_section(scored(grouped))
        assert note in section and "call none" in section and "5 %" in section
        assert (">few<" in section) == (groups == 8)


def test_a_report_of_an_older_version_has_a_page(pages):
    """The rows lack the new columns, and the results the new keys."""
    found, _ = pages["cascade"]
    old = json.loads(json.dumps(found))
    for part in old["sources"].values():
        for key in ("clinical", "froc", "strata"):
            part.pop(key, None)
    new = {"nsd", "tolerance", "lesions", "found_lesions", "false_lesions", "found_scores", "false_scores"}
    new |= {"at_border", "sector"}
    assert new <= set(old["rows"])
    columns = {name: column for name, column in old["rows"].items() if name not in new}
    with without_figures():
        made = evaluation_page.page(old, Rows.from_json(columns), [])
    assert 'id="headline"' in made and 'id="clinical"' not in made
    again = compare_reports(found, old | {"rows": columns})
    assert "nsd" not in again and again["dice"]["value"] == 0


def test_the_gallery_shows_the_worst_the_middle_the_false_and_the_wrong():
    rows = rows_of()
    overlap = 2 * rows.both / np.maximum(rows.predicted + rows.true, 1)
    chosen = gallery.choose(rows, "segment_breast")
    lesion = np.flatnonzero(rows.true > 0)
    order = lesion[np.argsort(overlap[lesion], kind="stable")]
    assert sorted(overlap[chosen[gallery.WORST]]) == pytest.approx(sorted(overlap[order[: gallery.SHOWN]]))
    middle = overlap[chosen[gallery.MEDIAN]]
    assert middle.min() <= np.median(overlap[lesion]) <= middle.max()
    assert set(chosen[gallery.FALSE]) == set(np.flatnonzero((rows.true == 0) & (rows.predicted > 0)))
    wrong = gallery.choose(rows, "classify_breast")[gallery.WRONG]
    predicted, prob = rows.probs.argmax(1), rows.probs.max(1)
    assert all(predicted[at] != rows.label[at] for at in wrong)
    others = [at for at in np.flatnonzero(predicted != rows.label) if at not in wrong]
    assert not others or min(prob[wrong]) >= max(prob[others])
    alike = replace(rows, group=np.array(["a/1"] * len(rows)))  # near-duplicates show one mistake
    assert [len(shown) for shown in gallery.choose(alike, "segment_breast").values()] == [1] * 5
    perfect = replace(rows, probs=np.eye(3)[rows.label])
    assert gallery.WRONG not in gallery.choose(perfect, "classify_breast")


def test_the_median_of_the_gallery_is_that_of_all_scans_not_of_each_groups_worst():
    rows = rows_of(400)
    group = np.arange(400) // 10
    both = np.where((np.arange(400) % 10 == 1), 0, rows.true * 9 // 10)
    rows = replace(rows, group=group.astype(str), both=both, predicted=both)
    middle = gallery.choose(rows, "segment_breast")[gallery.MEDIAN]
    assert len(middle) == len(set(group[middle])) == gallery.SHOWN
    assert (rows.both[middle] == 90).all()


def test_a_curve_is_drawn_with_the_reported_area():
    rows = rows_of()
    curves = {name: (rows.probs[:, k], rows.label == k) for k, name in enumerate(ORGANS[1].classes)}
    drawn = figures.roc(curves, "ROC")
    for name, (score, positive) in curves.items():
        assert f"{name} {auc(score, positive):.3f}" in drawn


@pytest.mark.parametrize("levels", [None, 7])
def test_curves_are_those_of_scikit_learn(levels):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    positive = rng.random(200) < 0.3
    score = rng.random(200) + 0.3 * positive
    score = score if levels is None else np.round(score * levels)  # ties
    true, false = figures.positives_above(score, positive)
    rates = metrics.roc_curve(positive, score, drop_intermediate=False)
    np.testing.assert_allclose(np.append(0, false / false[-1]), rates[0])
    np.testing.assert_allclose(np.append(0, true / true[-1]), rates[1])
    precision, recall, _ = metrics.precision_recall_curve(positive, score)
    np.testing.assert_allclose((true / (true + false))[::-1][-len(precision) + 1 :], precision[:-1])
    np.testing.assert_allclose((true / true[-1])[::-1][-len(recall) + 1 :], recall[:-1])
    assert figures.average_precision(true, false) == pytest.approx(metrics.average_precision_score(positive, score))


def test_ood_scans_count_for_rejection_and_organ_only():
    rows = Rows(
        source=np.array(["a", "a", "foreign", "foreign"]),
        group=np.array(["a/1", "a/2", "foreign/ct", "foreign/ct"]),
        scan_id=np.array(list("wxyz")),
        has_mask=np.array([True, True, False, False]),
        label=np.array([0, 1, -1, -1]),
        organ=np.array([organ_index("brain")] * 2 + [organ_index(UNSUPPORTED)] * 2),
        said_organ=np.array([0, len(ORGANS), len(ORGANS), 1]),
        said_label=np.array([0, -1, -1, 1]),
        true=np.array([0, 10, 0, 0]),
        both=np.zeros(4, int),
        predicted=np.array([0, 0, 0, 9]),
        pixels=np.full(4, 100),
        dice_loss=np.zeros(4),
        hd95=np.full(4, np.nan),
        surface_distance=np.full(4, np.nan),
    )
    found = measure(None, rows)
    assert found["refused"] == 0.5 and found["foreign_refused"] == 0.5
    assert found["organ"] == 0.5 and found["wrong_organ"] == 0.25
    assert found["accuracy"] == 0.5 and found["lost_by_router"] == 1.0
    parts = report(None, rows, "test", draws=10)["sources"]["foreign"]
    assert set(parts["subsets"]) == {"foreign/ct"}
    assert parts["subsets"]["foreign/ct"]["metrics"]["foreign_refused"]["value"] == 0.5
    assert gallery.caption(rows, 3, "cascade", [])[3] == ("true", UNSUPPORTED)


def test_the_pointing_game_is_won_in_lesions_and_lost_in_corners(phantom_dir):
    records = [r for r in dataset.records("phantom", "train", phantom_dir) if dataset.text(r["organ"]) == "breast"]
    label = np.array([record["label"] for record in records])
    names = np.array([f"{i}" for i in range(len(records))])
    masked = np.array([bool(record["has_mask"]) for record in records])
    rows = Rows(source=names, group=names, scan_id=names, label=label, has_mask=masked, probs=np.eye(3)[label])

    def at_lesion(record, *_):
        mask = storage.decode(record)[1][..., 0]
        return cv2.distanceTransform(mask, cv2.DIST_L2, 5)

    def at_corner(_, image, __):
        return -np.add.outer(np.arange(image.shape[0]), np.arange(image.shape[1])).astype(np.float32)

    found = pointing_game(at_lesion, records, rows, 5)
    assert found["scans"] == 5 and found["in_lesion"] == 1.0 and 0 < found["by_chance"] < 0.5
    assert pointing_game(at_corner, records, rows, 5)["in_lesion"] == 0.0
    none = replace(rows, probs=np.eye(3)[(label + 1) % 3])
    assert pointing_game(at_lesion, records, none, 5) is None
    breast = np.full(len(records), 1)
    cascade = replace(rows, organ=breast, said_organ=breast, said_label=label)
    assert pointing_game(at_lesion, records, cascade, 5) == found
    other_organ = replace(cascade, said_organ=0 * breast)  # the same class number, of a brain
    assert pointing_game(at_lesion, records, other_organ, 5) is None


@pytest.fixture
def folder(tmp_path):
    """Four phantoms of the breast as a user's own folder."""
    root = tmp_path / "mine"
    rows = []
    for number, label in enumerate((0, 1, 2, 2)):
        made = phantom.make_phantom("breast", label, 500 + number)
        for kind, picture in (("images", made.image), ("masks", made.mask[..., 0] * 255)):
            (root / kind).mkdir(parents=True, exist_ok=True)
            (root / kind / f"{number}.png").write_bytes(image_files.encode_png(picture))
        rows.append([f"{number}.png", ORGANS[1].classes[label], f"p{number}"])
    with (root / "labels.csv").open("w") as file:
        csv.writer(file).writerows([["scan", "label", "patient"], *rows])
    return root


def test_columns_of_ones_own_table_tell_the_results_apart(weights, folder, tmp_path, capsys):
    table = folder / "labels.csv"
    header, *rows = table.read_text().splitlines()
    sites = ("North", "North", "South", "South")
    lines = [f"{row},{site},12{site}" for row, site in zip(rows, sites, strict=True)]
    table.write_text("\n".join([f"{header},hospital,MRN", *lines]))
    out = tmp_path / "report"
    arguments = [str(weights / "segment_breast"), f"--folder={folder}", "--heat=0"]
    assert evaluate.main([*arguments, f"--out={out}", "--by=site"]) == 0
    printed = capsys.readouterr().out
    assert "not kept: column mrn (may tell who somebody is" in printed and "by site" in printed
    found = json.loads((out / "report.json").read_text())
    values = found["by_attribute"]["site"]["values"]
    assert {site: (part["scans"], part["groups"], part["few"]) for site, part in values.items()} == {
        "North": (2, 2, True),
        "South": (2, 2, True),
    }
    assert [one["site"] for one in found["rows"]["attributes"]].count("North") == 2
    page = (out / "report.html").read_text()
    assert '<section id="by_attribute">' in page and "<small>few</small>" in page
    assert "12North" not in json.dumps(found) + page
    assert evaluate.main([*arguments, "--by=birads"]) == 2
    assert "birads is stated of none of the scans" in capsys.readouterr().err


def test_a_users_own_folder_is_scored_whole_and_left_as_it_was(weights, folder, tmp_path, capsys, monkeypatch):
    before = sorted(folder.rglob("*"))
    out = tmp_path / "report"
    assert evaluate.main([str(weights / "segment_breast"), f"--folder={folder}", f"--out={out}", "--heat=0"]) == 0
    found = json.loads((out / "report.json").read_text())
    assert found["folder"]["name"] == "mine" and found["sources"]["folder"]["scans"] == 4
    assert sorted(folder.rglob("*")) == before
    assert "folder mine" in (out / "report.html").read_text()
    image = image_files.read(folder / "images" / "2.png").image
    variables, manifest = checkpoint.load(weights / "segment_breast")
    manifest["fingerprints"]["train"].append(scan.fingerprint(image))
    checkpoint.save(tmp_path / "seen", variables, manifest)
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "seen"), f"--folder={folder}"]) == 2
    assert "1 of the 4 scans were used for train" in capsys.readouterr().err
    assert evaluate.main([str(weights), f"--folder={folder}", "--split=train"]) == 2
    assert "scores all scans of that folder" in capsys.readouterr().err
