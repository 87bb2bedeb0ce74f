"""safetensors files <-> our parameter tree, through the one name table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.hf_format.names import EMBED, LM_HEAD, find, tensors
from minimind_jax.model import Params, abstract_params

DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_READABLE = ("F32", "BF16", "F16")
# Buffers that old Llama exports carry and transformers ignores: they follow from rope_theta.
_IGNORED_SUFFIX = "rotary_emb.inv_freq"


# --- Pure: arrays <-> arrays -------------------------------------------------------------------------


def to_hf_tensors(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """Our tree as Hugging Face's flat dict of C-contiguous arrays, dtypes kept."""
    out = {}
    for tensor in tensors(config):
        value = np.asarray(find(params, tensor.path))
        value = value if tensor.layer is None else value[tensor.layer]
        out[tensor.name] = np.ascontiguousarray(value.T if tensor.transposed else value)
    return out


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
            raise UserError(f"parameter {name} holds NaN or infinity: the model is broken, take an earlier --step")
        with np.errstate(over="ignore"):
            narrow = wide.astype(DTYPES[dtype])
        if not np.isfinite(narrow).all():
            raise UserError(
                f"parameter {name} holds {np.abs(wide).max():g}, beyond {dtype}'s range: export as bfloat16 or float32"
            )
        return narrow

    return jax.tree_util.tree_map_with_path(cast, params)


# --- Files -------------------------------------------------------------------------------------------


def write_params(directory: Path, params: Params, config: ModelConfig, dtype: str) -> None:
    """Writes model.safetensors in `dtype` (float32 | bfloat16 | float16).

    Raises:
      UserError: what `cast_params` raises, or the file cannot be written.
    """
    file = directory / _SINGLE
    try:
        save_file(to_hf_tensors(cast_params(params, dtype), config), file, metadata={"format": "pt"})
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


def _weight_files(path: Path) -> dict[Path, set[str] | None]:
    """The files to open, each with the names that an index promises in it (None = no index)."""
    index = path / _INDEX
    if (path / _SINGLE).is_file():
        return {path / _SINGLE: None}
    if not index.is_file():
        others = sorted(p.name for pattern in ("*.bin", "*.pth", "*.pt", "*.gguf") for p in path.glob(pattern))
        found = f"; {_some(others)} cannot be read" if others else ""
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
    expected = {tensor.name: tensor.shape for tensor in tensors(config)}
    present = {name for name in where if not name.endswith(_IGNORED_SUFFIX)}
    if missing := sorted(set(expected) - present):
        raise UserError(f"{path} lacks {_some(missing)}: its weights do not fit its config.json")
    if config.tie_embeddings:
        present.discard(LM_HEAD)
    if unexpected := sorted(present - set(expected)):
        raise UserError(f"{path} has unexpected {_some(unexpected)}: its weights do not fit its config.json")
    for name, shape in expected.items():
        piece = handles[where[name]].get_slice(name)
        if tuple(piece.get_shape()) != shape:
            raise UserError(f"{where[name]}: {name} has shape {tuple(piece.get_shape())}, config.json implies {shape}")
        if piece.get_dtype() not in _READABLE:
            raise UserError(f"{where[name]}: {name} has dtype {piece.get_dtype()}; readable are {', '.join(_READABLE)}")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
