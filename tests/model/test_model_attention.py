"""The attention backend that is the others' reference, against one written in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_jax.model.attention import masked_attention, xla, xla_attention

attend = jax.jit(xla_attention)


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, segment_ids: np.ndarray) -> np.ndarray:
    """Query by query in float64; key/value head j serves queries j * H/K and the following."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    B, T, H, h = q.shape
    out = np.zeros_like(q)
    for b in range(B):
        for t in range(T):
            seen = [s for s in range(t + 1) if segment_ids[b, s] == segment_ids[b, t]]
            for head in range(H):
                j = head // (H // k.shape[2])
                scores = k[b, seen, j] @ q[b, t, head] / np.sqrt(h)
                weights = np.exp(scores - scores.max())
                out[b, t, head] = weights @ v[b, seen, j] / weights.sum()
    return out


def random_qkv(T: int, H: int, K: int, h: int = 8, B: int = 2) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(T)
    return tuple(rng.normal(0, 1.5, (B, T, n, h)).astype(np.float32) for n in (H, K, K))


def random_segments(T: int, B: int = 2) -> np.ndarray:
    """Segments of random lengths, numbered from 1, padding (0) at the end."""
    rng = np.random.default_rng(T)
    ids = np.cumsum(rng.random((B, T)) < 5 / T, axis=1).astype(np.int32) + 1
    ids[:, T - T // 10 :] = 0
    return ids


@pytest.mark.parametrize("T", [1, 128, 129, 300])
@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (3, 1)])
def test_xla_equals_reference(T, H, K):
    q, k, v = random_qkv(T, H, K)
    ids = random_segments(T)
    got = attend(q, k, v, ids)
    np.testing.assert_allclose(got, reference(q, k, v, ids), atol=5e-6)


def test_xla_equals_reference_where_blocks_are_larger_than_the_least():
    T = 8 * 128 + 7
    q, k, v = random_qkv(T, 2, 1, B=1)
    ids = random_segments(T, B=1)
    got = attend(q, k, v, ids)
    np.testing.assert_allclose(got, reference(q, k, v, ids), atol=5e-6)


def test_float64_and_half_precision():
    q, k, v = random_qkv(40, 4, 2)
    ids = random_segments(40)
    with jax.enable_x64(True):
        wide = attend(*(jnp.asarray(x, jnp.float64) for x in (q, k, v)), jnp.asarray(ids))
        np.testing.assert_allclose(wide, reference(q, k, v, ids), atol=1e-13)
    narrow = attend(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)), ids)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), reference(q, k, v, ids), atol=0.08)


def test_softmax_survives_large_scores():
    q, k, v = random_qkv(20, 2, 2)
    ids = np.ones((2, 20), np.int32)
    got = attend(300 * q, k, v, ids)
    np.testing.assert_allclose(got, reference(300 * q, k, v, ids), atol=2e-3)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 80), min_size=1, max_size=6), st.integers(0, 100))
def test_isolation_is_exact(lengths, seed):
    """Whatever stands in other segments or later: bit for bit the same output."""
    T = 160
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)[:T].astype(np.int32)
    ids = np.pad(ids, (0, T - len(ids)))[None]
    rng = np.random.default_rng(seed)
    a, b = ([rng.normal(size=(1, T, n, 8)).astype(np.float32) for n in (2, 1, 1)] for _ in range(2))
    at = rng.integers(T)
    visible = (ids[0] == ids[0, at]) & (np.arange(T) <= at)
    mixed = [np.where(visible[None, :, None, None], x, y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(attend(*a, ids)[0, at], attend(*mixed, ids)[0, at])


def test_blocks_above_the_diagonal_cost_nothing():
    B, T, H, K, h = 1, 1024, 4, 2, 32
    shapes = [jax.ShapeDtypeStruct((B, T, n, h), jnp.float32) for n in (H, K, K)]
    ids = jax.ShapeDtypeStruct((B, T), jnp.int32)

    def full(q, k, v, segment_ids):
        mask = jnp.tri(T, dtype=bool) & (segment_ids[:, :, None] == segment_ids[:, None])
        return masked_attention(q, k, v, mask[:, None, None])

    def flops(f) -> float:
        return jax.jit(f).lower(*shapes, ids).compile().cost_analysis()["flops"]

    assert flops(xla_attention) < 0.6 * flops(full)  # 9/16 with eight blocks

    def gradient(f):
        return jax.grad(lambda q, k, v, s: jnp.sum(f(q, k, v, s) ** 2), (0, 1, 2))

    assert flops(gradient(xla_attention)) < 0.6 * flops(gradient(full))


@pytest.mark.parametrize("T", [129, 300])
def test_long_rows_go_piece_by_piece_to_the_same_values_and_gradients(monkeypatch, T):
    arrays = random_qkv(T, 4, 2, B=1)
    ids = random_segments(T, B=1)

    def values_and_gradients() -> list[jax.Array]:
        loss = lambda *qkv: (lambda out: (jnp.sum(jnp.sin(out)), out))(xla_attention(*qkv, ids))  # noqa: E731
        grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
        return [out, *grads]

    expected = values_and_gradients()
    monkeypatch.setattr(xla, "_LONG", 100)
    monkeypatch.setattr(xla, "_PIECE", 50)
    for ours, theirs in zip(values_and_gradients(), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=5e-6)


@pytest.mark.slow
def test_long_rows_take_less_memory():
    def temporaries(T: int) -> int:
        shapes = [jax.ShapeDtypeStruct((1, T, n, 8), jnp.float32) for n in (2, 1, 1)]
        gradient = jax.grad(lambda q, k, v, s: jnp.sum(xla_attention(q, k, v, s)), (0, 1, 2))
        lowered = jax.jit(gradient).lower(*shapes, jax.ShapeDtypeStruct((1, T), jnp.int32))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(xla._LONG) < temporaries(xla._LONG - 8) / 4
