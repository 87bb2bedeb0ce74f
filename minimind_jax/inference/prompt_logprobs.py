"""What the model thinks of a prompt: each token's log-probability, on the pass that reads it into the cache."""

from __future__ import annotations

import functools

import jax

from minimind_jax.config import ModelConfig
from minimind_jax.inference.cache import Cache
from minimind_jax.inference.decode import Step, piece_states, prompt_states, with_logprobs
from minimind_jax.model import AttentionFn, Params, logits

_CHUNK = 64  # positions whose logits exist at a time


@functools.partial(jax.jit, static_argnames=("config", "n_slots", "attention"))
def read_and_score_prompt(
    config: ModelConfig, params: Params, tokens: jax.Array, targets: jax.Array, n_slots: int, attention: AttentionFn
) -> tuple[Cache, Step]:
    """`decode.read_prompts` of one prompt `tokens` (1, T), with the log-probabilities of the tokens after them.

    Args:
      targets: (T,) int32, the token after each.

    Returns: the cache, and a `Step` whose rows are the T positions.
    """
    hidden, cache = prompt_states(config, params, tokens, n_slots, attention)
    return cache, _score(params, hidden[0], targets)


@functools.partial(jax.jit, static_argnames=("config",), donate_argnames=("cache",))
def read_and_score_piece(
    config: ModelConfig, params: Params, cache: Cache, tokens: jax.Array, targets: jax.Array, start: jax.Array
) -> tuple[Cache, Step]:
    """The same for `decode.read_piece`."""
    hidden, cache = piece_states(config, params, cache, tokens, start)
    return cache, _score(params, hidden[0], targets)


def _score(params: Params, hidden: jax.Array, targets: jax.Array) -> Step:
    """Of `targets` (T,) by hidden states (T, D), where T is a power of two."""
    n = min(_CHUNK, len(targets))
    chunks = hidden.reshape(-1, n, hidden.shape[-1]), targets.reshape(-1, n)
    scored = jax.lax.map(lambda chunk: with_logprobs(logits(params, chunk[0]), chunk[1]), chunks)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), scored)
