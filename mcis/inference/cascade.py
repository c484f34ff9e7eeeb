"""The cascade: route a scan, classify it, outline its lesion; one jitted function of variables and a batch.

A batch is routed whole; then its scans are sorted by organ, cut into chunks of one organ, and each chunk runs its
organ's expert under `lax.switch`: at most one extra chunk an organ, no work for an organ that is absent. Where an organ
has a classifier and a segmenter this happens twice, so that only what is called a lesion is segmented; a joint network
runs once and gives both. Nothing here knows of training: variables are arguments.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mcis.inference.dispatch import dispatch
from mcis.ops.metrics import MASK_THRESHOLD
from mcis.ops.ood import distance
from mcis.organs import ORGAN_NAMES, ORGANS, UNKNOWN
from mcis.tasks.apply import make_expert
from mcis.tasks.config import Task

Array = jax.Array | np.ndarray

UNSUPPORTED = len(ORGANS)
"""Organ index of a scan that is none of ORGANS."""

CLASSES = max(len(organ.classes) for organ in ORGANS)
"""Width of `Prediction.label_probs`."""


LESION = np.array(
    [[organ.is_lesion(k) if k < len(organ.classes) else False for k in range(CLASSES)] for organ in ORGANS]
)

Experts = Mapping[str, Task]
"""Task name -> the task whose network serves it."""


@flax.struct.dataclass
class Prediction:
    """What the cascade says of B scans.

    Attributes:
      organ: int32 (B,), index into ORGANS or UNSUPPORTED.
      choice: int32 (B,), the router's first choice, index into ORGANS; the organ itself where it was given.
      organ_prob: float32 (B,), the router's probability of its first choice; NaN where the organ was given.
      novelty: float32 (B,), how far the scan lies from those the router learned from, in units of the limit: above 1
        it is unsupported. NaN where that was not asked.
      needed: float32 (B,), the smallest `organ_prob` that is believed; NaN where the organ was given.
      label: int32 (B,), index into the organ's classes, -1 where unsupported or not asked.
      label_probs: float32 (B, CLASSES), zero past the organ's classes and where there is no label.
      segmented: bool (B,), whether the scan was given to a segmenter.
      mask: float32 (B, S, S, 1), lesion probability on the canvas; 0 where not segmented.
      confidence: float32 (B,), the label's probability times the mask's `expected_dice`, each 1 where there is none;
        NaN where unsupported.
      review: int32 (B,), 1 where the confidence is below the organ's limit, as `mcis calibrate` set it, so that
        somebody should look, else 0; UNKNOWN where unsupported or where no limit was set.
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


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the cascade is run; a change compiles it anew.

    Attributes:
      organ: index of the organ of every scan; None asks the router.
      threshold: the router's smallest probability; below it a scan is unsupported. None takes the one that was fitted
        (`mcis calibrate`), THRESHOLD where none was.
      novelty: whether a scan outside the router's training distribution is unsupported.
    """

    organ: int | None = None
    threshold: float | None = None
    novelty: bool = True


THRESHOLD = 0.9
"""The router's smallest probability where none was fitted."""


