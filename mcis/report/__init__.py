"""Reports: findings of scans and volumes, masks, overlays and an HTML page. No JAX."""
