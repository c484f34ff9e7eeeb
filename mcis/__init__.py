"""mcis: multi-cancer identification and segmentation in JAX/Flax. Research use, not a medical device."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcis.inference.predictor import Predictor, Result
    from mcis.report.finding import Finding

__all__ = ["NOTICE", "Finding", "Predictor", "Result", "__version__", "load"]

__version__ = "0.1.0"

NOTICE = "Research use only. Not a medical device; not for diagnosis or treatment."

MAX_PIXELS = 1 << 26
"""Pixels of the largest image that is read. A file whose header claims more is rejected before decoding."""

# OpenCV reads these when it is first imported, and importing any module of mcis runs this file first.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")


def load(weights: str | os.PathLike | None = None, **options: Any) -> "Predictor":
    """Load weights: `mcis.load().predict("scan.png")`. See `mcis.inference.predictor.load` for the options."""
    from mcis.inference import predictor

    return predictor.load(weights, **options)


def __getattr__(name: str) -> Any:
    """The classes of `__all__`, imported on first use (PEP 562), so that `import mcis` imports nothing heavy."""
    modules = {"Finding": "report.finding", "Predictor": "inference.predictor", "Result": "inference.predictor"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{modules[name]}"), name)
