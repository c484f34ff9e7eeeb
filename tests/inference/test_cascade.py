"""The cascade: dispatch, routing, which networks are run on which scans, and that batches do not matter.

Most tests replace the networks by functions that compile in no time (`linear_expert`); the cascade sees no difference.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcis.inference import cascade, dispatch
from mcis.inference.options import InferenceOptions
from mcis.inference.rows import UNSUPPORTED_INDEX
from mcis.ops.points import POINTS
from mcis.organs import ORGANS, UNKNOWN
from mcis.tasks.table import TASKS
from tests.fixtures.linear import FEATURES, features_of, linear_expert, linear_networks, linear_variables

SIDE, REVIEW = 16, np.float32(0.45)
LIMITS, OUTER = np.float32([0.3, 0.5, 0.05]), np.float32(0.125)


@pytest.fixture(scope="module")
def scans():
    return np.random.default_rng(0).integers(0, 256, (11, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def variables(scans):
    """Of `linear_expert`, by task; over the scans every class occurs. The router accepts all of them."""
    found = linear_variables(scans)
    found["classify_breast"] |= {"calibration": {"review": REVIEW, "label_set": LIMITS}}
    found["segment_breast"] |= {"outer": OUTER}
    whiten = np.eye(FEATURES, dtype=np.float32)
    novelty = {"mean": np.zeros((1, FEATURES), np.float32), "whiten": whiten, "limit": np.float32(9)}
    found["route"] |= {"threshold": np.float32(0), "reach": np.float32(1), "novelty": novelty}
    return found


def changed(variables, limit=9, reach=1, threshold=0):
    """Variables whose router has other limits."""
    route = variables["route"]
    novelty = route["novelty"] | {"limit": np.float32(limit)}
    limits = {"novelty": novelty, "reach": np.float32(reach), "threshold": np.float32(threshold)}
    return variables | {"route": route | limits}


def expected(name, variables, scans, tasks=TASKS):
    return jax.device_get(jax.jit(linear_expert(tasks[name]))(variables[name], scans))


@pytest.fixture(scope="module", autouse=True)
def _linear():
    with linear_networks():
        yield


def predict(options=InferenceOptions(), experts=TASKS):  # noqa: B008
    run = jax.jit(cascade.make_cascade(experts, options))
    return lambda *arguments: jax.device_get(run(*arguments))


@pytest.fixture(scope="module")
def run(_linear):
    """The cascade of all networks, compiled once for each size of a batch; `run.traced` has these sizes."""
    inner, traced = cascade.make_cascade(TASKS, InferenceOptions()), []

    def noted(variables, image):
        traced.append(len(image))
        return inner(variables, image)

    compiled = jax.jit(noted)

    def call(variables, image):
        return jax.device_get(compiled(variables, image))

    call.traced = traced
    return call


@pytest.mark.parametrize("batch", [1, 11])
def test_dispatch_equals_running_each_scan_through_its_expert(batch):
    rng = np.random.default_rng(batch)
    experts = [lambda x: x[:, :3] * 2, lambda x: x[:, 1:4] - 3]
    empty = jax.ShapeDtypeStruct((3,), jnp.float32)
    run = jax.jit(lambda which, x: dispatch.dispatch(which, experts, empty, x))
    for _ in range(30):
        which = rng.integers(0, len(experts) + 1, batch)
        x = rng.normal(size=(batch, 5)).astype(np.float32)
        wanted = [
            experts[k](one[None])[0] if k < len(experts) else np.zeros(3) for k, one in zip(which, x, strict=True)
        ]
        np.testing.assert_allclose(run(which, x), wanted, rtol=1e-6, atol=1e-6)


chunk_table = jax.jit(dispatch.chunk_table, static_argnums=(1, 2))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([1, 9]).flatmap(lambda n: st.lists(st.integers(0, 3), min_size=n, max_size=n)))
def test_chunks_hold_one_expert_each_and_are_as_few_as_possible(experts):
    expert = np.array(experts)
    which, rows = jax.device_get(chunk_table(expert, 3, 4))
    for chunk, row in zip(which, rows, strict=True):
        real = row[row < len(expert)]
        assert (expert[real] == chunk).all()
        assert len(real) > 0 or chunk == 3
    assert sorted(rows[rows < len(expert)]) == np.flatnonzero(expert < 3).tolist()
    assert (which < 3).sum() == sum(-(-(expert == e).sum() // 4) for e in range(3))


def test_a_scan_has_the_same_prediction_alone_and_in_a_batch_of_any_order(run, variables, scans):
    together = run(variables, scans)
    assert len(set(together.organ.tolist())) > 1, "two organs must occur for this test to mean something"
    order = np.random.default_rng(1).permutation(len(scans))
    shuffled = run(variables, scans[order])
    for name, values in vars(together).items():
        np.testing.assert_allclose(values[order], getattr(shuffled, name), atol=1e-5, err_msg=name)
    for i in range(len(scans)):
        for name, values in vars(run(variables, scans[i : i + 1])).items():
            np.testing.assert_allclose(values[0], getattr(together, name)[i], atol=1e-5, err_msg=name)
    for start in range(1, 4):
        run(variables, np.roll(scans, start, axis=0))
    assert sorted(run.traced) == [1, len(scans)]  # one compilation serves every mixture of organs


def test_each_scan_gets_label_and_mask_from_its_organs_networks(run, variables, scans):
    out = run(variables, scans)
    organs = expected("route", variables, scans).label[:, : len(ORGANS)]
    np.testing.assert_array_equal(out.organ, organs.argmax(1))
    np.testing.assert_allclose(out.organ_prob, organs.max(1), atol=1e-6)
    outputs = {name: expected(name, variables, scans) for name in TASKS}
    for i in range(len(scans)):
        organ = ORGANS[int(out.organ[i])]
        label = outputs[f"classify_{organ.name}"].label[i]
        np.testing.assert_allclose(out.label_probs[i, : len(organ.classes)], label, atol=1e-5)
        assert int(out.label[i]) == int(label.argmax())
        assert bool(out.segmented[i]) == organ.is_lesion(int(out.label[i]))
        mask = outputs[f"segment_{organ.name}"].mask[i]
        np.testing.assert_allclose(out.mask[i], mask if out.segmented[i] else 0 * mask, atol=1e-5)
    assert 0 < out.segmented.sum() < len(scans), "lesions and others must occur for this test to mean something"


def test_confidence_and_review_follow_from_label_and_mask(run, variables, scans):
    out = run(variables, scans)
    p = out.mask.astype(np.float64)
    cut = p > 0.5
    dice = (2 * (p * cut).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + cut.sum((1, 2, 3)) + 1)
    wanted = out.label_probs.max(1) * np.where(out.segmented, dice, 1.0)
    np.testing.assert_allclose(out.confidence, wanted, rtol=1e-4)
    breast = out.organ == 1
    assert set((out.confidence[breast] < REVIEW).tolist()) == {False, True}
    np.testing.assert_array_equal(out.review, np.where(breast, out.confidence < REVIEW, UNKNOWN))


def test_label_sets_hold_the_classes_that_reach_their_limit_and_the_decided_one(run, variables, scans):
    out = run(variables, scans)
    breast = out.organ == 1
    wanted = out.label_probs[:, : len(LIMITS)] >= LIMITS
    without = ~wanted[np.arange(len(scans)), out.label] & breast
    assert without.any(), "a decided class below its limit must occur for this test to mean something"
    wanted[np.arange(len(scans)), out.label] = True
    np.testing.assert_array_equal(out.label_set, np.where(breast[:, None], wanted, False))  # no limits of the brain
    assert len(set(out.label_set[breast].sum(1).tolist())) > 1
    np.testing.assert_array_equal(out.outer, np.where(breast & out.segmented, OUTER, np.nan).astype(np.float32))
    rejected = run(changed(variables, threshold=1.1), scans)
    assert not rejected.label_set.any() and np.isnan(rejected.outer).all()


def test_an_accepted_scan_below_the_limit_of_a_certain_organ_is_for_review(run, variables, scans):
    plain = run(variables, scans)
    assert np.isnan(plain.certain).all()
    limit = np.float32(np.median(plain.organ_prob))
    route = variables["route"] | {"certain": limit}
    out = run(variables | {"route": route}, scans)
    uncertain = out.organ_prob < limit
    assert 0 < uncertain.sum() < len(scans)
    np.testing.assert_array_equal(out.certain, limit)
    np.testing.assert_array_equal(out.review, np.where(uncertain, 1, plain.review))
    for name in ("organ", "label", "label_probs", "mask", "confidence"):
        np.testing.assert_array_equal(getattr(out, name), getattr(plain, name))
    rejected = run(changed(variables | {"route": route}, threshold=1.1), scans)
    assert np.isnan(rejected.certain).all() and (rejected.review == UNKNOWN).all()


def test_below_the_threshold_everything_is_unsupported(run, variables, scans):
    out = run(changed(variables, threshold=1.1), scans)
    assert (out.organ == UNSUPPORTED_INDEX).all()
    assert (out.label == UNKNOWN).all() and not out.segmented.any() and not out.label_probs.any()
    assert (out.organ_prob > 0).all() and (out.choice < UNSUPPORTED_INDEX).all()
    assert np.isnan(out.confidence).all() and (out.review == UNKNOWN).all()
    np.testing.assert_array_equal(out.needed, np.float32(1.1))


@pytest.mark.parametrize("reach", [1.0, 1.5])
def test_a_scan_beyond_the_ood_limit_is_unsupported(reach, run, variables, scans):
    distance = np.linalg.norm(np.asarray(features_of(scans)), axis=1)
    limit = (np.median(distance) - 1e-4) / reach  # between the nearest and the farthest of these scans
    out = run(changed(variables, limit=limit, reach=reach), scans)
    far = distance > limit * reach
    assert 0 < far.sum() < len(scans)
    np.testing.assert_array_equal(out.organ == UNSUPPORTED_INDEX, far)
    np.testing.assert_allclose(out.novelty, distance / (limit * reach), rtol=1e-3)
    np.testing.assert_array_equal(out.choice, run(variables, scans).organ)  # what a rejected scan is most like


@pytest.mark.parametrize("value", [0, 255])
def test_a_picture_of_one_value_is_unsupported(value, run, variables, scans):
    blank = scans.copy()
    blank[2] = value
    out = run(variables, blank)
    np.testing.assert_array_equal(np.flatnonzero(out.organ == UNSUPPORTED_INDEX), [2])
    assert out.label[2] == UNKNOWN and not out.mask[2].any()


def test_the_limits_are_the_users_or_the_fitted_ones_or_the_default(variables):
    prob, features = np.float32([0.3, 0.7, 0.95]), 0.5 * np.ones((3, FEATURES), np.float32)
    fitted = changed(variables, limit=1, threshold=0.5)["route"]
    plain = {name: value for name, value in fitted.items() if name == "kernel"}
    cases = [
        (InferenceOptions(), plain, cascade.THRESHOLD),
        (InferenceOptions(novelty=False), fitted, 0.5),
        (InferenceOptions(threshold=0.2, novelty=False), fitted, 0.2),
        (InferenceOptions(threshold=0.2), fitted, 1.1),  # all lie beyond the limit of the OOD score
    ]
    for options, router, threshold in cases:
        accepted, novelty, needed = jax.jit(cascade.supported, static_argnums=0)(options, router, prob, features)
        np.testing.assert_array_equal(accepted, prob >= np.float32(threshold))
        assert np.isnan(novelty).all() == (not options.novelty or router is plain)
        assert (np.asarray(needed) == np.float32(min(threshold, 1) if threshold < 1 else 0.2)).all()


def test_a_given_organ_skips_the_router_and_a_joint_network_replaces_a_missing_classifier(variables, scans):
    experts = {name: task for name, task in TASKS.items() if name.startswith("segment_")}
    out = predict(InferenceOptions(organ="breast"), experts)(variables, scans)
    assert (out.organ == 1).all() and (out.choice == 1).all()
    assert np.isnan(out.organ_prob).all() and np.isnan(out.novelty).all() and np.isnan(out.needed).all()
    assert np.isnan(out.certain).all()
    outputs = expected("segment_breast", variables, scans)
    np.testing.assert_array_equal(out.label, outputs.label.argmax(-1))
    lesion = out.label > 0
    assert 0 < lesion.sum() < len(scans), "lesions and others must occur for this test to mean something"
    np.testing.assert_array_equal(out.segmented, lesion)
    np.testing.assert_allclose(out.mask[lesion], outputs.mask[lesion], atol=1e-5)
    assert not out.mask[~lesion].any()


BREAST = {name: task for name, task in TASKS.items() if name.endswith("_breast")}
SHIFTS = {"balanced": [0, 0, 0], "sensitive": [-0.6, 0, 0.8], "specific": [0.9, 0, -0.7]}


def pointed(variables, shifts):
    """Variables whose classifier of the breast has operating points."""
    points = {name: np.float32(shift) for name, shift in shifts.items()}
    one = variables["classify_breast"]
    calibration = one["calibration"] | {"points": points}
    return variables | {"classify_breast": one | {"calibration": calibration}}


@pytest.mark.parametrize("point", POINTS)
def test_each_operating_point_decides_the_labels_and_with_them_the_masks(point, variables, scans):
    out = predict(InferenceOptions(organ="breast", operating_point=point), BREAST)(pointed(variables, SHIFTS), scans)
    outputs = expected("classify_breast", variables, scans)
    likeliest = outputs.label.argmax(1)
    weighted = outputs.label * np.exp(SHIFTS[point])
    label = np.where(weighted[:, 1:].sum(1) > weighted[:, 0], 1 + weighted[:, 1:].argmax(1), 0)
    alone = weighted.argmax(1)  # normal, although benign or malignant is more probable
    differ = label != (alone if point == "balanced" else likeliest)
    assert differ.any(), "the rule and the shifts must matter for this test to mean something"
    np.testing.assert_array_equal(out.label, label)
    np.testing.assert_array_equal(out.segmented, label > 0)
    mask = expected("segment_breast", variables, scans).mask
    np.testing.assert_allclose(out.mask, np.where(label[:, None, None, None] > 0, mask, 0), atol=1e-5)
    if point == "sensitive":
        rescued = (likeliest == 0) & (label > 0)
        assert rescued.any() and out.mask[rescued].any((1, 2, 3)).all()
    if point == "specific":
        assert ((likeliest > 0) & (label == 0)).any()
    np.testing.assert_allclose(out.label_probs, outputs.label, atol=1e-6)  # probabilities stay calibrated
    dice = np.where(label > 0, jax.device_get(jax.jit(cascade.expected_dice)(out.mask)), 1)
    np.testing.assert_allclose(out.confidence, outputs.label[np.arange(len(label)), label] * dice, rtol=1e-4)
    if point == "balanced":
        before = predict(InferenceOptions(organ="breast"), BREAST)(variables, scans)  # without points
        np.testing.assert_array_equal(before.label, likeliest)


def test_an_operating_point_that_weights_lack_is_an_error_and_the_default_is_not(variables):
    fitted, classifiers = pointed(variables, SHIFTS), cascade.label_experts(TASKS)

    def point(variables, classifiers=classifiers, **options):
        return cascade.operating_point(InferenceOptions(**options), variables, classifiers)

    assert point(variables) is None and point(variables, organ="breast") is None
    assert point(fitted) == "balanced" and point(fitted, organ="brain") is None
    assert point(fitted, organ="breast", operating_point="sensitive") == "sensitive"
    with pytest.raises(
        ValueError, match="--operating_point=specific: these weights have no operating points for brain"
    ):
        point(fitted, operating_point="specific")
    with pytest.raises(ValueError, match=r"for brain, breast\. Leave the option out, or fit points with `mcis cal"):
        point(variables, operating_point="specific")
    with pytest.raises(ValueError, match="no network that gives a label"):
        point(variables, {}, operating_point="sensitive")
    shifts = jax.device_get(cascade.label_shifts(InferenceOptions(), fitted, classifiers))
    assert shifts.shape == (UNSUPPORTED_INDEX + 1, cascade.CLASSES) and not shifts.any()


def test_a_joint_network_is_run_once(monkeypatch, scans, variables):
    """Its label and its mask come from one run, next to an organ whose classifier and segmenter are two networks."""
    traced = []

    def counted(task):
        expert = linear_expert(task)

        def run(variables, image):
            traced.append(task.name)
            return expert(variables, image)

        return run

    monkeypatch.setattr(cascade, "make_expert", counted)
    experts = {name: task for name, task in TASKS.items() if name != "classify_breast"}
    jax.eval_shape(cascade.make_cascade(experts, InferenceOptions()), variables, scans)
    assert sorted(set(traced)) == sorted(experts) and traced.count("segment_breast") == traced.count("segment_brain")


def test_without_a_classifier_every_scan_is_segmented_and_has_no_label(variables, scans):
    plain = {"segment_breast": dataclasses.replace(TASKS["segment_breast"], label_loss=0.0)}
    out = predict(InferenceOptions(organ="breast"), plain)(variables, scans)
    assert (out.label == UNKNOWN).all() and out.segmented.all()
    np.testing.assert_allclose(out.mask, expected("segment_breast", variables, scans).mask, atol=1e-5)
    none = predict(InferenceOptions(organ="brain"), plain)(variables, scans)
    assert (none.label == UNKNOWN).all() and not none.segmented.any() and not none.mask.any()


def test_networks_that_cannot_make_a_cascade_are_rejected():
    with pytest.raises(ValueError, match=r"--organ=brain\|breast"):
        cascade.make_cascade({"classify_brain": TASKS["classify_brain"]}, InferenceOptions())
    with pytest.raises(ValueError, match="a router only"):
        cascade.make_cascade({"route": TASKS["route"]}, InferenceOptions())


@pytest.mark.parametrize("name", TASKS)
def test_a_single_task_gives_its_networks_outputs_and_nothing_else(name, variables, scans):
    task = TASKS[name]
    out = jax.device_get(jax.jit(cascade.make_single(task))(variables, scans))
    outputs = expected(name, variables, scans)
    assert np.isnan(out.novelty).all() and np.isnan(out.confidence).all() and (out.review == UNKNOWN).all()
    if task.organ is None:
        np.testing.assert_array_equal(out.organ, outputs.label.argmax(-1))
        np.testing.assert_array_equal(out.choice, outputs.label[:, : len(ORGANS)].argmax(-1))
        np.testing.assert_allclose(out.organ_prob, outputs.label[:, : len(ORGANS)].max(-1), atol=1e-6)
        assert (out.label == UNKNOWN).all() and not out.label_probs.any()
        return
    assert np.isnan(out.organ_prob).all()
    assert (out.organ == [organ.name for organ in ORGANS].index(task.organ)).all() and (out.choice == out.organ).all()
    assert (out.segmented == task.segments).all()
    np.testing.assert_array_equal(out.label, outputs.label.argmax(-1))
    np.testing.assert_allclose(out.label_probs[:, : outputs.label.shape[1]], outputs.label, atol=1e-5)
    np.testing.assert_allclose(out.mask, outputs.mask if task.segments else 0 * out.mask, atol=1e-5)
