"""From scans to findings: the cascade as one jitted function, and the loaded model that runs it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcis.inference.cascade import Prediction, make_cascade

__all__ = ["Prediction", "make_cascade"]


def __getattr__(name: str) -> Any:
    """The cascade's names, imported on first use: it needs JAX, which the options of a command do not (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mcis.inference import cascade

    return getattr(cascade, name)
