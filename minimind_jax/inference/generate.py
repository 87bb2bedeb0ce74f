"""Batch generation: prefill once, then the whole decode loop on the device.

Prompts of different lengths are padded on the right, so a token's slot in the cache is its position.
Batch, prompt and cache sizes are powers of two: few programs are compiled, whatever is asked for. Many prompts go
in groups, the long ones first, so that memory has a bound. For requests that come and go: engine.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.inference.cache import MIN_SLOTS, Cache, count_slots, power_of_two, with_slots
from minimind_jax.inference.decode import Rows, choose, make_rows, prompt_attention, read_prompts, read_tokens
from minimind_jax.inference.devices import on_each_device
from minimind_jax.inference.options import Options
from minimind_jax.model import AttentionFn, Params, unstack_layers

if TYPE_CHECKING:
    from minimind_jax.workdir import LoadedModel

_MIN_PROMPT = 16
_GROUP_SLOTS = 2**15  # of the cache, all rows of a group together; a longer prompt goes alone


class Decoding(NamedTuple):
    """Sequences in progress."""

    cache: Cache
    rows: Rows
    texts: jax.Array  # (B, S) int32, prompt and what was generated


def generate(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    options: Options,
    *,
    eos_id: int,
    dtype: jnp.dtype = jnp.float32,
    mesh: Mesh | None = None,
) -> list[list[int]]:
    """Continues token sequences.

    Args:
      params: numpy or jax arrays, on one device or sharded.
      prompts: token ids, each of at least one token.
      options: for all of them. Draws depend on (seed, index of the prompt, position) only, not on the other prompts.
        `stop`, log-probabilities and grammars are the engine's: they are refused here.
      eos_id: ends a sequence.
      dtype: of activations, cache and the weights' working copy.
      mesh: splits the prompts over all its devices, each with a whole copy of the weights.

    Returns: the new tokens of each prompt, without the end token.

    Raises:
      UserError: an empty prompt, an id outside the vocabulary, or more tokens than `config.max_seq_len`.
    """
    if options.stop or options.stop_token_ids or options.top_logprobs >= 0 or options.grammar or options.score_prompt:
        raise ValueError("batch generation knows no stops, log-probabilities or grammars: use the engine")
    _check(config, prompts, options.max_new_tokens)
    params = unstack_layers(params, dtype)
    if mesh:
        params = jax.device_put(params, NamedSharding(mesh, P()))
    new_tokens: list[list[int]] = [[]] * len(prompts)
    for group in _groups([len(p) for p in prompts], options.max_new_tokens, mesh.size if mesh else 1):
        members = [prompts[i] for i in group]
        made = _generate_group(config, params, members, group, options, eos_id, mesh)
        for i, tokens in zip(group, made, strict=True):
            new_tokens[i] = tokens
    return new_tokens


def generate_text(
    model: LoadedModel,
    prompts: Sequence[str],
    options: Options,
    *,
    dtype: jnp.dtype = jnp.float32,
    mesh: Mesh | None = None,
) -> list[str]:
    """Continues texts as in pretraining (bos + text): the new text of each, without special tokens.

    All else is as in `generate`.
    """
    tokenizer = model.tokenizer
    ids = [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(list(prompts))]
    new_tokens = generate(model.config, model.params, ids, options, eos_id=tokenizer.eos_id, dtype=dtype, mesh=mesh)
    return [tokenizer.decode(ids) for ids in new_tokens]


def _check(config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
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


def _groups(lengths: list[int], max_new_tokens: int, n_devices: int) -> Iterator[list[int]]:
    """Indices of the prompts that are generated together: of about one length, with a bounded number of slots."""
    rest = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while rest:
        n = n_devices * max(1, _GROUP_SLOTS // power_of_two(lengths[rest[0]] + max_new_tokens, MIN_SLOTS))
        yield rest[:n]
        rest = rest[n:]


def _generate_group(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[Sequence[int]],
    indices: Sequence[int],
    options: Options,
    eos_id: int,
    mesh: Mesh | None,
) -> list[list[int]]:
    """The new tokens of each prompt, which has the index `indices[i]` among all."""
    n_devices = mesh.size if mesh else 1
    n_rows = n_devices * power_of_two(math.ceil(len(prompts) / n_devices), 1)
    filling = n_rows - len(prompts)
    prompts = [*prompts, *[[0]] * filling]
    longest = max(map(len, prompts))
    tokens = np.zeros((n_rows, power_of_two(longest, _MIN_PROMPT)), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    new_tokens = [options.max_new_tokens] * len(indices) + [0] * filling
    rows = make_rows(prompts, new_tokens, options, eos_id, config.vocab_size, [*indices, *[0] * filling])
    if mesh:
        rows, tokens = jax.device_put((rows, tokens), NamedSharding(mesh, P(mesh.axis_names)))

    attention = prompt_attention(config, params["embed"].dtype, tokens.shape[1])
    n_slots = power_of_two(longest + 1, MIN_SLOTS)
    state = _prefill(config, params, tokens, rows, n_slots, attention, mesh)
    while True:
        state = _decode(config, params, state, mesh)
        if not np.any(state.rows.active):
            break
        state = _grow(state)  # only as it fills up: each step reads every slot
    made, ends = np.asarray(state.texts), np.asarray(state.rows.positions) + 1
    return [made[i, len(prompts[i]) : ends[i]].tolist() for i in range(len(indices))]


@functools.partial(jax.jit, static_argnames=("config", "n_slots", "attention", "mesh"))
def _prefill(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    rows: Rows,
    n_slots: int,
    attention: AttentionFn,
    mesh: Mesh | None,
) -> Decoding:
    """Reads right-padded prompts `tokens` (B, T), all but the last token of each, which the first step reads."""

    def read(params: Params, tokens_and_rows: tuple[jax.Array, Rows]) -> Decoding:
        tokens, rows = tokens_and_rows
        cache = read_prompts(config, params, tokens, n_slots, attention)
        return Decoding(cache, rows, jnp.pad(tokens, [(0, 0), (0, n_slots - tokens.shape[1])]))

    return on_each_device(read, mesh)(params, (tokens, rows))


@functools.partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames=("state",))
def _decode(config: ModelConfig, params: Params, state: Decoding, mesh: Mesh | None) -> Decoding:
    """Generates until every sequence (of a device) is complete or one that is not has filled its slots."""

    def goes_on(state: Decoding) -> jax.Array:
        active, next_slot = state.rows.active, state.rows.positions + 1
        return jnp.any(active) & jnp.all(~active | (next_slot < count_slots(state.cache)))

    def run(params: Params, state: Decoding) -> Decoding:
        numbers = jnp.arange(len(state.rows.tokens))

        def step(state: Decoding) -> Decoding:
            cache, scores = read_tokens(config, params, state.cache, state.rows)
            rows, _ = choose(scores, state.rows)
            # What is complete writes its last token once more.
            return Decoding(cache, rows, state.texts.at[numbers, rows.positions].set(rows.tokens))

        return jax.lax.while_loop(goes_on, step, state)

    return on_each_device(run, mesh)(params, state)


@jax.jit
def _grow(state: Decoding) -> Decoding:
    """Twice the slots."""
    n_slots = 2 * count_slots(state.cache)
    texts = jnp.pad(state.texts, [(0, 0), (0, n_slots - state.texts.shape[1])])
    return state._replace(cache=with_slots(state.cache, n_slots), texts=texts)
