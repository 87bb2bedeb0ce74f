"""What devices exchange in a step: the only place where they communicate.

Every device runs the same program on its own rows (`jax.shard_map`), so communication is written down here and not
left to a compiler's guess:

  fsdp   a layer's weights are gathered where they are used, and each micro-batch's gradients are summed and scattered
         back to where the weights lie (ZeRO stage 3: Rajbhandari et al. 2020, arXiv:1910.02054); embedding and
         output matrix are gathered, and their gradients scattered, once a step;
  data   gradients are summed once a step, after all micro-batches.

Activations never leave their device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from minimind_jax.config import ModelConfig
from minimind_jax.model import GatherFn, Params, param_partition_specs

DATA, FSDP = BATCH_AXES = ("data", "fsdp")
ROWS = P(BATCH_AXES)
LAYERS = P(FSDP)  # whole layers on a device, where `divides_layers`


@dataclass(frozen=True)
class Layout:
    """A model on the mesh `data x fsdp`.

    Attributes:
      dtype: layers are gathered in it, all else and all gradients in the parameters' own.
    """

    mesh: Mesh
    model: ModelConfig
    dtype: jax.typing.DTypeLike

    @cached_property
    def specs(self) -> Params:
        """`PartitionSpec` of every parameter."""
        return param_partition_specs(self.model)

    @property
    def gather_layer(self) -> GatherFn | None:
        """For `hidden_states`; None where every device holds whole layers."""
        if self.mesh.shape[FSDP] == 1:
            return None

        def whole(x: jax.Array, spec: P) -> jax.Array:
            axis = self._split_axis(P(*spec[1:]))  # without the axis of layers
            return x if axis is None else _all_gather(x, axis, self.dtype)

        return lambda layer: jax.tree.map(whole, layer, self.specs["blocks"])

    def gather_ends(self, params: Params) -> Params:
        """Makes whole what is not a layer: the embedding and the output matrix."""

        def whole(x: jax.Array, spec: P) -> jax.Array:
            axis = self._split_axis(spec)
            return x if axis is None else jax.lax.all_gather(x, FSDP, axis=axis, tiled=True)

        return params | jax.tree.map(whole, _ends(params), _ends(self.specs))

    def sum_gradients(self, grads: Params) -> Params:
        """Over all devices, from gradients of parameters with whole ends to ones that lie like the parameters."""

        def scattered(grad: jax.Array, spec: P) -> jax.Array:
            axis = self._split_axis(spec)
            return grad if axis is None else jax.lax.psum_scatter(grad, FSDP, scatter_dimension=axis, tiled=True)

        def summed(grad: jax.Array, spec: P) -> jax.Array:
            return self._sum(grad, BATCH_AXES if self._split_axis(spec) is None else (DATA,))

        # Those of gathered layers are summed over fsdp already: the transpose of gathering does it.
        grads = grads | jax.tree.map(scattered, _ends(grads), _ends(self.specs))
        return jax.tree.map(summed, grads, self.specs)

    def sum(self, values: Any) -> Any:
        """Over all devices."""
        return self._sum(values, BATCH_AXES)

    def run(self, f: Callable, out: Any) -> Callable:
        """`f(params, batch, *others)` on every device: with its part of params, and its rows of a batch (A, B, ...).

        Args:
          out: how the results lie, `specs` for parameters or gradients, `ROWS` for arrays (B, ...), `P()` for what is
            equal on all devices.
        """

        def run(params: Params, batch: Any, *others: Any) -> Any:
            specs = (self.specs, P(None, BATCH_AXES), *[P()] * len(others))
            # check_vma off: it would want Pallas kernels to say how their results vary over the mesh.
            mapped = jax.shard_map(f, mesh=self.mesh, in_specs=specs, out_specs=out, check_vma=False)
            return mapped(params, batch, *others)

        return run

    def by_layer(self, x: jax.Array) -> jax.Array:
        """Outside of `run`: stacked matrices (L, in, out) with whole layers on a device, where fsdp divides them."""
        if self.mesh.shape[FSDP] == 1 or not divides_layers(self.mesh, self.model):
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, LAYERS))

    def _sum(self, values: Any, axes: tuple[str, ...]) -> Any:
        axes = tuple(axis for axis in axes if self.mesh.shape[axis] > 1)  # XLA for the CPU would do sums over one
        return jax.lax.psum(values, axes) if axes else values

    def _split_axis(self, spec: P) -> int | None:
        return spec.index(FSDP) if FSDP in spec and self.mesh.shape[FSDP] > 1 else None


def divides_layers(mesh: Mesh | AbstractMesh, model: ModelConfig) -> bool:
    """Whether every device can hold the same number of whole layers."""
    return model.n_layers % mesh.shape[FSDP] == 0


def _ends(params: Params) -> Params:
    return {key: value for key, value in params.items() if key != "blocks"}


def _all_gather(x: jax.Array, axis: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The whole of what x is this device's part of, along `axis`, in `dtype`; its transpose sums in x's dtype."""

    def gather(_: tuple, x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x.astype(dtype), FSDP, axis=axis, tiled=True)

    def scatter(_: tuple, grad: jax.Array) -> jax.Array:
        return jax.lax.psum_scatter(grad.astype(x.dtype), FSDP, scatter_dimension=axis, tiled=True)

    return jax.custom_derivatives.linear_call(gather, scatter, (), x)
