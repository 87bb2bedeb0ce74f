"""The schedule, and which parameters decay."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import optax
import pytest
from step_helpers import MODEL

from minimind_jax.config import ModelConfig, OptimConfig
from minimind_jax.model import abstract_params
from minimind_jax.training.optimizer import decay_start, decayed, make_optimizer, make_schedule


def values(config: OptimConfig, total: int, steps: int) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(make_schedule(config, total)))(np.arange(steps)), np.float64)


def reference(config: OptimConfig, total: int, step: int) -> float:
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "wsd":
        first = total - math.ceil(config.decay_ratio * total)  # the first step of the decay
        left = 1 - math.sqrt(min(max(step - first, 0) / (total - first), 1)) if total > first else 1
        return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * left)
    done = min((step - config.warmup_steps) / (total - config.warmup_steps), 1)
    lowest = config.lr * config.min_lr_ratio
    return lowest + (config.lr - lowest) * (1 + math.cos(math.pi * done)) / 2


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 20), (1, 20), (5, 20), (5, 7)])
def test_the_schedule_is_warm_up_then_its_formula(schedule: str, warmup: int, total: int):
    config = OptimConfig(lr=3e-4, warmup_steps=warmup, schedule=schedule, min_lr_ratio=0.2)
    expected = [reference(config, total, step) for step in range(25)]
    np.testing.assert_allclose(values(config, total, 25), expected, rtol=1e-5)


def test_the_landmarks_of_the_schedule():
    lr = values(OptimConfig(lr=1.0, warmup_steps=4, min_lr_ratio=0.1), total=104, steps=110)
    assert lr[0] == 0.25 and lr[3] == 1.0 and lr[4] == 1.0  # the first step learns; the top is reached
    assert lr[54] == pytest.approx(0.55)  # half-way between top and floor
    assert lr[104] == pytest.approx(0.1) and lr[109] == pytest.approx(0.1)  # a run that goes on stays there
    assert np.all(np.diff(lr[:4]) > 0) and np.all(np.diff(lr[4:105]) < 0)


def test_the_landmarks_of_wsd():
    config = OptimConfig(lr=1.0, warmup_steps=10, schedule="wsd", decay_ratio=0.2, min_lr_ratio=0.1)
    lr = values(config, total=100, steps=110)
    assert decay_start(config, 100) == 80
    assert lr[8] < 1 and np.all(lr[9:81] == 1)  # stable up to and with the first step of the decay
    assert lr[85] == pytest.approx(0.1 + 0.9 * 0.5)  # a quarter of the decay: sqrt(1 / 4) of the way down
    assert np.all(np.diff(lr[80:101]) < 0) and lr[100] == pytest.approx(0.1) and lr[109] == pytest.approx(0.1)
    longer = values(config, total=200, steps=200)
    assert np.array_equal(longer[:81], lr[:81])  # so a longer run may go on from any step of the stable part
    whole = values(OptimConfig(lr=1.0, schedule="wsd", decay_ratio=1.0, min_lr_ratio=0.0), 16, 17)
    np.testing.assert_allclose(whole, 1 - np.sqrt(np.arange(17) / 16), atol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_where_the_other_schedules_begin_to_fall(schedule: str):
    config = OptimConfig(lr=1.0, warmup_steps=10, schedule=schedule)
    lr, first = values(config, total=50, steps=60), decay_start(config, 50)
    assert first == {"cosine": 10, "constant": 50}[schedule]
    assert np.all(lr[9 : first + 1] == 1) and (schedule == "constant" or lr[first + 1] < 1)


def test_a_run_of_one_step_has_a_learning_rate():
    assert values(OptimConfig(lr=0.5), total=1, steps=1)[0] == 0.5
    assert values(OptimConfig(lr=0.5, warmup_steps=10), total=1, steps=1)[0] == pytest.approx(0.05)


def test_matrices_decay_and_norms_do_not():
    model = ModelConfig(dim=16, n_layers=2, n_heads=2, n_kv_heads=1, qk_norm=True, tie_embeddings=False, vocab_size=64)
    decays = {
        jax.tree_util.keystr(path, simple=True, separator="."): flag
        for path, flag in jax.tree_util.tree_leaves_with_path(decayed(abstract_params(model)))
    }
    norms = {"final_norm", "blocks.attn_norm", "blocks.mlp_norm", "blocks.attn.q_norm", "blocks.attn.k_norm"}
    matrices = {"embed", "lm_head", *(f"blocks.attn.{m}" for m in "qkvo"), *(f"blocks.mlp.{m}" for m in ("gate", "up", "down"))}  # fmt: skip # noqa: E501
    assert {name for name, flag in decays.items() if flag} == matrices
    assert {name for name, flag in decays.items() if not flag} == norms


def test_no_clipping_at_zero():
    """grad_clip 0 lets any gradient through; Adam's first moment shows what came in."""
    params = {"w": np.ones(3, np.float32)}
    grads = {"w": np.full(3, 1e3, np.float32)}

    def first_moment(grad_clip: float) -> Any:
        optimizer = make_optimizer(OptimConfig(grad_clip=grad_clip, b1=0.0))
        return optax.tree.get(optimizer.update(grads, optimizer.init(params), params)[1], "mu")["w"]

    np.testing.assert_allclose(first_moment(0.0), 1e3)
    np.testing.assert_allclose(first_moment(2.0), 2 / math.sqrt(3), rtol=1e-6)


def test_moments_mirror_the_parameters():
    state = jax.eval_shape(make_optimizer(OptimConfig()).init, abstract_params(MODEL))
    for name in ("mu", "nu"):
        moment = optax.tree.get(state, name)
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), moment)
        assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract_params(MODEL))
