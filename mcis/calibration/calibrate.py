"""`mcis calibrate SET RUN...`: put the probabilities and limits of a set of weights right on scans no network has seen.

The runs are folds: each was trained without one fold of the scans and kept its last epoch, so that it has neither
learned from that fold nor been chosen by it. Together they give every scan an answer as a stranger's scan would get it.
From these are fitted

- for each task with labels, the calibration of its probabilities (`ops.calibration`);
- for each organ, the confidence below which a scan is for review: a fifth of the scans lies there;
- for the router, the limit of what it refuses: a hundredth of the known scans lies beyond.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mcis.calibration.rejection import fit_router
from mcis.checkpoints.provenance import check_fold
from mcis.data import batches, dataset
from mcis.ops.calibration import fit_calibration, reliability
from mcis.ops.metrics import dice, label_scores
from mcis.organs import ORGANS
from mcis.tasks.config import Task

BATCH = 16
REVIEW = 0.20
"""Share of scans that are for review."""
GOOD_DICE = 0.5
"""A lesion's mask below it counts as an error."""

Answers = dict[str, np.ndarray]
"""Columns of N scans, each answered by the network that has not seen it: fingerprint, group, source str; label int, the
task's target; has_mask and thumbnail bool; and, where the network has the head, probs float (N, K); expected_dice float
and the counts both, predicted, true int of the mask on the canvas; and the router's novelty float, in units of its
limit."""


def out_of_fold(folds: Sequence[Any], scans: dataset.Scans) -> Answers:
    """Answers of fold runs of one task to the scans each has left out.

    Args:
      folds: `bundle.Weights` of the runs.
      scans: among them all that were left out.

    Raises:
      ValueError: a scan was left out by two of the runs, or not found.
    """
    from mcis.train.step import collect

    task = folds[0].task
    label = batches.targets(scans, task)
    parts: dict[str, list[np.ndarray]] = collections.defaultdict(list)
    taken = np.zeros(len(scans), bool)
    answer = make_answer(task)
    for weights in folds:
        left_out = set(weights.manifest["fingerprints"]["validation"])
        mine = np.isin(scans.fingerprint, list(left_out))
        if (mine & taken).any():
            raise ValueError(f"two runs of {task.name} left out the same scans; name each fold once")
        if len(set(scans.fingerprint[mine])) != len(left_out):
            raise ValueError(
                f"of the {len(left_out)} scans that a run of {task.name} left out, {mine.sum()} are prepared here; "
                "build the sources it was trained on, or say with --data_dir where they are"
            )
        taken |= mine
        chosen = scans.take(mine)
        for name in ("fingerprint", "group", "source", "has_mask", "thumbnail"):
            parts[name].append(getattr(chosen, name))
        parts["label"].append(label[mine])
        for name, value in collect(answer, weights.variables, chosen, label[mine], BATCH).items():
            parts[name].append(value)
    return {name: np.concatenate(values) for name, values in parts.items()}


def make_answer(task: Task) -> Any:
    """A jitted function of (variables, Batch) to the columns of Answers that come from a network."""
    import jax

    from mcis.inference.cascade import expected_dice
    from mcis.ops.metrics import MASK_THRESHOLD, mask_counts
    from mcis.ops.ood import distance
    from mcis.tasks.apply import make_expert

    expert = make_expert(task)

    def answer(variables, batch):
        outputs = expert(variables, batch.image)
        found = {}
        if outputs.label is not None:
            found["probs"] = outputs.label
        if outputs.mask is not None:
            found |= {
                "expected_dice": expected_dice(outputs.mask),
                **mask_counts(outputs.mask > MASK_THRESHOLD, batch.mask),
            }
        if "novelty" in variables and outputs.features is not None:
            found["novelty"] = distance(variables["novelty"], outputs.features) / variables["novelty"]["limit"]
        return found

    return jax.jit(answer)


def fit_labels(answers: Answers) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The calibration of a task's label probabilities, and what it changes: figures before and after."""
    known = answers["label"] >= 0
    probs, label = answers["probs"][known], answers["label"][known]
    calibration = fit_calibration(probs, label)
    after = apply(calibration, probs)
    facts: dict[str, Any] = {"scans": len(label), "groups": len(np.unique(answers["group"][known]))}
    for when, p in (("before", probs), ("after", after)):
        said = reliability(p.max(1), p.argmax(1) == label)
        facts[when] = label_scores(p, label) | {"calibration_error": said.error, "by_chance_up_to": said.error_high}
    return calibration, facts


def apply(calibration: Mapping[str, np.ndarray], probs: np.ndarray) -> np.ndarray:
    """`ops.calibration.calibrated` on the host."""
    import jax.numpy as jnp

    from mcis.ops.calibration import calibrated

    return np.asarray(calibrated(jnp.asarray(probs), dict(calibration)))


