"""One run, checked and assembled, and the parts that the loop is made of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh

from minimind_jax.config import Config
from minimind_jax.data import RowSource
from minimind_jax.data.rows import step_row_ids
from minimind_jax.errors import UserError, first_line
from minimind_jax.evaluation.task import Task
from minimind_jax.model import abstract_params, init_params
from minimind_jax.objectives import Batch, Objective
from minimind_jax.tokenizer import Tokenizer
from minimind_jax.training.checkpoint import Checkpointer
from minimind_jax.training.console import TrainingConsole
from minimind_jax.training.evaluate import Validation
from minimind_jax.training.layout import Layout
from minimind_jax.training.mesh import batch_sharding, put_batch, state_shardings
from minimind_jax.training.optimizer import make_optimizer, make_schedule
from minimind_jax.training.step import (
    TrainState,
    TrainStep,
    compute_dtype,
    init_state,
    make_eval_step,
    make_forward,
    make_train_step,
)
from minimind_jax.training.vocabulary import load_initial
from minimind_jax.workdir import Workdir


@dataclass(frozen=True)
class Job:
    config: Config
    mesh: Mesh
    rows: RowSource
    val_rows: RowSource | None
    objective: Objective
    tokenizer: Tokenizer
    workdir: Workdir
    total_steps: int
    total_rows: int | None  # rows of all epochs; None where `steps` decides
    total_steps_before: int  # what the workdir's run aimed at so far
    note: str = ""  # what the user should know of the tokenizer
    tasks: Sequence[Task] = ()  # of eval_tasks, in process 0

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.mesh, self.config.model, compute_dtype(self.config))


def make_batch(job: Job, step: int) -> Batch:
    """The global batch of a step (0-based): a pure function of (seed, step), leaves (accum_steps, rows, ...)."""
    ids = step_row_ids(step, job.config.batch_size, job.total_rows)
    return put_batch(job.rows, ids.reshape(job.config.accum_steps, -1), batch_sharding(job.mesh))


def initial_state(job: Job, checkpointer: Checkpointer, start: int) -> tuple[TrainState, dict[str, Any]]:
    """The state on the mesh, with the checkpoint's notes: restored, from `init_from`, or fresh by seed."""
    model, optimizer = job.config.model, make_optimizer(job.config.optim)
    dtype = job.config.precision.params_dtype

    def fresh(params: Any) -> TrainState:
        return init_state(jax.tree.map(lambda p: p.astype(dtype), params), optimizer)

    abstract = jax.eval_shape(fresh, abstract_params(model))
    shardings = state_shardings(job.mesh, model, abstract)
    if start:
        target = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)
        return checkpointer.restore(target, start)
    if job.config.init_from:
        loaded = load_initial(job.config, job.tokenizer)
        params = jax.tree.map(
            lambda p, s: jax.make_array_from_callback(p.shape, s, lambda index: p[index]), loaded, shardings["params"]
        )
        return jax.jit(fresh, out_shardings=shardings)(params), {}
    # The seed is an argument: one compiled initialiser serves all seeds.
    return jax.jit(lambda seed: fresh(init_params(model, seed)), out_shardings=shardings)(job.config.seed), {}


def compile_train_step(job: Job, state: TrainState, console: TrainingConsole) -> TrainStep:
    config = job.config
    step = make_train_step(
        make_forward(config, compute_dtype(config), job.layout),
        job.objective,
        make_optimizer(config.optim, job.layout.by_layer),
        make_schedule(config.optim, job.total_steps),
        job.layout,
    )
    began = time.perf_counter()
    # The state must come out lying as it went in: left alone, XLA may shard what we replicate.
    shardings = jax.tree.map(lambda x: x.sharding, state)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    compiled = jitted.lower(state, make_batch(job, 0)).compile()
    console.say(f"compiled the train step in {time.perf_counter() - began:.1f} s")
    return compiled


def make_validation(job: Job) -> Validation | None:
    """None without validation data or with eval_every 0."""
    config = job.config
    if job.val_rows is None or not config.eval_every:
        return None
    forward = make_forward(config, compute_dtype(config), job.layout)
    eval_step = jax.jit(make_eval_step(forward, job.objective, job.layout))
    batch_rows = config.batch_size // config.accum_steps
    return Validation(job.val_rows, job.objective, eval_step, batch_rows, batch_sharding(job.mesh))


def check_memory_error(error: Exception) -> Exception:
    """JAX's out-of-memory error as a sentence that says what to lower; any other error as it is."""
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message and "out of memory" not in message.lower():
        return error
    return UserError(
        "out of device memory: raise accum_steps (same batch_size, smaller micro-batches), set remat=dots or "
        f"remat=full, shorten data.max_seq_len, or shard the model with mesh.fsdp ({first_line(error)})"
    )
