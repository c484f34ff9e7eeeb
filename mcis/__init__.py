"""mcis: multi-cancer identification and segmentation in JAX/Flax. Research use, not a medical device."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcis.inference.predictor import Predictor

__version__ = "0.1.0"

NOTICE = "Research use only. Not a medical device; not for diagnosis or treatment."

MAX_PIXELS = 1 << 26
"""Pixels of the largest picture that is read. A file that claims more is refused before it is decoded."""

# OpenCV reads these once, when it is first imported; nothing of mcis can be imported before this file is.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")


def load(weights: str | os.PathLike | None = None, **asked: Any) -> "Predictor":
    """Weights that find lesions: `mcis.load().predict("scan.png")`. All about it: `mcis.inference.predictor.load`."""
    from mcis.inference import predictor

    return predictor.load(weights, **asked)
