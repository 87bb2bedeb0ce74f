"""The key/value cache: static shapes, one slot a position, so that slot s always holds position s.

Each layer's keys and values are arrays of their own, and new ones are written into their slots before the layer
reads them: so XLA updates them in place, and a decode step moves the cache once.

Shapes: B sequences, K key/value heads, S slots, h head_dim, H query heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from minimind_jax.config import ModelConfig
from minimind_jax.model import AttentionFn
from minimind_jax.model.transformer import AttendFn

MIN_SLOTS = 128  # fewer save nothing: each size is a program of its own


def power_of_two(n: int, least: int) -> int:
    """The least power of two that is >= n and >= `least` (itself one): sizes, so that few programs are compiled."""
    return max(least, 1 << (int(n) - 1).bit_length()) if n > 0 else least


class LayerCache(NamedTuple):
    """Laid out as the products of a decode step read them: figures in docs/log.md."""

    k: jax.Array  # (B, K, h, S)
    v: jax.Array  # (B, K, S, h)

    def map(self, f: Callable[[jax.Array, int], jax.Array]) -> LayerCache:
        """`f(array, axis of the slots)` of both."""
        return LayerCache(f(self.k, 3), f(self.v, 2))


Cache = tuple[LayerCache, ...]  # one entry a layer


def empty_cache(config: ModelConfig, n_rows: int, n_slots: int, dtype: jnp.dtype) -> Cache:
    B, K, S, h = n_rows, config.n_kv_heads, n_slots, config.head_dim
    k, v = (jnp.zeros(shape, dtype) for shape in ((B, K, h, S), (B, K, S, h)))
    return tuple(LayerCache(k.copy(), v.copy()) for _ in range(config.n_layers))


def count_slots(cache: Cache) -> int:
    return cache[0].v.shape[2]


def with_slots(cache: Cache, n_slots: int) -> Cache:
    """The first `n_slots` slots; new ones are zero."""

    def fit(x: jax.Array, axis: int) -> jax.Array:
        x = jax.lax.slice_in_dim(x, 0, min(n_slots, x.shape[axis]), axis=axis)
        return jnp.pad(x, [(0, n_slots - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    return tuple(layer.map(fit) for layer in cache)


def first_attention(attention: AttentionFn) -> AttendFn:
    """Causal attention within prompts that are read from their first token on; their keys and values are the cache.

    Padding on the right is harmless: no token before it attends to it.
    """

    def attend(_: None, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[LayerCache, jax.Array]:
        one_segment = jnp.ones(q.shape[:2], jnp.int32)
        return LayerCache(*_as_slots(k, v)), attention(q, k, v, one_segment)

    return attend


def piece_attention(start: jax.Array) -> AttendFn:
    """Attention of T tokens of one sequence, at the positions `start`, `start` + 1, ..., to all slots up to their own.

    `start` + T must not exceed the slots.
    """

    def attend(cache: LayerCache, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[LayerCache, jax.Array]:
        k, v = _as_slots(k, v)
        cache = LayerCache(
            jax.lax.dynamic_update_slice_in_dim(cache.k, k, start, axis=3),
            jax.lax.dynamic_update_slice_in_dim(cache.v, v, start, axis=2),
        )
        return cache, _attend(q, cache, start + jnp.arange(q.shape[1])[None])

    return attend


def step_attention(positions: jax.Array) -> AttendFn:
    """Attention of one token a sequence, at `positions` (B,), to all slots up to its own."""
    rows = jnp.arange(len(positions))

    def attend(cache: LayerCache, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[LayerCache, jax.Array]:
        cache = LayerCache(
            cache.k.at[rows, :, :, positions].set(k[:, 0]),  # (B, K, h)
            cache.v.at[rows, :, positions].set(v[:, 0]),
        )
        return cache, _attend(q, cache, positions[:, None])

    return attend


def _as_slots(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(B, T, K, h) each, in the cache's layout."""
    return k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)


def _attend(q: jax.Array, cache: LayerCache, positions: jax.Array) -> jax.Array:
    """Softmax attention of queries (B, T, H, h) at `positions` (B, T) to the slots up to their own."""
    B, T, H, h = q.shape
    K, S = cache.v.shape[1:3]
    accum = jnp.promote_types(q.dtype, jnp.float32)
    q = q.reshape(B, T, K, H // K, h).transpose(0, 2, 3, 1, 4).reshape(B, K, H // K * T, h)
    scores = jnp.matmul(q * jnp.asarray(h**-0.5, q.dtype), cache.k, preferred_element_type=accum)
    may_see = jnp.arange(S) <= positions[:, :, None]  # (B, T, S)
    scores = jnp.where(may_see[:, None, None], scores.reshape(B, K, H // K, T, S), jnp.finfo(accum).min)
    probs = jax.nn.softmax(scores, axis=-1).astype(q.dtype).reshape(B, K, H // K * T, S)
    out = jnp.matmul(probs, cache.v).reshape(B, K, H // K, T, h)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, H, h)
