"""config.json and generation_config.json, to and from `ModelConfig`.

Written so that transformers 4.5x (rope_theta, rope_scaling, torch_dtype) and 5.x (rope_parameters,
dtype) read the same model. Read with transformers' own defaults for keys that a file leaves out;
whatever would change the numbers and is not in our model is refused by name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minimind_jax.config import ModelConfig, RopeScaling
from minimind_jax.errors import UserError

# What transformers' configuration classes assume for keys that config.json lacks.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"max_position_embeddings": 2048},
    "Qwen3ForCausalLM": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
}
_MODEL_TYPES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_REASONS = {"Qwen2ForCausalLM": " (q_proj, k_proj and v_proj have biases there, ours have none)"}
_DEFAULT_THETA, _DEFAULT_EPS = 10000.0, 1e-6

# YaRN options of transformers that our RoPE has as constants. A missing or null key means this value.
_YARN_CONSTANTS = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
_ROPE_KEYS = {
    "default": {"rope_type", "type", "rope_theta", "partial_rotary_factor"},
    "yarn": {"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "attention_factor"}
    | {"original_max_position_embeddings", "mscale", "mscale_all_dim"}
    | set(_YARN_CONSTANTS),
}


# --- Writing -------------------------------------------------------------------------------------


def hf_config(config: ModelConfig, *, dtype: str, bos_id: int, eos_id: int, pad_id: int) -> dict[str, Any]:
    """The content of config.json.

    Args:
      dtype: of the weights in the directory: float32 | bfloat16 | float16.
      bos_id, eos_id, pad_id: the tokenizer's.

    Raises:
      UserError: transformers has no class for this shape.
    """
    if not config.qk_norm and config.dim % config.n_heads:
        raise UserError(
            f"model.dim={config.dim} is not a multiple of model.n_heads={config.n_heads}: transformers' "
            "LlamaForCausalLM refuses that even where head_dim is given; only a model with qk_norm=True exports so"
        )
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling.type == "yarn":
        rope = {
            "rope_type": "yarn",
            "factor": config.rope_scaling.factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_seq_len,
        }
    values: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if config.qk_norm else "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if config.rope_scaling.type != "none" else None,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if config.qk_norm:
        values |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": config.n_layers}
    else:
        values |= {"mlp_bias": False, "pretraining_tp": 1}
    return values


def generation_config(*, bos_id: int, eos_id: int, pad_id: int) -> dict[str, Any]:
    """The content of generation_config.json."""
    return {"bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id}


def write_config(directory: Path, config: ModelConfig, *, dtype: str, bos_id: int, eos_id: int, pad_id: int) -> None:
    """Writes config.json and generation_config.json. Raises what `hf_config` raises."""
    ids = {"bos_id": bos_id, "eos_id": eos_id, "pad_id": pad_id}
    for name, values in (
        ("config.json", hf_config(config, dtype=dtype, **ids)),
        ("generation_config.json", generation_config(**ids)),
    ):
        (directory / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def portability_warning(config: ModelConfig) -> str:
    """What other engines would read differently from us; "" where nothing.

    transformers 4.5x (and engines that follow it) replace YaRN's factor by
    max_position_embeddings / original_max_position_embeddings.
    """
    scaling = config.rope_scaling
    if scaling.type != "yarn" or config.max_seq_len == scaling.factor * scaling.original_max_seq_len:
        return ""
    return (
        f"model.max_seq_len={config.max_seq_len} is not rope_scaling.factor * original_max_seq_len = "
        f"{scaling.factor:g} * {scaling.original_max_seq_len}: transformers before 5 takes the ratio of the two "
        "lengths for the factor and would compute other angles"
    )


# --- Reading -------------------------------------------------------------------------------------


def read_config(path: Path) -> ModelConfig:
    """The architecture in a model directory's config.json.

    Raises:
      UserError: no or damaged config.json, an architecture or a feature that we do not have, wrong values.
    """
    values, file = read_values(path), path / "config.json"
    if is_minimind(values):
        raise UserError(
            f"{file} describes MiniMind's own class: make a workdir of it by `python -m convert.from_hf --model {path} "
            "--out WORKDIR` and name that"
        )
    return parse_config(values, file)


def read_values(path: Path) -> dict[str, Any]:
    """The content of a model directory's config.json. Raises UserError where it is missing or damaged."""
    file = path / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{file} cannot be read: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file} is damaged: {e}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} is not a JSON object")
    return values


