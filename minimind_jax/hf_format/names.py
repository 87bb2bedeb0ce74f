"""The weight-name table: our parameter tree <-> Hugging Face's flat names. Read in both directions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from minimind_jax.config import ModelConfig
from minimind_jax.model import Params, abstract_params


@dataclass(frozen=True)
class _Row:
    ours: str  # path in the parameter tree; below `blocks` every leaf has a leading layer axis
    theirs: str  # {} = layer
    transposed: bool = False  # our matrices are (in, out), torch's Linear keeps (out, in)


# Half-split RoPE on both sides: q and k need no permutation.
_TABLE = (
    _Row("embed", "model.embed_tokens.weight"),
    _Row("blocks.attn_norm", "model.layers.{}.input_layernorm.weight"),
    _Row("blocks.attn.q", "model.layers.{}.self_attn.q_proj.weight", transposed=True),
    _Row("blocks.attn.k", "model.layers.{}.self_attn.k_proj.weight", transposed=True),
    _Row("blocks.attn.v", "model.layers.{}.self_attn.v_proj.weight", transposed=True),
    _Row("blocks.attn.o", "model.layers.{}.self_attn.o_proj.weight", transposed=True),
    _Row("blocks.attn.q_norm", "model.layers.{}.self_attn.q_norm.weight"),
    _Row("blocks.attn.k_norm", "model.layers.{}.self_attn.k_norm.weight"),
    _Row("blocks.mlp_norm", "model.layers.{}.post_attention_layernorm.weight"),
    _Row("blocks.mlp.gate", "model.layers.{}.mlp.gate_proj.weight", transposed=True),
    _Row("blocks.mlp.up", "model.layers.{}.mlp.up_proj.weight", transposed=True),
    _Row("blocks.mlp.down", "model.layers.{}.mlp.down_proj.weight", transposed=True),
    _Row("final_norm", "model.norm.weight"),
    _Row("lm_head", "lm_head.weight", transposed=True),
)

EMBED, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face file and where it lives in our tree."""

    name: str
    shape: tuple[int, ...]  # as in the file
    path: tuple[str, ...]
    layer: int | None
    transposed: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """Every tensor of the model, in the table's order; a tied model has no lm_head."""
    shapes = abstract_params(config)
    for row in _TABLE:
        path = tuple(row.ours.split("."))
        leaf = find(shapes, path)
        if leaf is None:
            continue
        stacked = path[0] == "blocks"
        shape = leaf.shape[1:] if stacked else leaf.shape
        for layer in range(config.n_layers) if stacked else (None,):
            name = row.theirs.format(layer)
            yield Tensor(name, shape[::-1] if row.transposed else shape, path, layer, row.transposed)


def find(tree: Params, path: tuple[str, ...]):
    """The leaf at `path`, or None."""
    node = tree
    for key in path:
        if key not in node:
            return None
        node = node[key]
    return node
