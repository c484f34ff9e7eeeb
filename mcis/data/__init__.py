"""Prepared data sets: stored scans, their pixels in memory or in files, batches for training. No JAX."""

from mcis.data.batches import Batch
from mcis.data.dataset import load

__all__ = ["Batch", "load"]
