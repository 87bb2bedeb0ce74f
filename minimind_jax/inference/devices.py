"""Rows split over the devices of this process, each with a whole copy of the weights."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P


def local_mesh() -> Mesh | None:
    """A mesh of all devices of this process, with one axis; None where there is one device."""
    devices = jax.local_devices()
    return Mesh(np.array(devices), ("data",)) if len(devices) > 1 else None


def on_each_device(f: Callable, mesh: Mesh | None) -> Callable:
    """`f(params, rows)` on every device of the mesh for its own rows; they exchange nothing."""
    if mesh is None:
        return f
    rows = P(mesh.axis_names)
    return jax.shard_map(f, mesh=mesh, in_specs=(P(), rows), out_specs=rows, check_vma=False)
