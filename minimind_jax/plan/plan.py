"""A recipe's parameters, memory, arithmetic and time on given devices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from minimind_jax.config import Config
from minimind_jax.data.rows import count_rows
from minimind_jax.errors import UserError
from minimind_jax.model import abstract_params, count_params
from minimind_jax.plan.memory import Memory, estimate_memory
from minimind_jax.training.flops import flops_per_token
from minimind_jax.training.mesh import BATCH_AXES, check_divisible, mesh_shape


@dataclass(frozen=True)
class Plan:
    stage: str
    devices: int  # that the mesh uses
    mesh: dict[str, int]
    params: int
    embedding_params: int  # of them, the output matrix included where it is not tied
    compute_dtype: str
    memory: Memory  # of one device
    row_length: int  # tokens
    rows_per_device: int  # of one micro-batch
    tokens_per_step: int
    flops_per_token: float  # forward and backward
    flops_per_step: float
    steps: int | None  # None where neither the recipe nor the caller says how many
    tokens_per_s: float | None  # at the given peak and utilisation
    seconds_per_step: float | None
    seconds: float | None  # of all steps


def make_plan(
    config: Config,
    devices: int = 1,
    epoch_tokens: int | None = None,
    peak_flops: float | None = None,
    mfu: float = 0.4,
) -> Plan:
    """Plans a run; nothing is read, compiled or put on a device.

    Args:
      devices: of all processes together.
      epoch_tokens: tokens of one epoch, for recipes that count epochs; rows are taken to be full.
      peak_flops: FLOP/s of one device; without it there are no times.
      mfu: share of the peak that goes into the model's arithmetic.

    Raises:
      UserError: the mesh does not fit the devices, or the batch not the mesh; a number makes no sense.
    """
    for name, value in (("--devices", devices), ("--tokens", epoch_tokens), ("--peak-tflops", peak_flops)):
        if value is not None and not (0 < value < math.inf):
            raise UserError(f"{name} must be above 0")
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu={mfu:g} must be above 0 and at most 1")
    sizes = mesh_shape(config.mesh, devices)
    mesh = AbstractMesh(sizes, BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))
    check_divisible(config, mesh)
    # A GPU's: "auto" is float32 on CPUs only.
    dtype = jnp.dtype(jnp.bfloat16 if config.precision.compute == "auto" else config.precision.compute)
    row_length = config.data.max_seq_len * (2 if config.stage == "dpo" else 1)  # a row of pairs is twice as long
    rows = config.batch_size // (config.accum_steps * mesh.size)
    tokens = config.batch_size * row_length
    flops = flops_per_token(config.model, row_length)
    shapes = abstract_params(config.model)
    steps = config.steps or None
    if not steps and epoch_tokens:
        steps = math.ceil(count_rows(config.epochs, math.ceil(epoch_tokens / row_length)) / config.batch_size)
    speed = peak_flops * mfu * mesh.size / flops if peak_flops else None
    return Plan(
        stage=config.stage,
        devices=mesh.size,
        mesh=dict(zip(BATCH_AXES, sizes, strict=True)),
        params=count_params(config.model),
        embedding_params=sum(shapes[key].size for key in ("embed", "lm_head") if key in shapes),
        compute_dtype=dtype.name,
        memory=estimate_memory(config, mesh, rows, row_length, dtype),
        row_length=row_length,
        rows_per_device=rows,
        tokens_per_step=tokens,
        flops_per_token=flops,
        flops_per_step=flops * tokens,
        steps=steps,
        tokens_per_s=speed,
        seconds_per_step=tokens / speed if speed else None,
        seconds=steps * tokens / speed if speed and steps else None,
    )
