"""Our model in GGUF's terms: tensor names, order of rows, types, metadata; writing a file and checking it.

Tensor names come from the weight-name table through gguf's own map of Hugging Face's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as TensorType

from convert.gguf_tokenizer import Vocabulary
from minimind_jax import hf_format
from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.model import Params

# Type of the matrices, by the name of the option -> tensor type, file type.
TYPES = {
    "f32": (TensorType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (TensorType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (TensorType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (TensorType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q5_1": (TensorType.Q5_1, gguf.LlamaFileType.MOSTLY_Q5_1),
    "q4_0": (TensorType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
_DTYPES = {TensorType.F32: np.float32, TensorType.F16: np.float16, TensorType.BF16: ml_dtypes.bfloat16}
BLOCK = 32  # values of a row that share a scale, in all types with one
_WIDE = {"token_embd", "output"}  # rows of the vocabulary: 8 bits where the others have fewer, as llama.cpp's own
_VALUE_TYPES = {
    bool: gguf.GGUFValueType.BOOL,
    int: gguf.GGUFValueType.UINT32,
    float: gguf.GGUFValueType.FLOAT32,
    str: gguf.GGUFValueType.STRING,
    list: gguf.GGUFValueType.ARRAY,
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a GGUF file.

    Attributes:
      name: in the file.
      value: float32 as in Hugging Face's files, matrices (out, in).
      type: how the file stores it.
      interleaved_heads: of a q or k projection whose rows the file has in another order; 0 elsewhere.
    """

    name: str
    value: np.ndarray
    type: TensorType
    interleaved_heads: int


def tensors(params: Params, config: ModelConfig, type_name: str) -> list[Tensor]:
    """What the file of a model holds. Vectors stay f32; rows that are no whole number of blocks are f16."""
    architecture = gguf.MODEL_ARCH.QWEN3 if config.qk_norm else gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(architecture, config.n_layers)
    result = []
    for hf_name, value in hf_format.to_hf_tensors(params, config).items():
        name = names.get_name(hf_name.removesuffix(".weight")) or ""
        result.append(Tensor(f"{name}.weight", value, _tensor_type(name, value, type_name), _heads(hf_name, config)))
    return result


def metadata(config: ModelConfig, words: Vocabulary, name: str, n_params: int, type_name: str) -> dict[str, Any]:
    """GGUF keys and values of a model called `name`: bool, int (uint32), float (float32), str, list."""
    keys = gguf.Keys
    architecture = "qwen3" if config.qk_norm else "llama"
    shape: dict[str, Any] = {
        keys.LLM.VOCAB_SIZE: config.vocab_size,
        keys.LLM.CONTEXT_LENGTH: config.max_seq_len,
        keys.LLM.EMBEDDING_LENGTH: config.dim,
        keys.LLM.BLOCK_COUNT: config.n_layers,
        keys.LLM.FEED_FORWARD_LENGTH: config.ffn_dim,
        keys.Attention.HEAD_COUNT: config.n_heads,
        keys.Attention.HEAD_COUNT_KV: config.n_kv_heads,
        keys.Attention.KEY_LENGTH: config.head_dim,
        keys.Attention.VALUE_LENGTH: config.head_dim,
        keys.Attention.LAYERNORM_RMS_EPS: float(config.norm_eps),
        keys.Rope.DIMENSION_COUNT: config.head_dim,
        keys.Rope.FREQ_BASE: float(config.rope_theta),
    }
    if config.rope_scaling.type == "yarn":
        shape |= {
            keys.Rope.SCALING_TYPE: gguf.RopeScalingType.YARN.value,
            keys.Rope.SCALING_FACTOR: float(config.rope_scaling.factor),
            keys.Rope.SCALING_ORIG_CTX_LEN: config.rope_scaling.original_max_seq_len,
        }
    return {
        keys.General.ARCHITECTURE: architecture,
        keys.General.TYPE: "model",
        keys.General.NAME: name,
        keys.General.SIZE_LABEL: gguf.size_label(n_params, n_params, 0, 0),
        keys.General.FILE_TYPE: TYPES[type_name][1].value,
        keys.General.QUANTIZATION_VERSION: gguf.GGML_QUANT_VERSION,
        **{key.format(arch=architecture): value for key, value in shape.items()},
        **words.metadata(),
    }


