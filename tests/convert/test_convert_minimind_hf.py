"""MiniMindForCausalLM directories: built as MiniMind writes them, against transformers' models of the same weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from convert_helpers import command, edit_json, equal_bits
from safetensors.torch import save_file
from transformers_versions import rope_arguments

from convert import from_hf, minimind_hf, to_hf
from convert.transformers_check import own_logits
from minimind_jax import hf_format
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import load_model

# What MiniMindConfig writes: keys that transformers' base class has too are left out where they have its defaults.
COMMON: dict[str, Any] = {
    "architectures": ["MiniMindForCausalLM"],
    "auto_map": {
        "AutoConfig": "model_minimind.MiniMindConfig",
        "AutoModelForCausalLM": "model_minimind.MiniMindForCausalLM",
    },
    "bos_token_id": 1,
    "dropout": 0.0,
    "eos_token_id": 2,
    "flash_attn": True,
    "hidden_act": "silu",
    "inference_rope_scaling": False,
    "max_position_embeddings": 32768,
    "model_type": "minimind",
    "num_attention_heads": 8,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "torch_dtype": "float16",
    "transformers_version": "4.57.6",
    "use_moe": False,
    "vocab_size": 6400,
}
MINIMIND2 = COMMON | {
    "aux_loss_alpha": 0.01, "hidden_size": 64, "intermediate_size": 192, "n_routed_experts": 4, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_experts_per_tok": 2, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5, "scoring_func": "softmax", "seq_aux": True,
}  # fmt: skip
MINIMIND3 = COMMON | {
    "head_dim": 8, "hidden_size": 64, "intermediate_size": 256, "moe_intermediate_size": 256, "norm_topk_prob": True,
    "num_experts": 4, "num_experts_per_tok": 1, "num_hidden_layers": 3, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6, "router_aux_loss_coef": 5e-4,
}  # fmt: skip
GENERATIONS = {"MiniMind2": MINIMIND2, "MiniMind-3": MINIMIND3}
each_generation = pytest.mark.parametrize("generation", GENERATIONS)


def reference(values: dict[str, Any], tied: bool = True) -> torch.nn.Module:
    """transformers' model that computes what MiniMind's class does."""
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    arguments = {key: values[key] for key in (*sizes, "vocab_size", "rms_norm_eps")}
    arguments |= rope_arguments(1e6, None, 32768) | {"tie_word_embeddings": tied, "initializer_range": 0.2}
    three = "head_dim" in values
    kind = transformers.Qwen3Config if three else transformers.LlamaConfig
    torch.manual_seed(0)
    config = kind(**arguments, **({"head_dim": values["head_dim"]} if three else {}))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()  # as the file will have it
    return model


def write(
    directory: Path, values: dict[str, Any], weights: str = "bin", tied: bool = True, **changes: Any
) -> torch.nn.Module:
    """A directory as MiniMind's convert_model.py makes it; `...` deletes a key. Returns the model of its weights."""
    model = reference(values, tied)
    directory.mkdir()
    load_tokenizer().save(directory)
    values = {key: value for key, value in (values | changes).items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(values, indent=2))
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    if weights == "bin":
        torch.save(state, directory / "pytorch_model.bin")
    else:
        if tied:
            del state["lm_head.weight"]  # safetensors keeps shared tensors once
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return model


