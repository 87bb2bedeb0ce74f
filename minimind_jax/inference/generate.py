"""Batch generation: prefill once, then the whole decode loop on the device.

Prompts of different lengths are padded on the right, so a token's slot in the cache is its position.
Batch, prompt and cache sizes are powers of two: few programs are compiled, whatever is asked for. Many prompts go
in groups, the long ones first, so that memory has a bound.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.inference.cache import KVCache, append, decode_attention, from_prefill, grow, prefill_attention
from minimind_jax.inference.sampling import Sampling, make_sampling, sample
from minimind_jax.model import Params, hidden_states_with_cache, logits, pick_attention, xla_attention
from minimind_jax.model.attention import AttentionFn

if TYPE_CHECKING:
    from minimind_jax.workdir import LoadedModel

_MIN_PROMPT, _MIN_SLOTS = 16, 256
_KERNEL_PROMPT = 256  # tokens from which another kernel than xla's is worth compiling; what its check runs
_GROUP_SLOTS = 2**15  # of the cache, all rows of a group together; a longer prompt goes alone


class Decoding(NamedTuple):
    """Sequences in progress. The cache is good for the positions before `lengths - 1`: the last token is read next."""

    cache: KVCache
    tokens: jax.Array  # (B, S) int32, prompt and what was generated
    lengths: jax.Array  # (B,) int32, known tokens
    limits: jax.Array  # (B,) int32, length at which a sequence is full
    done: jax.Array  # (B,) bool


def generate(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_id: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: jnp.dtype = jnp.float32,
) -> list[list[int]]:
    """Continues token sequences.

    Args:
      params: numpy or jax arrays, on one device or sharded.
      prompts: token ids, each of at least one token.
      max_new_tokens: at most so many for each prompt.
      eos_id: ends a sequence; an id that is no token, such as -1, lets all of them run to the end.
      temperature: 0 = greedy, and then `top_k`, `top_p` and `seed` have no say.
      top_k, top_p: tokens to draw from (0 and 1 = all), see `sampling.keep_top`.
      seed: draws depend on (seed, index of the prompt, position) only, not on the other prompts.
      dtype: of activations, cache and the weights' working copy.

    Returns: the new tokens of each prompt, without the end token.

    Raises:
      UserError: an empty prompt, an id outside the vocabulary, more tokens than `config.max_seq_len`, or
        sampling values that make no sense.
    """
    _check(config, prompts, max_new_tokens)
    params = jax.tree.map(jnp.asarray, params)
    new_sampling = functools.partial(make_sampling, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    new_tokens: list[list[int]] = [[]] * len(prompts)
    for group in _groups([len(p) for p in prompts], max_new_tokens):
        sampling = new_sampling(_bucket(len(group), 1), streams=group)
        members = [prompts[i] for i in group]
        made = _generate_group(config, params, members, max_new_tokens, eos_id, sampling, dtype)
        for i, tokens in zip(group, made, strict=True):
            new_tokens[i] = tokens
    return new_tokens


def generate_text(
    model: LoadedModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    dtype: jnp.dtype = jnp.float32,
) -> list[str]:
    """Continues texts as in pretraining (bos + text): the new text of each, without special tokens.

    Options and errors are those of `generate`.
    """
    tokenizer = model.tokenizer
    new_tokens = generate(
        model.config,
        model.params,
        [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(list(prompts))],
        max_new_tokens=max_new_tokens,
        eos_id=tokenizer.eos_id,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        dtype=dtype,
    )
    return [tokenizer.decode(ids) for ids in new_tokens]


def _check(config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    if not (isinstance(max_new_tokens, Integral) and max_new_tokens >= 1):
        raise UserError(f"max_new_tokens={max_new_tokens!r} must be an integer of at least 1")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {i} is empty: give at least one token, such as the bos token")
        if len(prompt) + max_new_tokens > config.max_seq_len:
            raise UserError(
                f"prompt {i} has {len(prompt)} tokens, with max_new_tokens={max_new_tokens} that is more than the "
                f"model's limit of {config.max_seq_len}: shorten the prompt or ask for fewer new tokens"
            )
        for token in prompt:
            if not 0 <= token < config.vocab_size:
                raise UserError(f"prompt {i} holds the token {token}, but the vocabulary has {config.vocab_size}")


def _groups(lengths: list[int], max_new_tokens: int) -> Iterator[list[int]]:
    """Indices of the prompts that are generated together: of about one length, with a bounded number of slots."""
    rest = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while rest:
        n = max(1, _GROUP_SLOTS // _bucket(lengths[rest[0]] + max_new_tokens, _MIN_SLOTS))
        yield rest[:n]
        rest = rest[n:]


def _generate_group(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos_id: int,
    sampling: Sampling,
    dtype: jnp.dtype,
) -> list[list[int]]:
    """The new tokens of each prompt; `sampling` has a row for each, and may have more."""
    n_rows = len(sampling.top_k)
    lengths = np.ones(n_rows, np.int32)  # rows that only fill the batch: one token, done from the start
    lengths[: len(prompts)] = [len(p) for p in prompts]
    limits = np.where(np.arange(n_rows) < len(prompts), lengths + max_new_tokens, lengths).astype(np.int32)
    tokens = np.zeros((n_rows, _bucket(lengths.max(), _MIN_PROMPT)), np.int32)
    for row, prompt in zip(tokens, prompts, strict=False):
        row[: len(prompt)] = prompt

    n_slots = _bucket(lengths.max() + 1, _MIN_SLOTS)
    attention: AttentionFn = xla_attention
    if tokens.shape[1] >= _KERNEL_PROMPT:
        attention = pick_attention("auto", config, dtype, packed=False).attend
    cache, texts = _prefill(config, params, tokens, lengths, n_slots, dtype, attention)
    state = Decoding(cache, texts, jnp.array(lengths), jnp.array(limits), jnp.array(lengths >= limits))
    while True:
        state = _decode(config, params, state, eos_id, sampling, dtype)
        if np.all(state.done):
            break
        state = _grow(state)  # only as it fills up: each step reads every slot
    rows, ends = np.asarray(state.tokens), np.asarray(state.lengths)
    return [rows[i, len(p) : ends[i]].tolist() for i, p in enumerate(prompts)]


def _bucket(n: int, least: int) -> int:
    """The least power of two that is >= n and >= `least` (itself one)."""
    return max(least, 1 << (int(n) - 1).bit_length())


@functools.partial(jax.jit, static_argnames=("config", "n_slots", "dtype", "attention"))
def _prefill(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
    n_slots: int,
    dtype: jnp.dtype,
    attention: AttentionFn,
) -> tuple[KVCache, jax.Array]:
    """Reads right-padded prompts `tokens` (B, T): their cache, and the tokens laid out likewise, (B, `n_slots`)."""
    B, T = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    attend = prefill_attention(lengths, T, attention)
    _, (k, v) = hidden_states_with_cache(config, params, tokens, positions, None, attend, dtype)
    return from_prefill(k, v, n_slots), jnp.pad(tokens, [(0, 0), (0, n_slots - T)])


@functools.partial(jax.jit, static_argnames=("config", "dtype"), donate_argnames=("state",))
def _decode(
    config: ModelConfig, params: Params, state: Decoding, eos_id: int, sampling: Sampling, dtype: jnp.dtype
) -> Decoding:
    """Generates until every sequence is done or one that is not has filled its slots."""
    params = jax.tree.map(lambda x: x.astype(dtype), params)  # once, not at every step
    rows = jnp.arange(state.lengths.shape[0])

    def goes_on(state: Decoding) -> jax.Array:
        return jnp.any(~state.done) & jnp.all(state.done | (state.lengths < state.cache.n_slots))

    def step(state: Decoding) -> Decoding:
        positions = state.lengths - 1
        last = jnp.take_along_axis(state.tokens, positions[:, None], axis=1)  # (B, 1)
        hidden, (k, v) = hidden_states_with_cache(
            config, params, last, positions[:, None], state.cache, decode_attention(positions), dtype
        )
        token = sample(logits(params, hidden[:, 0]), sampling, state.lengths)
        ends = state.done | (token == eos_id)  # what is done runs idle, over and over at the same place
        lengths = jnp.where(ends, state.lengths, state.lengths + 1)
        return state._replace(
            cache=append(state.cache, k, v, positions),
            tokens=state.tokens.at[rows, state.lengths].set(token, mode="drop"),  # dropped: done, its slots all used
            lengths=lengths,
            done=ends | (lengths >= state.limits),
        )

    return jax.lax.while_loop(goes_on, step, state)


@jax.jit
def _grow(state: Decoding) -> Decoding:
    """Twice the slots."""
    n_slots = 2 * state.cache.n_slots
    tokens = jnp.pad(state.tokens, [(0, 0), (0, n_slots - state.tokens.shape[1])])
    return state._replace(cache=grow(state.cache, n_slots), tokens=tokens)
