"""Next-token cross-entropy: the global mean, however the batch is cut, and zero where there is nothing to learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minimind_jax.objectives import language_modelling, target_nll

ROWS, T, D, V = 8, 6, 5, 11


def forward(params: dict, batch: dict) -> jax.Array:
    """The smallest network: an embedding and a matrix."""
    return jnp.tanh(params["embed"][batch["tokens"]] @ params["w"])  # (B, T, D)


@pytest.fixture(scope="module")
def params() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {"embed": jnp.asarray(rng.normal(size=(V, D)), jnp.float32), "w": jnp.eye(D) + 0.1}


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    """Rows with 0, 1, ... targets: a mean of means would be another number."""
    rng = np.random.default_rng(1)
    tokens, targets = rng.integers(0, V, (2, ROWS, T)).astype(np.int32)
    mask = np.arange(T) < np.minimum(np.arange(ROWS), T)[:, None]
    return {"tokens": tokens, "targets": targets, "target_mask": mask}


def total(params: dict, batch: dict, accum_steps: int) -> tuple[jax.Array, dict]:
    """Loss and gradients summed over micro-batches, as the train step does."""
    micro = {k: v.reshape(accum_steps, -1, T) for k, v in batch.items()}
    denominators = language_modelling.denominators(micro)
    parts = [loss_and_grads(params, {k: v[i] for k, v in micro.items()}, denominators) for i in range(accum_steps)]
    return jax.tree.map(lambda *leaves: sum(np.asarray(leaf) for leaf in leaves), *parts)


@jax.jit
@jax.value_and_grad
def loss_and_grads(params: dict, micro_batch: dict, denominators: dict) -> jax.Array:
    return language_modelling.loss(forward, params, micro_batch, denominators)[0]


def reference(params: dict, batch: dict) -> float:
    """Mean over all targets, float64 numpy."""
    p = {k: np.asarray(v, np.float64) for k, v in params.items()}
    logits = np.tanh(p["embed"][batch["tokens"]] @ p["w"]) @ p["embed"].T
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logprobs, batch["targets"][..., None], -1)[..., 0]
    return -chosen[batch["target_mask"]].sum() / batch["target_mask"].sum()


@pytest.mark.parametrize("accum_steps", [1, 2, 4, 8])
def test_accumulation_gives_the_exact_global_mean(params: dict, batch: dict, accum_steps: int):
    loss, grads = total(params, batch, accum_steps)
    assert float(loss) == pytest.approx(reference(params, batch), rel=1e-6)
    whole = total(params, batch, 1)[1]
    for key in params:
        np.testing.assert_allclose(grads[key], whole[key], rtol=1e-5, atol=1e-7)


def test_gradients_against_finite_differences(params: dict, batch: dict):
    grads = total(params, batch, 2)[1]
    rng = np.random.default_rng(2)
    direction = {k: rng.normal(size=v.shape) for k, v in params.items()}
    moved = [{k: np.asarray(v, np.float64) + h * direction[k] for k, v in params.items()} for h in (1e-5, -1e-5)]
    slope = (reference(moved[0], batch) - reference(moved[1], batch)) / 2e-5
    assert sum(float(np.sum(grads[k] * direction[k])) for k in params) == pytest.approx(slope, rel=1e-4)


def test_targets_outside_the_mask_change_nothing(params: dict, batch: dict):
    other = dict(batch, targets=np.where(batch["target_mask"], batch["targets"], (batch["targets"] + 1) % V))
    for ours, theirs in zip(
        jax.tree.leaves(total(params, batch, 2)), jax.tree.leaves(total(params, other, 2)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("accum_steps", [1, 4])
def test_a_batch_without_targets_is_exactly_zero(params: dict, batch: dict, accum_steps: int):
    empty = dict(batch, target_mask=np.zeros_like(batch["target_mask"]))
    loss, grads = total(params, empty, accum_steps)
    assert float(loss) == 0
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_target_nll_is_the_sum_in_nats(params: dict, batch: dict):
    nll = float(jax.jit(target_nll, static_argnums=0)(forward, params, batch))
    assert nll == pytest.approx(reference(params, batch) * batch["target_mask"].sum(), rel=1e-6)
