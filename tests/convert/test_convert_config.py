"""config.json in both directions, against transformers' own reading of it."""

import dataclasses
import json

import numpy as np
import pytest
import transformers
from convert_helpers import LLAMA, QWEN3, edit_json
from hypothesis import given
from hypothesis import strategies as st
from transformers_versions import rope_of

from minimind_jax import hf_format
from minimind_jax.config import ModelConfig, RopeScaling
from minimind_jax.errors import UserError
from minimind_jax.model.rope import inverse_frequencies

IDS = {"bos_id": 1, "eos_id": 2, "pad_id": 0}


@st.composite
def configs(draw):
    n_kv_heads, groups = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    n_heads, qk_norm = n_kv_heads * groups, draw(st.booleans())
    yarn = draw(st.booleans())
    return ModelConfig(
        dim=draw(st.integers(1, 99)) if qk_norm else n_heads * draw(st.integers(1, 20)),
        n_layers=draw(st.integers(1, 5)),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=2 * draw(st.integers(1, 30)),
        ffn_dim=draw(st.integers(1, 99)),
        vocab_size=draw(st.integers(1, 99)),
        max_seq_len=draw(st.integers(1, 10**6)),
        rope_theta=draw(st.floats(1e-3, 1e9)),
        norm_eps=draw(st.floats(1e-12, 1.0)),
        qk_norm=qk_norm,
        tie_embeddings=draw(st.booleans()),
        rope_scaling=RopeScaling("yarn", draw(st.floats(1, 99)), draw(st.integers(1, 9999))) if yarn else RopeScaling(),
    )


@given(configs())
def test_config_survives_the_round_trip_exactly(tmp_path_factory, config):
    directory = tmp_path_factory.mktemp("config")
    hf_format.write_config(directory, config, dtype="float32", **IDS)
    assert hf_format.read_config(directory) == config


@pytest.mark.parametrize("config", [LLAMA, QWEN3], ids=["llama", "qwen3"])
def test_transformers_reads_the_config_that_we_wrote(config, tmp_path):
    hf_format.write_config(tmp_path, config, dtype="bfloat16", **IDS)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs).__name__ == ("Qwen3Config" if config.qk_norm else "LlamaConfig")
    assert (theirs.hidden_size, theirs.head_dim, theirs.intermediate_size) == (
        config.dim,
        config.head_dim,
        config.ffn_dim,
    )
    assert (theirs.num_attention_heads, theirs.num_key_value_heads) == (config.n_heads, config.n_kv_heads)
    assert (theirs.num_hidden_layers, theirs.vocab_size) == (config.n_layers, config.vocab_size)
    assert rope_of(theirs)["rope_theta"] == config.rope_theta
    assert rope_of(theirs).get("factor", 1.0) == config.rope_scaling.factor
    assert theirs.max_position_embeddings == config.max_seq_len
    assert (theirs.tie_word_embeddings, theirs.rms_norm_eps) == (config.tie_embeddings, config.norm_eps)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
    assert str(theirs.dtype) == "torch.bfloat16"
    if config.qk_norm:
        assert set(theirs.layer_types) == {"full_attention"}
    generation = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 0)


def test_yarn_angles_equal_transformers(tmp_path):
    config = dataclasses.replace(QWEN3, rope_theta=1e6, head_dim=64, rope_scaling=RopeScaling("yarn", 8.0, 2048))
    hf_format.write_config(tmp_path, dataclasses.replace(config, max_seq_len=16384), dtype="float32", **IDS)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    expected, scale = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    ours, our_scale = inverse_frequencies(config)
    np.testing.assert_allclose(ours, expected.numpy(), rtol=2e-6)
    assert our_scale == pytest.approx(scale, rel=1e-12)


def test_both_generations_of_the_rope_keys_read_alike(tmp_path):
    hf_format.write_config(tmp_path, QWEN3, dtype="float32", **IDS)
    file = tmp_path / "config.json"
    edit_json(file, rope_parameters=...)
    assert hf_format.read_config(tmp_path) == QWEN3  # transformers 4.5x: rope_theta + rope_scaling
    hf_format.write_config(tmp_path, QWEN3, dtype="float32", **IDS)
    edit_json(file, rope_theta=..., rope_scaling=...)
    assert hf_format.read_config(tmp_path) == QWEN3  # transformers 5: rope_parameters


