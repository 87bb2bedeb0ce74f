"""safetensors files <-> our parameter tree, through the one name table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.hf_format.names import EMBED, LM_HEAD, Tensor, find, tensors
from minimind_jax.model import Params, abstract_params

DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

MAX_SHARD_BYTES = 5 * 10**9  # of one file; transformers 4.5x's limit

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLED = "pytorch_model.bin"
_SHARD = "model-{:05}-of-{:05}.safetensors"
_READABLE = ("F32", "BF16", "F16")
# Buffers that old Llama exports carry and transformers ignores: they follow from rope_theta.
_IGNORED_SUFFIX = "rotary_emb.inv_freq"


# --- Pure: arrays <-> arrays -------------------------------------------------------------------------


def to_hf_tensors(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """Our tree as Hugging Face's flat dict of C-contiguous arrays, dtypes kept."""
    return {tensor.name: _hf_array(params, tensor) for tensor in tensors(config)}


def _hf_array(params: Params, tensor: Tensor) -> np.ndarray:
    value = np.asarray(find(params, tensor.path))
    value = value if tensor.layer is None else value[tensor.layer]
    return np.ascontiguousarray(value.T if tensor.transposed else value)


def from_hf_tensors(get: Callable[[str], np.ndarray], config: ModelConfig) -> Params:
    """Our tree, float32, from `get(name)`, which returns each tensor in Hugging Face's shape."""
    params: Params = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), abstract_params(config))
    for tensor in tensors(config):
        value, leaf = get(tensor.name), find(params, tensor.path)
        target = leaf if tensor.layer is None else leaf[tensor.layer]
        target[...] = value.T if tensor.transposed else value
    return params


def cast_params(params: Params, dtype: str) -> Params:
    """Parameters in an export's dtype, as numpy arrays.

    Raises:
      UserError: a weight is not finite, or becomes so in `dtype` (float16 ends at 65504).
    """

    def cast(path: tuple, leaf: Any) -> np.ndarray:
        wide, name = np.asarray(leaf), ".".join(key.key for key in path)
        if not np.isfinite(wide).all():
            raise UserError(f"parameter {name} holds NaN or infinity: take a workdir's earlier checkpoint by --step")
        with np.errstate(over="ignore"):
            narrow = wide.astype(DTYPES[dtype])
        if not np.isfinite(narrow).all():
            raise UserError(
                f"parameter {name} holds {np.abs(wide).max():g}, beyond {dtype}'s range: export as bfloat16 or float32"
            )
        return narrow

    return jax.tree_util.tree_map_with_path(cast, params)


# --- Files -------------------------------------------------------------------------------------------


