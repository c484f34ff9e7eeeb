"""From scans to findings: the cascade as one jitted function, and the loaded model that runs it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcis.inference.cascade import Prediction, make_cascade

__all__ = ["Prediction", "make_cascade"]


def __getattr__(name: str) -> Any:
    """The names of `cascade`, imported on first use (PEP 562): JAX is slow to import and few modules here need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mcis.inference import cascade

    return getattr(cascade, name)
