"""Choosing the next token: greedy, or by temperature, top-k and top-p, each sequence with its own values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple

import jax
import jax.numpy as jnp

from minimind_jax.errors import UserError


class Sampling(NamedTuple):
    """One entry a sequence, traced: other values do not compile anew."""

    temperature: jax.Array  # (B,) float32, 0 = greedy
    top_k: jax.Array  # (B,) int32, 0 = all
    top_p: jax.Array  # (B,) float32 in (0, 1], 1 = all
    key: jax.Array  # (B,) PRNG keys


def make_sampling(
    n_rows: int, *, temperature: float, top_k: int, top_p: float, seed: int, streams: Sequence[int] = ()
) -> Sampling:
    """The same values for `n_rows` sequences; row r's key depends on (seed, streams[r]) only, r where there is none.

    Raises:
      UserError: a value that makes no sense.
    """
    if not (isinstance(temperature, Real) and math.isfinite(temperature) and temperature >= 0):
        raise UserError(f"temperature={temperature!r} must be a number of at least 0 (0 = greedy)")
    if not (isinstance(top_k, Integral) and top_k >= 0):
        raise UserError(f"top_k={top_k!r} must be an integer of at least 0 (0 = all tokens)")
    if not (isinstance(top_p, Real) and 0 < top_p <= 1):
        raise UserError(f"top_p={top_p!r} must be a number above 0 and at most 1 (1 = all tokens)")
    if not (isinstance(seed, Integral) and 0 <= seed < 2**32):
        raise UserError(f"seed={seed!r} must be an integer from 0 to {2**32 - 1}")
    key = jax.random.key(jnp.uint32(seed))
    streams = [*streams, *range(len(streams), n_rows)]
    return Sampling(
        temperature=jnp.full(n_rows, min(float(temperature), float(jnp.finfo(jnp.float32).max)), jnp.float32),
        top_k=jnp.full(n_rows, min(int(top_k), jnp.iinfo(jnp.int32).max), jnp.int32),
        top_p=jnp.full(n_rows, top_p, jnp.float32),
        key=jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(streams, jnp.uint32)),
    )


def sample(logits: jax.Array, sampling: Sampling, positions: jax.Array) -> jax.Array:
    """The next tokens, int32 (B,), for logits (B, V). The noise depends on (row's key, position) only."""

    def draw(scaled: jax.Array) -> jax.Array:
        is_cut = (sampling.top_k > 0) | (sampling.top_p < 1)
        kept = jax.lax.cond(jnp.any(is_cut), keep_top, lambda x, *_: x, scaled, sampling.top_k, sampling.top_p)
        keys = jax.vmap(jax.random.fold_in)(sampling.key, positions)
        drawn = jax.vmap(jax.random.categorical)(keys, kept)
        return jnp.where(sampling.temperature > 0, drawn, greedy)

    greedy = jnp.argmax(logits, axis=-1)
    # The largest logit moves to 0 first, so that no temperature overflows; the floor only keeps 0 / 0 away.
    floor = jnp.finfo(jnp.float32).tiny
    scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.maximum(sampling.temperature, floor)[:, None]
    tokens = jax.lax.cond(jnp.any(sampling.temperature > 0), draw, lambda _: greedy, scaled)
    return tokens.astype(jnp.int32)


def keep_top(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Logits (B, V) with all but the kept tokens at -inf, transformers' order: top-k first, then top-p of the rest.

    Top-k keeps the k largest; top-p the fewest that together reach the share `top_p`, never none. Tokens
    exactly as likely as the last one kept stay as well, since nothing ranks them behind it.
    """
    ranked = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)  # (B, V), descending
    ranks = jnp.arange(logits.shape[-1])
    k = jnp.where(top_k > 0, top_k, logits.shape[-1])
    probs = jax.nn.softmax(jnp.where(ranks < k[:, None], ranked, -jnp.inf), axis=-1)
    mass_before = jnp.cumsum(probs, axis=-1) - probs
    within_p = (mass_before < top_p[:, None]) | (top_p[:, None] >= 1)  # a sum of all but the tail may round to 1
    n_kept = jnp.sum(within_p & (ranks < k[:, None]), axis=-1)
    threshold = jnp.take_along_axis(ranked, jnp.maximum(n_kept, 1)[:, None] - 1, axis=-1)
    return jnp.where(logits >= threshold, logits, -jnp.inf)
