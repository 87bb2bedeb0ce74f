"""The cached path against two references: transformers' generate, and our own full forward."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers_versions import rope_arguments

from minimind_jax.config import ModelConfig, RopeScaling
from minimind_jax.inference import Options, generate
from minimind_jax.inference import cache as kv
from minimind_jax.model import (
    abstract_params,
    hidden_states,
    hidden_states_with_cache,
    logits,
    unstack_layers,
    xla_attention,
)

LENGTHS = (1, 5, 16, 30)


def tiny_config(**kwargs) -> ModelConfig:
    return ModelConfig(
        **{"dim": 48, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 211, "max_seq_len": 512, **kwargs}
    )


def random_prompts(config: ModelConfig, lengths=LENGTHS) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, config.vocab_size, n).tolist() for n in lengths]


def transformers_model(config: ModelConfig):
    """A random model of transformers with weights large enough that its greedy text varies."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    name = "Qwen3" if config.qk_norm else "Llama"
    rope = None
    if config.rope_scaling.type == "yarn":
        original = config.rope_scaling.original_max_seq_len
        rope = {
            "rope_type": "yarn", "factor": config.rope_scaling.factor, "original_max_position_embeddings": original,
        }  # fmt: skip
    hf_config = getattr(transformers, f"{name}Config")(
        hidden_size=config.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        intermediate_size=config.ffn_dim,
        vocab_size=config.vocab_size,
        **rope_arguments(config.rope_theta, rope, config.max_seq_len),
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tie_embeddings,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more of them only wait for one another at this size
    model = getattr(transformers, f"{name}ForCausalLM")(hf_config).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "norm" in key:
                p.copy_(1 + 0.3 * torch.randn_like(p))
    return model


def our_params(config: ModelConfig, model) -> dict:
    weights = {k: v.detach().numpy() for k, v in model.state_dict().items()}

    def stack(name: str) -> np.ndarray:
        layers = [weights[f"model.layers.{i}.{name}.weight"] for i in range(config.n_layers)]
        return np.stack([w.T for w in layers])  # torch's (out, in) becomes (in, out); a norm's vector stays

    norms = {"q_norm": stack("self_attn.q_norm"), "k_norm": stack("self_attn.k_norm")} if config.qk_norm else {}
    params = {
        "embed": weights["model.embed_tokens.weight"],
        "final_norm": weights["model.norm.weight"],
        "blocks": {
            "attn_norm": stack("input_layernorm"),
            "mlp_norm": stack("post_attention_layernorm"),
            "attn": {x: stack(f"self_attn.{x}_proj") for x in "qkvo"} | norms,
            "mlp": {x: stack(f"mlp.{x}_proj") for x in ("gate", "up", "down")},
        },
    }
    return params if config.tie_embeddings else params | {"lm_head": weights["lm_head.weight"].T}


@pytest.mark.parametrize(
    "kwargs",
    [
        {"qk_norm": False, "tie_embeddings": True},
        {"qk_norm": True, "tie_embeddings": False, "head_dim": 16},
        # The longest prompt and its answer end at position 69: beyond four times the original length.
        {"qk_norm": False, "head_dim": 16, "max_seq_len": 128, "rope_scaling": RopeScaling("yarn", 8.0, 16)},
        {"qk_norm": True, "head_dim": 16, "max_seq_len": 128, "rope_scaling": RopeScaling("yarn", 8.0, 16)},
    ],
    ids=["llama", "qwen3-untied", "llama-yarn", "qwen3-yarn"],
)
def test_greedy_equals_transformers_token_by_token(kwargs):
    config = tiny_config(**kwargs)
    model, prompts, n_new = transformers_model(config), random_prompts(config), 40
    ours = generate(config, our_params(config, model), prompts, Options(max_new_tokens=n_new), eos_id=-1)
    torch = pytest.importorskip("torch")
    for prompt, tokens in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        theirs = model.generate(ids, attention_mask=mask, max_new_tokens=n_new, do_sample=False)[0, len(prompt) :]
        assert tokens == theirs.tolist()
    assert len({t for tokens in ours for t in tokens}) > 20  # not one token for ever


def test_the_repetition_penalty_counts_prompt_and_answer_as_transformers_does():
    config = tiny_config()
    model, prompts, penalty = transformers_model(config), random_prompts(config), 1.3
    options = Options(max_new_tokens=40, repetition_penalty=penalty)
    ours = generate(config, our_params(config, model), prompts, options, eos_id=-1)
    assert ours != generate(config, our_params(config, model), prompts, Options(max_new_tokens=40), eos_id=-1)
    torch = pytest.importorskip("torch")
    for prompt, tokens in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, repetition_penalty=penalty
        )
        assert tokens == theirs[0, len(prompt) :].tolist()


