"""Hugging Face model directories: config.json and safetensors weights of Llama and Qwen3, without torch."""

from minimind_jax.hf_format.config import generation_config, hf_config, portability_warning, read_config, write_config
from minimind_jax.hf_format.weights import (
    DTYPES,
    cast_params,
    from_hf_tensors,
    read_params,
    to_hf_tensors,
    write_params,
)

__all__ = [
    "DTYPES",
    "cast_params",
    "from_hf_tensors",
    "generation_config",
    "hf_config",
    "portability_warning",
    "read_config",
    "read_params",
    "to_hf_tensors",
    "write_config",
    "write_params",
]
