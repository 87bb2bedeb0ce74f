"""From `config.data` to the rows of pretraining and of its validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minimind_jax.config import DataConfig
from minimind_jax.data.encoders import TEXT_KINDS
from minimind_jax.data.rows import PretrainRows
from minimind_jax.data.splits import fingerprint, open_parts

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer


def open_pretrain(data: DataConfig, tokenizer: Tokenizer, seed: int) -> tuple[PretrainRows, PretrainRows | None]:
    """Rows of training, documents ordered by `seed`, and of validation. Raises what `open_parts` raises."""
    train, val = open_parts(data, tokenizer, TEXT_KINDS[data.marks])
    train_rows = PretrainRows(train, data.max_seq_len, fingerprint("train", train, data), seed)
    if val is None:
        return train_rows, None
    return train_rows, PretrainRows(val, data.max_seq_len, fingerprint("val", val, data), None)