def fit_review(organ: int, labels: Answers, masks: Answers | None) -> tuple[float, dict[str, Any]]:
    """The confidence below which REVIEW of an organ's scans lie, and how many of the errors those hold.

    Confidence is the cascade's: the calibrated probability of the label, times the mask's expected Dice where the label
    is a lesion's. An error is a wrong label, or a lesion whose mask has a Dice below GOOD_DICE.

    Args:
      organ: index into ORGANS.
      labels: answers of the network that gives the label, its probabilities calibrated.
      masks: answers of the network that gives the mask; None where there is none.

    Raises:
      ValueError: masks of some of the scans are missing.
    """
    said, judged = labels["probs"].argmax(1), labels["label"] >= 0
    sure, wrong = labels["probs"].max(1), said != labels["label"]
    lesion = np.isin(said, [k for k in range(len(ORGANS[organ].classes)) if ORGANS[organ].is_lesion(k)])
    if masks is not None:
        row_of = {name: row for row, name in enumerate(masks["fingerprint"].tolist())}
        without = sum(name not in row_of for name in labels["fingerprint"].tolist())
        if without:
            raise ValueError(
                f"{without} of the {len(labels['label'])} {ORGANS[organ].name} scans whose label was answered have no "
                "mask answered: name the same folds of the classifier and of the segmenter"
            )
        rows = np.array([row_of[name] for name in labels["fingerprint"].tolist()])
        sure = sure * np.where(lesion, masks["expected_dice"][rows], 1.0)
        overlap = dice(*(masks[name][rows] for name in ("both", "predicted", "true")))
        wrong |= masks["has_mask"][rows] & (masks["true"][rows] > 0) & lesion & (overlap < GOOD_DICE)
    limit = float(np.quantile(sure[judged], REVIEW))
    flagged = sure[judged] < limit
    wrong = wrong[judged]
    return limit, {
        "scans": int(judged.sum()),
        "errors": int(wrong.sum()),
        "flagged": float(flagged.mean()),
        "errors_flagged": float(wrong[flagged].sum() / max(wrong.sum(), 1)),
        "error_rate_flagged": float(wrong[flagged].mean()) if flagged.any() else 0.0,
        "error_rate_others": float(wrong[~flagged].mean()),
    }


def calibrate(folder: str, runs: Sequence[str], data_dir: str | None = None) -> dict[str, dict[str, Any]]:
    """Fit what the module's text says and write it into the set of weights; task name -> the facts of its fit.

    Raises:
      CheckpointError, MissingData, ValueError: no such set, run or data; runs of a task that the set does not have, or
        of another network than the set's; runs whose left-out scans have chosen their epoch.
    """
    from mcis.checkpoints import checkpoint
    from mcis.checkpoints.bundle import load_bundle, load_weights
    from mcis.inference.cascade import label_experts, mask_experts

    bundle = load_bundle(folder)
    folds: dict[str, list[Any]] = {}
    for run in runs:
        weights = load_weights(run)
        _check_run(run, weights, bundle)
        folds.setdefault(weights.task.name, []).append(weights)
    answers: dict[str, Answers] = {}
    for name, members in folds.items():
        task = members[0].task
        parts = [dataset.load(task.sources, split, data_dir, task.organ) for split in ("train", "validation")]
        answers[name] = out_of_fold(members, dataset.Scans.join(parts))
    fitted: dict[str, dict[str, Any]] = {name: {} for name in answers}
    facts: dict[str, dict[str, Any]] = {name: {} for name in answers}
    experts = {name: weights.task for name, weights in bundle.items()}
    classifiers, segmenters = label_experts(experts), mask_experts(experts)
    for name in answers:
        if name == "route":
            limits, facts[name]["refusal"] = fit_router(answers[name])
            fitted[name] = {key: np.float32(limit) for key, limit in limits.items()}
        elif "probs" in answers[name]:
            calibration, facts[name]["labels"] = fit_labels(answers[name])
            answers[name] = answers[name] | {"probs": apply(calibration, answers[name]["probs"])}
            fitted[name]["calibration"] = calibration
    for organ, name in classifiers.items():
        if name in answers:
            limit, facts[name]["review"] = fit_review(organ, answers[name], answers.get(segmenters.get(organ, "")))
            fitted[name]["calibration"] |= {"review": np.float32(limit)}
    for name, more in fitted.items():
        weights = bundle[name]
        half = any(dtype == "float16" for dtype, _ in weights.manifest["arrays"].values())
        manifest = weights.manifest | {"calibration": facts[name]}
        checkpoint.save(pathlib.Path(folder) / name, weights.variables | more, manifest, half=half)
    return facts


def _check_run(run: str, weights: Any, bundle: Mapping[str, Any]) -> None:
    """ValueError unless a run's left-out scans can stand for scans that the set's network has not seen."""
    task = weights.task
    if task.name not in bundle:
        raise ValueError(f"{run} holds {task.name}, which the set does not have; it has {', '.join(bundle)}")
    check_fold(run, task, weights.manifest)
    ours, theirs = (json.dumps(dataclasses.asdict(t), sort_keys=True) for t in (task, bundle[task.name].task))
    if ours != theirs:
        raise ValueError(f"{run} was trained otherwise than {task.name} of the set; its answers say nothing of that")