def supported(
    settings: Settings, router: dict[str, Any], prob: Array, features: Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether scans are of an organ the cascade knows, bool (B,); `novelty` and `needed`, float32 (B,), of Prediction.

    Args:
      settings: the thresholds.
      router: the router's variables, with "novelty" where it was trained with one (`ops.novelty`), and "threshold"
        and "reach", how far beyond that limit a scan may lie, where they were fitted.
      prob: float (B,), the router's largest probability.
      features: float (B, F), the router's.
    """
    fitted = router.get("threshold", THRESHOLD) if settings.threshold is None else settings.threshold
    needed = jnp.full(prob.shape, fitted, jnp.float32)
    known = jnp.asarray(prob >= needed)
    if not settings.novelty or "novelty" not in router:
        return known, jnp.full(known.shape, jnp.nan, jnp.float32), needed
    limit = router["novelty"]["limit"] * router.get("reach", 1.0)
    novelty = distance(router["novelty"], features) / limit
    return known & (novelty <= 1), novelty, needed


def check_experts(experts: Experts, settings: Settings) -> None:
    """ValueError unless the tasks at hand can answer."""
    if settings.organ is None and "route" not in experts:
        raise ValueError("these weights have no router; name the organ: --organ=" + "|".join(o.name for o in ORGANS))
    if not set(experts) - {"route"}:
        raise ValueError("these weights have a router and nothing else: bundle a classifier or a segmenter with it")


def label_experts(experts: Experts) -> dict[int, str]:
    """Organ index -> the task whose label head classifies it: its classifier, else a joint segmentation network."""
    found: dict[int, str] = {}
    for index, organ in enumerate(ORGANS):
        for name in (f"classify_{organ.name}", f"segment_{organ.name}"):
            if name in experts and experts[name].make_model().classes:
                found.setdefault(index, name)
    return found


def mask_experts(experts: Experts) -> dict[int, str]:
    """Organ index -> the task that segments it."""
    names = {index: f"segment_{organ.name}" for index, organ in enumerate(ORGANS)}
    return {index: name for index, name in names.items() if name in experts}


def make_cascade(experts: Experts, settings: Settings) -> Callable[[dict[str, Any], jax.Array], Prediction]:
    """The cascade as one function, to be jitted: (variables by task name, uint8 (B, S, S, 3)) -> Prediction.

    An organ without a classifier has label UNKNOWN and every scan of it is segmented; one without a segmenter has no
    masks.

    Raises:
      ValueError: the experts cannot answer with these settings.
    """
    check_experts(experts, settings)
    run = {name: make_expert(task) for name, task in experts.items()}
    classifiers, segmenters = label_experts(experts), mask_experts(experts)
    apart = {index: name for index, name in segmenters.items() if classifiers.get(index) != name}

    def route(variables, image):
        batch = image.shape[0]
        if settings.organ is not None:
            organ, not_asked = jnp.full(batch, settings.organ, jnp.int32), jnp.full(batch, jnp.nan, jnp.float32)
            return organ, organ, not_asked, not_asked, not_asked
        outputs = run["route"](variables["route"], image)
        assert outputs.label is not None
        assert outputs.features is not None
        among = outputs.label[:, : len(ORGANS)]  # what follows is the probability of none of them
        choice, prob = among.argmax(-1).astype(jnp.int32), among.max(-1)
        known, novelty, needed = supported(settings, variables["route"], prob, outputs.features)
        return jnp.where(known, choice, UNSUPPORTED), choice, prob, novelty, needed

    def classify(variables, image, organ):
        """Label probabilities, and the masks of joint networks."""
        none = jnp.zeros((image.shape[0], CLASSES), jnp.float32), jnp.zeros((*image.shape[:3], 1), jnp.float32)
        if not classifiers:
            return none

        def expert(index, name):
            def answer(scans):
                outputs = run[name](variables[name], scans)
                label, mask = outputs.label, outputs.mask if segmenters.get(index) == name else None
                assert label is not None  # `label_experts` chose it for its label head
                if mask is None:
                    mask = jnp.zeros((*scans.shape[:3], 1), jnp.float32)
                return jnp.pad(label, ((0, 0), (0, CLASSES - label.shape[1]))), mask

            return answer

        empty = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), none)
        return dispatch(_slot(organ, classifiers), [expert(*item) for item in classifiers.items()], empty, image)

    def segment(variables, image, organ, wanted):
        """Masks of the scans whose organ has a segmenter of its own."""
        if not apart:
            return jnp.zeros((*image.shape[:3], 1), jnp.float32)
        slot = jnp.where(wanted, _slot(organ, apart), len(apart))

        def expert(name):
            def mask(scans):
                found = run[name](variables[name], scans).mask
                assert found is not None  # `mask_experts` chose it for its mask
                return found

            return mask

        empty = jax.ShapeDtypeStruct((*image.shape[1:3], 1), jnp.float32)
        return dispatch(slot, [expert(name) for name in apart.values()], empty, image)

    def predict(variables: dict[str, Any], image: jax.Array) -> Prediction:
        organ, choice, organ_prob, novelty, needed = route(variables, image)
        probs, mask = classify(variables, image, organ)
        classified = probs.sum(-1) > 0
        label = jnp.where(classified, probs.argmax(-1), UNKNOWN).astype(jnp.int32)
        lesion = jnp.asarray(LESION)[jnp.minimum(organ, UNSUPPORTED - 1), jnp.maximum(label, 0)]
        segmented = (_slot(organ, segmenters) < len(segmenters)) & (lesion | ~classified)
        mask = jnp.where(jnp.expand_dims(segmented, (1, 2, 3)), mask, 0.0)
        mask = mask + segment(variables, image, organ, segmented)
        sure = jnp.where(classified, probs.max(-1), 1.0) * jnp.where(segmented, expected_dice(mask), 1.0)
        confidence = jnp.where(organ < UNSUPPORTED, sure, jnp.nan)
        limit = review_limits(variables, classifiers)[organ]
        review = jnp.where(jnp.isnan(limit), UNKNOWN, (confidence < limit).astype(jnp.int32))
        asked = (choice, organ_prob, novelty, needed)
        return Prediction(organ, *asked, label, probs, segmented, mask, confidence, review)

    return predict


def expected_dice(mask: jax.Array) -> jax.Array:
    """The Dice that a mask can expect of itself if its probabilities are right: float (B, H, W, 1) -> float32 (B,).

    2 sum(p m) / (sum(p) + sum(m)) for probabilities p and the mask m that is cut from them, one pixel added to both
    sides: the overlap's expectation over that of the areas.
    """
    cut = (mask > MASK_THRESHOLD).astype(jnp.float32)
    axes = (1, 2, 3)
    return (2.0 * (mask * cut).sum(axes) + 1.0) / (mask.sum(axes) + cut.sum(axes) + 1.0)


def review_limits(variables: dict[str, Any], classifiers: Mapping[int, str]) -> jax.Array:
    """The confidence below which a scan of each organ is for review, float32 (UNSUPPORTED + 1,); NaN for none.

    It lies with the network that gives the organ's label.
    """
    limits = [jnp.float32(jnp.nan)] * (UNSUPPORTED + 1)
    for index, name in classifiers.items():
        if "review" in (fitted := variables[name].get("calibration", {})):
            limits[index] = jnp.asarray(fitted["review"], jnp.float32)
    return jnp.stack(limits)


def _slot(organ: jax.Array, of_organ: Mapping[int, str]) -> jax.Array:
    """Organ index (B,) -> position of its expert in `of_organ`, len(of_organ) where it has none."""
    table = np.full(UNSUPPORTED + 1, len(of_organ), np.int32)
    table[list(of_organ)] = np.arange(len(of_organ))
    return jnp.asarray(table)[organ]


def make_single(task: Task) -> Callable[[dict[str, Any], jax.Array], Prediction]:
    """One task's network alone on every scan, in the cascade's form: what the task does not say is left unasked.

    The organ is the task's and was not asked of a router: its probability is NaN. A joint network says label and mask,
    each by itself: no label takes a mask away.
    """
    expert = make_expert(task)

    def predict(variables: dict[str, Any], image: jax.Array) -> Prediction:
        outputs = expert(variables[task.name], image)
        batch = image.shape[0]
        unknown, zeros = jnp.full(batch, UNKNOWN, jnp.int32), jnp.zeros((*image.shape[:3], 1), jnp.float32)
        blank, no = jnp.zeros((batch, CLASSES), jnp.float32), jnp.zeros(batch, bool)
        not_asked = jnp.full(batch, jnp.nan, jnp.float32)

        def said(organ, choice, organ_prob, label, probs, segmented, mask):
            asked = (choice, organ_prob, not_asked, not_asked)
            return Prediction(organ, *asked, label, probs, segmented, mask, not_asked, unknown)

        if task.organ is None:
            assert outputs.label is not None
            among = outputs.label[:, : len(ORGANS)]
            organ, choice = outputs.label.argmax(-1).astype(jnp.int32), among.argmax(-1).astype(jnp.int32)
            return said(organ, choice, among.max(-1), unknown, blank, no, zeros)
        organ = jnp.full(batch, ORGAN_NAMES.index(task.organ), jnp.int32)
        label, probs = unknown, blank
        if outputs.label is not None:
            probs = jnp.pad(outputs.label, ((0, 0), (0, CLASSES - outputs.label.shape[1])))
            label = probs.argmax(-1).astype(jnp.int32)
        mask, segmented = (zeros, no) if outputs.mask is None else (outputs.mask, ~no)
        return said(organ, organ, not_asked, label, probs, segmented, mask)

    return predict
