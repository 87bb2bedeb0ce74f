"""Devices: the mesh, and how a train state and batches lie on it.

`jax.jit` over a mesh is what `pmap` was for: one program, the batch split over all devices. Axis `data` replicates
parameters, axis `fsdp` shards them. What devices exchange in a step: layout.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from minimind_jax.config import Config, MeshConfig, ModelConfig
from minimind_jax.data import RowSource
from minimind_jax.errors import UserError
from minimind_jax.model import Params, param_partition_specs
from minimind_jax.objectives import Batch
from minimind_jax.training import processes
from minimind_jax.training.layout import BATCH_AXES, LAYERS, divides_layers


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh `data x fsdp` of this machine's devices. Raises what `mesh_shape` raises."""
    devices = jax.devices()
    data, fsdp = mesh_shape(config, len(devices))
    grid = np.asarray(devices[: data * fsdp]).reshape(data, fsdp)
    return Mesh(grid, BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def mesh_shape(config: MeshConfig, n_devices: int) -> tuple[int, int]:
    """Sizes of the axes `data` and `fsdp`. -1 takes all remaining devices; fewer than there are is allowed.

    Raises UserError where the devices cannot be split like that.
    """
    data, fsdp = config.data, config.fsdp
    fixed = fsdp if data == -1 else data
    if -1 in (data, fsdp):
        if n_devices % fixed:
            raise UserError(
                f"{n_devices} devices cannot be split into mesh.{'fsdp' if data == -1 else 'data'}={fixed}: "
                "take a divisor"
            )
        data, fsdp = (n_devices // fixed, fsdp) if data == -1 else (data, n_devices // fixed)
    if data * fsdp > n_devices:
        raise UserError(f"mesh.data={data} x mesh.fsdp={fsdp} needs {data * fsdp} devices, there are {n_devices}")
    return data, fsdp


def check_divisible(config: Config, mesh: Mesh | AbstractMesh) -> None:
    """Raises UserError unless every device gets whole rows of every micro-batch, and fsdp divides dim.

    Several processes must use all their devices: each takes part in everything.
    """
    if processes.count() > 1 and mesh.size != jax.device_count():
        raise UserError(
            f"mesh.data={mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']} leaves devices out: the "
            f"{processes.count()} processes have {jax.device_count()}, set mesh.data=-1 to use them all"
        )
    if config.batch_size % (mesh.size * config.accum_steps):
        raise UserError(
            f"batch_size={config.batch_size} is not divisible by {mesh.size} devices x accum_steps="
            f"{config.accum_steps}: batch_size counts the rows of one step over all of them"
        )
    if config.model.dim % mesh.shape["fsdp"]:
        raise UserError(f"model.dim={config.model.dim} is not divisible by mesh.fsdp={mesh.shape['fsdp']}")


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def state_shardings(mesh: Mesh | AbstractMesh, model: ModelConfig, abstract_state: Any) -> Any:
    """Shardings of a whole train state: a leaf that mirrors a parameter (Adam's moments) lies like it.

    Except Muon's momenta (L, in, out): each device holds whole matrices of some layers, where it can, and makes them
    orthogonal by itself; cut like their parameters, each of the Newton-Schulz steps would gather them again.
    """
    specs = {
        jax.tree_util.keystr(path): spec
        for path, spec in jax.tree_util.tree_leaves_with_path(
            param_partition_specs(model), is_leaf=lambda x: isinstance(x, P)
        )
    }
    whole_layers = divides_layers(mesh, model)

    def sharding(path: Any, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        suffixes = (jax.tree_util.keystr(path[i:]) for i in range(len(path)))
        spec = next((specs[s] for s in suffixes if s in specs and leaf.ndim == len(specs[s])), P())
        if whole_layers and leaf.ndim == 3 and "['muon']" in jax.tree_util.keystr(path):
            spec = LAYERS
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, abstract_state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of leaves (accumulation, rows, ...): rows over every device."""
    return NamedSharding(mesh, P(None, BATCH_AXES))


def put_batch(rows: RowSource, row_ids: np.ndarray, sharding: NamedSharding) -> Batch:
    """The rows `row_ids` (A, b) on the mesh, as leaves (A, b, ...)."""
    return put_rows(rows.batch, row_ids, sharding)


def put_rows(
    read: Callable[[np.ndarray], dict[str, np.ndarray]], row_ids: np.ndarray, sharding: NamedSharding
) -> Batch:
    """`put_batch` for rows that `read` builds from ids (n,).

    Each process builds only what its own devices hold.
    """
    accum_steps, n_rows = row_ids.shape

    @lru_cache
    def piece(start: int, stop: int) -> dict[str, np.ndarray]:
        flat = read(row_ids[:, start:stop].reshape(-1))
        return {k: v.reshape(accum_steps, stop - start, *v.shape[1:]) for k, v in flat.items()}

    def build(key: str, row_shape: tuple[int, ...]) -> jax.Array:
        def callback(index: Any) -> np.ndarray:  # a slice per axis
            start, stop, _ = index[1].indices(n_rows)
            return piece(start, stop)[key]

        return jax.make_array_from_callback((accum_steps, n_rows, *row_shape), sharding, callback)

    empty_row = read(np.array([-1], np.int64))
    return {key: build(key, values.shape[1:]) for key, values in empty_row.items()}


def whole_on_one_device(mesh: Mesh, params: Params) -> Params:
    """A copy of the parameters on one device of each process, however they are sharded. Called by all processes."""
    gather = _gather(mesh)
    return jax.tree.map(lambda p: (p if p.is_fully_replicated else gather(p)).addressable_data(0), params)


@lru_cache(maxsize=1)
def _gather(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))
