"""What a stage minimises, as two pure functions.

Gradients of micro-batches simply add, so accumulation and sharding give the exact global mean:
whatever a term is divided by is taken from the whole global batch beforehand, and each
micro-batch returns the sum of its terms, already divided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from minimind_jax.model import Params

Batch = dict[str, jax.Array]
Denominators = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
ForwardFn = Callable[[Params, Batch], jax.Array]  # -> hidden states (B, T, D)


class Objective(NamedTuple):
    denominators: Callable[[Batch], Denominators]  # of the global batch, leaves (A, B / A, T)
    loss: Callable[[ForwardFn, Params, Batch, Denominators], tuple[jax.Array, Metrics]]
