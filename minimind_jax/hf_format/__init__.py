"""Hugging Face model directories: config.json and safetensors weights of Llama and Qwen3, without torch."""

from minimind_jax.hf_format.config import (
    generation_config,
    hf_config,
    is_minimind,
    parse_config,
    portability_warning,
    read_config,
    read_values,
    write_config,
)
from minimind_jax.hf_format.names import EMBED, LM_HEAD
from minimind_jax.hf_format.weights import (
    DTYPES,
    MAX_SHARD_BYTES,
    cast_params,
    check_tensors,
    from_hf_tensors,
    read_params,
    tensor_shapes,
    to_hf_tensors,
    write_params,
)

__all__ = [
    "DTYPES",
    "EMBED",
    "LM_HEAD",
    "MAX_SHARD_BYTES",
    "cast_params",
    "check_tensors",
    "from_hf_tensors",
    "generation_config",
    "hf_config",
    "is_minimind",
    "parse_config",
    "portability_warning",
    "read_config",
    "read_params",
    "read_values",
    "tensor_shapes",
    "to_hf_tensors",
    "write_config",
    "write_params",
]
