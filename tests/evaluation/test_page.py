"""The report of an evaluation: the page, its curves, gallery and maps, and a folder of one's own scored."""

import csv
import dataclasses
import html.parser
import json
import re

import cv2
import numpy as np
import pytest

from mcis.checkpoints import checkpoint
from mcis.cli import evaluate
from mcis.data import dataset, storage
from mcis.evaluation import figures, gallery, pointing_game
from mcis.evaluation import page as evaluation_page
from mcis.evaluation.descriptions import MEANINGS, meaning
from mcis.evaluation.metrics import measure, report
from mcis.imaging import image_files, phantom, scan
from mcis.ops.metrics import auc
from mcis.organs import ORGANS, UNSUPPORTED, organ_index
from mcis.tasks.table import TASKS, task_to_json

TINY = {name: dataclasses.replace(task, features=4, size=32).check() for name, task in TASKS.items()}


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


@pytest.fixture(scope="module")
def weights(random_variables, tmp_path_factory):
    """A set of random networks that have seen other scans."""
    folder = tmp_path_factory.mktemp("set")
    for seed, (name, task) in enumerate(TINY.items()):
        manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": 1, "validation": {}}
        manifest |= {"fingerprints": {"train": ["a"], "validation": ["b"]}}
        limits = {"threshold": np.float32(0)} if name == "route" else {}  # a random router is sure of nothing
        checkpoint.save(folder / name, random_variables(task, seed) | limits, manifest)
    return folder


@pytest.fixture(scope="module")
def pages(weights, phantom_dir, tmp_path_factory):
    """Kind -> (report's values, page) of evaluations of the phantoms' validation split."""
    made = {}
    for kind, options in {
        "cascade": [str(weights), "--heat=2"],
        "router": [str(weights / "route")],
        "classifier": [str(weights / "classify_breast"), "--heat=2"],
        "segmenter": [str(weights / "segment_breast"), "--heat=2"],
    }.items():
        out = tmp_path_factory.mktemp("reports") / kind
        arguments = [*options, "--split=validation", "--sources=phantom", f"--data_dir={phantom_dir}", f"--out={out}"]
        assert evaluate.main(arguments) == 0
        assert {file.name for file in out.iterdir()} == {"report.json", "report.html"}
        made[kind] = json.loads((out / "report.json").read_text()), (out / "report.html").read_text(encoding="utf-8")
    return made


SECTIONS = {
    "cascade": {"figures", "lost", "classes", "masks", "subsets", "gallery", "audit", "weights"},
    "router": {"figures", "classes", "subsets", "gallery", "audit", "weights"},
    "classifier": {"figures", "classes", "heat", "gallery", "audit", "weights"},
    "segmenter": {"figures", "classes", "masks", "subsets", "gallery", "audit", "weights"},
}


@pytest.mark.parametrize("kind", SECTIONS)
def test_a_page_opens_from_disk_asks_for_nothing_and_has_its_sections(pages, kind):
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
def test_every_figure_of_the_report_is_on_its_page_with_its_meaning(pages, kind):
    found, page = pages[kind]
    text = " ".join(" ".join(Tags(page).text).split())
    for part in found["sources"].values():
        for name, value in part["metrics"].items():
            assert name in text and f"{value['value']:.3f}" in text, name
            assert meaning(name) in text and meaning(name) in MEANINGS.values(), name
    assert all(entry["scored"] == 0 for one in found["audit"]["networks"].values() for entry in one.values())


def test_the_page_of_a_report_is_what_its_values_say(pages):
    found, page = pages["cascade"]
    changed = json.loads(json.dumps(found))
    changed["sources"]["phantom"]["metrics"]["accuracy"]["value"] = 0.123456
    name = "<script>alert(1)</script>$body&amp;"
    changed["run"] = name
    changed["audit"]["networks"]["route"]["train"]["scored"] = 7
    from mcis.evaluation.metrics import rows_from_json

    made = evaluation_page.page(changed, rows_from_json(found["rows"]), [])
    assert "0.123" in made and "0.123 " not in page
    assert "<script>" not in made and "&lt;script&gt;alert(1)&lt;/script&gt;$body&amp;amp;" in made
    assert "some of these scans were trained on; see below" in made
    assert "no network was trained on one of these pictures" in page


def rows_of(count=40):
    rng = np.random.default_rng(0)
    lesion = np.arange(count) % 4 != 0
    true = np.where(lesion, 100, 0)
    both = np.where(lesion, rng.integers(0, 100, count), 0)
    return {
        "source": np.array(["a"] * count),
        "group": np.array([f"a/{i}" for i in range(count)]),
        "scan_id": np.array([f"s{i}" for i in range(count)]),
        "has_mask": np.ones(count, bool),
        "label": np.where(lesion, 1 + np.arange(count) % 2, 0),
        "probs": rng.dirichlet([1, 1, 1], count),
        "true": true,
        "both": both,
        "predicted": np.where(np.arange(count) % 8 == 0, 50, both),
        "pixels": np.full(count, 1000),
    }


