"""Scoring: the rows of results of an evaluator, and `evaluate`, which makes a report of them."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mcis.data.dataset import text
from mcis.data.records import Records, read_records
from mcis.evaluation.evaluator import Evaluator, PredictedScan, check_unseen, load_evaluator, organ_of, sources_of
from mcis.evaluation.metrics import report
from mcis.imaging.frame import is_sector
from mcis.inference.rows import Rows, scan_facts
from mcis.ops.lesions import match_lesions
from mcis.ops.metrics import MASK_THRESHOLD, dice_loss, mask_counts
from mcis.ops.points import BALANCED
from mcis.ops.surface import surface_scores, tolerance
from mcis.organs import UNSUPPORTED, organ_named


def score(evaluator: Evaluator, records: Records) -> Rows:
    """One row per record: facts about the scan, its prediction, and how predicted and true mask overlap."""
    return Rows.of_scans([_row(scan) for scan in evaluator.predict(records)])


def _row(scan: PredictedScan) -> dict[str, Any]:
    row = scan_facts(scan.record) | scan.columns
    if scan.probability is None:
        return row
    predicted = scan.probability > MASK_THRESHOLD
    counts = mask_counts(predicted[None, ..., None], scan.mask[None, ..., None])
    x, y, width, height = scan.box
    reach = tolerance(width, height)
    surface = surface_scores(predicted, scan.mask, reach)
    match = match_lesions(predicted, scan.mask, scan.probability)
    inside = scan.mask[y + 1 : y + height - 1, x + 1 : x + width - 1]
    row |= {name: int(count[0]) for name, count in counts.items()}
    return row | {
        "pixels": scan.mask.size,
        "dice_loss": dice_loss(scan.probability, scan.mask),
        "hd95": surface.hd95,
        "surface_distance": surface.mean,
        "nsd": surface.nsd,
        "tolerance": reach,
        "lesions": match.lesions,
        "found_lesions": len(match.found),
        "false_lesions": len(match.false),
        "found_scores": match.found,
        "false_scores": match.false,
        "sector": _is_ultrasound(scan) and is_sector(scan.image, scan.box),
        "at_border": bool(inside.sum(dtype=np.int64) < row["true"]),
    }


def _is_ultrasound(scan: PredictedScan) -> bool:
    organ = text(scan.record["organ"])
    return organ != UNSUPPORTED and "US" in organ_named(organ).modalities


def evaluate(
    run: str | os.PathLike,
    split: str,
    sources: Sequence[str] = (),
    data_dir: str | os.PathLike | None = None,
    crf: bool = True,
    operating_point: str = BALANCED,
) -> dict[str, Any]:
    """Score weights on a split of some sources: the report, as `metrics.report`.

    Args:
      run: a run's folder or a weights folder; or a bundle, which is scored as the cascade that `mcis predict` runs.
      split: train, validation or test.
      sources: prepared data sets; by default those of the training.
      data_dir: where these are.
      crf: whether masks are refined by the CRF that is kept with the weights.
      operating_point: at which a bundle's cascade decides labels.

    Raises:
      CheckpointError, MissingData, ValueError: there are no such weights, data or split; a bundle without a router; and
        as `load_evaluator`.
      LeakError: `split` is test and a network has used some of it.
    """
    evaluator = load_evaluator(run, crf, operating_point=operating_point)
    records = read_records(sources or sources_of(evaluator, data_dir), (split,), data_dir, organ_of(evaluator))
    if split == "test":
        check_unseen(evaluator, records)
    return report(evaluator.task, score(evaluator, records), split)
