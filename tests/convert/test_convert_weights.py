"""Weights in both directions: bit-identical round trips, transformers' files, damaged and unfitting ones."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from convert_helpers import LLAMA, QWEN3, edit_json, equal_bits, random_model, random_params
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from test_convert_config import IDS, configs

from convert.to_hf import export
from minimind_jax import hf_format
from minimind_jax.errors import UserError
from minimind_jax.model import abstract_params

INDEX = "model.safetensors.index.json"
SMALL_LLAMA, SMALL_QWEN3 = (dataclasses.replace(c, vocab_size=50) for c in (LLAMA, QWEN3))


def write(directory, config, params=None, dtype="float32", **options):
    directory.mkdir(exist_ok=True)
    hf_format.write_config(directory, config, dtype=dtype, **IDS)
    hf_format.write_params(directory, params or random_params(config), config, dtype, **options)


def any_finite_bits(config, seed):
    """Every kind of finite float32: subnormals, -0.0 and the largest ones too."""
    rng = np.random.default_rng(seed)

    def leaf(shape):
        bits = rng.integers(0, 2**32, shape.shape, np.uint32).view(np.float32)
        return np.where(np.isfinite(bits), bits, np.float32(-0.0))

    return jax.tree.map(leaf, abstract_params(config))


@settings(max_examples=40, deadline=None)
@given(config=configs(), seed=st.integers(0, 99), max_shard_bytes=st.integers(1, 10**5))
def test_from_hf_of_to_hf_is_bit_identical_in_float32(tmp_path_factory, config, seed, max_shard_bytes):
    directory = tmp_path_factory.mktemp("weights")
    params = any_finite_bits(config, seed)
    write(directory, config, params, max_shard_bytes=max_shard_bytes)
    config_read = hf_format.read_config(directory)
    assert config_read == config
    assert equal_bits(hf_format.read_params(directory, config_read), params)
    for file in directory.glob("*.safetensors"):
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= max_shard_bytes


@pytest.mark.parametrize(("dtype", "numpy_dtype"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_narrow_dtypes_round_once(dtype, numpy_dtype, tmp_path):
    params = random_params(SMALL_QWEN3)
    write(tmp_path, SMALL_QWEN3, params, dtype)
    expected = jax.tree.map(lambda leaf: leaf.astype(numpy_dtype).astype(np.float32), params)
    assert equal_bits(hf_format.read_params(tmp_path, SMALL_QWEN3), expected)
    assert {v.dtype for v in load_file(tmp_path / "model.safetensors").values()} == {np.dtype(numpy_dtype)}


def test_overflow_in_float16_and_broken_weights_are_refused(tmp_path):
    params = random_params(SMALL_LLAMA)
    params["blocks"]["mlp"]["up"][1, 2, 3] = 70000.0
    with pytest.raises(UserError, match=r"blocks\.mlp\.up holds 70000, beyond float16"):
        write(tmp_path, SMALL_LLAMA, params, "float16")
    write(tmp_path, SMALL_LLAMA, params, "bfloat16")
    params["final_norm"][0] = np.nan
    with pytest.raises(UserError, match="final_norm holds NaN"):
        write(tmp_path, SMALL_LLAMA, params)


def test_weights_are_readable_by_others_as_the_umask_says(tmp_path):
    write(tmp_path, SMALL_LLAMA)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_shards_and_their_index_are_named_as_transformers_names_them(tmp_path):
    write(tmp_path / "ours", SMALL_QWEN3, dtype="bfloat16", max_shard_bytes=10**4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="bfloat16")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    files = sorted(p.name for p in (tmp_path / "ours").glob("model*"))
    n = len(files) - 1
    assert n > 1 and files == [f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)] + [INDEX]
    ours, expected = (json.loads((tmp_path / side / INDEX).read_text()) for side in ("ours", "theirs"))
    assert ours["metadata"] == expected["metadata"]
    assert ours["weight_map"].keys() == expected["weight_map"].keys()
    modes = {p.stat().st_mode for p in (tmp_path / "ours").iterdir()}
    assert len(modes) == 1


def test_transformers_loads_the_exported_tokenizer(tmp_path):
    model = random_model(LLAMA)
    export(model, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (0, 1, 2)
    assert theirs.eos_token == "<|im_end|>"
    text = "Snow in May? 五月飞雪，竟有其事 🙂\n1234"
    assert theirs.encode(text, add_special_tokens=False) == model.tokenizer.encode(text)
    messages = [{"role": "user", "content": "你好"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == model.tokenizer.apply_chat_template(messages, add_generation_prompt=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard", ["10GB", "8KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("cls", [transformers.LlamaConfig, transformers.Qwen3Config])
def test_models_saved_by_transformers_are_read(cls, shard, dtype, tmp_path):
    config = cls(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "8KB")
    ours = hf_format.read_config(tmp_path)
    tensors = hf_format.to_hf_tensors(hf_format.read_params(tmp_path, ours), ours)
    expected = {name: p.detach().float().numpy() for name, p in model.named_parameters()}
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)


# --- Files that do not fit --------------------------------------------------------------------------


def rewrite(directory, change):
    tensors = dict(load_file(directory / "model.safetensors"))
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, value):
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (drop("model.norm.weight"), "lacks model.norm.weight"),
        (drop("model.layers.2.mlp.up_proj.weight"), "lacks model.layers.2.mlp.up_proj.weight"),
        (drop("lm_head.weight"), "lacks lm_head.weight"),
        (put("model.layers.3.mlp.up_proj.weight", np.zeros(3)), "unexpected model.layers.3.mlp.up_proj.weight"),
        (put("model.layers.0.self_attn.q_proj.bias", np.zeros(3)), "unexpected model.layers.0.self_attn.q_proj.bias"),
        (put("model.norm.weight", np.zeros(25, np.float32)), "model.norm.weight has shape (25,), its config.json"),
        (put("model.norm.weight", np.zeros(24, np.float64)), "model.norm.weight has dtype F64"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(change, named, tmp_path):
    write(tmp_path, SMALL_QWEN3)
    rewrite(tmp_path, change)
    with pytest.raises(UserError) as error:
        hf_format.read_params(tmp_path, SMALL_QWEN3)
    assert named in str(error.value) and str(tmp_path) in str(error.value)


def test_a_transposed_matrix_is_a_wrong_shape(tmp_path):
    write(tmp_path, SMALL_LLAMA)
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(tmp_path, put(name, np.zeros((32, 48), np.float32)))
    with pytest.raises(UserError, match=r"\(32, 48\), its config.json implies \(48, 32\)"):
        hf_format.read_params(tmp_path, SMALL_LLAMA)


def test_a_tied_model_may_carry_an_equal_head_only(tmp_path):
    params = random_params(SMALL_LLAMA)
    write(tmp_path, SMALL_LLAMA, params)
    rewrite(tmp_path, put("lm_head.weight", params["embed"]))
    rewrite(tmp_path, put("model.layers.0.self_attn.rotary_emb.inv_freq", np.zeros(4, np.float32)))  # old exports
    assert equal_bits(hf_format.read_params(tmp_path, SMALL_LLAMA), params)
    rewrite(tmp_path, put("lm_head.weight", params["embed"] + 1))
    with pytest.raises(UserError, match="tie_word_embeddings=true, yet lm_head"):
        hf_format.read_params(tmp_path, SMALL_LLAMA)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_damaged_file_is_named(size, tmp_path):
    write(tmp_path, SMALL_LLAMA)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        hf_format.read_params(tmp_path, SMALL_LLAMA)


def test_missing_weights_name_what_is_there_instead(tmp_path):
    with pytest.raises(UserError, match=r"neither model\.safetensors nor"):
        hf_format.read_params(tmp_path, SMALL_LLAMA)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(
        UserError,
        match=r"cannot be read here: `python -m convert\.from_hf --model .* reads",
    ):
        hf_format.read_params(tmp_path, SMALL_LLAMA)


def test_indexes_that_do_not_fit_their_shards(tmp_path):
    write(tmp_path, SMALL_LLAMA)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[:5]}, tmp_path / "a.safetensors")
    save_file({n: tensors[n] for n in names[5:]}, tmp_path / "b.safetensors")
    weight_map = {n: "a.safetensors" if i < 5 else "b.safetensors" for i, n in enumerate(names)}
    index = tmp_path / "model.safetensors.index.json"

    def read(text):
        index.write_text(text)
        return hf_format.read_params(tmp_path, SMALL_LLAMA)

    assert equal_bits(read(json.dumps({"weight_map": weight_map})), random_params(SMALL_LLAMA))
    for weight_map_changed, named in (
        (weight_map | {names[0]: "b.safetensors"}, f"b.safetensors lacks {names[0]}"),
        (weight_map | {names[0]: "c.safetensors"}, "lacks c.safetensors"),
        (weight_map | {names[0]: "../a.safetensors"}, "is not a file name"),
        ([1], "index.json is damaged"),
        ({"x": 3}, "index.json is damaged"),
    ):
        with pytest.raises(UserError) as error:
            read(json.dumps({"weight_map": weight_map_changed}))
        assert named in str(error.value)
    with pytest.raises(UserError, match=r"index\.json is damaged"):
        read("{")
    save_file({n: tensors[n] for n in names[4:]}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="stands in both"):
        read(json.dumps({"weight_map": weight_map}))


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("minimind_jax.hf_format.weights.save_file", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        export(random_model(LLAMA), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_wrong_architecture_in_front_of_right_weights(tmp_path):
    write(tmp_path, SMALL_QWEN3)
    edit_json(tmp_path / "config.json", architectures=["LlamaForCausalLM"])
    with pytest.raises(UserError, match=r"unexpected .*k_norm"):
        hf_format.read_params(tmp_path, hf_format.read_config(tmp_path))
