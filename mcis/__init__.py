"""mcis: multi-cancer identification and segmentation in JAX/Flax. Research use, not a medical device."""

__version__ = "0.1.0"

NOTICE = "Research use only. Not a medical device; not for diagnosis or treatment."
