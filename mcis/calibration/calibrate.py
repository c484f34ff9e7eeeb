"""Calibration (`mcis calibrate`): fit the probabilities and limits of a bundle on scans unseen by the networks.

The runs are folds: each was trained without one fold of the scans and kept its last epoch, so that its held-out scans
neither trained nor chose it. Together they predict every scan by a network that has not seen its patient. Fitted to
these predictions:

- for each task with labels, the calibration of its probabilities (`ops.calibration`);
- for each organ, the operating points (`calibration.operating_points`); and at the balanced point the confidence below
  which a scan is for review (`calibration.review`) and the limits of label sets and outer outlines
  (`calibration.uncertainty`);
- for the router, the limits at which it rejects a hundredth of the known scans of the worst source.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mcis.calibration.operating_points import fit_points
from mcis.calibration.rejection import fit_router
from mcis.calibration.review import aligned, decided_labels, fit_review
from mcis.calibration.uncertainty import THRESHOLDS, fit_label_set, fit_outer, held_out
from mcis.checkpoints import checkpoint
from mcis.checkpoints.bundle import Weights, load_bundle, load_weights
from mcis.checkpoints.provenance import check_folds
from mcis.data import dataset
from mcis.data.batches import Batch, targets
from mcis.inference.cascade import LESION, expected_dice, label_experts, mask_experts
from mcis.inference.folds import held_out_scans
from mcis.inference.rows import Rows
from mcis.ops.calibration import calibrated, fit_calibration, reliability
from mcis.ops.metrics import MASK_THRESHOLD, label_scores, mask_counts
from mcis.ops.ood import distance
from mcis.ops.points import BALANCED
from mcis.organs import ORGANS
from mcis.tasks.apply import make_expert
from mcis.tasks.config import Task
from mcis.train.step import collect

BATCH = 16


def out_of_fold(runs: Mapping[str, Weights], scans: dataset.Scans) -> Rows:
    """Predictions of fold runs of one task for the scans that each holds out; pixel counts on the model input.

    Args:
      runs: weights by the run's path; their held-out scans are disjoint.
      scans: which include all held-out ones.

    Raises:
      ValueError: a held-out scan is missing.
    """
    task = next(iter(runs.values())).task
    label, predict = targets(scans, task), make_predict(task)
    manifests = {run: weights.manifest for run, weights in runs.items()}
    parts = []
    for run, index in held_out_scans(manifests, scans.fingerprint, complete=True).items():
        chosen = scans.take(index)
        names = ("source", "group", "scan_id", "has_mask", "fingerprint", "thumbnail")
        predicted = collect(predict, runs[run].variables, chosen, label[index], BATCH)
        parts.append(Rows(label=label[index], **{name: getattr(chosen, name) for name in names}, **predicted))
    return Rows.concatenate(parts)


def make_predict(task: Task) -> Callable[[dict[str, Any], Batch], dict[str, jax.Array]]:
    """A jitted function of variables and Batch to the columns of Rows that come from a network."""
    expert = make_expert(task)

    def predict(variables, batch):
        outputs = expert(variables, batch.image)
        found = {}
        if outputs.label is not None:
            found["probs"] = outputs.label
        if outputs.mask is not None:
            found["expected_dice"] = expected_dice(outputs.mask)
            found |= at_thresholds(outputs.mask, batch.mask)
            found |= mask_counts(outputs.mask > MASK_THRESHOLD, batch.mask)
        if "novelty" in variables and outputs.features is not None:
            found["novelty"] = distance(variables["novelty"], outputs.features) / variables["novelty"]["limit"]
        return found

    return jax.jit(predict)


def at_thresholds(mask: jax.Array, true: jax.Array) -> dict[str, jax.Array]:
    """`inside` and `area` of Rows, int32 (B, T), of mask probabilities and true masks, (B, H, W, 1) each."""

    def count(threshold: jax.Array) -> dict[str, jax.Array]:
        found = mask_counts(mask > threshold, true)
        return {"inside": found["both"], "area": found["predicted"]}

    return jax.tree.map(lambda x: x.T, jax.lax.map(count, jnp.asarray(THRESHOLDS)))


def fit_labels(rows: Rows) -> tuple[dict[str, np.ndarray], Rows, dict[str, Any]]:
    """The calibration of a task's label probabilities; the rows with calibrated ones; and metrics before and after.

    All scans count alike in the fit. "left_one_source_out" compares it with a fit in which all sources count alike, on
    sources that were left out of the fit.
    """
    known = rows.label >= 0
    calibration = fit_calibration(rows.probs[known], rows.label[known])
    after = dataclasses.replace(rows, probs=np.asarray(jax.jit(calibrated)(jnp.asarray(rows.probs), calibration)))
    facts: dict[str, Any] = {"scans": int(known.sum()), "groups": len(np.unique(rows.group[known]))}
    for when, part in (("before", rows.take(known)), ("after", after.take(known))):
        found = reliability(part.probs.max(1), part.probs.argmax(1) == part.label)
        errors = {"calibration_error": found.error, "by_chance_up_to": found.error_high}
        facts[when] = label_scores(part.probs, part.label) | errors
    if (left_out := _temperatures(rows.take(known))) is not None:
        facts["left_one_source_out"] = left_out
    return calibration, after, facts


def _temperatures(rows: Rows) -> dict[str, Any] | None:
    """Two ways to fit, measured on scans of the sources that each fit left out; None with one source.

    {"scans_alike", "sources_alike": {"nll" and "calibration_error" of all scans, "nll_of_sources": mean over sources}}.
    """

    def apply(part: np.ndarray, others: np.ndarray, alike: bool) -> np.ndarray:
        _, of_source, scans = np.unique(rows.source[part], return_inverse=True, return_counts=True)
        fit = fit_calibration(rows.probs[part], rows.label[part], None if alike else 1.0 / scans[of_source])
        return np.asarray(calibrated(jnp.asarray(rows.probs[others]), fit))

    found = {}
    for name, alike in (("scans_alike", True), ("sources_alike", False)):
        probs = held_out(rows, functools.partial(apply, alike=alike))["left_one_source_out"]
        if probs is None:
            return None
        sources = [rows.source == source for source in np.unique(rows.source)]
        found[name] = {
            "nll": label_scores(probs, rows.label)["nll"],
            "nll_of_sources": float(np.mean([label_scores(probs[one], rows.label[one])["nll"] for one in sources])),
            "calibration_error": reliability(probs.max(1), probs.argmax(1) == rows.label).error,
        }
    return found


def calibrate(folder: str, runs: Sequence[str], data_dir: str | None = None) -> dict[str, dict[str, Any]]:
    """Calibrate a bundle and write it anew; task name -> facts about the fit.

    Raises:
      CheckpointError, MissingData, ValueError: there is no such bundle, run or data; runs that are no folds, have other
        settings than the bundle, or are of a task that it does not have.
    """
    bundle = load_bundle(folder)
    rows: dict[str, Rows] = {}
    for name, folds in _load_runs(runs, bundle).items():
        task = bundle[name].task
        parts = [dataset.load(task.sources, split, data_dir, task.organ) for split in ("train", "validation")]
        rows[name] = out_of_fold(folds, dataset.Scans.join(parts))
    fitted: dict[str, dict[str, Any]] = {name: {} for name in rows}
    facts: dict[str, dict[str, Any]] = {name: {} for name in rows}
    for name in rows:
        if name == "route":
            limits, facts[name]["refusal"] = fit_router(rows[name])
            fitted[name] = {key: np.float32(limit) for key, limit in limits.items()}
        elif rows[name].probs is not None:
            fitted[name]["calibration"], rows[name], facts[name]["labels"] = fit_labels(rows[name])
    tasks = {name: weights.task for name, weights in bundle.items()}
    for organ, name in label_experts(tasks).items():
        if name in rows:
            points, facts[name]["operating_points"] = fit_points(ORGANS[organ], rows[name])
            segmenter = mask_experts(tasks).get(organ, "")
            masks = aligned(organ, rows[name], rows[segmenter]) if segmenter in rows else None
            limit, facts[name]["review"] = fit_review(organ, rows[name], masks, points[BALANCED])
            decided = decided_labels(organ, rows[name], points[BALANCED])
            least, facts[name]["label_set"] = fit_label_set(ORGANS[organ], rows[name], decided)
            fitted[name]["calibration"] |= {"points": points, "review": np.float32(limit), "label_set": least}
            if masks is not None and (called := masks.lesion & LESION[organ, decided]).any():
                threshold, facts[segmenter]["outer"] = fit_outer(masks.take(called))
                fitted[segmenter] |= {} if np.isnan(threshold) else {"outer": np.float32(threshold)}
    for name, more in fitted.items():
        weights = bundle[name]
        manifest = weights.manifest | {"calibration": facts[name]}
        # an older threshold of the outer outline goes: there may be none now
        before = {part: value for part, value in weights.variables.items() if part != "outer"}
        checkpoint.save(pathlib.Path(folder) / name, before | more, manifest, half=weights.half)
    return facts


def _load_runs(runs: Sequence[str], bundle: Mapping[str, Weights]) -> dict[str, dict[str, Weights]]:
    """Task name -> run -> weights; ValueError unless a task's runs are folds with the settings of the bundle."""
    found: dict[str, dict[str, Weights]] = {}
    for run in runs:
        weights = load_weights(run)
        task = weights.task
        if task.name not in bundle:
            raise ValueError(f"{run} holds {task.name}, which the bundle does not have; it has {', '.join(bundle)}")
        if run in found.setdefault(task.name, {}):
            raise ValueError(f"{run} is named twice; name each fold once")
        found[task.name][run] = weights
    for name, folds in found.items():
        check_folds([(run, weights.task, weights.manifest) for run, weights in folds.items()])
        for run, weights in folds.items():
            ours, theirs = (json.dumps(dataclasses.asdict(one.task), sort_keys=True) for one in (weights, bundle[name]))
            if ours != theirs:
                raise ValueError(
                    f"{run} was trained with other settings than {name} of the bundle, so it cannot calibrate it"
                )
    return found
