"""Model directories of MiniMind's own class, MiniMindForCausalLM, as its `convert_model.py` writes them.

What that class computes is Llama (MiniMind2) or, with q_norm weights, Qwen3 (MiniMind-3); only the names in config.json
and the defaults of keys that it lacks are MiniMind's. The weights are pytorch_model.bin, or safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.from_torch import LAYER, check_dense
from convert.pickled import open_pickled, read_params
from minimind_jax import hf_format
from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.model import Params

_COMMON = {"num_attention_heads": 8, "hidden_act": "silu", "max_position_embeddings": 32768, "rope_theta": 1e6}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "MiniMind2": _COMMON | {"rms_norm_eps": 1e-5},
    "MiniMind-3": _COMMON | {"rms_norm_eps": 1e-6},
}
_ARCHITECTURES = {"MiniMind2": "LlamaForCausalLM", "MiniMind-3": "Qwen3ForCausalLM"}
_SIZES = ("hidden_size", "vocab_size", "num_hidden_layers", "intermediate_size", "num_key_value_heads")


def read(source: Path) -> tuple[ModelConfig, Params, str]:
    """A dense model, float32, and what was found and assumed, for the user.

    Raises:
      UserError: it is a mixture of experts, its files are missing or damaged, or config.json does not fit the weights.
    """
    values, file = hf_format.read_values(source), source / "config.json"
    if values.get("use_moe"):
        raise UserError(f"{file} describes a mixture of experts (use_moe=true): only dense models can be read")
    state = open_pickled(source)
    shapes = state.shapes if state else hf_format.tensor_shapes(source)
    check_dense(source, shapes)
    standard, said = _standard(values, shapes, source)
    config = hf_format.parse_config(standard, file)
    return config, read_params(source, config, state), said


def _standard(
    values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], source: Path
) -> tuple[dict[str, Any], str]:
    """config.json in the words of the standard class, and what was found and assumed."""
    generation = "MiniMind-3" if "model.layers.0.self_attn.q_norm.weight" in shapes else "MiniMind2"
    values = dict(values)
    rope = values.get("rope_parameters")
    if values.get("rope_theta") is None and isinstance(rope, dict):  # transformers 5 keeps it there
        values["rope_theta"] = rope.get("rope_theta")
    if generation == "MiniMind2":
        values.pop("head_dim", None)  # it has dim / n_heads, whatever is written
        if "num_key_value_heads" in values and values["num_key_value_heads"] is None:
            values["num_key_value_heads"] = values.get("num_attention_heads") or _COMMON["num_attention_heads"]
    given = {key: value for key, value in values.items() if value is not None}
    assumed = {key: value for key, value in _DEFAULTS[generation].items() if key not in given}
    measured = {key: value for key, value in _measured(given | assumed, shapes, source).items() if key not in given}
    standard = {key: given[key] for key in (*_COMMON, "rms_norm_eps", *_SIZES, "head_dim") if key in given}
    standard |= assumed | measured | {"architectures": [_ARCHITECTURES[generation]]}
    standard["tie_word_embeddings"] = given.get("tie_word_embeddings", True)
    if generation == "MiniMind-3" and "head_dim" not in standard:
        standard["head_dim"] = shapes["model.layers.0.self_attn.q_norm.weight"][0]

    said = [f"{generation} ({'with' if generation == 'MiniMind-3' else 'no'} q_norm weights)"]
    if measured:
        said.append("from the weights " + ", ".join(f"{key}={value}" for key, value in measured.items()))
    if assumed:
        said.append("assumed " + ", ".join(f"{key}={value}" for key, value in assumed.items()))
    if given.get("inference_rope_scaling"):
        said.append(
            "inference_rope_scaling is left off, since its YaRN does not scale attention as the standard does: to "
            "stretch the context add --yarn-factor 16 --yarn-original 2048 to chat.py, serve.py or convert.to_hf"
        )
    return standard, "; ".join(said)


def _measured(values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], source: Path) -> dict[str, int]:
    """The sizes that shapes tell."""
    layer = "model.layers.0."
    names = (hf_format.EMBED, f"{layer}self_attn.k_proj.weight", f"{layer}self_attn.q_proj.weight")
    for name in (*names, f"{layer}mlp.gate_proj.weight"):
        if len(shapes.get(name, ())) != 2 or 0 in shapes[name]:
            raise UserError(f"{source} lacks a matrix {name}: its weights are not those of a MiniMind")
    (vocab_size, dim), (k_rows, _), (q_rows, _) = (shapes[name] for name in names)
    n_heads = values["num_attention_heads"]
    head_dim = q_rows // n_heads if isinstance(n_heads, int) and 0 < n_heads <= q_rows else 1
    return {
        "hidden_size": dim,
        "vocab_size": vocab_size,
        "num_hidden_layers": 1 + max(int(found[1]) for name in shapes if (found := LAYER.match(name))),
        "intermediate_size": shapes[f"{layer}mlp.gate_proj.weight"][0],
        "num_key_value_heads": k_rows // head_dim,
    }
