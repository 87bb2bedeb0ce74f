"""The compiled parts of generation: reading prompts, one decode step, and moving sequences in and out of a batch.

Everything that differs between requests is an argument, so programs are compiled for sizes only: rows B of the batch,
slots S of its cache, tokens of a prompt's piece. All of them are powers of two.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minimind_jax.config import ModelConfig
from minimind_jax.inference.cache import KVCache, append, decode_attention, grow
from minimind_jax.inference.options import MAX_TOP_LOGPROBS, Options
from minimind_jax.inference.sampling import Sampling, make_sampling, sample
from minimind_jax.model import Params, hidden_states_with_cache, logits
from minimind_jax.model.transformer import AttendFn


class Rows(NamedTuple):
    """The sequences of a batch. A row that is complete runs idle, at the same place over and over."""

    tokens: jax.Array  # (B,) int32, the last one of each, read by the next step
    positions: jax.Array  # (B,) int32, where it stands; the cache is good for the positions before
    limits: jax.Array  # (B,) int32, tokens at which a sequence is complete; 0 once it has ended
    eos: jax.Array  # (B,) int32, the token that ends it; -1 = none
    seen: jax.Array  # (B, V) bool, tokens of the sequence so far, for the repetition penalty
    wants_logprobs: jax.Array  # (B,) bool
    sampling: Sampling

    @property
    def active(self) -> jax.Array:
        """(B,) bool"""
        return self.positions + 1 < self.limits


class Step(NamedTuple):
    """What a step has chosen, with log-probabilities under the model itself (before temperature and cuts)."""

    tokens: jax.Array  # (B,) int32
    logprobs: jax.Array  # (B,) float32; 0 where no row wants them
    top_ids: jax.Array  # (B, MAX_TOP_LOGPROBS) int32, most likely first
    top_logprobs: jax.Array  # (B, MAX_TOP_LOGPROBS) float32


def empty_cache(config: ModelConfig, n_rows: int, n_slots: int, dtype: jnp.dtype) -> KVCache:
    shape = (config.n_layers, n_rows, config.n_kv_heads, n_slots, config.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def make_rows(
    prompts: Sequence[Sequence[int]],
    new_tokens: Sequence[int],
    options: Options,
    eos_id: int,
    vocab_size: int,
    streams: Sequence[int] = (0,),
) -> Rows:
    """Rows that have read all but the last token of their prompts.

    Args:
      new_tokens: how many each may get; 0 = none, a row that only fills the batch.
      options: the same for all; `streams` are `make_sampling`'s.
    """
    n = len(prompts)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    seen = np.zeros((n, vocab_size), bool)
    for row, prompt in zip(seen, prompts, strict=True):
        row[list(prompt)] = True
    return Rows(
        tokens=jnp.array([prompt[-1] for prompt in prompts], jnp.int32),
        positions=jnp.array(lengths - 1),
        limits=jnp.array(lengths + np.array(new_tokens, np.int32)),
        eos=jnp.full(n, -1 if options.ignore_eos else eos_id, jnp.int32),
        seen=jnp.array(seen),
        wants_logprobs=jnp.full(n, options.top_logprobs >= 0),
        sampling=make_sampling(options, streams),
    )


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def read_prompt(config: ModelConfig, params: Params, cache: KVCache, tokens: jax.Array, start: jax.Array) -> KVCache:
    """Reads a piece `tokens` (1, T) of one prompt, at positions from `start` on, into its own cache (one row).

    The piece may be padded at its end: what that leaves in the cache is never looked at, since a slot is read by later
    positions only, and they overwrite it first.
    """
    T = tokens.shape[1]
    positions = start + jnp.arange(T)[None]
    attend = _prompt_attention(start, T)
    _, (k, v) = hidden_states_with_cache(config, params, tokens, positions, cache, attend, cache.k.dtype)
    return KVCache(k, v)


def _prompt_attention(start: jax.Array, n_tokens: int) -> AttendFn:
    """Attention of tokens at `start`, start + 1, ... to all slots up to their own; gives back the filled slots."""

    def attend(cache: KVCache, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[Any, jax.Array]:
        _, T, H, h = q.shape
        keys = jax.lax.dynamic_update_slice(cache.k, k.swapaxes(1, 2), (0, 0, start, 0))  # (1, K, S, h)
        values = jax.lax.dynamic_update_slice(cache.v, v.swapaxes(1, 2), (0, 0, start, 0))
        K, S = keys.shape[1:3]
        accum = jnp.promote_types(q.dtype, jnp.float32)
        q = q.reshape(1, T, K, H // K, h) * jnp.asarray(h**-0.5, q.dtype)
        scores = jnp.einsum("btkgh,bksh->bkgts", q, keys, preferred_element_type=accum)
        may_see = jnp.arange(S) <= start + jnp.arange(n_tokens)[:, None]  # (T, S)
        probs = jax.nn.softmax(jnp.where(may_see, scores, jnp.finfo(accum).min), axis=-1)
        out = jnp.einsum("bkgts,bksh->btkgh", probs.astype(v.dtype), values)
        return KVCache(keys, values), out.reshape(1, T, H, h)

    return attend


@functools.partial(jax.jit, donate_argnames=("cache", "rows"))
def admit(cache: KVCache, rows: Rows, prompt_cache: KVCache, new: Rows, row: jax.Array) -> tuple[KVCache, Rows]:
    """Puts one sequence (`new`, leaves (1, ...)) with the cache of its prompt into the row `row`."""

    def lay(slots: jax.Array, prompt: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(slots, prompt, (0, row, 0, 0, 0))

    rows = jax.tree.map(lambda all_rows, one: all_rows.at[row].set(one[0]), rows, new)
    return KVCache(lay(cache.k, prompt_cache.k), lay(cache.v, prompt_cache.v)), rows


@functools.partial(jax.jit, donate_argnames=("rows",))
def halt(rows: Rows, row: jax.Array) -> Rows:
    """Lets a row run idle from now on."""
    return rows._replace(limits=rows.limits.at[row].set(0))


@functools.partial(jax.jit, static_argnames=("n_slots",))
def resize(cache: KVCache, rows: Rows, chosen: jax.Array, n_slots: int) -> tuple[KVCache, Rows]:
    """The rows `chosen` (B',) only, in that order, with `n_slots` slots each."""
    old_slots = cache.n_slots
    k, v = (x[:, chosen, :, : min(n_slots, old_slots)] for x in (cache.k, cache.v))
    return grow(KVCache(k, v), n_slots), jax.tree.map(lambda leaf: leaf[chosen], rows)


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache", "rows"))
def decode_step(config: ModelConfig, params: Params, cache: KVCache, rows: Rows) -> tuple[KVCache, Rows, Step]:
    """`advance`, with log-probabilities for the rows that want them. `params` in the cache's dtype."""
    wants = jnp.any(rows.wants_logprobs)
    cache, rows, chosen, scores = advance(config, params, cache, rows)
    return cache, rows, jax.lax.cond(wants, _with_logprobs, _without_logprobs, scores, chosen)


def advance(
    config: ModelConfig, params: Params, cache: KVCache, rows: Rows
) -> tuple[KVCache, Rows, jax.Array, jax.Array]:
    """Reads each row's token and chooses the next one.

    Returns: cache and rows after it, the chosen tokens (B,), and the logits (B, V) that they were chosen from. An end
      token completes its row and is not added to it.
    """
    at = rows.positions
    attend = decode_attention(at)
    hidden, (k, v) = hidden_states_with_cache(
        config, params, rows.tokens[:, None], at[:, None], cache, attend, cache.k.dtype
    )
    scores = logits(params, hidden[:, 0])
    chosen = sample(scores, rows.sampling, at + 1, rows.seen)
    ends = rows.active & (chosen == rows.eos)
    grows = rows.active & ~ends
    rows = rows._replace(
        tokens=jnp.where(grows, chosen, rows.tokens),
        positions=at + grows,
        limits=jnp.where(ends, 0, rows.limits),
        seen=rows.seen.at[jnp.arange(len(chosen)), chosen].max(grows),
    )
    return append(cache, k, v, at), rows, chosen, scores


def _with_logprobs(scores: jax.Array, chosen: jax.Array) -> Step:
    logprobs = jax.nn.log_softmax(scores.astype(jnp.float32), axis=-1)
    top, ids = jax.lax.top_k(logprobs, min(MAX_TOP_LOGPROBS, scores.shape[-1]))
    padding = [(0, 0), (0, MAX_TOP_LOGPROBS - top.shape[-1])]
    own = jnp.take_along_axis(logprobs, chosen[:, None], axis=-1)[:, 0]
    return Step(chosen, own, jnp.pad(ids, padding, constant_values=-1), jnp.pad(top, padding))


def _without_logprobs(scores: jax.Array, chosen: jax.Array) -> Step:
    shape = (len(chosen), MAX_TOP_LOGPROBS)
    own = jnp.zeros(len(chosen), jnp.float32)
    return Step(chosen, own, jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32))