def convert(directory: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    from_hf.main(["--model", str(directory), "--out", str(out)])
    return capsys.readouterr().out


def refused(directory: Path, out: Path) -> str:
    with pytest.raises(UserError) as error:
        from_hf.import_hf(directory, out)
    assert not out.exists() and "\n" not in str(error.value)
    return str(error.value)


def assert_computes(workdir: Path, theirs: torch.nn.Module) -> None:
    model = load_model(workdir)
    tokens = np.arange(100) * 31 % model.config.vocab_size
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens[None])).logits[0].numpy()
    ours = own_logits(model.config, model.params, tokens)
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@each_generation
@pytest.mark.parametrize("weights", ["bin", "safetensors"])
def test_it_computes_what_it_did(generation, weights, tmp_path, capsys):
    theirs = write(tmp_path / "hf", GENERATIONS[generation], weights)
    said = convert(tmp_path / "hf", tmp_path / "w", capsys)
    how = {"MiniMind2": "no q_norm weights", "MiniMind-3": "with q_norm weights"}[generation]
    assert said.splitlines()[0] == f"{tmp_path}/hf: {generation} ({how})"
    assert_computes(tmp_path / "w", theirs)
    model = load_model(tmp_path / "w")
    assert model.config.max_seq_len == 32768 and model.tokenizer.fingerprint == load_tokenizer().fingerprint
    assert model.config.tie_embeddings and model.config.qk_norm == (generation == "MiniMind-3")


@each_generation
def test_an_untied_model(generation, tmp_path, capsys):
    theirs = write(tmp_path / "hf", GENERATIONS[generation], tied=False, tie_word_embeddings=False)
    convert(tmp_path / "hf", tmp_path / "w", capsys)
    assert_computes(tmp_path / "w", theirs)


@each_generation
@pytest.mark.parametrize("weights", ["bin", "safetensors"])
def test_a_head_of_its_own_in_a_tied_model_is_refused_and_the_advice_helps(generation, weights, tmp_path, capsys):
    theirs = write(tmp_path / "hf", GENERATIONS[generation], weights, tied=False)
    message = refused(tmp_path / "hf", tmp_path / "w")
    assert "lm_head.weight differs from" in message and "to false" in message
    edit_json(tmp_path / "hf" / "config.json", tie_word_embeddings=False)
    convert(tmp_path / "hf", tmp_path / "w", capsys)
    assert_computes(tmp_path / "w", theirs)


@each_generation
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"intermediate_size": None}, "from the weights intermediate_size={intermediate_size}"),
        ({"intermediate_size": ...}, "from the weights intermediate_size={intermediate_size}"),
        ({"rms_norm_eps": ...}, "assumed rms_norm_eps={rms_norm_eps}"),
        ({"rope_theta": ...}, "assumed rope_theta=1000000.0"),
        ({"rope_theta": ..., "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, ""),
        ({"num_attention_heads": ..., "num_key_value_heads": ...}, "num_key_value_heads={num_key_value_heads}"),
        ({"hidden_size": ..., "num_hidden_layers": ..., "vocab_size": ...}, "hidden_size=64"),
        ({"max_position_embeddings": ...}, "assumed max_position_embeddings=32768"),
        ({"architectures": ...}, ""),
        ({"tie_word_embeddings": True, "use_moe": ...}, ""),
        ({"inference_rope_scaling": True, "rope_scaling": {"type": "yarn", "factor": 16}}, "inference_rope_scaling is"),
    ],
    ids=str,
)
def test_keys_that_are_missing_or_null(generation, changes, said, tmp_path, capsys):
    theirs = write(tmp_path / "hf", GENERATIONS[generation], **changes)
    line = convert(tmp_path / "hf", tmp_path / "w", capsys).splitlines()[0]
    expected = said.format(**GENERATIONS[generation])
    assert expected in line and (expected or line.endswith("weights)"))
    assert_computes(tmp_path / "w", theirs)


def test_no_head_count_of_keys_means_one_for_each_query_head(tmp_path, capsys):
    values = MINIMIND2 | {"num_key_value_heads": 8}
    theirs = write(tmp_path / "hf", values)
    edit_json(tmp_path / "hf" / "config.json", num_key_value_heads=None)
    convert(tmp_path / "hf", tmp_path / "w", capsys)
    assert load_model(tmp_path / "w").config.n_kv_heads == 8
    assert_computes(tmp_path / "w", theirs)