def test_the_gallery_shows_the_worst_the_middle_the_false_and_the_wrong():
    rows = rows_of()
    dice = 2 * rows["both"] / np.maximum(rows["predicted"] + rows["true"], 1)
    chosen = gallery.choose(rows, "segment_breast")
    lesion = np.flatnonzero(rows["true"] > 0)
    order = lesion[np.argsort(dice[lesion], kind="stable")]
    assert sorted(dice[chosen[gallery.WORST]]) == pytest.approx(sorted(dice[order[: gallery.SHOWN]]))
    middle = dice[chosen[gallery.MIDDLE]]
    assert middle.min() <= np.median(dice[lesion]) <= middle.max()
    assert set(chosen[gallery.FALSE]) == set(np.flatnonzero((rows["true"] == 0) & (rows["predicted"] > 0)))
    wrong = gallery.choose(rows, "classify_breast")[gallery.WRONG]
    said, sure = rows["probs"].argmax(1), rows["probs"].max(1)
    assert all(said[at] != rows["label"][at] for at in wrong)
    others = [at for at in np.flatnonzero(said != rows["label"]) if at not in wrong]
    assert not others or min(sure[wrong]) >= max(sure[others])
    alike = rows | {"group": np.array(["a/1"] * len(rows["label"]))}  # near-duplicates show one mistake
    assert [len(shown) for shown in gallery.choose(alike, "segment_breast").values()] == [1] * 5
    perfect = rows | {"probs": np.eye(3)[rows["label"]]}
    assert gallery.WRONG not in gallery.choose(perfect, "classify_breast")


def test_the_middle_of_the_gallery_is_of_all_scans_and_not_of_each_group_s_worst():
    rows = rows_of(400)
    group = np.arange(400) // 10
    rows |= {"group": group.astype(str), "both": np.where((np.arange(400) % 10 == 1), 0, rows["true"] * 9 // 10)}
    rows |= {"predicted": rows["both"]}
    middle = gallery.choose(rows, "segment_breast")[gallery.MIDDLE]
    assert len(middle) == len(set(group[middle])) == gallery.SHOWN
    assert (rows["both"][middle] == 90).all()


def test_a_curve_is_drawn_with_the_area_that_the_figures_report():
    rows = rows_of()
    curves = {name: (rows["probs"][:, k], rows["label"] == k) for k, name in enumerate(ORGANS[1].classes)}
    drawn = figures.roc(curves, "ROC")
    for name, (score, positive) in curves.items():
        assert f"{name} {auc(score, positive):.3f}" in drawn


def test_foreign_scans_count_for_refusal_and_nothing_else():
    rows = {
        "source": np.array(["a", "a", "foreign", "foreign"]),
        "group": np.array(["a/1", "a/2", "foreign/ct", "foreign/ct"]),
        "scan_id": np.array(list("wxyz")),
        "has_mask": np.array([True, True, False, False]),
        "label": np.array([0, 1, -1, -1]),
        "organ": np.array([organ_index("brain")] * 2 + [organ_index(UNSUPPORTED)] * 2),
        "said_organ": np.array([0, len(ORGANS), len(ORGANS), 1]),
        "said_label": np.array([0, -1, -1, 1]),
        "true": np.array([0, 10, 0, 0]),
        "both": np.zeros(4, int),
        "predicted": np.array([0, 0, 0, 9]),
        "pixels": np.full(4, 100),
        "dice_loss": np.zeros(4),
        "hd95": np.full(4, np.nan),
        "surface_distance": np.full(4, np.nan),
    }
    found = measure(None, rows)
    assert found["refused"] == 0.5 and found["foreign_refused"] == 0.5
    assert found["organ"] == 0.5 and found["wrong_organ"] == 0.25
    assert found["accuracy"] == 0.5 and found["lost_by_router"] == 1.0
    parts = report(None, rows, "test", draws=10)["sources"]["foreign"]
    assert set(parts["subsets"]) == {"foreign/ct"}
    assert parts["subsets"]["foreign/ct"]["metrics"]["foreign_refused"]["value"] == 0.5
    assert gallery.caption(rows, 3, "cascade", [])[3] == ("is", UNSUPPORTED)


def test_a_map_of_a_classifier_is_checked_against_the_lesions(phantom_dir):
    """A map that is highest inside lesions, and one that is highest in a corner."""
    records = [r for r in dataset.records("phantom", "train", phantom_dir) if dataset.text(r["organ"]) == "breast"]
    label = np.array([record["label"] for record in records])
    rows = {"label": label, "probs": np.eye(3)[label], "group": np.array([f"{i}" for i in range(len(records))])}

    def at_lesion(record, _):
        mask = storage.decode(record)[1][..., 0]
        return cv2.distanceTransform(mask, cv2.DIST_L2, 5)

    def at_corner(record, _):
        image = storage.decode(record)[0]
        return -np.add.outer(np.arange(image.shape[0]), np.arange(image.shape[1])).astype(np.float32)

    found = pointing_game.check(at_lesion, records, rows, 5)
    assert found["scans"] == 5 and found["in_lesion"] == 1.0 and 0 < found["by_chance"] < 0.5
    assert pointing_game.check(at_corner, records, rows, 5)["in_lesion"] == 0.0
    none = rows | {"probs": np.eye(3)[(label + 1) % 3]}
    assert pointing_game.check(at_lesion, records, none, 5) is None
    breast = np.full(len(records), 1)
    cascade = rows | {"organ": breast, "said_organ": breast, "said_label": label}
    assert pointing_game.check(at_lesion, records, cascade, 5) == found
    assert (
        pointing_game.check(at_lesion, records, cascade | {"said_organ": breast * 0}, 5) is None
    )  # the same number, of a brain


@pytest.fixture
def folder(tmp_path):
    """Four phantoms of the breast as somebody's own folder."""
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


def test_a_folder_of_one_s_own_is_scored_whole_and_left_as_it_was(weights, folder, tmp_path, capsys):
    before = sorted(folder.rglob("*"))
    out = tmp_path / "report"
    assert evaluate.main([str(weights), f"--folder={folder}", f"--out={out}", "--heat=0"]) == 0
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
