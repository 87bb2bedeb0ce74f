"""Chunked log-probabilities against the direct formula: values, gradients, dtypes and memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minimind_jax.objectives import token_logprobs


def example(B: int, T: int, D: int, V: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(B + T)
    hidden = rng.normal(size=(B, T, D)).astype(np.float32) * scale
    matrix = rng.normal(size=(D, V)).astype(np.float32)
    return hidden, matrix, rng.integers(0, V, (B, T)).astype(np.int32)


def reference(hidden: np.ndarray, matrix: np.ndarray, targets: np.ndarray) -> np.ndarray:
    logits = hidden.astype(np.float64) @ matrix.astype(np.float64)
    highest = logits.max(-1, keepdims=True)
    log_sum = highest[..., 0] + np.log(np.exp(logits - highest).sum(-1))
    return np.take_along_axis(logits, targets[..., None], -1)[..., 0] - log_sum


@pytest.mark.parametrize(("T", "chunk"), [(1, 128), (7, 3), (8, 4), (9, 4), (130, 128), (5, 1), (6, 100)])
def test_values_equal_the_float64_log_softmax(T: int, chunk: int):
    hidden, matrix, targets = example(2, T, 8, 33)
    out = token_logprobs(hidden, matrix, targets, chunk)
    assert out.shape == (2, T) and out.dtype == jnp.float32
    np.testing.assert_allclose(out, reference(hidden, matrix, targets), rtol=2e-6, atol=2e-6)


def test_large_logits_do_not_overflow():
    hidden, matrix, targets = example(2, 9, 8, 33, scale=1e4)
    np.testing.assert_allclose(
        token_logprobs(hidden, matrix, targets, 4), reference(hidden, matrix, targets), rtol=1e-5
    )


def test_bfloat16_activations_give_float32_probabilities():
    hidden, matrix, targets = example(2, 9, 8, 33)
    half, half_matrix = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(matrix, jnp.bfloat16)
    out = token_logprobs(half, jnp.asarray(matrix), targets, 4)
    assert out.dtype == jnp.float32
    # Rounded inputs, but nothing else is rounded: the softmax and the products' sums are float32.
    expected = reference(np.asarray(half, np.float64), np.asarray(half_matrix, np.float64), targets)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [4, 128])
def test_gradients_equal_the_direct_formulas(chunk: int):
    hidden, matrix, targets = example(2, 11, 8, 33)
    weights = np.random.default_rng(0).normal(size=(2, 11)).astype(np.float32)

    def direct(hidden: jax.Array, matrix: jax.Array) -> jax.Array:
        logprobs = jax.nn.log_softmax(hidden @ matrix, axis=-1)
        return jnp.sum(weights * jnp.take_along_axis(logprobs, targets[..., None], -1)[..., 0])

    def chunked(hidden: jax.Array, matrix: jax.Array) -> jax.Array:
        return jnp.sum(weights * token_logprobs(hidden, matrix, targets, chunk))

    for ours, theirs in zip(
        jax.grad(chunked, (0, 1))(hidden, matrix), jax.grad(direct, (0, 1))(hidden, matrix), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_logits_are_never_held_whole():
    B, T, D, V, chunk = 4, 512, 16, 2048, 64

    def loss(hidden: jax.Array, matrix: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.sum(token_logprobs(hidden, matrix, targets, chunk))

    shapes = (
        jax.ShapeDtypeStruct((B, T, D), jnp.float32),
        jax.ShapeDtypeStruct((D, V), jnp.float32),
        jax.ShapeDtypeStruct((B, T), jnp.int32),
    )
    analysis = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile().memory_analysis()
    all_logits = B * T * V * 4
    assert 0 < analysis.temp_size_in_bytes < all_logits / 2
