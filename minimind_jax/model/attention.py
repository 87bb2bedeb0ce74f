"""Causal attention over packed rows: one signature, several backends.

A backend takes `q (B, T, H, h)`, `k, v (B, T, K, h)` and `segment_ids (B, T)` and returns
`(B, T, H, h)`. Position t attends to s <= t of its own segment only. A backend that cannot keep
segments apart must refuse to be built, never ignore them.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from minimind_jax.errors import UserError

AttentionFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]

_MIN_BLOCK, _MAX_BLOCKS = 128, 8


def get_attention(name: str) -> AttentionFn:
    """The backend called `name`. "auto" picks one by platform; today that is always "xla"."""
    if name in ("auto", "xla"):
        return xla_attention
    raise UserError(f"attention={name!r} is not one of auto, xla")


def masked_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention with grouped queries, softmax in at least float32.

    Args:
      q: (B, T, H, h). k, v: (B, S, K, h), H a multiple of K.
      mask: bool, broadcastable to (B, 1, 1, T, S); True = may attend. Each query sees at least one key.
    """
    B, T, H, h = q.shape
    K = k.shape[2]
    accum = jnp.promote_types(q.dtype, jnp.float32)
    q = q.reshape(B, T, K, H // K, h) * jnp.asarray(h**-0.5, q.dtype)
    scores = jnp.einsum("btkgh,bskh->bkgts", q, k, preferred_element_type=accum)
    probs = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(accum).min), axis=-1)
    out = jnp.einsum("bkgts,bskh->btkgh", probs.astype(v.dtype), v)
    return out.reshape(B, T, H, h)


def xla_attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """The reference backend: plain XLA, blocks above the diagonal skipped.

    Queries go in at most eight blocks; block i reads keys up to its own end only, which leaves
    (n + 1) / 2n of the full square.
    """
    T = q.shape[1]
    block = max(_MIN_BLOCK, -(-T // _MAX_BLOCKS))
    out = []
    for start in range(0, T, block):
        end = min(start + block, T)
        causal = jnp.arange(start, end)[:, None] >= jnp.arange(end)[None, :]  # (block, S)
        same_segment = segment_ids[:, start:end, None] == segment_ids[:, None, :end]  # (B, block, S)
        mask = (causal & same_segment)[:, None, None]
        out.append(masked_attention(q[:, start:end], k[:, :end], v[:, :end], mask))
    return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)
