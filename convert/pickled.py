"""Model directories whose weights are pytorch_model.bin, as transformers saved them before there was safetensors."""

from __future__ import annotations

from pathlib import Path

from convert.from_torch import is_tied
from convert.pth import StateDict
from minimind_jax import hf_format
from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.model import Params


def open_pickled(source: Path) -> StateDict | None:
    """pytorch_model.bin, where a directory has no safetensors. Raises UserError where it cannot be read."""
    file = source / "pytorch_model.bin"
    return StateDict(file) if file.is_file() and not list(source.glob("*.safetensors")) else None


def read_params(source: Path, config: ModelConfig, state: StateDict | None) -> Params:
    """The directory's weights, float32, from `state` if there is one. Raises UserError unless they fit `config`."""
    if state is None:
        return hf_format.read_params(source, config)
    hf_format.check_tensors(source, state.shapes, config, "its config.json")
    if config.tie_embeddings and not is_tied(state):
        raise UserError(
            f"{source}: {hf_format.LM_HEAD} differs from {hf_format.EMBED}, so the model is not tied: set "
            f"tie_word_embeddings to false in {source / 'config.json'} to keep both"
        )
    return hf_format.from_hf_tensors(state.__getitem__, config)
