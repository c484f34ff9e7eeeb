"""Prepared data sets: stored scans, their pixels in memory or in files, batches for training. No JAX."""
