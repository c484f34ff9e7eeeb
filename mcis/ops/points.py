"""Operating points of the cascade: trade-offs between sensitivity and specificity. No JAX."""

BALANCED = "balanced"
"""The default: the best mean sensitivity over classes, averaged over sources."""
SENSITIVE = "sensitive"
"""Finds SENSITIVITY of the scans of an organ's last class, which is its most suspicious one."""
SPECIFIC = "specific"
"""Gives the last class to at most 1 - SPECIFICITY of the scans of other classes."""
POINTS = (BALANCED, SENSITIVE, SPECIFIC)

SENSITIVITY = 0.90
SPECIFICITY = 0.95
