"""PyTorch state-dict files (.pth) as arrays: where torch is needed, and nowhere else.

MiniMind's files hold a flat dict of Hugging Face's names and nothing else: no config. A tied model's
lm_head is there too, as the same tensor.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minimind_jax import hf_format
from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError, first_line
from minimind_jax.model import Params

_READABLE = ("torch.float32", "torch.bfloat16", "torch.float16")


def import_torch() -> Any:
    """The module torch. Raises UserError where it is not installed."""
    try:
        import torch
    except ImportError as e:
        raise UserError(
            f"PyTorch's files (.pth, .bin) need torch, which cannot be imported ({first_line(e)}): pip install torch; "
            "the build for CPUs is enough"
        ) from None
    return torch


def write(file: Path, params: Params, config: ModelConfig) -> None:
    """Saves numpy parameters in the dtype that they have. Raises UserError if the file cannot be written."""
    torch = import_torch()
    state = {name: _to_torch(torch, a) for name, a in hf_format.to_hf_tensors(params, config).items()}
    if config.tie_embeddings:
        state[hf_format.LM_HEAD] = state[hf_format.EMBED]  # torch.save keeps it one tensor
    try:
        torch.save(state, file)
    except RuntimeError as e:  # what torch makes of a full disk
        raise UserError(
            f"{file} cannot be written ({first_line(e)}): free some space, then run the same command again"
        ) from None


def _to_torch(torch: Any, array: np.ndarray) -> Any:
    if array.dtype in (np.float32, np.float16):
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)  # numpy has no bfloat16 that torch knows


class StateDict:
    """The tensors of a .pth file by Hugging Face's names.

    Attributes:
      shapes: of every tensor.
    """

    def __init__(self, file: Path) -> None:
        """Reads a state dict, bare or as `model` of a training checkpoint.

        torch.compile's `_orig_mod.` and DistributedDataParallel's `module.` are taken off the names.

        Raises:
          UserError: torch or the file is missing, the file is damaged or holds more than tensors.
        """
        self._tensors = _renamed(file, _state_dict(file, _load(file)))
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        """One tensor as float32, whatever of float32, bfloat16 and float16 it is stored in."""
        return self._tensors[name].detach().float().numpy()


def _load(file: Path) -> Any:
    torch = import_torch()
    if not file.is_file():
        raise UserError(f"{file} is not a file: give a state dict that torch.save has written")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the pickle protocol of a file that then fails
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError as e:
        raise UserError(f"{file} cannot be read: {e.strerror or first_line(e)}") from None
    except Exception as e:  # bytes that are no state dict raise whatever they happen to lead to
        if code := re.search(r"GLOBAL (\S+)", str(e)):
            raise UserError(
                f"{file} holds code ({code[1]}), which is not run: save model.state_dict(), not the model itself"
            ) from None
        raise UserError(f"{file} is damaged, or was not written by torch.save") from None


def _state_dict(file: Path, content: Any) -> Mapping[str, Any]:
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        kind = "an empty dict" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise UserError(f"{file} holds {kind}, not a state dict: tensors by name")
    torch = import_torch()
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{file}: {name!r} is a {type(value).__name__}, not a tensor: save model.state_dict()")
        if str(value.dtype) not in _READABLE or value.layout is not torch.strided or value.is_meta:
            raise UserError(
                f"{file}: {name} is a {value.layout} tensor of {value.dtype} on {value.device}; readable are dense "
                f"ones of {', '.join(_READABLE)}"
            )
    return content


def _renamed(file: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for name, tensor in state.items():
        bare = name.replace("_orig_mod.", "")
        while bare.startswith("module."):
            bare = bare.removeprefix("module.")
        if bare in tensors:
            raise UserError(f"{file} holds {bare} twice, once as {name}: keep one of the two")
        tensors[bare] = tensor
    return tensors
