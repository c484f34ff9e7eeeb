"""The cascade: route scans to their organs, classify them, segment their lesions; one function to be jitted.

The router sees the whole batch. Then the scans are sorted by organ and cut into chunks of one organ, and each chunk
runs its organ's network (`dispatch`): at most one partly filled chunk per organ, and no work for an absent organ. Where
an organ has a classifier and a separate segmenter this happens twice, so that only scans classified as lesions are
segmented; a joint network runs once and gives both.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mcis.inference.dispatch import dispatch
from mcis.inference.options import InferenceOptions
from mcis.inference.rows import UNSUPPORTED_INDEX
from mcis.ops.calibration import decide
from mcis.ops.metrics import MASK_THRESHOLD
from mcis.ops.ood import distance
from mcis.ops.points import BALANCED
from mcis.organs import ORGAN_NAMES, ORGANS, UNKNOWN
from mcis.tasks.apply import make_expert
from mcis.tasks.config import Task

CLASSES = max(len(organ.classes) for organ in ORGANS)
"""Width of `Prediction.label_probs`."""

LESION = np.zeros((UNSUPPORTED_INDEX + 1, CLASSES), bool)
"""Whether a class is a lesion, bool (UNSUPPORTED_INDEX + 1, CLASSES). The last row is that of unsupported scans."""
for _index, _organ in enumerate(ORGANS):
    LESION[_index, : len(_organ.classes)] = _organ.lesion_classes

THRESHOLD = 0.9
"""Smallest router probability that is accepted where no threshold was fitted."""

Experts = Mapping[str, Task]
"""Task name -> the task whose network is run."""
Predict = Callable[[dict[str, Any], jax.Array], "Prediction"]
"""Variables by task name and uint8 (B, S, S, 3) -> Prediction."""


@flax.struct.dataclass
class Prediction:
    """What the cascade predicts of B scans.

    Attributes:
      organ: int32 (B,), index into ORGANS or UNSUPPORTED_INDEX.
      choice: int32 (B,), the router's first choice, index into ORGANS; `organ` where the organ was given.
      organ_prob: float32 (B,), the router's probability of its first choice; NaN where the organ was given.
      novelty: float32 (B,), the OOD score: the distance from the router's training scans in units of the limit. Above 1
        the scan is unsupported. NaN where it was not computed.
      needed: float32 (B,), smallest `organ_prob` that is accepted; NaN where the organ was given.
      label: int32 (B,), index into the organ's classes, as the operating point decides it: not always the most probable
        one; -1 where unsupported or without a classifier.
      label_probs: float32 (B, CLASSES), zero beyond the organ's classes and where there is no label.
      segmented: bool (B,), whether a segmenter was run on the scan.
      mask: float32 (B, S, S, 1), lesion probability on the model input; 0 where not segmented.
      confidence: float32 (B,), the label's probability times the mask's `expected_dice`, each 1 where there is none;
        NaN where unsupported.
      review: int32 (B,), 1 where the confidence is below the organ's limit, which `mcis calibrate` fits, or the organ
        is uncertain, so that a person should check the scan, else 0; UNKNOWN where unsupported or where no limit was
        fitted.
      label_set: bool (B, CLASSES), the classes whose probability reaches the limits that `mcis calibrate` fits, and the
        decided one; all False without a label or where no limits were fitted.
      outer: float32 (B,), the threshold of the mask's outer outline, at most MASK_THRESHOLD; NaN where not segmented or
        where none was fitted.
      certain: float32 (B,), smallest `organ_prob` of a certain organ: an accepted scan below it is uncertain, which
        `mcis calibrate` fits; NaN where unsupported, where the organ was given or where no limit was fitted.
    """

    organ: jax.Array
    choice: jax.Array
    organ_prob: jax.Array
    novelty: jax.Array
    needed: jax.Array
    label: jax.Array
    label_probs: jax.Array
    segmented: jax.Array
    mask: jax.Array
    confidence: jax.Array
    review: jax.Array
    label_set: jax.Array
    outer: jax.Array
    certain: jax.Array


def supported(
    options: InferenceOptions, router: dict[str, Any], prob: jax.Array, features: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether the router accepts scans, bool (B,); and `novelty` and `needed` of Prediction, float32 (B,).

    Args:
      options: of which `threshold` and `novelty` are used.
      router: the router's variables. "novelty" (`ops.ood`) is there if it was trained with one, "threshold" and
        "reach", the multiplier of the OOD limit, if they were fitted.
      prob: float (B,), the router's largest probability.
      features: float (B, F), the router's.
    """
    threshold = router.get("threshold", THRESHOLD) if options.threshold is None else options.threshold
    needed = jnp.full(prob.shape, threshold, jnp.float32)
    accepted = jnp.asarray(prob >= needed)
    if not options.novelty or "novelty" not in router:
        return accepted, jnp.full(prob.shape, jnp.nan, jnp.float32), needed
    novelty = distance(router["novelty"], features) / (router["novelty"]["limit"] * router.get("reach", 1.0))
    return accepted & (novelty <= 1), novelty, needed


