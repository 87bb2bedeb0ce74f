"""One update against AdamW written out in float64 numpy, and what a non-finite gradient does."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_helpers import assert_identical, compiled, snapshot

from minimind_jax.config import OptimConfig
from minimind_jax.objectives import Objective
from minimind_jax.training.job import make_batch
from minimind_jax.training.optimizer import make_optimizer, make_schedule
from minimind_jax.training.step import init_state, make_train_step

TOTAL, IN, OUT = 6, 3, 4
CONFIG = OptimConfig(lr=0.05, warmup_steps=2, min_lr_ratio=0.1, weight_decay=0.3, b1=0.8, b2=0.9, grad_clip=1.5)

# A linear model with a scale, so that gradients can be written down: y = (x @ w) * norm.
least_squares = Objective(
    denominators=lambda batch: {"target_tokens": jnp.sum(batch["target_mask"], dtype=jnp.int32)},
    loss=lambda forward, params, batch, denominators: (
        0.5 * jnp.sum(batch["target_mask"][..., None] * (forward(params, batch) - batch["y"]) ** 2)
        / jnp.maximum(denominators["target_tokens"], 1),
        {},
    ),
)  # fmt: skip


def forward(params: dict, batch: dict) -> jax.Array:
    return (batch["x"] @ params["w"]) * params["norm"]


def make_params() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {"w": jnp.asarray(rng.normal(size=(IN, OUT)), jnp.float32), "norm": jnp.ones(OUT, jnp.float32)}


def toy_batch(step: int, accum_steps: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 + step)
    shape = (accum_steps, 8 // accum_steps, 5)
    return {
        "x": rng.normal(size=(*shape, IN)).astype(np.float32) * (3.0 if step == 1 else 0.5),  # step 1 is clipped
        "y": rng.normal(size=(*shape, OUT)).astype(np.float32),
        "target_mask": rng.random(shape) < 0.6,
        "segment_ids": np.ones(shape, np.int32),
        "tokens": np.zeros(shape, np.int32),
    }


def reference_gradients(params: dict, batch: dict) -> tuple[float, dict[str, np.ndarray]]:
    x, y = (batch[k].astype(np.float64).reshape(-1, batch[k].shape[-1]) for k in ("x", "y"))
    mask = batch["target_mask"].reshape(-1, 1)
    count = mask.sum()
    product = x @ params["w"]
    error = mask * (product * params["norm"] - y)
    grads = {"w": x.T @ (error * params["norm"]) / count, "norm": (error * product).sum(0) / count}
    return 0.5 * (error**2).sum() / count, grads


class ReferenceAdamW:
    """Loshchilov & Hutter's algorithm 2 in float64, with clipping, warm-up and cosine."""

    def __init__(self, params: dict):
        self.params = {k: np.asarray(v, np.float64) for k, v in params.items()}
        self.m = {k: np.zeros_like(v) for k, v in self.params.items()}
        self.v = {k: np.zeros_like(v) for k, v in self.params.items()}
        self.updates = 0

    def step(self, step: int, batch: dict) -> tuple[float, float, float]:
        c = CONFIG
        loss, grads = reference_gradients(self.params, batch)
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        if step < c.warmup_steps:
            lr = c.lr * (step + 1) / c.warmup_steps
        else:
            cosine = math.cos(math.pi * (step - c.warmup_steps) / (TOTAL - c.warmup_steps))
            lr = c.lr * (c.min_lr_ratio + (1 - c.min_lr_ratio) * (1 + cosine) / 2)
        self.updates += 1
        for key, grad in grads.items():
            grad = grad * min(1, c.grad_clip / norm)
            self.m[key] = c.b1 * self.m[key] + (1 - c.b1) * grad
            self.v[key] = c.b2 * self.v[key] + (1 - c.b2) * grad**2
            m_hat = self.m[key] / (1 - c.b1**self.updates)
            v_hat = self.v[key] / (1 - c.b2**self.updates)
            decay = c.weight_decay if key == "w" else 0.0
            self.params[key] = self.params[key] - lr * (m_hat / (np.sqrt(v_hat) + 1e-8) + decay * self.params[key])
        return loss, norm, lr


@pytest.fixture(scope="module")
def toy() -> tuple[Any, Any]:
    optimizer = make_optimizer(CONFIG)
    step = make_train_step(forward, least_squares, optimizer, make_schedule(CONFIG, TOTAL))
    return jax.jit(step), optimizer


