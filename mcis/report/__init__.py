"""Findings written down: one line a scan, one a volume, masks, overlays and a page. No JAX."""
