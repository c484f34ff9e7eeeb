"""Dispatch: each scan to its expert, in chunks of one expert each, run under `lax.switch`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

CHUNK = 4
"""Scans per call of an expert."""


def chunk_table(expert: jax.Array, experts: int, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Divide scans into chunks of one expert each.

    Args:
      expert: int32 (B,) in [0, experts]; `experts` itself means none.
      experts: number of experts.
      chunk: scans per chunk.

    Returns:
      each chunk's expert, int32 (N,), `experts` for unused chunks; and its scans, int32 (N, chunk), B in unused places.
      N = ceil(B / chunk) + experts, the largest number of chunks that can be needed.
    """
    batch = expert.shape[0]
    chunks = -(-batch // chunk) + experts
    order = jnp.argsort(expert, stable=True)  # the scans of one expert are adjacent
    count = jnp.bincount(expert, length=experts + 1)[:experts]
    chunks_of = -(-count // chunk)
    end = jnp.cumsum(chunks_of)
    chunk_expert = jnp.searchsorted(end, jnp.arange(chunks), side="right").astype(jnp.int32)
    used = jnp.minimum(chunk_expert, experts - 1)
    first_scan, first_chunk = jnp.cumsum(count) - count, end - chunks_of
    within = (jnp.arange(chunks) - first_chunk[used])[:, None] * chunk + jnp.arange(chunk)[None]
    valid = (within < count[used][:, None]) & (chunk_expert < experts)[:, None]
    rows = jnp.where(valid, order[jnp.clip(first_scan[used][:, None] + within, 0, batch - 1)], batch)
    return chunk_expert, rows


def dispatch(expert: jax.Array, experts: Sequence[Callable[[jax.Array], Any]], empty: Any, scans: jax.Array) -> Any:
    """Run each scan through its expert: (B, ...) scans -> a tree of (B, ...), zero for scans without an expert.

    Args:
      expert: int32 (B,), index into `experts`, or len(experts) for none.
      experts: functions of (C, ...) to a tree of (C, ...).
      empty: tree of the shapes and types of one scan's result, the same for all experts.
      scans: (B, ...).
    """
    batch = scans.shape[0]

    def zeros(count: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), empty)

    if not experts:
        return zeros(batch)
    chunk = jax.core.min_dim(CHUNK, batch)  # the batch size of an exported model is symbolic
    chunk_expert, rows = chunk_table(expert, len(experts), chunk)

    def run_chunk(item: tuple[jax.Array, jax.Array]) -> Any:
        index, row = item
        return lax.switch(index, [*experts, lambda _: zeros(chunk)], scans[jnp.minimum(row, batch - 1)])

    def scatter(result: jax.Array, blank: jax.Array) -> jax.Array:
        return blank.at[rows.reshape(-1)].set(result.reshape(-1, *blank.shape[1:]), mode="drop")

    return jax.tree.map(scatter, lax.map(run_chunk, (chunk_expert, rows)), zeros(batch))