def test_updates_equal_adamw_in_float64(toy: tuple[Any, Any]):
    train_step, optimizer = toy
    state = init_state(make_params(), optimizer)
    reference = ReferenceAdamW(make_params())
    clipped = []
    for step in range(TOTAL):
        state, report = train_step(state, toy_batch(step))
        loss, norm, lr = reference.step(step, toy_batch(step))
        clipped.append(norm > CONFIG.grad_clip)
        assert float(report["loss"]) == pytest.approx(loss, rel=1e-5)
        assert float(report["grad_norm"]) == pytest.approx(norm, rel=1e-5)  # before clipping
        assert float(report["lr"]) == pytest.approx(lr, rel=1e-6)
        for key in reference.params:
            np.testing.assert_allclose(state["params"][key], reference.params[key], rtol=1e-4, atol=1e-5)
    assert any(clipped) and not all(clipped)
    assert (int(state["step"]), int(state["skipped"])) == (TOTAL, 0)


def test_accumulation_changes_nothing_but_rounding(toy: tuple[Any, Any]):
    train_step, optimizer = toy
    results = []
    for accum_steps in (1, 2, 8):
        state = init_state(make_params(), optimizer)
        for step in range(3):
            batch = {k: v.reshape(accum_steps, 8 // accum_steps, *v.shape[2:]) for k, v in toy_batch(step).items()}
            state, report = train_step(state, batch)
        results.append((state["params"], report["loss"], report["grad_norm"], report["target_tokens"]))
    for other in results[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), results[0], other)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_step_changes_only_the_counters(toy: tuple[Any, Any], bad: float):
    train_step, optimizer = toy
    state, _ = train_step(init_state(make_params(), optimizer), toy_batch(0))
    before = snapshot(state)
    batch = toy_batch(1)
    batch["x"][1, 2, 3] = bad
    batch["target_mask"][1, 2, 3] = True
    state, report = train_step(state, batch)
    assert not bool(report["finite"]) and int(report["skipped"]) == 1
    assert_identical(state["params"], before["params"])
    assert_identical(state["opt_state"], before["opt_state"])
    assert (int(state["step"]), int(state["skipped"])) == (2, 1)

    # The rate follows the step, not the number of updates; and the run recovers.
    for step in (2, 3):
        state, report = train_step(state, toy_batch(step))
        assert float(report["lr"]) == pytest.approx(float(make_schedule(CONFIG, TOTAL)(step)))
    assert bool(report["finite"]) and (int(state["step"]), int(state["skipped"])) == (4, 1)
    assert np.any(np.asarray(state["params"]["w"]) != before["params"]["w"])


def test_a_gradient_overflow_with_a_finite_loss_is_skipped_too(toy: tuple[Any, Any]):
    train_step, optimizer = toy
    state = init_state(make_params(), optimizer)
    before = snapshot(state["params"])
    batch = toy_batch(0)
    batch["x"][0, 0, 0], batch["y"][0, 0, 0] = 1e25, 0.0
    batch["target_mask"][:] = False
    batch["target_mask"][0, 0, 0] = True
    state["params"]["w"] = state["params"]["w"] * 1e-10  # errors of 1e15: the square fits, times x it does not
    before = snapshot(state["params"])
    state, report = train_step(state, batch)
    assert np.isfinite(report["loss"]) and not bool(report["finite"])
    assert_identical(state["params"], before)


def test_a_batch_without_targets_leaves_the_loss_at_zero(toy: tuple[Any, Any]):
    train_step, optimizer = toy
    batch = toy_batch(0)
    batch["target_mask"][:] = False
    _, report = train_step(init_state(make_params(), optimizer), batch)
    assert (float(report["loss"]), float(report["grad_norm"]), int(report["target_tokens"])) == (0, 0, 0)
    assert bool(report["finite"])


def test_the_compiled_step_donates_its_state_and_reports_everything():
    run = compiled(1, 1, 2)
    state, batch = run.state(), make_batch(run.job, 0)
    assert (int(state["step"]), int(state["skipped"])) == (0, 0)
    new_state, report = run.train_step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert report.keys() == {"loss", "grad_norm", "lr", "finite", "skipped", "real_tokens", "target_tokens"}
    assert int(report["target_tokens"]) == np.asarray(batch["target_mask"]).sum()
    assert int(report["real_tokens"]) == (np.asarray(batch["segment_ids"]) > 0).sum()
    assert float(report["loss"]) == pytest.approx(math.log(64), rel=0.05)  # fresh weights know nothing
    losses = []
    for _ in range(12):  # the same batch again and again: it must be learnt
        new_state, report = run.train_step(new_state, batch)
        losses.append(float(report["loss"]))
    assert losses[-1] < losses[0] - 0.5
