"""Weights on disk: one network's folder, bundles of several, and which scans their training has seen."""

from mcis.checkpoints.bundle import load_bundle
from mcis.checkpoints.checkpoint import load, save

__all__ = ["load", "load_bundle", "save"]
