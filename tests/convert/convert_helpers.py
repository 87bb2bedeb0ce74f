"""Random models for the conversion tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from minimind_jax.config import ModelConfig, RopeScaling
from minimind_jax.model import abstract_params
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import LoadedModel

REPOSITORY = Path(__file__).parents[2]
VOCAB = 6464  # more rows than the shipped tokenizer's 6,400 entries

LLAMA = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=VOCAB, max_seq_len=512)
QWEN3 = ModelConfig(
    dim=24,
    n_layers=3,
    n_heads=4,
    n_kv_heads=1,
    head_dim=10,
    ffn_dim=40,
    vocab_size=VOCAB,
    max_seq_len=512,
    rope_theta=12345.678,
    norm_eps=1e-6,
    qk_norm=True,
    tie_embeddings=False,
    rope_scaling=RopeScaling("yarn", 4.0, 128),
)


def random_params(config: ModelConfig, seed: int = 0):
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        noise = rng.standard_normal(shape.shape).astype(np.float32)
        if "norm" in path[-1].key:
            return 1 + 0.2 * noise
        return noise if path[-1].key == "embed" else noise * shape.shape[-2] ** -0.5

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def random_model(config: ModelConfig, path: Path = Path("model"), seed: int = 0) -> LoadedModel:
    return LoadedModel(config, random_params(config, seed), load_tokenizer(), 0, path)


def equal_bits(a, b) -> bool:
    a, b = jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b)
    return [p for p, _ in a] == [p for p, _ in b] and all(
        x.dtype == y.dtype == np.float32 and np.array_equal(np.asarray(x).view("u4"), np.asarray(y).view("u4"))
        for (_, x), (_, y) in zip(a, b, strict=True)
    )


def edit_json(path: Path, **changes) -> None:
    """Sets keys of a JSON file; `...` deletes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def command(*argv: object) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGV` at the repository root."""
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, *map(str, argv)]
    return subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