def write_params(
    directory: Path, params: Params, config: ModelConfig, dtype: str, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes model.safetensors in `dtype` (float32 | bfloat16 | float16), or shards with an index if it is larger.

    Args:
      max_shard_bytes: of tensor data in one file. A single tensor above it has a file of its own.

    Raises:
      UserError: what `cast_params` raises, or a file cannot be written.
    """
    cast = cast_params(params, dtype)
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    shards = list(_shards(config, itemsize, max_shard_bytes))
    if len(shards) == 1:
        _save(directory / _SINGLE, cast, shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = _SHARD.format(number, len(shards))
        _save(directory / name, cast, shard)
        weight_map |= {tensor.name: name for tensor in shard}
    n_values = sum(tensor.size for shard in shards for tensor in shard)
    metadata = {"total_parameters": n_values, "total_size": n_values * itemsize}
    index = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2)
    (directory / _INDEX).write_text(index + "\n", encoding="utf-8")


def _shards(config: ModelConfig, itemsize: int, max_bytes: int) -> Iterator[list[Tensor]]:
    """The model's tensors, file by file."""
    shard: list[Tensor] = []
    n_bytes = 0
    for tensor in tensors(config):
        size = tensor.size * itemsize
        if shard and n_bytes + size > max_bytes:
            yield shard
            shard, n_bytes = [], 0
        shard.append(tensor)
        n_bytes += size
    yield shard


def _save(file: Path, params: Params, shard: list[Tensor]) -> None:
    try:
        # transformers refuses files without this mark.
        save_file({tensor.name: _hf_array(params, tensor) for tensor in shard}, file, metadata={"format": "pt"})
    except SafetensorError as e:
        raise UserError(f"{file} cannot be written ({e}): free some space, then run the same command again") from None
    # safetensors writes through a private temporary file: give the result the mode of its neighbours.
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def read_params(path: Path, config: ModelConfig) -> Params:
    """A model directory's weights as float32 numpy arrays.

    Reads one file or shards with an index, float32, bfloat16 or float16. A tied model may carry an
    lm_head if it equals the embedding.

    Raises:
      UserError: no, damaged or pickled weight files; missing or unexpected tensors, wrong shapes or dtypes.
    """
    files = _weight_files(path)
    handles: dict[Path, Any] = {}
    where: dict[str, Path] = {}
    for file, listed in files.items():
        handles[file] = handle = _open(file)
        names = set(handle.keys())
        if listed is not None and (lost := sorted(listed - names)):
            raise UserError(f"{file} lacks {_some(lost)}, which {_INDEX} promises")
        for name in names:
            if name in where:
                raise UserError(f"tensor {name} stands in both {where[name]} and {file}")
            where[name] = file
    _check_tensors(path, handles, where, config)

    def get(name: str) -> np.ndarray:
        return handles[where[name]].get_tensor(name)

    if config.tie_embeddings and LM_HEAD in where and not np.array_equal(get(LM_HEAD), get(EMBED)):
        raise UserError(
            f"{path}: config.json says tie_word_embeddings=true, yet {LM_HEAD} differs from {EMBED}: "
            "set it to false to keep both"
        )
    return from_hf_tensors(get, config)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of every tensor in a model directory, by name. Raises UserError where its files cannot be opened."""
    handles = map(_open, _weight_files(path))
    return {name: tuple(handle.get_slice(name).get_shape()) for handle in handles for name in handle.keys()}  # noqa: SIM118


def _weight_files(path: Path) -> dict[Path, set[str] | None]:
    """The files to open, each with the names that an index promises in it (None = no index)."""
    index = path / _INDEX
    if (path / _SINGLE).is_file():
        return {path / _SINGLE: None}
    if not index.is_file():
        others = sorted(p.name for pattern in ("*.bin", "*.pth", "*.pt", "*.gguf") for p in path.glob(pattern))
        found = f"; {_some(others)} cannot be read" if others else ""
        if _PICKLED in others:
            found += f" here: `python -m convert.from_hf --model {path} --out WORKDIR` reads {_PICKLED}"
        elif states := [name for name in others if name.endswith((".pth", ".pt"))]:
            command = f"python -m convert.from_torch --weights {path / states[0]} --tokenizer {path} --out WORKDIR"
            found += f" here: `{command}` reads MiniMind's state dicts"
        raise UserError(f"{path} has neither {_SINGLE} nor {_INDEX}{found}")
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files: dict[Path, set[str] | None] = {}
        for name, file in weight_map.items():
            if Path(file).name != file:
                raise UserError(f"{index}: {file!r} is not a file name")
            files.setdefault(path / file, set()).add(name)  # type: ignore[union-attr]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{index} is damaged: {type(e).__name__} {e}") from None
    if absent := sorted(file.name for file in files if not file.is_file()):
        raise UserError(f"{path} lacks {_some(absent)}, which {_INDEX} names")
    return files


def _open(file: Path) -> Any:
    try:
        return safe_open(file, "numpy")
    except (SafetensorError, OSError) as e:
        raise UserError(f"{file} is damaged or unreadable: {e}") from None


def _check_tensors(path: Path, handles: Mapping[Path, Any], where: Mapping[str, Path], config: ModelConfig) -> None:
    pieces = {name: handles[file].get_slice(name) for name, file in where.items()}
    shapes = {name: tuple(piece.get_shape()) for name, piece in pieces.items()}
    check_tensors(path, shapes, config, "its config.json")
    for tensor in tensors(config):
        if (dtype := pieces[tensor.name].get_dtype()) not in _READABLE:
            raise UserError(
                f"{where[tensor.name]}: {tensor.name} has dtype {dtype}; readable are {', '.join(_READABLE)}"
            )


def check_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]], config: ModelConfig, implied_by: str) -> None:
    """Raises UserError unless `shapes`, by name, are those of the model (a tied one may carry its lm_head).

    Args:
      path: the file or directory, for messages.
      implied_by: what says that the model is `config`, for messages.
    """
    expected = {tensor.name: tensor.shape for tensor in tensors(config)}
    present = {name for name in shapes if not name.endswith(_IGNORED_SUFFIX)}
    if missing := sorted(set(expected) - present):
        raise UserError(f"{path} lacks {_some(missing)}: its weights do not fit {implied_by}")
    if config.tie_embeddings:
        present.discard(LM_HEAD)
    if unexpected := sorted(present - set(expected)):
        raise UserError(f"{path} has unexpected {_some(unexpected)}: its weights do not fit {implied_by}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise UserError(f"{path}: {name} has shape {shapes[name]}, {implied_by} implies {shape}")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