def test_the_advice_on_a_stretched_context_helps(tmp_path, capsys):
    write(tmp_path / "hf", MINIMIND3, inference_rope_scaling=True)
    said = convert(tmp_path / "hf", tmp_path / "w", capsys)
    assert "add --yarn-factor 16 --yarn-original 2048 to chat.py, serve.py or convert.to_hf" in said
    flags = f"--model {tmp_path}/w --out {tmp_path}/long --yarn-factor 16 --yarn-original 2048"
    to_hf.main(flags.split())
    assert load_model(tmp_path / "long").config.rope_scaling.factor == 16


# --- What is refused ----------------------------------------------------------------------------------------


@each_generation
@pytest.mark.parametrize("flag", [True, False])
def test_a_mixture_of_experts_is_refused_by_name(generation, flag, tmp_path):
    write(tmp_path / "hf", GENERATIONS[generation], use_moe=flag)
    if not flag:  # then the weights tell
        file = tmp_path / "hf" / "pytorch_model.bin"
        state = torch.load(file)
        torch.save(state | {"model.layers.0.mlp.experts.0.up_proj.weight": torch.zeros(2, 2)}, file)
    assert "mixture of experts" in refused(tmp_path / "hf", tmp_path / "w")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"num_hidden_layers": 1}, "unexpected model.layers.1."),
        ({"num_hidden_layers": "2"}, "num_hidden_layers='2' is not a whole number"),
        ({"intermediate_size": 128}, "mlp.gate_proj.weight has shape"),
        ({"num_attention_heads": 0}, "model.n_heads=0"),
        ({"num_attention_heads": 5}, "model.n_heads=5"),
        ({"rope_theta": "big"}, "rope_theta='big'"),
        ({"vocab_size": 6401}, "model.embed_tokens.weight has shape"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_its_weights(changes, named, tmp_path):
    write(tmp_path / "hf", MINIMIND2, **changes)
    message = refused(tmp_path / "hf", tmp_path / "w")
    assert named in message and str(tmp_path / "hf") in message


def test_weights_that_are_missing_damaged_or_of_the_first_generation(tmp_path):
    write(tmp_path / "hf", MINIMIND2)
    file = tmp_path / "hf" / "pytorch_model.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert f"{file} is damaged" in refused(tmp_path / "hf", tmp_path / "w")
    torch.save({"tok_embeddings.weight": torch.zeros(4, 4)}, file)
    assert "lacks a matrix model.embed_tokens.weight" in refused(tmp_path / "hf", tmp_path / "w")
    file.unlink()
    assert "has neither model.safetensors nor" in refused(tmp_path / "hf", tmp_path / "w")


def test_without_torch_the_message_says_so(tmp_path, monkeypatch):
    write(tmp_path / "hf", MINIMIND2)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "need torch, which cannot be imported" in refused(tmp_path / "hf", tmp_path / "w")


def test_safetensors_need_no_torch(tmp_path, monkeypatch):
    write(tmp_path / "hf", MINIMIND3, "safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    from_hf.import_hf(tmp_path / "hf", tmp_path / "w")
    assert equal_bits(load_model(tmp_path / "w").params, minimind_hf.read(tmp_path / "hf")[1])


# --- Other commands -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_other_readers_name_the_command_that_works(tmp_path):
    write(tmp_path / "hf", MINIMIND3)
    for reader in (load_model, hf_format.read_config):
        with pytest.raises(UserError, match=r"python -m convert\.from_hf --model"):
            reader(tmp_path / "hf")
    done = command("-m", "convert.to_gguf", "--model", tmp_path / "hf", "--out", tmp_path / "x.gguf")
    assert done.returncode == 1
    line = done.stderr.split("`")[1].removeprefix("python ").replace("WORKDIR", str(tmp_path / "w"))
    done = command(*line.split())
    assert done.returncode == 0, done.stderr
    assert "with q_norm weights" in done.stdout
    done = command("-m", "convert.to_hf", "--model", tmp_path / "w", "--out", tmp_path / "out")
    assert done.returncode == 0 and "computes the same logits" in done.stdout, done.stderr
