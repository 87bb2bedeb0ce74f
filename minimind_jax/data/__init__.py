"""Data: jsonl files -> token stores -> rows of a fixed length -> the batch of a step. Needs numpy, not JAX."""

from minimind_jax.data.build import open_store
from minimind_jax.data.pretrain import open_pretrain
from minimind_jax.data.rows import Batch, PretrainRows, RowSource, count_rows, step_row_ids
from minimind_jax.data.store import TokenStore

__all__ = [
    "Batch",
    "PretrainRows",
    "RowSource",
    "TokenStore",
    "count_rows",
    "open_pretrain",
    "open_store",
    "step_row_ids",
]
