"""Each scan to its expert: chunks of one expert each, run under `lax.switch`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

CHUNK = 4
"""Scans an expert takes at once."""


def chunk_table(expert: jax.Array, experts: int, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Cut scans into chunks of one expert each.

    Args:
      expert: int32 (B,) in [0, experts]; `experts` itself means none.
      experts: number of experts.
      chunk: scans a chunk.

    Returns:
      which (N,): each chunk's expert, `experts` for those left over; rows (N, chunk): its scans, B where there is none.
      N = ceil(B / chunk) + experts, the most that can be needed.
    """
    batch = expert.shape[0]
    chunks = -(-batch // chunk) + experts
    order = jnp.argsort(expert, stable=True)  # one expert's scans side by side
    count = jnp.bincount(expert, length=experts + 1)[:experts]
    chunks_of = -(-count // chunk)
    end = jnp.cumsum(chunks_of)
    which = jnp.searchsorted(end, jnp.arange(chunks), side="right").astype(jnp.int32)
    mine = jnp.minimum(which, experts - 1)
    first_scan, first_chunk = jnp.cumsum(count) - count, end - chunks_of
    within = (jnp.arange(chunks) - first_chunk[mine])[:, None] * chunk + jnp.arange(chunk)[None]
    valid = (within < count[mine][:, None]) & (which < experts)[:, None]
    rows = jnp.where(valid, order[jnp.clip(first_scan[mine][:, None] + within, 0, batch - 1)], batch)
    return which, rows


def dispatch(expert: jax.Array, experts: Sequence[Callable[[jax.Array], Any]], empty: Any, scans: jax.Array) -> Any:
    """Give each scan to its expert: (B, ...) scans -> a tree of (B, ...), zero for scans that have none.

    Args:
      expert: int32 (B,), index into `experts`, or len(experts) for none.
      experts: functions of (C, ...) to a tree of (C, ...).
      empty: tree of the shapes and types of one scan's answer, the same for all experts.
      scans: (B, ...).
    """
    batch = scans.shape[0]
    chunk = jax.core.min_dim(CHUNK, batch)  # an exported batch is a symbol
    which, rows = chunk_table(expert, len(experts), chunk)

    def nothing(_):
        return jax.tree.map(lambda leaf: jnp.zeros((chunk, *leaf.shape), leaf.dtype), empty)

    def one(item):
        index, row = item
        return lax.switch(index, [*experts, nothing], scans[jnp.minimum(row, batch - 1)])

    def in_order(found, leaf):
        found = found.reshape(-1, *leaf.shape)
        return jnp.zeros((batch, *leaf.shape), leaf.dtype).at[rows.reshape(-1)].set(found, mode="drop")

    return jax.tree.map(in_order, lax.map(one, (which, rows)), empty)
