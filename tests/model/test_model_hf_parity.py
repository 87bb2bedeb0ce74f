"""Our network against transformers' Llama and Qwen3: logits and all gradients on random weights."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers_versions import rope_arguments

from minimind_jax import hf_format
from minimind_jax.model import hidden_states, logits, xla_attention

BATCH, LENGTH = 2, 40
QUICK_COMPILE = {"xla_backend_optimization_level": 0}


@dataclasses.dataclass(frozen=True)
class Case:
    cls: type
    tied: bool
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 8
    yarn: dict | None = None
    length: int = LENGTH


LLAMA, QWEN3 = transformers.LlamaConfig, transformers.Qwen3Config
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CASES = {
    "llama-tied": Case(LLAMA, tied=True),
    "llama-untied-wide-heads": Case(LLAMA, tied=False, n_kv_heads=4, head_dim=24),
    "qwen3-untied-one-kv-head": Case(QWEN3, tied=False, n_kv_heads=1),
    "qwen3-tied-wide-heads": Case(QWEN3, tied=True, head_dim=20),
    "llama-yarn": Case(LLAMA, tied=True, yarn=YARN, length=128, head_dim=16),
    "qwen3-yarn": Case(QWEN3, tied=False, yarn=YARN, length=128, head_dim=16),
}


def reference_model(case: Case, seed: int = 0):
    """transformers' model with weights large enough that attention and MLP matter."""
    config = case.cls(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=case.n_heads,
        num_key_value_heads=case.n_kv_heads,
        head_dim=case.head_dim,
        rms_norm_eps=1e-5,
        tie_word_embeddings=case.tied,
        **rope_arguments(1e4, case.yarn, 128),
        attn_implementation="sdpa",
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.2 * noise if "norm" in name else noise * (1.0 if "embed" in name else p.shape[-1] ** -0.5))
    return model


def widen(model, case: Case):
    """float64 throughout: transformers computes RMSNorm and RoPE in float32 whatever the weights are."""
    model.double()

    def rms_norm(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def rope(self, x, position_ids):
        frequencies = 1e4 ** -(torch.arange(0, case.head_dim, 2, dtype=torch.float64) / case.head_dim)
        angles = position_ids[..., None].double() * frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = types.MethodType(rms_norm, module)
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = types.MethodType(rope, module)


def compare(case: Case, directory, dtype: str, tolerance: float) -> None:
    model = reference_model(case)
    model.save_pretrained(directory)
    config = hf_format.read_config(directory)
    params = hf_format.read_params(directory, config)
    if dtype == "float64":
        widen(model, case)

    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 61, (BATCH, case.length))
    cotangent = rng.standard_normal((BATCH, case.length, 61)).astype(dtype)

    expected = model(torch.from_numpy(tokens)).logits
    (expected * torch.from_numpy(cotangent)).sum().backward()
    expected_grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    expected = expected.detach().numpy()
    assert expected.dtype == dtype

    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
        positions = jnp.broadcast_to(jnp.arange(case.length), tokens.shape)

        def forward(params):
            hidden = hidden_states(
                config,
                params,
                jnp.asarray(tokens, jnp.int32),
                positions,
                jnp.ones_like(positions),
                attention=xla_attention,
                dtype=jnp.dtype(dtype),
            )
            ours = logits(params, hidden)
            return (ours * cotangent).sum(), ours

        step = jax.jit(jax.value_and_grad(forward, has_aux=True), compiler_options=QUICK_COMPILE)
        (_, ours), grads = step(params)
        ours, grads = np.asarray(ours), hf_format.to_hf_tensors(grads, config)
    assert ours.dtype == dtype
    assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()
    assert grads.keys() == expected_grads.keys()
    for name, grad in grads.items():
        error = np.abs(grad - expected_grads[name]).max()
        assert error <= tolerance * np.abs(expected_grads[name]).max(), name


@pytest.mark.parametrize("name", CASES)
def test_float32_logits_and_gradients_equal_transformers(name, tmp_path):
    compare(CASES[name], tmp_path, "float32", 1e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.yarn])
def test_float64_logits_and_gradients_equal_transformers(name, tmp_path):
    compare(CASES[name], tmp_path, "float64", 1e-10)


def test_yarn_changes_the_logits_that_the_parity_test_compares(tmp_path):
    """Without this the YaRN cases could pass with scaling ignored on both sides."""
    case = CASES["llama-yarn"]
    tokens = torch.arange(case.length)[None] % 61
    scaled, plain = reference_model(case), reference_model(dataclasses.replace(case, yarn=None))
    with torch.no_grad():
        difference = (scaled(tokens).logits - plain(tokens).logits).abs().max()
    scaled.save_pretrained(tmp_path)
    assert difference > 0.1
    assert hf_format.read_config(tmp_path).rope_scaling.factor == 4.0
    assert math.isclose(scaled.model.rotary_emb.attention_scaling, 0.1 * math.log(4) + 1)