def label_experts(experts: Experts) -> dict[int, str]:
    """Organ index -> the task that classifies it: its classifier, else a joint segmentation network."""
    found: dict[int, str] = {}
    for index, organ in enumerate(ORGANS):
        for name in (f"classify_{organ.name}", f"segment_{organ.name}"):
            if name in experts and experts[name].make_model().classes:
                found.setdefault(index, name)
    return found


def mask_experts(experts: Experts) -> dict[int, str]:
    """Organ index -> the task that segments it."""
    return {i: f"segment_{organ.name}" for i, organ in enumerate(ORGANS) if f"segment_{organ.name}" in experts}


def make_cascade(experts: Experts, options: InferenceOptions) -> Predict:
    """The cascade as one function, to be jitted.

    Scans of an organ without a classifier have the label UNKNOWN and are all segmented; scans of an organ without a
    segmenter have no masks.

    Args:
      experts: the networks' tasks.
      options: of which `organ`, `threshold`, `novelty` and `operating_point` are used.

    Raises:
      ValueError: there is no router and no organ is given, or there is nothing but a router. The function itself raises
        it where the variables lack the operating point (`operating_point`).
    """
    if options.organ is None and "route" not in experts:
        raise ValueError("these weights have no router; name the organ: --organ=" + "|".join(ORGAN_NAMES))
    if not set(experts) - {"route"}:
        raise ValueError("these weights hold a router only: bundle a classifier or a segmenter with it")
    networks = {name: make_expert(task) for name, task in experts.items()}
    classifiers, segmenters = label_experts(experts), mask_experts(experts)
    separate = {index: name for index, name in segmenters.items() if classifiers.get(index) != name}

    def route(variables, image):
        batch = image.shape[0]
        if options.organ is not None:
            organ = jnp.full(batch, ORGAN_NAMES.index(options.organ), jnp.int32)
            return organ, organ, *(jnp.full(batch, jnp.nan, jnp.float32),) * 3
        outputs = networks["route"](variables["route"], image)
        assert outputs.label is not None
        assert outputs.features is not None
        probs = outputs.label[:, : len(ORGANS)]  # the last probability is that of no organ
        choice, prob = probs.argmax(-1).astype(jnp.int32), probs.max(-1)
        accepted, novelty, needed = supported(options, variables["route"], prob, outputs.features)
        # A picture of one value shows nothing, and networks were not trained on any: their answer would be arbitrary.
        accepted &= (image != image[:, :1, :1]).any((1, 2, 3))
        return jnp.where(accepted, choice, UNSUPPORTED_INDEX), choice, prob, novelty, needed

    def run_experts(variables, image, slot, names):
        """Label probabilities and masks from each scan's expert; zeros from an expert without the head."""

        def expert(name):
            def predict(scans):
                outputs = networks[name](variables[name], scans)
                return _padded(outputs.label, scans), _mask_or_zeros(outputs.mask, scans)

            return predict

        shapes = (CLASSES,), (*image.shape[1:3], 1)
        empty = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        return dispatch(slot, [expert(name) for name in names.values()], empty, image)

    def predict(variables: dict[str, Any], image: jax.Array) -> Prediction:
        organ, choice, organ_prob, novelty, needed = route(variables, image)
        probs, mask = run_experts(variables, image, _slot(organ, classifiers), classifiers)
        classified = probs.sum(-1) > 0
        shifts = label_shifts(options, variables, classifiers)
        lesions = pointed(variables, classifiers)[organ]
        decided = decide(probs) if shifts is None else decide(probs, shifts[organ], lesions)
        label = jnp.where(classified, decided, UNKNOWN).astype(jnp.int32)
        lesion = jnp.asarray(LESION)[organ, jnp.maximum(label, 0)]
        segmented = (_slot(organ, segmenters) < len(segmenters)) & (lesion | ~classified)
        slot = jnp.where(segmented, _slot(organ, separate), len(separate))
        _, separate_mask = run_experts(variables, image, slot, separate)
        mask = jnp.where(jnp.expand_dims(segmented, (1, 2, 3)), mask, 0.0) + separate_mask
        label_prob = jnp.take_along_axis(probs, decided[:, None], 1)[:, 0]
        confidence = jnp.where(classified, label_prob, 1.0) * jnp.where(segmented, expected_dice(mask), 1.0)
        confidence = jnp.where(organ < UNSUPPORTED_INDEX, confidence, jnp.nan)
        limit = review_limits(variables, classifiers)[organ]
        certain = jnp.nan if options.organ is not None else variables["route"].get("certain", jnp.nan)
        certain = jnp.where(organ < UNSUPPORTED_INDEX, jnp.asarray(certain, jnp.float32), jnp.nan)
        review = jnp.where(jnp.isnan(limit), UNKNOWN, (confidence < limit).astype(jnp.int32))
        needed_probs = set_limits(variables, classifiers)[organ]
        own = jax.nn.one_hot(decided, CLASSES, dtype=bool)
        label_set = ((probs >= needed_probs) | own) & ~jnp.isnan(needed_probs) & classified[:, None]
        return Prediction(
            organ=organ,
            choice=choice,
            organ_prob=organ_prob,
            novelty=novelty,
            needed=needed,
            label=label,
            label_probs=probs,
            segmented=segmented,
            mask=mask,
            confidence=confidence,
            review=jnp.where(organ_prob < certain, 1, review),
            label_set=label_set,
            outer=jnp.where(segmented, outer_thresholds(variables, segmenters)[organ], jnp.nan),
            certain=certain,
        )

    return predict


