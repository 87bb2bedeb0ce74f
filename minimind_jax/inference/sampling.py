"""Choosing the next token: greedy, or by temperature, top-k, top-p and min-p, each sequence with its own values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minimind_jax.inference.options import MAX_BIASES, Options


class Sampling(NamedTuple):
    """One entry a sequence, traced: other values do not compile anew. What they mean: options.py."""

    temperature: jax.Array  # (B,) float32, 0 = greedy
    top_k: jax.Array  # (B,) int32, 0 = all
    top_p: jax.Array  # (B,) float32 in (0, 1], 1 = all
    min_p: jax.Array  # (B,) float32 in [0, 1], 0 = all
    repetition_penalty: jax.Array  # (B,) float32, 1 = off
    frequency_penalty: jax.Array  # (B,) float32, 0 = off
    presence_penalty: jax.Array  # (B,) float32, 0 = off
    biased: jax.Array  # (B, MAX_BIASES) int32, tokens
    biases: jax.Array  # (B, MAX_BIASES) float32, what is added to their logits; 0 fills up
    seed: jax.Array  # (B,) uint32
    stream: jax.Array  # (B,) uint32, sequences with the same seed draw differently


def make_sampling(options: Options, streams: Sequence[int] | np.ndarray = (0,)) -> Sampling:
    """The same values for all sequences, as numpy arrays; draws of sequence r depend on (seed, streams[r]) only."""
    n = len(streams)
    biased, biases = np.zeros(MAX_BIASES, np.int32), np.zeros(MAX_BIASES, np.float32)
    for i, (token, bias) in enumerate(options.logit_bias):
        biased[i], biases[i] = token, bias
    values: dict[str, Any] = {
        "temperature": np.full(n, min(float(options.temperature), float(np.finfo(np.float32).max)), np.float32),
        "top_k": np.full(n, options.top_k, np.int32),
        "top_p": np.full(n, options.top_p, np.float32),
        "min_p": np.full(n, options.min_p, np.float32),
        "repetition_penalty": np.full(n, options.repetition_penalty, np.float32),
        "frequency_penalty": np.full(n, options.frequency_penalty, np.float32),
        "presence_penalty": np.full(n, options.presence_penalty, np.float32),
        "biased": np.tile(biased, (n, 1)),
        "biases": np.tile(biases, (n, 1)),
        "seed": np.full(n, options.seed, np.uint32),
        "stream": np.asarray(streams, np.uint32),
    }
    return Sampling(**values)


def adjust(logits: jax.Array, sampling: Sampling, in_prompt: jax.Array, counts: jax.Array) -> jax.Array:
    """Logits (B, V) with bias and penalties.

    Args:
      in_prompt: (B, V) bool, tokens of the prompt.
      counts: (B, V) int32, how often each token stands in the answer so far.
    """
    biased = jnp.any(sampling.biases != 0)
    logits = jax.lax.cond(biased, _add_bias, lambda x, *_: x, logits, sampling)
    repetition = jnp.any(sampling.repetition_penalty != 1)
    seen = in_prompt, counts
    logits = jax.lax.cond(repetition, _penalise_repetition, lambda x, *_: x, logits, sampling, *seen)
    counted = jnp.any((sampling.frequency_penalty != 0) | (sampling.presence_penalty != 0))
    return jax.lax.cond(counted, _penalise_counts, lambda x, *_: x, logits, sampling, counts)


def sample(logits: jax.Array, sampling: Sampling, positions: jax.Array) -> jax.Array:
    """The next tokens, int32 (B,).

    Args:
      logits: (B, V), adjusted; -inf = never.
      positions: (B,) int32, of the tokens that are chosen: the noise depends on (seed, stream, position) only.
    """
    cuts = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)

    def draw(scaled: jax.Array) -> jax.Array:
        kept = jax.lax.cond(jnp.any(cuts), keep_top, lambda x, _: x, scaled, sampling)
        keys = jax.vmap(_key)(sampling.seed, sampling.stream, positions)
        drawn = jax.vmap(jax.random.categorical)(keys, kept)
        return jnp.where(sampling.temperature > 0, drawn, greedy)

    greedy = jnp.argmax(logits, axis=-1)
    # The largest logit moves to 0 first, so that no temperature overflows; the floor only keeps 0 / 0 away.
    floor = jnp.finfo(jnp.float32).tiny
    scaled = (logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.maximum(sampling.temperature, floor)[:, None]
    tokens = jax.lax.cond(jnp.any(sampling.temperature > 0), draw, lambda _: greedy, scaled)
    return tokens.astype(jnp.int32)


def _key(seed: jax.Array, stream: jax.Array, position: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), position)


def _add_bias(logits: jax.Array, sampling: Sampling) -> jax.Array:
    rows = jnp.arange(len(logits))[:, None]
    return logits.at[rows, sampling.biased].add(sampling.biases.astype(logits.dtype))


def _penalise_repetition(logits: jax.Array, sampling: Sampling, in_prompt: jax.Array, counts: jax.Array) -> jax.Array:
    """Keskar et al. 2019 (arXiv:1909.05858), section 4.1, for logits of either sign as in transformers."""
    penalty = sampling.repetition_penalty[:, None].astype(logits.dtype)
    penalised = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(in_prompt | (counts > 0), penalised, logits)


def _penalise_counts(logits: jax.Array, sampling: Sampling, counts: jax.Array) -> jax.Array:
    """OpenAI's formula: logit - count * frequency_penalty - (count > 0) * presence_penalty."""
    frequency, presence = (
        penalty[:, None].astype(logits.dtype) for penalty in (sampling.frequency_penalty, sampling.presence_penalty)
    )
    return logits - counts * frequency - (counts > 0) * presence


def keep_top(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits (B, V) with all but the kept tokens at -inf, transformers' order: top-k, top-p of the rest, min-p.

    Top-k keeps the k largest; top-p the fewest that together reach the share `top_p`, min-p those at least `min_p`
    times as likely as the most likely one; none of them keeps none. Tokens exactly as likely as the last one kept
    stay as well, since nothing ranks them behind it.
    """
    top_k, top_p, min_p = (x[:, None] for x in (sampling.top_k, sampling.top_p, sampling.min_p))
    ranked = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)  # (B, V), descending
    within_k = jnp.arange(logits.shape[-1]) < jnp.where(top_k > 0, top_k, logits.shape[-1])
    probs = jax.nn.softmax(jnp.where(within_k, ranked, -jnp.inf), axis=-1)
    mass_before = jnp.cumsum(probs, axis=-1) - probs
    within_p = (mass_before < top_p) | (top_p >= 1)  # a sum of all but the tail may round to 1
    likely = probs >= min_p * probs[:, :1]
    n_kept = jnp.sum(within_k & within_p & likely, axis=-1)
    threshold = jnp.take_along_axis(ranked, jnp.maximum(n_kept, 1)[:, None] - 1, axis=-1)
    return jnp.where(logits >= threshold, logits, -jnp.inf)
