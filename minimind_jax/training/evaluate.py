"""Validation during training: loss and bits per byte of held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import NamedSharding

from minimind_jax.data import RowSource
from minimind_jax.model import Params
from minimind_jax.objectives import Batch
from minimind_jax.training.mesh import put_batch

EvalStep = Callable[[Params, Batch], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Validation:
    """Scores all of `rows`, `batch_rows` at a time."""

    rows: RowSource
    eval_step: EvalStep
    batch_rows: int
    sharding: NamedSharding

    def __call__(self, params: Params) -> dict[str, float]:
        """val_loss (nats per target token) and val_bpb (bits per UTF-8 byte of the texts)."""
        n = self.rows.rows_per_epoch
        ids = np.full(-(-n // self.batch_rows) * self.batch_rows, -1, np.int64)
        ids[:n] = np.arange(n)
        sums = [
            self.eval_step(params, put_batch(self.rows, chunk[None], self.sharding))
            for chunk in ids.reshape(-1, self.batch_rows)
        ]
        nats = sum(float(nll) for nll, _ in sums)
        targets = sum(int(count) for _, count in sums)
        return {"val_loss": nats / targets, "val_bpb": nats / math.log(2) / self.rows.n_bytes}
