"""Packed rows through the whole network: documents do not see each other, nor the future, nor padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_jax.config import ModelConfig
from minimind_jax.model import abstract_params, hidden_states, logits, xla_attention

CONFIG = ModelConfig(dim=24, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, vocab_size=160, qk_norm=True)
T, MAX_SEGMENTS = 150, 6  # more than one block of the attention


def random_params(config: ModelConfig, dtype=np.float64) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.normal(0.3 if x.ndim == 1 else 0, 0.3, x.shape).astype(dtype), abstract_params(config)
    )


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


_hidden_states = jax.jit(hidden_states, static_argnums=0, static_argnames=("attention", "dtype", "remat", "unroll"))


def hidden(params, tokens, positions, segment_ids, config=CONFIG, **kwargs) -> jax.Array:
    arrays = (jnp.asarray(x, jnp.int32) for x in (tokens, positions, segment_ids))
    return _hidden_states(config, params, *arrays, attention=xla_attention, dtype=jnp.float64, **kwargs)


def loss(params, tokens, positions, segment_ids, weights) -> tuple[jax.Array, jax.Array]:
    out = hidden(params, tokens, positions, segment_ids)
    return jnp.sum(jnp.sin(out) * weights), out


value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, T), min_size=1, max_size=MAX_SEGMENTS), st.integers(0, 99))
def test_packed_documents_equal_separate_ones(lengths, seed):
    rng, params = np.random.default_rng(seed), random_params(CONFIG)
    packed = np.zeros((3, 1, T), np.int32)  # tokens, positions, segment ids
    apart = np.zeros((3, MAX_SEGMENTS, T), np.int32)
    weights = np.zeros((1, T, CONFIG.dim))
    weights_apart = np.zeros((MAX_SEGMENTS, T, CONFIG.dim))
    places, start = [], 0
    for i, n in enumerate(lengths):
        n = min(n, T - start)
        row = rng.integers(0, CONFIG.vocab_size, n), np.arange(n)
        packed[:2, 0, start : start + n] = apart[:2, i, :n] = row
        packed[2, 0, start : start + n] = i + 1
        weights[0, start : start + n] = weights_apart[i, :n] = rng.normal(size=(n, CONFIG.dim))
        places.append((i, start, n))
        start += n
    apart[1], apart[2] = np.arange(T), 1  # no segments here: causality alone keeps the padding behind out
    with jax.enable_x64(True):
        (value, out), grads = value_and_grad(params, *packed, weights)
        (value_apart, out_apart), grads_apart = value_and_grad(params, *apart, weights_apart)
    for i, start, n in places:
        np.testing.assert_allclose(out[0, start : start + n], out_apart[i, :n], atol=1e-11)
    np.testing.assert_allclose(value, value_apart, rtol=1e-10, atol=1e-10)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(grads_apart), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10 * max(1.0, np.abs(b).max()))


def test_padding_changes_nothing():
    params, rng = random_params(CONFIG), np.random.default_rng(1)
    n = 37
    tokens = rng.integers(0, CONFIG.vocab_size, (1, T))
    positions, ids = np.arange(T)[None], np.ones((1, T), np.int32)
    short = hidden(params, tokens[:, :n], positions[:, :n], ids[:, :n])
    ids[:, n:] = 0
    positions[:, n:] = 0
    weights = np.zeros((1, T, CONFIG.dim))
    weights[:, :n] = 1
    (_, out), grads = value_and_grad(params, tokens, positions, ids, weights)
    np.testing.assert_allclose(out[:, :n], short, atol=1e-12)
    assert np.isfinite(out).all()
    tokens[:, n:] = 0
    for a, b in zip(
        jax.tree.leaves(grads),
        jax.tree.leaves(value_and_grad(params, tokens, positions, ids, weights)[1]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-12)


def test_gradients_flow_from_the_own_past_only():
    params = random_params(CONFIG)
    lengths = [3, 130, 1, 10]  # the rest is padding
    ids = np.pad(np.repeat([1, 2, 3, 4], lengths), (0, T - sum(lengths)))
    positions = np.concatenate([*(np.arange(n) for n in lengths), np.zeros(T - sum(lengths))])
    tokens = np.random.default_rng(0).permutation(CONFIG.vocab_size)[:T]  # all different: an embedding is an input
    direction = np.random.default_rng(1).normal(size=CONFIG.dim)

    def outputs(embed):
        out = hidden({**params, "embed": embed}, tokens[None], positions[None], ids[None])
        return out[0] @ direction

    jacobian = jax.jit(jax.jacrev(outputs))(params["embed"])[:, tokens]  # (T outputs, T inputs, D)
    depends = np.abs(jacobian).max(-1) > 0
    allowed = np.tri(T, dtype=bool) & (ids[:, None] == ids[None])
    np.testing.assert_array_equal(depends, allowed)


@pytest.mark.slow
def test_remat_and_unroll_change_memory_but_no_value():
    params, rng = random_params(CONFIG), np.random.default_rng(2)
    tokens = rng.integers(0, CONFIG.vocab_size, (4, 100))
    positions, ids = np.tile(np.arange(100), (4, 1)), np.ones((4, 100))

    def run(remat: str, unroll: int):
        def total(params):
            return jnp.sum(jnp.sin(hidden(params, tokens, positions, ids, remat=remat, unroll=unroll)))

        compiled = jax.jit(jax.value_and_grad(total)).lower(params).compile()
        return jax.tree.leaves(compiled(params)), compiled.memory_analysis().temp_size_in_bytes

    base, most = run("none", 1)
    for remat, unroll in (("none", 2), ("dots", 1), ("full", 1)):
        leaves, size = run(remat, unroll)
        for a, b in zip(base, leaves, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
        assert remat == "none" or size < 0.9 * most


@pytest.mark.parametrize("tied", [True, False])
def test_stacked_layers_equal_a_loop_in_numpy(tied):
    """The whole network again, layer by layer and position by position, from the papers' formulas."""
    config = ModelConfig(**{**CONFIG.to_dict(), "rope_scaling": CONFIG.rope_scaling, "tie_embeddings": tied})
    params = random_params(config)
    n = 9
    tokens = np.random.default_rng(3).integers(0, config.vocab_size, n)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_eps) * scale

    def rotate(x):  # (n, heads, h)
        half = config.head_dim // 2
        angles = np.arange(n)[:, None] * config.rope_theta ** (-np.arange(half) / half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
        return np.concatenate([turned.real, turned.imag], -1)

    x = params["embed"][tokens]
    for i in range(config.n_layers):
        w = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        y = norm(x, w["attn_norm"])
        q, k, v = (
            (y @ w["attn"][name]).reshape(n, heads, config.head_dim)
            for name, heads in (("q", config.n_heads), ("k", config.n_kv_heads), ("v", config.n_kv_heads))
        )
        q, k = rotate(norm(q, w["attn"]["q_norm"])), rotate(norm(k, w["attn"]["k_norm"]))
        heads = []
        for head in range(config.n_heads):
            j = head * config.n_kv_heads // config.n_heads
            scores = np.where(np.tri(n, dtype=bool), q[:, head] @ k[:, j].T / np.sqrt(config.head_dim), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, j])
        x = x + np.concatenate(heads, -1) @ w["attn"]["o"]
        y = norm(x, w["mlp_norm"])
        gate = y @ w["mlp"]["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w["mlp"]["up"])) @ w["mlp"]["down"]
    x = norm(x, params["final_norm"])
    expected = x @ (params["embed"].T if tied else params["lm_head"])

    out = hidden(params, tokens[None], np.arange(n)[None], np.ones((1, n)), config)
    np.testing.assert_allclose(out[0], x, atol=1e-11)
    np.testing.assert_allclose(logits(params, out)[0], expected, atol=1e-10)
