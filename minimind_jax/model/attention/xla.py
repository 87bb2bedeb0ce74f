"""The reference backend: plain XLA."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

AttentionFn = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]

_MIN_BLOCK, _MAX_BLOCKS = 64, 8
_LONG = 4096  # tokens from which a block's scores are not kept, nor held at once
_PIECE = 256  # queries at a time then


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
    """The reference backend: blocks above the diagonal skipped.

    Queries go in at most eight blocks; block i reads keys up to its own end only, which leaves
    (n + 1) / 2n of the full square. From 4096 tokens on each block goes piece by piece and the
    backward pass computes its scores again: memory grows with T, not with its square.
    """
    T = q.shape[1]
    block = max(_MIN_BLOCK, -(-T // _MAX_BLOCKS))
    attend = _piece_by_piece if T >= _LONG else _attend_up_to
    out = []
    for start in range(0, T, block):
        end = min(start + block, T)
        queries, own = q[:, start:end], segment_ids[:, start:end]
        out.append(attend(queries, own, jnp.asarray(start), k[:, :end], v[:, :end], segment_ids[:, :end]))
    return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)


def _attend_up_to(
    q: jax.Array, own: jax.Array, start: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """The queries (B, n, H, h) of segments `own` (B, n) at positions `start`, ... over the S first keys."""
    causal = start + jnp.arange(q.shape[1])[:, None] >= jnp.arange(k.shape[1])  # (n, S)
    same_segment = own[:, :, None] == segment_ids[:, None]  # (B, n, S)
    return masked_attention(q, k, v, (causal & same_segment)[:, None, None])


def _piece_by_piece(
    q: jax.Array, own: jax.Array, start: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array
) -> jax.Array:
    """As `_attend_up_to`, `_PIECE` queries at a time."""
    B, n, H, h = q.shape
    pieces = -(-n // _PIECE)
    missing = pieces * _PIECE - n
    q = jnp.pad(q, [(0, 0), (0, missing), (0, 0), (0, 0)]).reshape(B, pieces, _PIECE, H, h)
    own = jnp.pad(own, [(0, 0), (0, missing)]).reshape(B, pieces, _PIECE)

    @jax.checkpoint
    def piece(args: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        queries, own, i = args
        return _attend_up_to(queries, own, start + i * _PIECE, k, v, segment_ids)

    out = jax.lax.map(piece, (q.swapaxes(0, 1), own.swapaxes(0, 1), jnp.arange(pieces)))
    return out.swapaxes(0, 1).reshape(B, pieces * _PIECE, H, h)[:, :n]