@pytest.mark.parametrize("cls", [transformers.LlamaConfig, transformers.Qwen3Config])
def test_absent_keys_mean_what_transformers_means(cls, tmp_path):
    essential = {"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 9}
    essential["num_attention_heads"] = 32
    (tmp_path / "config.json").write_text(json.dumps({"model_type": cls.model_type, **essential}))
    ours, theirs = hf_format.read_config(tmp_path), cls(**essential)
    assert (ours.head_dim, ours.n_kv_heads) == (theirs.head_dim, theirs.num_key_value_heads)
    assert (ours.max_seq_len, ours.norm_eps) == (theirs.max_position_embeddings, theirs.rms_norm_eps)
    assert (ours.rope_theta, ours.tie_embeddings) == (rope_of(theirs)["rope_theta"], theirs.tie_word_embeddings)


ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"architectures": ["Qwen2ForCausalLM"]},
            "Qwen2ForCausalLM is not supported (q_proj, k_proj and v_proj have biases",
        ),
        ({"architectures": ..., "model_type": "qwen2"}, "Qwen2ForCausalLM is not supported (q_proj"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "Qwen3MoeForCausalLM"),
        ({"architectures": ..., "model_type": "gpt2"}, "gpt2"),
        ({"architectures": ..., "model_type": ...}, "architecture"),
        ({"architectures": [{}]}, "architecture"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_bias": "no"}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, "use_sliding_window"),
        ({"use_sliding_window": True, "sliding_window": ..., "max_window_layers": 1}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "llama3"),
        ({"rope_scaling": {"type": "linear", "factor": 8}}, "linear"),
        ({"rope_scaling": {**ROPE, "beta_fast": 16}}, "beta_fast=16"),
        ({"rope_scaling": {**ROPE, "truncate": False}}, "truncate"),
        ({"rope_scaling": {**ROPE, "attention_factor": 1.0}}, "attention_factor=1"),
        ({"rope_scaling": {**ROPE, "mscale": 1.0, "mscale_all_dim": 1.0}}, "attention_factor=1"),
        ({"rope_scaling": {**ROPE, "factor": 0.5}}, "factor"),
        ({"rope_scaling": {**ROPE, "original_max_position_embeddings": 0, "factor": None}}, "factor"),
        ({"rope_scaling": {**ROPE, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {**ROPE, "wobble": 1}}, "wobble"),
        ({"rope_scaling": 4}, "rope_scaling"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": "24"}, "hidden_size='24'"),
        ({"hidden_size": 24.0}, "hidden_size"),
        ({"num_hidden_layers": 0}, "n_layers=0"),
        ({"num_key_value_heads": 3}, "n_kv_heads=3"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_parameters": {"rope_theta": -1.0}, "rope_scaling": None}, "rope_theta=-1"),
    ],
    ids=str,
)
def test_what_we_do_not_have_is_refused_by_name(changes, named, tmp_path):
    hf_format.write_config(tmp_path, QWEN3, dtype="float32", **IDS)
    edit_json(tmp_path / "config.json", **changes)
    with pytest.raises(UserError) as error:
        hf_format.read_config(tmp_path)
    assert named in str(error.value) and str(tmp_path / "config.json") in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3},  # no layer uses it
        {"rope_scaling": {**ROPE, "attention_factor": 1.138629436111989, "beta_fast": 32, "beta_slow": None}},
        {"hidden_act": "swish"},
        {"layer_types": ["full_attention"] * 3},
    ],
    ids=str,
)
def test_other_spellings_of_what_we_have_are_read(changes, tmp_path):
    hf_format.write_config(tmp_path, QWEN3, dtype="float32", **IDS)
    edit_json(tmp_path / "config.json", **changes)
    assert hf_format.read_config(tmp_path) == QWEN3


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_damaged_config(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        hf_format.read_config(tmp_path)


def test_llama_with_heads_that_do_not_divide_dim_is_not_written(tmp_path):
    config = dataclasses.replace(LLAMA, dim=30, head_dim=8)
    with pytest.raises(UserError, match=r"model\.dim=30"):
        hf_format.write_config(tmp_path, config, dtype="float32", **IDS)


def test_portability_warning_names_the_lengths_that_disagree():
    assert hf_format.portability_warning(LLAMA) == hf_format.portability_warning(QWEN3) == ""
    warning = hf_format.portability_warning(dataclasses.replace(QWEN3, max_seq_len=1000))
    assert "1000" in warning and "4 * 128" in warning
