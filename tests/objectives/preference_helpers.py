"""Pairs of random tokens, the rows they are packed into, and two networks to score them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minimind_jax.config import DpoConfig, ModelConfig
from minimind_jax.model import abstract_params, hidden_states, xla_attention
from minimind_jax.objectives import preference_optimization

MODEL = ModelConfig(dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=24, vocab_size=41, max_seq_len=64)


class Side(NamedTuple):
    tokens: np.ndarray
    prompt_len: int  # all tokens after it are targets


Pair = tuple[Side, Side]


def random_pairs(n: int, seed: int = 0) -> list[Pair]:
    """Prompts of 1 to 4 tokens, answers of 1 to 7."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(n):
        prompt = rng.integers(0, MODEL.vocab_size, rng.integers(1, 5))
        answers = [rng.integers(0, MODEL.vocab_size, rng.integers(1, 8)) for _ in range(2)]
        chosen, rejected = (Side(np.concatenate([prompt, answer]), len(prompt)) for answer in answers)
        pairs.append((chosen, rejected))
    return pairs


def pack(rows: list[list[Pair]], T: int, P: int, ref_logps: list[list[np.ndarray]] | None = None) -> dict:
    """A batch of the preference objective, with arbitrary values wherever its masks say that they do not count."""
    n = len(rows)
    batch = {name: np.zeros((n, T), np.int32) for name in ("tokens", "segment_ids", "positions")}
    batch["targets"] = np.random.default_rng(9).integers(0, MODEL.vocab_size, (n, T)).astype(np.int32)
    batch["target_mask"] = np.zeros((n, T), bool)
    batch["pair_mask"] = np.zeros((n, P), bool)
    batch["ref_logps"] = np.where(np.arange(2 * P).reshape(P, 2) % 3, -123.0, 4.5)[None].repeat(n, 0)
    for i, pairs in enumerate(rows):
        at = 0
        for segment, side in enumerate((side for pair in pairs for side in pair), 1):
            end = at + len(side.tokens)
            batch["tokens"][i, at:end] = side.tokens
            batch["segment_ids"][i, at:end] = segment
            batch["positions"][i, at:end] = np.arange(end - at)
            batch["targets"][i, at : end - 1] = side.tokens[1:]
            batch["target_mask"][i, at + side.prompt_len - 1 : end - 1] = True
            at = end
        batch["pair_mask"][i, : len(pairs)] = True
        batch["ref_logps"][i, : len(pairs)] = 0 if ref_logps is None else ref_logps[i]
    return batch


class Network(NamedTuple):
    forward: Callable[[dict, dict], jax.Array]
    params: dict  # float64


@functools.cache
def forward_of(config: ModelConfig) -> Callable[[dict, dict], jax.Array]:
    def forward(params: dict, batch: dict) -> jax.Array:
        arrays = batch["tokens"], batch["positions"], batch["segment_ids"]
        return hidden_states(config, params, *arrays, attention=xla_attention, dtype=params["embed"].dtype)

    return jax.jit(forward)


def _small_forward(params: dict, batch: dict) -> jax.Array:
    return jnp.tanh(params["embed"][batch["tokens"]] @ params["w"])


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(0.5 if len(shape) == 1 else 0, 0.5, shape)  # every token matters for those after it


@functools.cache
def real_network() -> Network:
    rng = np.random.default_rng(0)
    return Network(forward_of(MODEL), jax.tree.map(lambda x: _random(rng, x.shape), abstract_params(MODEL)))


@functools.cache
def small_network() -> Network:
    """An embedding and a matrix: quick to compile."""
    rng = np.random.default_rng(0)
    return Network(_small_forward, {"embed": _random(rng, (MODEL.vocab_size, 8)), "w": _random(rng, (8, 8))})


@functools.lru_cache(maxsize=64)
def _compiled(config: DpoConfig, forward: Callable[[dict, dict], jax.Array]):
    objective = preference_optimization(config)

    def loss(params: dict, micro_batch: dict, denominators: dict) -> tuple[jax.Array, dict]:
        return objective.loss(forward, params, micro_batch, denominators)

    return objective.denominators, jax.value_and_grad(loss, has_aux=True)


def total(config: DpoConfig, network: Network, batch: dict, accum_steps: int = 1) -> tuple[float, dict, dict]:
    """Loss, metrics and gradients, summed over micro-batches as the train step does."""
    denominators_of, loss_and_grads = _compiled(config, network.forward)
    micro = {k: v.reshape(accum_steps, -1, *v.shape[1:]) for k, v in batch.items()}
    denominators = denominators_of({k: jnp.asarray(v) for k, v in micro.items()})
    parts = [
        loss_and_grads(network.params, {k: v[i] for k, v in micro.items()}, denominators) for i in range(accum_steps)
    ]
    (loss, metrics), grads = jax.tree.map(lambda *leaves: sum(np.asarray(leaf) for leaf in leaves), *parts)
    return float(loss), {k: float(v) for k, v in metrics.items()}, grads


def single(tree):
    """The same in single precision."""
    return jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, tree)


def at(network: Network, step: float, direction: dict) -> Network:
    """The network, moved by `step` along `direction`."""
    return Network(network.forward, jax.tree.map(lambda p, d: p + step * d, network.params, direction))


def assert_close(ours, theirs, rtol: float, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), ours, theirs)
