"""Which rows a stage reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minimind_jax.config import Config, SftConfig
from minimind_jax.data.dpo import open_dpo
from minimind_jax.data.encoders import TEXT_KINDS, Kind
from minimind_jax.data.pretrain import open_pretrain
from minimind_jax.data.rows import RowSource
from minimind_jax.data.sft import open_sft

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

KIND_OF_STAGE: dict[str, Kind] = {"pretrain": "text", "sft": "chat", "dpo": "pairs"}
# What `RowSource.n_docs` counts, in words.
DOCUMENTS_OF_STAGE = {"pretrain": "documents", "sft": "conversations", "dpo": "pairs"}


def kind_of(config: Config) -> Kind:
    """How the stage's files are read."""
    return TEXT_KINDS[config.data.marks] if config.stage == "pretrain" else KIND_OF_STAGE[config.stage]


def open_rows(config: Config, tokenizer: Tokenizer) -> tuple[RowSource, RowSource | None]:
    """The rows of a stage's training and of its validation. Raises what the stages' own functions raise."""
    data, seed = config.data, config.seed
    if config.stage == "pretrain":
        return open_pretrain(data, tokenizer, seed)
    if config.stage == "sft":
        return open_sft(data, config.sft or SftConfig(), tokenizer, seed)
    return open_dpo(data, tokenizer, seed)
