"""The key/value cache: static shapes, one slot a position, so that slot s always holds position s.

A layer reads the slots before its query's position and adds the query's own key and value from
registers; the whole stack's new entries are then written by one scatter. So a decode step moves the
cache once (read) and never carries a copy of it through the scan over layers.

Shapes: L layers, B sequences, K key/value heads, S slots, h head_dim, H query heads, T tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from minimind_jax.model.attention import AttentionFn, xla_attention
from minimind_jax.model.transformer import AttendFn

MIN_SLOTS = 256  # fewer save nothing: each size is a program of its own


def power_of_two(n: int, least: int) -> int:
    """The least power of two that is >= n and >= `least` (itself one): sizes, so that few programs are compiled."""
    return max(least, 1 << (int(n) - 1).bit_length()) if n > 0 else least


class KVCache(NamedTuple):
    k: jax.Array  # (L, B, K, S, h): each head's keys lie together, as the products of a decode step read them
    v: jax.Array  # (L, B, K, S, h)

    @property
    def n_slots(self) -> int:
        return self.k.shape[3]


def prefill_attention(lengths: jax.Array, n_tokens: int, attention: AttentionFn = xla_attention) -> AttendFn:
    """Causal attention within right-padded prompts of `lengths` (B,); a layer's new cache is its (k, v)."""
    is_prompt = (jnp.arange(n_tokens) < lengths[:, None]).astype(jnp.int32)  # (B, T), padding is a segment of its own

    def attend(_: None, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[Any, jax.Array]:
        return (k, v), attention(q, k, v, is_prompt)

    return attend


def from_prefill(k: jax.Array, v: jax.Array, n_slots: int) -> KVCache:
    """Lays prefill's k, v (L, B, T, K, h) into a cache of `n_slots` >= T slots."""
    return grow(KVCache(k.swapaxes(2, 3), v.swapaxes(2, 3)), n_slots)


def grow(cache: KVCache, n_slots: int) -> KVCache:
    padding = [(0, 0)] * 3 + [(0, n_slots - cache.n_slots), (0, 0)]
    return KVCache(jnp.pad(cache.k, padding), jnp.pad(cache.v, padding))


def decode_attention(positions: jax.Array) -> AttendFn:
    """Attention of one token a sequence, at `positions` (B,), to all slots before it and to itself.

    The returned `attend` takes a layer's (k, v) slots (B, K, S, h) with q (B, 1, H, h), k, v (B, 1, K, h),
    and gives back the token's own (k, v) (B, K, h) for `append`.
    """

    def attend(cache: KVCache, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[Any, jax.Array]:
        B, _, H, h = q.shape
        K, S = cache.k.shape[1:3]
        k, v = k[:, 0], v[:, 0]
        accum = jnp.promote_types(q.dtype, jnp.float32)
        q = q.reshape(B, K, H // K, h) * jnp.asarray(h**-0.5, q.dtype)
        past = jnp.einsum("bkgh,bksh->bkgs", q, cache.k, preferred_element_type=accum)
        is_past = jnp.arange(S) < positions[:, None]  # (B, S)
        past = jnp.where(is_past[:, None, None], past, jnp.finfo(accum).min)
        own = jnp.einsum("bkgh,bkh->bkg", q, k, preferred_element_type=accum)[..., None]
        probs = jax.nn.softmax(jnp.concatenate([past, own], axis=-1), axis=-1).astype(v.dtype)
        out = jnp.einsum("bkgs,bksh->bkgh", probs[..., :S], cache.v) + probs[..., S:] * v[:, :, None]
        return (k, v), out.reshape(B, 1, H, h)

    return attend


def append(cache: KVCache, k: jax.Array, v: jax.Array, positions: jax.Array) -> KVCache:
    """Writes k, v (L, B, K, h) into the slots `positions` (B,)."""
    rows = jnp.arange(positions.shape[0])

    def write(slots: jax.Array, new: jax.Array) -> jax.Array:
        return slots.at[:, rows, :, positions].set(new.swapaxes(0, 1))  # indexed axes come first: (B, L, K, h)

    return KVCache(write(cache.k, k), write(cache.v, v))
