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
from minimind_jax.inference.cache import Cache, first_attention, piece_attention, step_attention, with_slots
from minimind_jax.inference.options import MAX_TOP_LOGPROBS, Options
from minimind_jax.inference.sampling import Sampling, adjust, make_sampling, sample
from minimind_jax.model import AttentionFn, Params, hidden_states_with_cache, logits, pick_attention, xla_attention

_KERNEL_TOKENS = 256  # what pick_attention's check runs


class Rows(NamedTuple):
    """The sequences of a batch. A row that is complete runs idle, at the same place over and over."""

    tokens: jax.Array  # (B,) int32, the last one of each, read by the next step
    positions: jax.Array  # (B,) int32, where it stands; the cache is good for the positions before
    limits: jax.Array  # (B,) int32, tokens at which a sequence is complete; 0 once it has ended
    eos: jax.Array  # (B,) int32, the token that ends it; -1 = none
    in_prompt: jax.Array  # (B, V) bool, tokens of the prompt
    counts: jax.Array  # (B, V) int32, how often each token stands in the answer
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


def make_rows(
    prompts: Sequence[Sequence[int]],
    new_tokens: Sequence[int],
    options: Options,
    eos_id: int,
    vocab_size: int,
    streams: Sequence[int] = (0,),
) -> Rows:
    """Rows that have read all but the last token of their prompts, as numpy arrays (the device is busy).

    Args:
      new_tokens: how many each may get; 0 = none, a row that only fills the batch.
      options: the same for all; `streams` are `make_sampling`'s.
    """
    n = len(prompts)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    in_prompt = np.zeros((n, vocab_size), bool)
    for row, prompt in zip(in_prompt, prompts, strict=True):
        row[list(prompt)] = True
    values: dict[str, Any] = {
        "tokens": np.array([prompt[-1] for prompt in prompts], np.int32),
        "positions": lengths - 1,
        "limits": lengths + np.array(new_tokens, np.int32),
        "eos": np.full(n, -1 if options.ignore_eos else eos_id, np.int32),
        "in_prompt": in_prompt,
        "counts": np.zeros((n, vocab_size), np.int32),
        "wants_logprobs": np.full(n, options.top_logprobs >= 0),
    }
    return Rows(**values, sampling=make_sampling(options, streams))


def prompt_attention(config: ModelConfig, dtype: jnp.dtype, n_tokens: int) -> AttentionFn:
    """For `read_prompts`: the platform's kernel where prompts are long enough to be worth compiling and checking it."""
    return xla_attention if n_tokens < _KERNEL_TOKENS else pick_attention("auto", config, dtype, packed=False).attend


@functools.partial(jax.jit, static_argnames=("config", "n_slots", "attention"))
def read_prompts(config: ModelConfig, params: Params, tokens: jax.Array, n_slots: int, attention: AttentionFn) -> Cache:
    """The cache, with `n_slots` >= T slots, of right-padded prompts `tokens` (B, T)."""
    return prompt_states(config, params, tokens, n_slots, attention)[1]


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def read_piece(config: ModelConfig, params: Params, cache: Cache, tokens: jax.Array, start: jax.Array) -> Cache:
    """Reads `tokens` (1, T) of one prompt, at the positions from `start` on, into its own cache (one row).

    The piece may be padded at its end, but not beyond the slots.
    """
    return piece_states(config, params, cache, tokens, start)[1]