def _padded(label: jax.Array | None, scans: jax.Array) -> jax.Array:
    """Label probabilities (B, K), zeros appended: float32 (B, CLASSES)."""
    if label is None:
        return jnp.zeros((scans.shape[0], CLASSES), jnp.float32)
    return jnp.pad(label, ((0, 0), (0, CLASSES - label.shape[1])))


def _mask_or_zeros(mask: jax.Array | None, scans: jax.Array) -> jax.Array:
    return jnp.zeros((*scans.shape[:3], 1), jnp.float32) if mask is None else mask


def _slot(organ: jax.Array, of_organ: Mapping[int, str]) -> jax.Array:
    """Organ index (B,) -> position of its expert in `of_organ`, len(of_organ) where it has none."""
    table = np.full(UNSUPPORTED_INDEX + 1, len(of_organ), np.int32)
    table[list(of_organ)] = np.arange(len(of_organ))
    return jnp.asarray(table)[organ]


def expected_dice(mask: jax.Array) -> jax.Array:
    """The expected Dice of a mask if its probabilities are calibrated: float (B, H, W, 1) -> float32 (B,).

    2 sum(p m) / (sum(p) + sum(m)) for probabilities p and their thresholded mask m, one pixel added to numerator and
    denominator: the expected overlap over the expected sum of areas.
    """
    cut = (mask > MASK_THRESHOLD).astype(jnp.float32)
    axes = (1, 2, 3)
    return (2.0 * (mask * cut).sum(axes) + 1.0) / (mask.sum(axes) + cut.sum(axes) + 1.0)


def operating_point(
    options: InferenceOptions, variables: Mapping[str, Any], classifiers: Mapping[int, str]
) -> str | None:
    """The operating point at which the cascade decides; None where it gives the most probable class.

    Weights that were never calibrated have no points. Asked for the default they give the most probable class, as they
    did before there were points. Any other point is an error and not a note: labels that were not decided as asked look
    like those that were, and a note is lost among many scans.

    Args:
      options: of which `organ` and `operating_point` are used.
      variables: by task name.
      classifiers: of `label_experts`.

    Raises:
      ValueError: another point than the default is asked for, and the network of an organ's label has none, or there is
        no such network.
    """
    used = {k: name for k, name in classifiers.items() if options.organ in (None, ORGAN_NAMES[k])}
    lacking = [ORGAN_NAMES[k] for k, name in used.items() if "points" not in variables[name].get("calibration", {})]
    if options.operating_point != BALANCED and (lacking or not used):
        what = f"no operating points for {', '.join(lacking)}" if used else "no network that gives a label"
        raise ValueError(
            f"--operating_point={options.operating_point}: these weights have {what}. Leave the option out, or fit "
            "points with `mcis calibrate`"
        )
    return options.operating_point if len(lacking) < len(used) else None


