"""Choice between the form of an operation that is fast on a CPU and its plain form."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax
from jax import lax

_plain_only = contextvars.ContextVar("plain_only", default=False)


@contextlib.contextmanager
def plain_forms() -> Iterator[None]:
    """Context in which functions are traced with plain forms alone.

    For converters that know no `lax.platform_dependent`. Trace inside the context only what was not traced before:
    JAX caches what it traced.
    """
    token = _plain_only.set(True)
    try:
        yield
    finally:
        _plain_only.reset(token)


def by_platform(*args: jax.Array, cpu: Callable[..., jax.Array], plain: Callable[..., jax.Array]) -> jax.Array:
    """`cpu(*args)` where the program is compiled for a CPU, else `plain(*args)`; both compute the same numbers."""
    return plain(*args) if _plain_only.get() else lax.platform_dependent(*args, cpu=cpu, default=plain)
