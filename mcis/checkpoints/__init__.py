"""Weights on disk: one network's folder, bundles of several, and which scans their training has seen."""