def is_minimind(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is of MiniMind's class, which its own code defines; convert.from_hf reads it."""
    named = values.get("architectures") or ["MiniMindForCausalLM" if values.get("model_type") == "minimind" else ""]
    return named == ["MiniMindForCausalLM"]


def parse_config(values: dict[str, Any], file: Path) -> ModelConfig:
    """The architecture that the content of `file` describes. Raises UserError as `read_config`."""
    try:
        return _parse(values)
    except UserError as e:
        raise UserError(f"{file}: {e}") from None


def _parse(values: dict[str, Any]) -> ModelConfig:
    architecture = _architecture(values)
    values = {**_DEFAULTS[architecture], **values}
    _refuse_missing_features(values)
    n_heads = _integer(values, "num_attention_heads")
    rope = _rope_section(values)
    return ModelConfig(
        dim=_integer(values, "hidden_size"),
        n_layers=_integer(values, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=_integer(values, "num_key_value_heads", n_heads),
        head_dim=_integer(values, "head_dim", 0),
        ffn_dim=_integer(values, "intermediate_size"),
        vocab_size=_integer(values, "vocab_size"),
        max_seq_len=_integer(values, "max_position_embeddings"),
        rope_theta=_number(rope, "rope_theta", _number(values, "rope_theta", _DEFAULT_THETA)),
        norm_eps=_number(values, "rms_norm_eps", _DEFAULT_EPS),
        qk_norm=architecture == "Qwen3ForCausalLM",
        tie_embeddings=_boolean(values, "tie_word_embeddings"),
        rope_scaling=_rope_scaling(values, rope),
    )


def _architecture(values: Mapping[str, Any]) -> str:
    named = values.get("architectures")
    if not named and (model_type := values.get("model_type")):
        named = [_MODEL_TYPES.get(str(model_type), model_type)]
    if not named:
        raise UserError("names no architecture: `architectures` and `model_type` are both missing")
    names = [str(name) for name in named] if isinstance(named, list) else [str(named)]
    if len(names) != 1 or names[0] not in _DEFAULTS:
        reason = _REASONS.get(names[0], "") if len(names) == 1 else ""
        raise UserError(
            f"architecture {', '.join(names)} is not supported{reason}; supported are {', '.join(_DEFAULTS)}"
        )
    return names[0]


def _refuse_missing_features(values: Mapping[str, Any]) -> None:
    for key in ("attention_bias", "mlp_bias"):
        if _boolean(values, key):
            raise UserError(f"{key}=true is not supported: our projections have no biases")
    if (act := values.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise UserError(f"hidden_act={act!r} is not supported: our MLP is SwiGLU, hidden_act silu")
    if values.get("quantization_config"):
        raise UserError("quantized weights (quantization_config) are not supported: take the unquantized model")
    if values.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UserError(
            f"partial_rotary_factor={values['partial_rotary_factor']} is not supported: RoPE turns all of a head"
        )
    n_layers = _integer(values, "num_hidden_layers")
    layer_types = values.get("layer_types") or ["full_attention"]
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise UserError(f"layer_types has {layer_types}: only full_attention is supported")
    windowed = _boolean(values, "use_sliding_window") and values.get("sliding_window", 4096) is not None
    if windowed and not values.get("layer_types") and _integer(values, "max_window_layers", 28) < n_layers:
        raise UserError("use_sliding_window=true is not supported: our attention sees the whole context")


def _rope_section(values: Mapping[str, Any]) -> dict[str, Any]:
    # transformers 5 lets rope_scaling win over rope_parameters; 4.5x knows rope_scaling alone.
    section = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(section, dict):
        raise UserError(f"rope_scaling={section!r} is not a JSON object")
    kind = section.get("rope_type") or section.get("type") or "default"
    if kind not in _ROPE_KEYS:
        raise UserError(f"rope type {kind!r} is not supported; supported are {', '.join(_ROPE_KEYS)}")
    if unknown := sorted(set(section) - _ROPE_KEYS[kind]):
        raise UserError(f"rope option {unknown[0]!r} of type {kind!r} is not supported")
    if section.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UserError(
            f"partial_rotary_factor={section['partial_rotary_factor']} is not supported: RoPE turns all of a head"
        )
    return section


def _rope_scaling(values: Mapping[str, Any], rope: Mapping[str, Any]) -> RopeScaling:
    if (rope.get("rope_type") or rope.get("type")) != "yarn":
        return RopeScaling()
    for key, constant in _YARN_CONSTANTS.items():
        if rope.get(key) not in (None, constant):
            raise UserError(f"YaRN with {key}={rope[key]} is not supported: it is always {constant}")
    limit = _integer(values, "max_position_embeddings")
    original = _integer(rope, "original_max_position_embeddings", limit)
    original = _integer(values, "original_max_position_embeddings", original)  # transformers: the outer one wins
    factor = _number(rope, "factor", limit / original if original else None)
    ours = _mscale(factor, 1.0)
    theirs = _number(rope, "attention_factor", ours)
    if rope.get("attention_factor") is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        theirs = _mscale(factor, _number(rope, "mscale")) / _mscale(factor, _number(rope, "mscale_all_dim"))
    if not math.isclose(theirs, ours, rel_tol=1e-6):
        raise UserError(
            f"YaRN with attention_factor={theirs:g} is not supported: it is always {ours:g} at factor {factor:g}"
        )
    return RopeScaling("yarn", factor, original)


def _mscale(factor: float, mscale: float) -> float:
    """YaRN's scale of cos and sin (arXiv:2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


# --- Typed look-ups: null and a missing key both mean the default -----------------------------------


def _integer(values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"{key} is missing")
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{key}={value!r} is not a whole number")
    return value


def _number(values: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = values.get(key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"{key} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{key}={value!r} is not a finite number")
    return float(value)


def _boolean(values: Mapping[str, Any], key: str) -> bool:
    value = values.get(key) or False
    if not isinstance(value, bool):
        raise UserError(f"{key}={value!r} is neither true nor false")
    return value
