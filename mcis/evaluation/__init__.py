"""Scores of runs and bundles on held-out scans: rows, metrics with intervals, figures and a page."""

from mcis.evaluation.scoring import evaluate

__all__ = ["evaluate"]