@pytest.fixture(scope="module")
def model():
    config = tiny_config(qk_norm=True)
    rng = np.random.default_rng(0)
    return config, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape), x.dtype), abstract_params(config))


@pytest.mark.slow
def test_mixed_batch_equals_each_alone(model):
    config, params = model
    prompts = random_prompts(config)
    together = generate(config, params, prompts, Options(max_new_tokens=30), eos_id=2)
    for i in (1, 3):  # of both prompt sizes
        assert generate(config, params, prompts[i : i + 1], Options(max_new_tokens=30), eos_id=2) == together[i : i + 1]


def test_growing_cache_changes_nothing(model, monkeypatch):
    config, params = model
    prompts = random_prompts(config)
    at_once = generate(config, params, prompts, Options(max_new_tokens=40), eos_id=-1)
    assert [len(t) for t in at_once] == [40] * 4
    module = sys.modules[generate.__module__]
    monkeypatch.setattr(module, "MIN_SLOTS", 16)  # the longest prompt takes 32 at once
    slots = []
    decode = module._decode
    monkeypatch.setattr(module, "_decode", lambda *a: slots.append(kv.count_slots(a[2].cache)) or decode(*a))
    assert generate(config, params, prompts, Options(max_new_tokens=40), eos_id=-1) == at_once
    assert slots == [32, 64, 128]


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float64, 1e-13), (jnp.float32, 1e-4), (jnp.bfloat16, 0.1)])
def test_cached_logits_equal_full_forward_at_every_position(model, dtype, tolerance):
    with jax.enable_x64(dtype == jnp.float64):
        check_cached_logits(*model, dtype, tolerance)


def check_cached_logits(config, params, dtype, tolerance):
    T, S = 24, 32
    lengths = jnp.asarray([1, 7, 16, 23])
    B = len(lengths)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, config.vocab_size, (B, S)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(S), (B, S))
    attention = xla_attention
    full = jax.jit(hidden_states, static_argnums=0, static_argnames=("attention", "dtype"))(
        config, params, tokens, positions, jnp.ones_like(tokens), attention=attention, dtype=dtype
    )
    expected = np.asarray(logits(params, full), np.float64)

    params = unstack_layers(params, dtype)
    first = kv.first_attention(xla_attention)

    @jax.jit
    def prefill(tokens):
        nothing = [None] * config.n_layers
        hidden, cache = hidden_states_with_cache(config, params, tokens, positions[:, :T], nothing, first)
        return logits(params, hidden), kv.with_slots(cache, S)

    @jax.jit
    def decode(cache, at):
        new = jnp.take_along_axis(tokens, at[:, None], axis=1)
        hidden, cache = hidden_states_with_cache(config, params, new, at[:, None], cache, kv.step_attention(at))
        return logits(params, hidden[:, 0]), cache

    def check(got, row, position):
        want = expected[row, position]
        error = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
        assert error < tolerance, (row, position, error)

    is_prompt = jnp.arange(T) < lengths[:, None]
    out, cache = prefill(jnp.where(is_prompt, tokens[:, :T], 5))  # padding that means something
    for row in range(B):
        for position in range(int(lengths[row])):
            check(out[row, position], row, position)
    for i in range(S - int(lengths.max())):
        out, cache = decode(cache, lengths + i)
        for row in range(B):
            check(out[row], row, int(lengths[row]) + i)
    assert all(x.dtype == dtype for x in jax.tree.leaves(cache))


def test_unused_slots_are_never_read(model):
    config, params = model
    params = unstack_layers(params, jnp.float32)
    at = jnp.asarray([0, 3])
    noise = np.random.default_rng(0)
    full = jax.tree.map(lambda x: noise.normal(size=x.shape), kv.empty_cache(config, 2, 8, jnp.float32))

    @jax.jit
    def decode(fill):
        def with_unused(x, axis):
            is_used = jnp.arange(8) < at[:, None]
            return jnp.where(is_used[:, None, None] if axis == 3 else is_used[:, None, :, None], x, fill)

        cache = tuple(layer.map(with_unused) for layer in full)
        tokens = jnp.asarray([[7], [9]])
        return hidden_states_with_cache(config, params, tokens, at[:, None], cache, kv.step_attention(at))[0]

    np.testing.assert_array_equal(decode(0.0), decode(1e6))
