"""The cascade: dispatch, order, company, and what it asks of whom."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcis.imaging import phantom
from mcis.imaging.letterbox import letterbox
from mcis.inference import cascade, dispatch
from mcis.organs import ORGANS, UNKNOWN
from mcis.tasks.apply import make_expert
from mcis.tasks.table import TASKS

TINY = {name: dataclasses.replace(task, features=8, size=32).check() for name, task in TASKS.items()}


@pytest.fixture(scope="module")
def variables(random_variables):
    return {name: random_variables(task, seed) for seed, (name, task) in enumerate(TINY.items())}


@pytest.fixture(scope="module")
def scans():
    """Eleven phantoms of both organs, mixed."""
    pictures = [
        phantom.make_phantom(organ.name, label, seed).image
        for seed in range(3)
        for organ in ORGANS
        for label in range(len(organ.classes))
    ]
    order = np.random.default_rng(0).permutation(len(pictures))[:11]
    return np.stack([letterbox(pictures[i])[0] for i in order])


@pytest.mark.parametrize("batch", [1, 3, 4, 11])
def test_dispatch_equals_each_scan_with_its_expert(batch):
    rng = np.random.default_rng(batch)
    experts = [lambda x: x[:, :3] * 2, lambda x: jnp.tanh(x[:, 1:4]) - 3]
    empty = jax.ShapeDtypeStruct((3,), jnp.float32)
    run = jax.jit(lambda which, x: dispatch.dispatch(which, experts, empty, x))
    for _ in range(30):
        which = rng.integers(0, len(experts) + 1, batch)
        x = rng.normal(size=(batch, 5)).astype(np.float32)
        out = run(which, x)
        for i in range(batch):
            want = experts[which[i]](x[i][None])[0] if which[i] < len(experts) else np.zeros(3)
            np.testing.assert_allclose(out[i], want, rtol=1e-6, atol=1e-6)


def test_chunks_hold_one_expert_each_and_no_more_than_needed():
    rng = np.random.default_rng(0)
    for _ in range(100):
        batch, chunk = int(rng.integers(1, 20)), int(rng.integers(1, 6))
        expert = rng.integers(0, 4, batch)
        which, rows = (np.asarray(x) for x in dispatch.chunk_table(jnp.asarray(expert), 3, chunk))
        for w, row in zip(which, rows, strict=True):
            real = row[row < batch]
            assert (expert[real] == w).all()
            assert len(real) > 0 or w == 3
        assert sorted(rows[rows < batch]) == sorted(np.flatnonzero(expert < 3))
        assert (which < 3).sum() == sum(-(-(expert == e).sum() // chunk) for e in range(3))


def predict(settings=None, experts=None):
    return jax.jit(cascade.make_cascade(experts or TINY, settings or cascade.Settings(threshold=0.0)))


def test_a_scan_answers_the_same_alone_and_in_company(variables, scans):
    run = predict()
    together = run(variables, scans)
    assert len(set(np.asarray(together.organ).tolist())) > 1, "two organs must occur for this test to mean something"
    for i, single in enumerate(scans):
        alone = run(variables, single[None])
        assert alone.organ[0] == together.organ[i]
        assert alone.label[0] == together.label[i]
        assert alone.segmented[0] == together.segmented[i]
        np.testing.assert_allclose(alone.organ_prob[0], together.organ_prob[i], atol=1e-5)
        np.testing.assert_allclose(alone.label_probs[0], together.label_probs[i], atol=1e-5)
        differ = (np.asarray(alone.mask[0]) > 0.5) != (np.asarray(together.mask[i]) > 0.5)
        assert differ.mean() <= 1e-4


def test_order_does_not_matter(variables, scans):
    run, order = predict(), np.random.default_rng(1).permutation(len(scans))
    straight, shuffled = run(variables, scans), run(variables, scans[order])
    np.testing.assert_array_equal(straight.label[order], shuffled.label)
    np.testing.assert_allclose(straight.mask[order], shuffled.mask, atol=1e-5)


def test_each_stage_is_the_expert_that_is_asked(variables, scans):
    out = predict()(variables, scans)
    for i, square in enumerate(scans):
        organ = ORGANS[int(out.organ[i])]
        label = make_expert(TINY[f"classify_{organ.name}"])(variables[f"classify_{organ.name}"], square[None]).label[0]
        np.testing.assert_allclose(out.label_probs[i, : len(organ.classes)], label, atol=1e-5)
        assert int(out.label[i]) == int(label.argmax())
        assert bool(out.segmented[i]) == organ.is_lesion(int(out.label[i]))
        if out.segmented[i]:
            mask = make_expert(TINY[f"segment_{organ.name}"])(variables[f"segment_{organ.name}"], square[None]).mask[0]
            np.testing.assert_allclose(out.mask[i], mask, atol=1e-4)
        else:
            assert not out.mask[i].any()
    assert 0 < int(out.segmented.sum()) < len(scans), "lesions and others must occur for this test to mean something"


def test_below_the_threshold_everything_is_unsupported(variables, scans):
    out = predict(cascade.Settings(threshold=1.1))(variables, scans)
    assert (out.organ == cascade.UNSUPPORTED).all()
    assert (out.label == UNKNOWN).all() and not out.segmented.any() and not out.label_probs.any()
    assert (out.organ_prob > 0).all() and (out.choice < cascade.UNSUPPORTED).all()
    np.testing.assert_array_equal(out.needed, np.float32(1.1))


def test_a_scan_far_from_training_is_unsupported(variables, scans):
    features = make_expert(TINY["route"])(variables["route"], scans).features
    # the limit lies between the nearest and the farthest of these scans
    novelty = {
        "mean": np.zeros((1, features.shape[1]), np.float32),
        "whiten": np.eye(features.shape[1], dtype=np.float32),
    }
    far = np.linalg.norm(np.asarray(features), axis=1)
    novelty["limit"] = np.float32((np.sort(far)[5] + np.sort(far)[6]) / 2)
    with_limit = variables | {"route": variables["route"] | {"novelty": novelty}}
    out = predict()(with_limit, scans)
    np.testing.assert_array_equal(out.organ == cascade.UNSUPPORTED, far > novelty["limit"])
    np.testing.assert_allclose(out.novelty, far / novelty["limit"], rtol=1e-3)
    np.testing.assert_array_equal(out.choice, predict()(variables, scans).organ)  # what a refused scan is most like
    all_known = predict(cascade.Settings(threshold=0.0, novelty=False))(with_limit, scans)
    assert not (all_known.organ == cascade.UNSUPPORTED).any()


def test_a_given_organ_skips_the_router(variables, scans):
    for index in range(len(ORGANS)):
        out = predict(cascade.Settings(organ=index))({k: v for k, v in variables.items() if k != "route"}, scans)
        assert (out.organ == index).all() and np.isnan(out.organ_prob).all() and np.isnan(out.novelty).all()


def test_a_joint_network_takes_the_place_of_a_missing_classifier(variables, scans):
    experts = {name: task for name, task in TINY.items() if not name.startswith("classify_")}
    out = predict(cascade.Settings(organ=1), experts)(variables, scans)
    outputs = make_expert(TINY["segment_breast"])(variables["segment_breast"], scans)
    np.testing.assert_array_equal(out.label, outputs.label.argmax(-1))
    lesion = np.asarray(out.label) > 0
    assert 0 < lesion.sum() < len(scans), "lesions and others must occur for this test to mean something"
    np.testing.assert_array_equal(out.segmented, lesion)
    np.testing.assert_allclose(out.mask[lesion], outputs.mask[lesion], atol=1e-5)
    assert not out.mask[~lesion].any()


def test_a_joint_network_runs_once(monkeypatch, scans, variables):
    """Its label and its mask come from one run, beside an organ whose classifier and segmenter are two networks."""
    built = []

    def counted(task):
        expert = make_expert(task)

        def run(variables, image):
            built.append(task.name)
            return expert(variables, image)

        return run

    monkeypatch.setattr(cascade, "make_expert", counted)
    experts = {name: task for name, task in TINY.items() if name != "classify_breast"}
    jax.eval_shape(cascade.make_cascade(experts, cascade.Settings(threshold=0.0)), variables, scans)
    assert sorted(set(built)) == sorted(experts) and built.count("segment_breast") == built.count("segment_brain")


def test_without_any_classifier_every_scan_is_segmented_and_has_no_label(variables, scans):
    plain = dataclasses.replace(TINY["segment_breast"], label_loss=0.0)
    out = predict(cascade.Settings(organ=1), {"segment_breast": plain})(variables, scans)
    assert (out.label == UNKNOWN).all() and out.segmented.all()
    none = predict(cascade.Settings(organ=0), {"segment_breast": plain})(variables, scans)
    assert (none.label == UNKNOWN).all() and not none.segmented.any()


def test_experts_that_cannot_answer_are_refused():
    with pytest.raises(ValueError, match=r"--organ=brain\|breast"):
        cascade.make_cascade({"classify_brain": TINY["classify_brain"]}, cascade.Settings())
    with pytest.raises(ValueError, match="nothing else"):
        cascade.make_cascade({"route": TINY["route"]}, cascade.Settings())


def test_one_compilation_serves_every_mixture(variables, scans):
    count = 0
    inner = cascade.make_cascade(TINY, cascade.Settings(threshold=0.0))

    def counted(variables, image):
        nonlocal count
        count += 1
        return inner(variables, image)

    run = jax.jit(counted)
    for start in range(4):
        run(variables, np.roll(scans, start, axis=0)[:4])
    assert count == 1


@pytest.mark.parametrize("name", TASKS)
def test_a_single_task_answers_for_itself_alone(name, variables, scans):
    task = TINY[name]
    out = jax.jit(cascade.make_single(task))(variables, scans)
    outputs = make_expert(task)(variables[name], scans)
    if task.organ is None:
        np.testing.assert_array_equal(out.organ, outputs.label.argmax(-1))
        assert (out.label == UNKNOWN).all()
        return
    assert (
        np.isnan(out.organ_prob).all() and (np.asarray(out.organ) == [o.name for o in ORGANS].index(task.organ)).all()
    )
    assert (np.asarray(out.segmented) == task.segments).all()
    if task.segments:
        np.testing.assert_allclose(out.mask, outputs.mask, atol=1e-5)
    if outputs.label is None:
        assert (out.label == UNKNOWN).all()
    else:
        np.testing.assert_array_equal(out.label, outputs.label.argmax(-1))
        np.testing.assert_allclose(out.label_probs[:, : outputs.label.shape[1]], outputs.label, atol=1e-5)
