"""Data: files of records -> token stores -> rows of a fixed length -> the batch of a step. Needs numpy, not JAX."""

from minimind_jax.data.build import open_store
from minimind_jax.data.dpo import PairRows, open_dpo
from minimind_jax.data.open import open_rows
from minimind_jax.data.pretrain import open_pretrain
from minimind_jax.data.rows import Batch, PretrainRows, RowSource, count_rows, step_row_ids
from minimind_jax.data.sft import SftRows, open_sft
from minimind_jax.data.store import TokenStore

__all__ = [
    "Batch",
    "PairRows",
    "PretrainRows",
    "RowSource",
    "SftRows",
    "TokenStore",
    "count_rows",
    "open_dpo",
    "open_pretrain",
    "open_rows",
    "open_sft",
    "open_store",
    "step_row_ids",
]
