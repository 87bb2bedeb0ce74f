"""Memory of one device, from abstract arrays: the state is counted, what a step needs besides is estimated.

The estimate, for one micro-batch on one device: what the backward pass keeps of the forward pass (JAX's own residuals,
`jax.vjp` traced without data, so remat and every layer count as they are written), and what the backward pass works
with meanwhile: the gradient of the logits that exist at once, or later as much as one layer keeps without remat,
whichever is more. It knows nothing of what XLA fuses away or schedules; docs/log.md compares it with XLA's
`memory_analysis()`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from minimind_jax.config import Config
from minimind_jax.model import abstract_params
from minimind_jax.objectives import language_modelling
from minimind_jax.objectives.token_logprobs import chunk_length
from minimind_jax.training.mesh import state_shardings
from minimind_jax.training.optimizer import make_optimizer
from minimind_jax.training.step import init_state, make_forward

_PROBE = 16  # tokens


@dataclass(frozen=True)
class Memory:
    """Bytes on one device. The first three are exact, by dtype; the last two are estimates."""

    params: dict[str, int]
    optimizer: dict[str, int]  # all that the train state holds besides
    gradients: dict[str, int]  # twice where they are accumulated
    activations: int  # kept for the backward pass, of one micro-batch
    working: int  # what the backward pass needs besides

    @property
    def state(self) -> int:
        return sum(self.params.values()) + sum(self.optimizer.values())

    @property
    def step(self) -> int:
        """Besides the state, while a step runs."""
        return sum(self.gradients.values()) + self.activations + self.working


def estimate_memory(config: Config, mesh: AbstractMesh, rows: int, row_length: int, dtype: jnp.dtype) -> Memory:
    """Memory of a device of `mesh`.

    Args:
      rows: of one micro-batch on one device.
      row_length: tokens of a row.
      dtype: of activations.
    """
    optimizer, params_dtype = make_optimizer(config.optim), config.precision.params_dtype

    def fresh(params: Any) -> Any:
        return init_state(jax.tree.map(lambda p: p.astype(params_dtype), params), optimizer)

    state = jax.eval_shape(fresh, abstract_params(config.model))
    shardings = state_shardings(mesh, config.model, state)

    def held(keys: Iterable[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for key in keys:
            for leaf, sharding in zip(jax.tree.leaves(state[key]), jax.tree.leaves(shardings[key]), strict=True):
                name = leaf.dtype.name
                found[name] = found.get(name, 0) + math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        return found

    params = held(["params"])
    copies = 2 if config.accum_steps > 1 else 1
    # Copies of weights in `dtype` do not grow with the rows; they lie like the weights.
    weights = 2 * residual_bytes(config, 1, _PROBE, dtype) - residual_bytes(config, 2, _PROBE, dtype)
    kept = residual_bytes(config, rows, row_length, dtype)
    one, two = (
        residual_bytes(
            dataclasses.replace(config, remat="none", model=dataclasses.replace(config.model, n_layers=n)),
            rows,
            row_length,
            dtype,
        )
        for n in (1, 2)
    )
    vocab = config.model.vocab_size
    logits = rows * chunk_length(rows, row_length, vocab) * vocab * 4  # float32
    return Memory(
        params=params,
        optimizer=held(key for key in state if key != "params"),
        gradients={name: copies * n for name, n in params.items()},
        activations=kept - weights + weights // mesh.shape["fsdp"],
        working=max(logits, two - one) + _gathered_bytes(config, mesh, copies, dtype),
    )


def _gathered_bytes(config: Config, mesh: AbstractMesh, copies: int, dtype: jnp.dtype) -> int:
    """What fsdp makes whole: one layer at a time; embedding and output matrix with their gradients all the time."""
    fsdp, params = mesh.shape["fsdp"], abstract_params(config.model)
    if fsdp == 1:
        return 0
    layer = sum(x.size for x in jax.tree.leaves(params["blocks"])) // config.model.n_layers
    ends = [x for key, part in params.items() if key != "blocks" for x in jax.tree.leaves(part)]
    whole = sum(x.size * jnp.dtype(config.precision.params_dtype).itemsize for x in ends)
    return layer * dtype.itemsize + whole + copies * (whole - whole // fsdp)


def residual_bytes(config: Config, rows: int, row_length: int, dtype: jnp.dtype) -> int:
    """What JAX keeps between the forward and the backward pass of `rows` rows, the parameters themselves left out."""
    # Plain attention: which kernel a device would take, only the device knows.
    shape, forward = (rows, row_length), make_forward(dataclasses.replace(config, attention="xla"), dtype)
    names = ("tokens", "targets", "segment_ids", "positions")
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in names}
    batch["target_mask"] = jax.ShapeDtypeStruct(shape, jnp.bool_)

    def residuals(params: Any, batch: Any) -> list[jax.Array]:
        denominators = language_modelling.denominators(batch)
        _, backward = jax.vjp(lambda p: language_modelling.loss(forward, p, batch, denominators)[0], params)
        return jax.tree.leaves(backward)

    traced = jax.make_jaxpr(residuals)(abstract_params(config.model), batch).jaxpr
    given = {id(variable) for variable in traced.invars}
    kept = {id(variable): variable.aval for variable in traced.outvars if id(variable) not in given}
    return sum(math.prod(aval.shape) * aval.dtype.itemsize for aval in kept.values())
