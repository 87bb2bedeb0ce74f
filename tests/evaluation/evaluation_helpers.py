"""A model with random weights, for scores that can be compared."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from minimind_jax.config import ModelConfig
from minimind_jax.model import abstract_params
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import LoadedModel


def random_model(config: ModelConfig, seed: int = 0, scale: float = 1.0) -> LoadedModel:
    """With the shipped tokenizer; a larger scale makes its predictions more extreme."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        noise = rng.standard_normal(shape.shape).astype(np.float32)
        return 1 + 0.2 * noise if "norm" in path[-1].key else noise * np.float32(scale * config.dim**-0.5)

    params = jax.tree_util.tree_map_with_path(leaf, abstract_params(config))
    return LoadedModel(config, params, load_tokenizer(), 0, Path("model"))
