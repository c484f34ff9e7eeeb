"""The choice of a CRF, and the command on a run."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis.calibration import tune_crf
from mcis.checkpoints import bundle, checkpoint
from mcis.cli import tune
from mcis.data import dataset, storage
from mcis.evaluation import evaluate
from mcis.imaging.letterbox import letterbox, unletterbox
from mcis.inference.rows import Rows
from mcis.ops.crf import CRF
from mcis.ops.metrics import mask_scores
from mcis.tasks.apply import make_expert, make_network
from mcis.tasks.table import task_to_json
from tests.fixtures.tasks import small_task
from tests.fixtures.weights import drawn_variables

pytestmark = pytest.mark.usefixtures("tiny_models", "few_draws")


def test_the_search_climbs_to_the_best_of_its_values_and_asks_for_none_twice():
    goal = CRF(weight=4.0, sigma=20.0, grey_sigma=6.0, smooth_weight=1.0, smooth_sigma=2.0)
    asked = []

    def score(crf):
        asked.append(crf)
        if not crf.steps:
            return 0.5
        return 0.9 - 0.01 * sum(abs(a - b) for a, b in zip(vars(crf).values(), vars(goal).values(), strict=True))

    tried = tune_crf.search(score)
    assert len(asked) == len(set(asked)) == len(tried)
    assert max(tried, key=lambda one: one[1])[0] == goal
    assert tried[0] == (CRF(steps=0), 0.5)


def counts(both, predicted, true, patients):
    group = np.array([f"patient {i}" for i in patients])
    names, known = np.arange(len(group)).astype(str), np.ones(len(group), bool)
    columns = dict(zip(("both", "predicted", "true"), map(np.array, (both, predicted, true)), strict=True))
    return Rows(source=group, group=group, scan_id=names, label=1 * known, has_mask=known, **columns)


def scores_of(rows):
    return mask_scores(*rows.counts, rows.group)


# Two patients with a large and a small lesion each, and an empty scan; the last two scans are theirs as well.
WITHOUT = counts([80, 5, 80, 5, 0], [100, 10, 100, 10, 4], [100, 10, 100, 10, 0], [0, 0, 1, 1, 1])


def test_a_missed_small_lesion_counts_against_a_crf():
    lost = counts([95, 0, 95, 0, 0], [100, 0, 100, 0, 0], [100, 10, 100, 10, 0], [0, 0, 1, 1, 1])
    before, after = scores_of(WITHOUT), scores_of(lost)
    assert after["dice_patient"] > before["dice_patient"] + 0.1
    assert before["dice_lesion"] == pytest.approx(0.65)
    assert after["dice_lesion"] == pytest.approx(0.475)
    assert tune_crf.objective(lost, WITHOUT, "dice_patient") == pytest.approx(after["dice_patient"] - 0.175)
    assert tune_crf.objective(WITHOUT, WITHOUT, "dice_patient") == before["dice_patient"]


def test_a_gain_counts_where_every_patient_has_it():
    patients = np.arange(12)
    none = counts(*[np.full(12, n) for n in (50, 100, 100)], patients)
    all_gain = counts(np.full(12, 55), *[np.full(12, 100)] * 2, patients)
    one_gains = counts(np.where(patients == 0, 100, 50), *[np.full(12, 100)] * 2, patients)
    more, low, high = tune_crf.gain(all_gain, none, "dice_patient")
    assert (more, low, high) == pytest.approx((0.05, 0.05, 0.05))
    more, low, high = tune_crf.gain(one_gains, none, "dice_patient")
    # twelve gains, one of 0.5: their mean and Student's interval, t = 2.201 with 11 degrees of freedom
    assert more == pytest.approx(0.5 / 12)
    half = 2.201 * 0.5 / 12
    assert (low, high) == pytest.approx((more - half, more + half), abs=1e-4)


def test_of_one_patient_there_is_no_interval():
    one = counts([50, 0], [100, 0], [100, 0], [0, 1])
    assert tune_crf.gain(one, one, "dice_patient")[0] == 0
    assert np.isnan(tune_crf.gain(one, one, "dice_patient")[1:]).all()


def test_each_patient_is_scored_with_the_crf_that_is_best_for_the_others():
    first, second = CRF(weight=1.0), CRF(weight=2.0)
    patients = [0, 1, 2, 3]
    found = {
        tune_crf.NONE: counts([50] * 4, [100] * 4, [100] * 4, patients),
        first: counts([95, 20, 20, 20], [100] * 4, [100] * 4, patients),  # one patient's stroke of luck
        second: counts([40, 60, 60, 55], [100] * 4, [100] * 4, patients),
    }
    assert max(found, key=lambda crf: found[crf].both.sum()) == second
    # without patient 0 the second is best, without any other one it is as well, but for 0 itself it costs
    assert tune_crf.cross_validated(found, "dice_patient").both.tolist() == [40, 60, 60, 55]
    lucky = {tune_crf.NONE: found[tune_crf.NONE], first: counts([99, 49, 49, 49], [100] * 4, [100] * 4, patients)}
    assert tune_crf.objective(lucky[first], lucky[tune_crf.NONE], "dice_patient") == pytest.approx(0.615)
    assert tune_crf.cross_validated(lucky, "dice_patient").both.tolist() == [50, 49, 49, 49]


def test_the_best_of_many_settings_that_do_nothing_is_seldom_a_gain():
    rng, looks, kept = np.random.default_rng(0), 0, 0
    for _ in range(15):
        base = rng.uniform(30, 90, 8)
        none = counts(base, np.full(8, 100), np.full(8, 100), np.arange(8))
        noise = rng.normal(0, 3, (1, 8)) * 0.8**0.5 + rng.normal(0, 3, (30, 8)) * 0.2**0.5  # much alike, as CRFs are
        found = {tune_crf.NONE: none}
        changed = [dataclasses.replace(none, both=np.clip(base + row, 0, 100)) for row in noise]
        found |= {CRF(weight=1.0 + i): rows for i, rows in enumerate(changed)}
        best = max(found, key=lambda crf: tune_crf.objective(found[crf], none, "dice_patient"))
        looks += best != tune_crf.NONE
        kept += tune_crf.gain(tune_crf.cross_validated(found, "dice_patient"), none, "dice_patient")[1] > 0
    assert looks > 7
    assert kept <= 1


@pytest.fixture(scope="module")
def run(phantom_dir, tmp_path_factory, tiny_models):
    task = small_task("segment_brain", select="dice_patient", each_channel=True)
    variables = drawn_variables(task)
    manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": 1}
    left_out = [dataset.text(record["fingerprint"]) for record in dataset.records("phantom", "validation", phantom_dir)]
    manifest |= {"validation": {"dice": 0.5}, "fingerprints": {"train": ["a"], "validation": left_out}}
    folder = tmp_path_factory.mktemp("runs") / "segment_brain"
    checkpoint.save(folder / "best", variables, manifest)
    return folder


@pytest.mark.parametrize("crf", [CRF(smooth_weight=0.01, weight=0.01), CRF(steps=0)])
def test_scans_are_counted_as_the_expert_outlines_them_whether_doubtful_or_not(run, phantom_dir, crf):
    weights = bundle.load_weights(run)
    records = [r for r in dataset.records("phantom", "validation", phantom_dir) if dataset.text(r["organ"]) == "brain"]
    squares, geometries = zip(*(letterbox(storage.decode(record)[0]) for record in records), strict=True)
    peak = np.asarray(jax.jit(make_network(weights.task))(weights.variables, np.stack(squares))[0].mask).max((1, 2, 3))
    head, middle = weights.variables["params"]["mask"], np.median(peak)
    head["bias"] = head["bias"] - np.log(middle / (1 - middle))  # half of them are doubtful
    found = tune_crf.make_rows(weights.task, weights.variables, records)(crf)
    expert = jax.jit(make_expert(dataclasses.replace(weights.task, crf=crf)))
    answers = np.asarray(expert(weights.variables, np.stack(squares)).mask)
    masks = [unletterbox(answers[i, ..., 0], geometries[i]) > 0.5 for i in range(len(records))]
    truths = [storage.decode(record)[1][..., 0] for record in records]
    assert 0 < sum(mask.any() for mask in masks) < len(records)
    assert found.predicted.tolist() == [mask.sum() for mask in masks]
    assert found.both.tolist() == [(mask & (true > 0)).sum() for mask, true in zip(masks, truths, strict=True)]
    assert found.true.tolist() == [true.sum() for true in truths]


def test_the_command_keeps_what_it_chose_with_the_weights(run, phantom_dir, monkeypatch, capsys):
    monkeypatch.setattr(tune_crf, "VALUES", {"weight": (4.0,)})
    chosen = CRF(weight=4.0)
    before = bundle.load_weights(run)
    command = [str(run), f"--data_dir={phantom_dir}"]
    assert tune.main([*command, "--always", "--dry_run"]) == 0
    assert bundle.load_weights(run).task == before.task
    monkeypatch.setattr(tune_crf, "gain", lambda *_: (0.1, 0.05, 0.2))
    assert tune.main(command) == 0
    assert "fewer than 5 groups are too few to tell" in capsys.readouterr().out
    assert bundle.load_weights(run).task == before.task
    monkeypatch.setattr(tune_crf, "PATIENTS", 1)
    assert tune.main(command) == 0
    after = bundle.load_weights(run)
    with_crf, without = (evaluate(run, "validation", (), phantom_dir, crf) for crf in (True, False))
    dice = [found["sources"]["phantom"]["metrics"]["dice_loss"]["value"] for found in (with_crf, without)]
    assert dice[0] != dice[1]
    assert after.task == dataclasses.replace(before.task, crf=chosen)
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail("changed"), before.variables, after.variables)
    assert "weight 4" in capsys.readouterr().out


def test_fold_runs_get_one_crf_by_their_held_out_scans(fold_runs, phantom_dir, tmp_path, monkeypatch, capsys):
    runs = []
    for k, run in enumerate(fold_runs["segment_breast"]):
        shutil.copytree(run, tmp_path / f"fold{k}")
        runs.append(str(tmp_path / f"fold{k}"))
    asked = []
    make_rows = tune_crf.make_rows
    monkeypatch.setattr(tune_crf, "VALUES", {"weight": (4.0,)})
    monkeypatch.setattr(tune_crf, "make_rows", lambda *a: asked.append(a[2]) or make_rows(*a))
    assert tune.main([*runs, "--always", f"--data_dir={phantom_dir}"]) == 0
    for run, records in zip(runs, asked, strict=True):
        weights = bundle.load_weights(run)
        mine = {dataset.text(record["fingerprint"]) for record in records}
        assert mine == set(weights.manifest["fingerprints"]["validation"])
        assert weights.task.crf == CRF(weight=4.0)
    assert f"dice_patient; {sum(map(len, asked))} scans" in " ".join(capsys.readouterr().out.split())
    assert tune.main([runs[0], runs[0], f"--data_dir={phantom_dir}"]) == 2
    assert "name each fold once" in capsys.readouterr().err
    assert tune.main([*runs, "--by=accuracy"]) == 2
    assert "--by=accuracy: must be one of dice_lesion" in capsys.readouterr().err


def test_a_classifier_has_nothing_to_tune(run, tmp_path, capsys):
    task = small_task("route", model="cnn")
    shapes = jax.eval_shape(task.make_model().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    manifest = {"task": task_to_json(task), "classes": list(task.classes), "epoch": 1}
    manifest |= {"validation": {"accuracy": 0.5}, "fingerprints": {"train": ["a"], "validation": ["b"]}}
    checkpoint.save(tmp_path / "route", variables, manifest)
    assert tune.main([str(tmp_path / "route")]) == 2
    assert "holds route, which has no masks; name a run of a segmentation task" in capsys.readouterr().err


def test_the_crf_of_a_run_stays_where_no_better_one_is_kept(run, phantom_dir, monkeypatch, capsys):
    monkeypatch.setattr(tune_crf, "VALUES", {"weight": (4.0,)})
    had = bundle.load_weights(run)
    other = dataclasses.replace(had.task, crf=CRF(weight=2.0))
    checkpoint.save(run / "best", had.variables, had.manifest | {"task": task_to_json(other)})
    before = {file: file.read_bytes() for file in (run / "best").rglob("*") if file.is_file()}
    monkeypatch.setattr(tune_crf, "gain", lambda *_: (0.1, -0.1, 0.3))
    monkeypatch.setattr(tune_crf, "PATIENTS", 1)
    assert tune.main([str(run), f"--data_dir={phantom_dir}"]) == 0
    out = capsys.readouterr().out.replace("\n", " ")
    assert "may be chance" in out and "weight 2" in out.rpartition("The weights stay as they are")[2]
    assert {file: file.read_bytes() for file in (run / "best").rglob("*") if file.is_file()} == before
    assert tune.main([str(run), "--off", "--dry_run"]) == 0
    assert "would keep: no CRF; now: steps" in capsys.readouterr().out
    assert bundle.load_weights(run).task == other
    assert tune.main([str(run), "--off"]) == 0
    assert bundle.load_weights(run).task == dataclasses.replace(other, crf=tune_crf.NONE)
    written = (run / "best" / checkpoint.MANIFEST).stat().st_mtime_ns
    assert tune.main([str(run), "--off"]) == 0
    assert (run / "best" / checkpoint.MANIFEST).stat().st_mtime_ns == written
    assert tune.main([str(run), "--off", "--always"]) == 2
    assert "--off and --always exclude each other" in capsys.readouterr().err