def write(path: Path, values: Mapping[str, Any], content: list[Tensor]) -> None:
    """Writes a GGUF file. Raises UserError if it cannot be written."""
    writer = gguf.GGUFWriter(path, values[gguf.Keys.General.ARCHITECTURE])
    for key, value in values.items():
        if key != gguf.Keys.General.ARCHITECTURE:  # the writer has it already
            writer.add_key_value(key, value, _VALUE_TYPES[type(value)])
    for tensor in content:
        writer.add_tensor(tensor.name, _encode(tensor), raw_dtype=tensor.type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except OSError as e:
        raise UserError(f"{path} cannot be written: {e.strerror}; free some space, then run the same again") from None
    finally:
        writer.close()


def verify(path: Path, values: Mapping[str, Any], content: list[Tensor]) -> None:
    """Reads a file back and compares all of it: bit by bit after the cast, or within the rounding of blocks.

    Raises:
      UserError: the first thing that differs.
    """
    try:
        reader = gguf.GGUFReader(path)
        read = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    except (ValueError, LookupError) as e:
        raise UserError(f"the exported file cannot be read back ({e}): nothing was kept") from None
    for key in sorted(read.keys() | values.keys()):
        want = values.get(key)
        if read.get(key) != (float(np.float32(want)) if isinstance(want, float) else want):
            raise UserError(f"{key} of the exported file reads back differently: nothing was kept")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for tensor in content:
        found = stored.pop(tensor.name, None)
        if found is None or found.tensor_type != tensor.type or not _equal(tensor, found):
            raise UserError(f"the exported tensor {tensor.name} reads back differently: nothing was kept")
    if stored:
        raise UserError(f"the exported file has an unexpected tensor {min(stored)}: nothing was kept")


def _heads(hf_name: str, config: ModelConfig) -> int:
    # llama.cpp turns neighbouring pairs (2i, 2i + 1) in llama, half-split pairs as we do in qwen3.
    if config.qk_norm:
        return 0
    return {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}.get(hf_name.split(".")[-2], 0)


def _tensor_type(name: str, value: np.ndarray, type_name: str) -> TensorType:
    if value.ndim == 1:
        return TensorType.F32
    kind = TYPES[type_name][0]
    if kind in _DTYPES:
        return kind
    if value.shape[1] % BLOCK:
        return TensorType.F16
    return TensorType.Q8_0 if name in _WIDE else kind


def _encode(tensor: Tensor) -> np.ndarray:
    value = tensor.value
    if heads := tensor.interleaved_heads:
        value = np.ascontiguousarray(value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2)).reshape(value.shape)
    if tensor.type not in _DTYPES:
        return gguf.quants.quantize(value, tensor.type)
    narrow = _cast(value, tensor.type)
    return narrow.view(np.uint8) if tensor.type == TensorType.BF16 else narrow


def _equal(tensor: Tensor, found: gguf.ReaderTensor) -> bool:
    live = tensor.value
    if tuple(found.shape[::-1]) != live.shape:
        return False
    value = gguf.quants.dequantize(found.data, tensor.type)
    if heads := tensor.interleaved_heads:
        value = value.reshape(heads, -1, 2, live.shape[1]).swapaxes(1, 2).reshape(live.shape)
    if tensor.type in _DTYPES:
        expected = _cast(live, tensor.type).astype(np.float32)
        return np.array_equal(np.ascontiguousarray(value).view(np.uint32), expected.view(np.uint32))
    error = np.abs(value - live).reshape(-1, BLOCK)
    return np.array_equal(found.data, _encode(tensor)) and bool((error <= _rounding(live, tensor.type)).all())


def _cast(value: np.ndarray, kind: TensorType) -> np.ndarray:
    return value.astype(_DTYPES[kind])


def _rounding(live: np.ndarray, kind: TensorType) -> np.ndarray:
    """The largest error of a value in each block, (blocks, 1): of the nearest level, and of a scale in float16."""
    blocks = live.reshape(-1, BLOCK)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    if kind == TensorType.Q5_1:  # 32 levels from the smallest value to the largest
        steps, share, scaled = 31, 0.501, np.ptp(blocks, axis=1, keepdims=True)
    elif kind == TensorType.Q4_0:  # -8 to 7 times the scale: the largest value is a level, its negative is none
        steps, share, scaled = 8, 1.001, largest
    else:
        steps, share, scaled = 127, 0.5001, largest
    half = np.finfo(np.float16)

    def cast(value: np.ndarray) -> np.ndarray:
        return np.maximum(value * float(half.eps) / 2, float(half.smallest_subnormal) / 2)

    step = scaled / steps
    return share * step + steps * cast(step) + (cast(largest) if kind == TensorType.Q5_1 else 0)
