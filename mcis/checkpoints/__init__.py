"""Weights on disk: weights folders, bundles of them, and the scans and code that made them."""

from mcis.checkpoints.bundle import load_bundle
from mcis.checkpoints.checkpoint import load, save

__all__ = ["load", "load_bundle", "save"]