def label_shifts(
    options: InferenceOptions, variables: Mapping[str, Any], classifiers: Mapping[int, str]
) -> jax.Array | None:
    """The shift of `decide` for each organ and class, float32 (UNSUPPORTED_INDEX + 1, CLASSES), 0 beyond its classes.

    None where there is none to apply; arguments and errors of `operating_point`.
    """
    if (point := operating_point(options, variables, classifiers)) is None:
        return None
    shifts = [jnp.zeros(CLASSES, jnp.float32)] * (UNSUPPORTED_INDEX + 1)
    for index, name in classifiers.items():
        if "points" in (fitted := variables[name].get("calibration", {})):
            shift = jnp.asarray(fitted["points"][point], jnp.float32)
            shifts[index] = jnp.pad(shift, (0, CLASSES - len(shift)))
    return jnp.stack(shifts)


def pointed(variables: Mapping[str, Any], classifiers: Mapping[int, str]) -> jax.Array:
    """LESION, False for organs without operating points, whose label is the most probable class."""
    fitted = [k for k, name in classifiers.items() if "points" in variables[name].get("calibration", {})]
    return jnp.asarray(LESION & np.isin(np.arange(UNSUPPORTED_INDEX + 1), fitted)[:, None])


def review_limits(variables: dict[str, Any], classifiers: Mapping[int, str]) -> jax.Array:
    """The confidence below which a scan of each organ is for review, float32 (UNSUPPORTED_INDEX + 1,); NaN for none."""
    limits = [jnp.float32(jnp.nan)] * (UNSUPPORTED_INDEX + 1)
    for index, name in classifiers.items():
        if "review" in (fitted := variables[name].get("calibration", {})):
            limits[index] = jnp.asarray(fitted["review"], jnp.float32)
    return jnp.stack(limits)


def set_limits(variables: Mapping[str, Any], classifiers: Mapping[int, str]) -> jax.Array:
    """The least probability with which a class is in a label set, float32 (UNSUPPORTED_INDEX + 1, CLASSES).

    NaN beyond the classes of an organ, and where no limits were fitted.
    """
    limits = [jnp.full(CLASSES, jnp.nan, jnp.float32)] * (UNSUPPORTED_INDEX + 1)
    for index, name in classifiers.items():
        if "label_set" in (fitted := variables[name].get("calibration", {})):
            limit = jnp.asarray(fitted["label_set"], jnp.float32)
            limits[index] = jnp.pad(limit, (0, CLASSES - len(limit)), constant_values=jnp.nan)
    return jnp.stack(limits)


def outer_thresholds(variables: Mapping[str, Any], segmenters: Mapping[int, str]) -> jax.Array:
    """The threshold of each organ's outer outline, float32 (UNSUPPORTED_INDEX + 1,); NaN where none was fitted."""
    found = [jnp.float32(jnp.nan)] * (UNSUPPORTED_INDEX + 1)
    for index, name in segmenters.items():
        if "outer" in variables[name]:
            found[index] = jnp.asarray(variables[name]["outer"], jnp.float32)
    return jnp.stack(found)


def make_single(task: Task) -> Predict:
    """One task's network alone on every scan, in the form of the cascade; what the task does not predict is empty.

    A joint network gives label and mask independently: no label removes a mask.
    """
    expert = make_expert(task)

    def predict(variables: dict[str, Any], image: jax.Array) -> Prediction:
        outputs = expert(variables[task.name], image)
        batch, probs = image.shape[0], outputs.label
        nothing, unknown = jnp.full(batch, jnp.nan, jnp.float32), jnp.full(batch, UNKNOWN, jnp.int32)
        choice = organ = jnp.full(batch, 0 if task.organ is None else ORGAN_NAMES.index(task.organ), jnp.int32)
        label, organ_prob = unknown, nothing
        if task.organ is None:
            assert probs is not None
            organ, of_organs, probs = probs.argmax(-1).astype(jnp.int32), probs[:, : len(ORGANS)], None
            choice, organ_prob = of_organs.argmax(-1).astype(jnp.int32), of_organs.max(-1)
        elif probs is not None:
            label = probs.argmax(-1).astype(jnp.int32)
        return Prediction(
            organ=organ,
            choice=choice,
            organ_prob=organ_prob,
            novelty=nothing,
            needed=nothing,
            label=label,
            label_probs=_padded(probs, image),
            segmented=jnp.full(batch, outputs.mask is not None),
            mask=_mask_or_zeros(outputs.mask, image),
            confidence=nothing,
            review=unknown,
            label_set=jnp.zeros((batch, CLASSES), bool),
            outer=nothing,
            certain=nothing,
        )

    return predict