def prompt_states(
    config: ModelConfig, params: Params, tokens: jax.Array, n_slots: int, attention: AttentionFn
) -> tuple[jax.Array, Cache]:
    """The final hidden states (B, T, D) of right-padded prompts (B, T), and their cache.

    What padding leaves in a cache is never looked at: a slot is read by later positions only, and those overwrite it
    first.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    attend = first_attention(attention)
    hidden, cache = hidden_states_with_cache(config, params, tokens, positions, [None] * config.n_layers, attend)
    return hidden, with_slots(cache, n_slots)


def piece_states(
    config: ModelConfig, params: Params, cache: Cache, tokens: jax.Array, start: jax.Array
) -> tuple[jax.Array, Cache]:
    """The final hidden states (1, T, D) of a piece of a prompt, and the cache with it."""
    positions = start + jnp.arange(tokens.shape[1])[None]
    return hidden_states_with_cache(config, params, tokens, positions, cache, piece_attention(start))


@functools.partial(jax.jit, donate_argnames=("cache", "rows"))
def admit(cache: Cache, rows: Rows, prompt_cache: Cache, new: Rows, row: jax.Array) -> tuple[Cache, Rows]:
    """Puts one sequence (`new`, leaves (1, ...)) with the cache of its prompt into the row `row`."""

    def lay(slots: jax.Array, prompt: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(slots, prompt, (row, 0, 0, 0))

    rows = jax.tree.map(lambda all_rows, one: all_rows.at[row].set(one[0]), rows, new)
    return jax.tree.map(lay, cache, prompt_cache), rows


@functools.partial(jax.jit, donate_argnames=("rows",))
def halt(rows: Rows, row: jax.Array) -> Rows:
    """Lets a row run idle from now on."""
    return rows._replace(limits=rows.limits.at[row].set(0))


@functools.partial(jax.jit, static_argnames=("n_slots",))
def resize(cache: Cache, rows: Rows, chosen: jax.Array, n_slots: int) -> tuple[Cache, Rows]:
    """The rows `chosen` (B',) only, in that order, with `n_slots` slots each."""
    cache, rows = jax.tree.map(lambda leaf: leaf[chosen], (cache, rows))
    return with_slots(cache, n_slots), rows


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def read_tokens(config: ModelConfig, params: Params, cache: Cache, rows: Rows) -> tuple[Cache, jax.Array]:
    """Reads each row's token: the cache with it, and the logits (B, V) of the next one.

    Args:
      params: of `unstack_layers`.
    """
    at = rows.positions
    hidden, cache = hidden_states_with_cache(
        config, params, rows.tokens[:, None], at[:, None], cache, step_attention(at)
    )
    return cache, logits(params, hidden[:, 0])


def choose(scores: jax.Array, rows: Rows, allowed: jax.Array | None = None) -> tuple[Rows, jax.Array]:
    """Chooses the next tokens (B,) by logits (B, V), and adds them; an end token completes its row instead.

    Args:
      allowed: (B, V) bool, at least one a row; None = all.
    """
    at = rows.positions
    adjusted = adjust(scores, rows.sampling, rows.in_prompt, rows.counts)
    if allowed is not None:
        adjusted = jnp.where(allowed, adjusted, -jnp.inf)
    chosen = sample(adjusted, rows.sampling, at + 1)
    ends = rows.active & (chosen == rows.eos)
    grows = rows.active & ~ends
    rows = rows._replace(
        tokens=jnp.where(grows, chosen, rows.tokens),
        positions=at + grows,
        limits=jnp.where(ends, 0, rows.limits),
        counts=rows.counts.at[jnp.arange(len(chosen)), chosen].add(grows),
    )
    return rows, chosen


@functools.partial(jax.jit, donate_argnames=("rows",))
def choose_with_logprobs(scores: jax.Array, rows: Rows) -> tuple[Rows, Step]:
    """`choose`, with log-probabilities for the rows that want them.

    A program of its own: it takes longer to compile than a layer, and is the same for any number of slots.
    """
    return _choose(scores, rows, None)


@functools.partial(jax.jit, donate_argnames=("rows",))
def choose_allowed(scores: jax.Array, rows: Rows, mask: jax.Array) -> tuple[Rows, Step]:
    """`choose_with_logprobs` among the tokens whose bit is set in `mask` (B, at least V / 32) int32."""
    bits = mask[:, :, None] >> jnp.arange(32) & 1
    return _choose(scores, rows, bits.reshape(len(mask), -1)[:, : scores.shape[-1]] == 1)


def _choose(scores: jax.Array, rows: Rows, allowed: jax.Array | None) -> tuple[Rows, Step]:
    wants = jnp.any(rows.wants_logprobs)
    rows, chosen = choose(scores, rows, allowed)
    return rows, jax.lax.cond(wants, with_logprobs, _without_logprobs, scores, chosen)


def with_logprobs(scores: jax.Array, chosen: jax.Array) -> Step:
    """Of `chosen` (B,) by logits (B, V)."""
    logprobs = jax.nn.log_softmax(scores.astype(jnp.float32), axis=-1)
    top, ids = jax.lax.top_k(logprobs, min(MAX_TOP_LOGPROBS, scores.shape[-1]))
    padding = [(0, 0), (0, MAX_TOP_LOGPROBS - top.shape[-1])]
    own = jnp.take_along_axis(logprobs, chosen[:, None], axis=-1)[:, 0]
    return Step(chosen, own, jnp.pad(ids, padding, constant_values=-1), jnp.pad(top, padding))


def _without_logprobs(scores: jax.Array, chosen: jax.Array) -> Step:
    shape = (len(chosen), MAX_TOP_LOGPROBS)
    own = jnp.zeros(len(chosen), jnp.float32)
    return Step(chosen, own, jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32))
