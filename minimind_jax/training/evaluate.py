"""Validation during training: the objective itself, over all held-out rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from minimind_jax.data import RowSource
from minimind_jax.model import Params
from minimind_jax.objectives import Batch, Denominators, Objective
from minimind_jax.training.mesh import put_batch
from minimind_jax.training.step import EvalStep


@dataclass(frozen=True)
class Validation:
    """Scores all of `rows`, `batch_rows` at a time."""

    rows: RowSource
    objective: Objective
    eval_step: EvalStep
    batch_rows: int
    sharding: NamedSharding

    def __call__(self, params: Params) -> dict[str, float]:
        """val_loss, the objective's metrics as val_NAME, and val_bpb (bits per UTF-8 byte) where rows count bytes.

        As in training, each batch gives its share of what is divided by the counts of all of them.
        """
        # All batches are dispatched before the first number is waited for.
        shares = [self.eval_step(params, batch, self._denominators) for batch in self._batches()]
        total: dict[str, float] = {}
        for loss, metrics in shares:
            for name, value in {"loss": loss, **metrics}.items():
                total[f"val_{name}"] = total.get(f"val_{name}", 0.0) + float(value)
        if self.rows.n_bytes:
            nats = total["val_loss"] * int(self._denominators["target_tokens"])
            total["val_bpb"] = nats / math.log(2) / self.rows.n_bytes
        return total

    @cached_property
    def _denominators(self) -> Denominators:
        count = jax.jit(self.objective.denominators)
        counts = [count(batch) for batch in self._batches()]
        return jax.tree.map(lambda *leaves: jnp.sum(jnp.stack(leaves), axis=0), *counts)

    def _batches(self) -> Iterator[Batch]:
        n = self.rows.rows_per_epoch
        ids = np.full(-(-n // self.batch_rows) * self.batch_rows, -1, np.int64)
        ids[:n] = np.arange(n)
        for chunk in ids.reshape(-1, self.batch_rows):
            yield put_batch(self.rows, chunk[None], self.sharding)
