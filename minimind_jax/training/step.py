"""One optimiser update, as a pure function of (state, batch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from minimind_jax.config import Config
from minimind_jax.model import Params, hidden_states, pick_attention
from minimind_jax.objectives import Batch, Denominators, ForwardFn, Metrics, Objective
from minimind_jax.training.layout import Layout

# params; opt_state: optax's; step: updates so far, int32; skipped: those left out as non-finite, int32.
TrainState = dict[str, Any]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
GradientFn = Callable[[Params, Batch, Denominators], tuple[tuple[jax.Array, Metrics], Params]]
EvalStep = Callable[[Params, Batch, Denominators], tuple[jax.Array, Metrics]]


def compute_dtype(config: Config) -> jnp.dtype:
    """bfloat16 on accelerators, float32 on the CPU (which has no fast bfloat16), unless set."""
    if config.precision.compute != "auto":
        return jnp.dtype(config.precision.compute)
    return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def make_forward(config: Config, dtype: jnp.dtype, layout: Layout | None = None) -> ForwardFn:
    """The model as objectives see it; with a layout, to be used within `Layout.run`."""
    attention = pick_attention(config.attention, config.model, dtype, packed=True).attend

    def forward(params: Params, batch: Batch) -> jax.Array:
        return hidden_states(
            config.model,
            params,
            batch["tokens"],
            batch["positions"],
            batch["segment_ids"],
            attention=attention,
            dtype=dtype,
            remat=config.remat,
            unroll=config.scan_unroll,
            gather=layout.gather_layer if layout else None,
        )

    return forward


def make_train_step(
    forward: ForwardFn,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    layout: Layout | None = None,
) -> TrainStep:
    """The update. Batch leaves are (accum_steps, rows, ...). Without a layout, all on one device.

    A non-finite loss or gradient leaves parameters and optimiser as they were; only the counters move.
    """
    gradients = make_gradients(forward, objective, layout)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        params, denominators = state["params"], objective.denominators(batch)
        (loss, metrics), grads = gradients(params, batch, denominators)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        lr = schedule(state["step"])
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        new_params = jax.tree.map(lambda p, u: (p - lr * u).astype(p.dtype), params, updates)
        keep_old = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)  # noqa: E731
        state = {
            "params": keep_old(new_params, params),
            "opt_state": keep_old(opt_state, state["opt_state"]),
            "step": state["step"] + 1,
            "skipped": state["skipped"] + jnp.where(finite, 0, 1),
        }
        report = {
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": lr,
            "finite": finite,
            "skipped": state["skipped"],
            "real_tokens": jnp.sum(batch["segment_ids"] > 0, dtype=jnp.int32),
            **denominators,
            **metrics,
        }
        return state, report

    return train_step


def make_gradients(forward: ForwardFn, objective: Objective, layout: Layout | None = None) -> GradientFn:
    """(params, batch, denominators) -> ((loss, metrics), gradients) of the global batch.

    Micro-batches go through a scan; they and the devices only add their terms up, which are normalised already.
    """

    def gradients(params: Params, batch: Batch, denominators: Denominators):
        whole = layout.gather_ends(params) if layout else params

        def loss(params: Params, micro_batch: Batch) -> tuple[jax.Array, Metrics]:
            return objective.loss(forward, params, micro_batch, denominators)

        def micro_gradients(micro_batch: Batch):
            return jax.value_and_grad(loss, has_aux=True)(whole, micro_batch)

        def accumulate(total, micro_batch: Batch):
            return jax.tree.map(jnp.add, total, micro_gradients(micro_batch)), None

        first = jax.tree.map(lambda x: x[0], batch)
        if batch["tokens"].shape[0] == 1:
            values, grads = micro_gradients(first)
        else:
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(micro_gradients, first))
            (values, grads), _ = jax.lax.scan(accumulate, zeros, batch)
        return (layout.sum(values), layout.sum_gradients(grads)) if layout else (values, grads)

    return layout.run(gradients, (P(), layout.specs)) if layout else gradients


def make_eval_step(forward: ForwardFn, objective: Objective, layout: Layout) -> EvalStep:
    """(params, batch with leaves (1, rows, ...), denominators of all batches) -> the batch's share of loss, metrics."""

    def eval_step(params: Params, batch: Batch, denominators: Denominators) -> tuple[jax.Array, Metrics]:
        params, micro_batch = layout.gather_ends(params), jax.tree.map(lambda x: x[0], batch)
        return layout.sum(objective.loss(forward, params, micro_batch, denominators))

    return layout.run(eval_step, P())


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    return {
        "params": params,
        "opt_state": optimizer.init(params),
        "step": jnp.zeros((), jnp.int32),
        "skipped": jnp.zeros((), jnp.int32),
    }
