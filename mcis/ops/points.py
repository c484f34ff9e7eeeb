"""Operating points: the names of the lines that the cascade may draw between the classes of an organ. No JAX."""

BALANCED = "balanced"
"""The default: the best mean sensitivity over classes, averaged over sources."""
SENSITIVE = "sensitive"
"""Finds SENSITIVITY of the scans of an organ's last class, which is its most suspicious one."""
SPECIFIC = "specific"
"""Gives the last class to no more than the other 1 - SPECIFICITY of the scans of other classes."""
POINTS = (BALANCED, SENSITIVE, SPECIFIC)

SENSITIVITY = 0.90
SPECIFICITY = 0.95
