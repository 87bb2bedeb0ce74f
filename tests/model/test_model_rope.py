"""RoPE against transformers' rotary embedding and against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers_versions import rope_arguments

from minimind_jax.config import ModelConfig, RopeScaling
from minimind_jax.model.rope import apply_rope, inverse_frequencies, rope_tables

YARN = RopeScaling(type="yarn", factor=16.0, original_max_seq_len=512)
SCALINGS = {
    "default": RopeScaling(),
    "yarn": YARN,
    "yarn-4x2048": RopeScaling(type="yarn", factor=4.0, original_max_seq_len=2048),
    "yarn-1x": RopeScaling(type="yarn", factor=1.0, original_max_seq_len=512),
    "yarn-of-4": RopeScaling(type="yarn", factor=8.0, original_max_seq_len=4),  # the ramp's ends change places
    "yarn-of-7": RopeScaling(type="yarn", factor=8.0, original_max_seq_len=7),
}


def config_with(scaling: RopeScaling, head_dim: int = 64, theta: float = 1e6) -> ModelConfig:
    return ModelConfig(dim=2 * head_dim, n_heads=2, n_kv_heads=1, rope_theta=theta, rope_scaling=scaling)


def transformers_rotary(config: ModelConfig):
    pytest.importorskip("torch")
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    scaling = None
    if config.rope_scaling.type == "yarn":
        scaling = {
            "rope_type": "yarn",
            "factor": config.rope_scaling.factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_seq_len,
        }
    return llama.LlamaRotaryEmbedding(
        llama.LlamaConfig(
            hidden_size=config.dim,
            num_attention_heads=config.n_heads,
            **rope_arguments(config.rope_theta, scaling, config.max_seq_len),
        )
    )


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 1e6), (96, 1e4), (16, 1e6)])
def test_frequencies_equal_transformers(scaling, head_dim, theta):
    config = config_with(scaling, head_dim, theta)
    theirs = transformers_rotary(config)
    inv_freq, scale = inverse_frequencies(config)
    assert inv_freq.dtype == np.float64
    np.testing.assert_allclose(inv_freq, theirs.inv_freq.numpy(), rtol=2e-6)
    assert scale == pytest.approx(theirs.attention_scaling, rel=1e-12)


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
def test_rotation_equals_transformers(scaling):
    config = config_with(scaling)
    rotary = transformers_rotary(config)
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    rng = np.random.default_rng(0)
    positions = np.stack([np.arange(64), rng.integers(0, 4 * 2048, 64)])  # (B, T)
    q, k = rng.normal(size=(2, 2, 64, 2, 64)).astype(np.float32)  # each (B, T, H, h)
    cos, sin = rotary(torch.from_numpy(q), torch.from_numpy(positions))
    theirs = apply_rotary_pos_emb(torch.from_numpy(q), torch.from_numpy(k), cos, sin, unsqueeze_dim=2)
    for dtype, x64 in ((jnp.float32, False), (jnp.float64, True)):
        with jax.enable_x64(x64):
            tables = rope_tables(config, jnp.asarray(positions), dtype)
            for x, expected in zip((q, k), theirs, strict=True):
                got = apply_rope(jnp.asarray(x, dtype), *tables)
                assert got.dtype == dtype
                # transformers' own angles are float32: up to 8192 radians to 5e-4
                np.testing.assert_allclose(got, expected.numpy(), atol=4e-3)
                np.testing.assert_allclose(got[:1, :8], expected.numpy()[:1, :8], atol=5e-6)


@pytest.mark.parametrize("position", [0, 1, 511, 32767])
def test_float64_is_the_formula(position):
    """As complex numbers: pair (i, i + h/2) turns by position * theta^(-2i/h)."""
    config = config_with(RopeScaling())
    x = np.random.default_rng(0).normal(size=(1, 1, 2, 64))
    turns = np.exp(1j * position * np.asarray([1e6 ** (-2 * i / 64) for i in range(32)]))
    turned = (x[..., :32] + 1j * x[..., 32:]) * turns
    with jax.enable_x64(True):
        tables = rope_tables(config, jnp.asarray([[position]]), jnp.float64)
        got = apply_rope(jnp.asarray(x), *tables)
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=1e-9)


def test_yarn_keeps_fast_pairs_and_interpolates_slow_ones():
    plain, _ = inverse_frequencies(config_with(RopeScaling()))
    scaled, scale = inverse_frequencies(config_with(YARN))
    turns = YARN.original_max_seq_len * plain / (2 * np.pi)
    np.testing.assert_allclose(scaled[turns > 40], plain[turns > 40], rtol=1e-12)
    np.testing.assert_allclose(scaled[turns < 0.5], plain[turns < 0.5] / YARN.factor, rtol=1e-12)
    assert np.all(np.diff(scaled) < 0)
    assert scale == pytest.approx(1 + 0.1 * np.log(16))


@pytest.mark.parametrize("scaling", [RopeScaling(), YARN], ids=["default", "yarn"])
def test_scores_depend_on_the_distance_only(scaling):
    config = config_with(scaling)
    with jax.enable_x64(True):
        q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 2, 64), jnp.float64)

        def scores(m, n):
            rotated = [
                apply_rope(x, *rope_tables(config, jnp.asarray([[p]]), jnp.float64)) for x, p in ((q, m), (k, n))
            ]
            return np.asarray(jnp.sum(rotated[0] * rotated[1], -1))

        base = scores(37, 12)
        np.testing.assert_allclose(scores(1037, 1012), base, atol=1e-9)
        np.testing.assert_allclose(scores(25, 0), base, atol=1e-9)
        assert np.abs(scores(12, 37) - base).max() > 0.1  # before is not behind
        norm = inverse_frequencies(config)[1] ** 2
        np.testing.assert_allclose(scores(5, 5), norm * np.sum(q * k, -1), atol=1e-9)


def test_half_precision_angles_are_float32():
    config = config_with(RopeScaling())
    positions = jnp.asarray([[0, 999, 32767]])
    wide, narrow = (rope_tables(config, positions, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    for a, b in zip(wide, narrow, strict=True):
        assert b.dtype == jnp.bfloat16
        np.testing.assert_array_equal(a.astype(jnp.bfloat16), b)
