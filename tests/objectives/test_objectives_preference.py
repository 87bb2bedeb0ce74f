"""Preference losses: each paper's formula, and the same numbers however the pairs are packed and the batch is cut."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from preference_helpers import (
    Network,
    Side,
    assert_close,
    at,
    pack,
    random_pairs,
    real_network,
    single,
    small_network,
    total,
)

from minimind_jax.config import PREFERENCE_LOSSES, DpoConfig
from minimind_jax.model import logits
from minimind_jax.objectives import pair_losses, preference_optimization, sequence_logprobs


def make_config(loss: str, **values: float | str) -> DpoConfig:
    return DpoConfig(loss=loss, **({"sft_weight": 1.0} if loss == "orpo" else {}) | values)


CONFIGS = {
    **{loss: make_config(loss) for loss in PREFERENCE_LOSSES},
    **{f"{loss}-smoothed": make_config(loss, label_smoothing=0.2) for loss in ("sigmoid", "robust", "simpo")},
    **{f"{loss}-mean": make_config(loss, logp="mean", beta=1.5) for loss in ("sigmoid", "hinge", "robust", "apo_zero")},
    "hinge-steep": make_config("hinge", beta=0.7),
    "ipo-strict": make_config("ipo", beta=0.6),
    "simpo-wide": make_config("simpo", beta=2.0, margin=1.6),
    "sigmoid-with-sft": make_config("sigmoid", sft_weight=0.3),
}
of_every_loss = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


@pytest.fixture
def double_precision() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


# --- The papers' formulas, float64, written with probabilities ---------------------------------------------------


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def paper(config: DpoConfig, w: np.ndarray, x: np.ndarray, ref_w: np.ndarray, ref_x: np.ndarray) -> np.ndarray:
    """w and x: log-probabilities of the winning and of the losing answer."""
    beta, eps = config.beta, config.label_smoothing
    p_w = sigmoid(beta * ((w - ref_w) - (x - ref_x)))  # Bradley-Terry: the winner is better
    if config.loss == "sigmoid":
        return -np.log(p_w) * (1 - eps) - np.log(1 - p_w) * eps
    if config.loss == "robust":
        return (-np.log(p_w) * (1 - eps) + np.log(1 - p_w) * eps) / (1 - 2 * eps)
    if config.loss == "ipo":
        return (np.log(np.exp(w) / np.exp(ref_w) * np.exp(ref_x) / np.exp(x)) - 0.5 / beta) ** 2
    if config.loss == "hinge":
        return np.maximum(0, 1 - beta * (w - ref_w) + beta * (x - ref_x))
    if config.loss == "apo_zero":
        return 1 - sigmoid(beta * (w - ref_w)) + sigmoid(beta * (x - ref_x))
    if config.loss == "simpo":
        p_w = sigmoid(beta * w - beta * x - config.margin)
        return -np.log(p_w) * (1 - eps) - np.log(1 - p_w) * eps
    odds_w, odds_x = (np.exp(a) / (1 - np.exp(a)) for a in (w, x))
    return -config.beta * np.log(odds_w / (odds_w + odds_x))  # sigmoid(log(a / b)) = a / (a + b)


def example(config: DpoConfig, n: int = 40) -> list[np.ndarray]:
    """Chosen and rejected of the policy, then of the reference; float32 values, some of them far apart."""
    rng = np.random.default_rng(1)
    policy = rng.uniform(-6, -1e-3, (2, n)) if config.loss in ("ipo", "simpo", "orpo") else rng.uniform(-80, 0, (2, n))
    reference = policy + rng.normal(size=(2, n)) if config.needs_reference else np.zeros((2, n))
    return [x.astype(np.float32).astype(np.float64) for x in (*policy, *reference)]


@of_every_loss
def test_each_loss_is_its_papers_formula(config: DpoConfig):
    arguments = example(config)
    losses = pair_losses(config, *(jnp.asarray(x, jnp.float32) for x in arguments))
    assert losses.dtype == jnp.float32 and losses.shape == arguments[0].shape
    np.testing.assert_allclose(losses, paper(config, *arguments), rtol=1e-5, atol=1e-5)
    assert np.ptp(losses) > 0.01


@of_every_loss
def test_gradients_are_the_formulas_slopes(config: DpoConfig, double_precision: None):
    arguments = example(config)
    h = 1e-6
    for i in (0, 1):  # w.r.t. policy_chosen, policy_rejected
        up, down = ([*arguments[:i], arguments[i] + step, *arguments[i + 1 :]] for step in (h, -h))
        slope = (paper(config, *up) - paper(config, *down)) / (2 * h)
        ours = jax.grad(lambda *a: jnp.sum(pair_losses(config, *a)), i)(*map(jnp.asarray, arguments))
        np.testing.assert_allclose(ours, slope, rtol=1e-5, atol=1e-8)


def test_smoothing_is_a_belief_about_the_labels():
    z = jnp.linspace(-30, 30, 13)
    for loss in ("sigmoid", "simpo"):
        smoothed, plain = make_config(loss, label_smoothing=0.3, margin=0.0), make_config(loss, margin=0.0)
        expected = 0.7 * pair_losses(plain, z, z * 0) + 0.3 * pair_losses(plain, z * 0, z)
        np.testing.assert_allclose(pair_losses(smoothed, z, z * 0), expected, rtol=1e-6)
    # Robust: the expectation over flipped labels is the loss of the true ones.
    robust = make_config("robust", label_smoothing=0.3)
    expectation = 0.7 * pair_losses(robust, z, z * 0) + 0.3 * pair_losses(robust, z * 0, z)
    np.testing.assert_allclose(expectation, pair_losses(make_config("sigmoid"), z, z * 0), rtol=1e-5, atol=1e-6)


EXTREMES = np.float32([1e-6, 0, -1e-30, -1e-8, -1.2e-7, -1e-6, -1e-3, -0.7, -20, -90, -120, -1e4])


@of_every_loss
def test_extreme_values_stay_finite(config: DpoConfig):
    """1e-6 comes from rounding, 0 is certainty, -1e4 an answer that the policy has given up."""
    chosen, rejected = (x.ravel() for x in np.meshgrid(EXTREMES, EXTREMES))
    value_and_grads = jax.jit(jax.vmap(jax.value_and_grad(lambda c, r: pair_losses(config, c, r), (0, 1))))
    losses, grads = value_and_grads(chosen, rejected)
    assert np.isfinite(losses).all()
    assert np.isfinite(grads).all()


def test_orpo_keeps_its_precision_at_both_ends():
    logp = np.float64([-1e-5, -1e-3, -0.5, -5, -40, -800])
    config = dataclasses.replace(make_config("orpo"), beta=1.0)
    losses = pair_losses(config, jnp.asarray(logp, jnp.float32), jnp.full(6, -0.7, jnp.float32))
    log_odds = logp - np.log(-np.expm1(logp))
    z = log_odds - (-0.7 - np.log(-np.expm1(-0.7)))
    np.testing.assert_allclose(losses, np.logaddexp(0, -z), rtol=3e-5)


# --- The objective over packed rows ------------------------------------------------------------------------------

T, P = 80, 4
PAIRS = random_pairs(6)
ROWS = [PAIRS[:3], [], PAIRS[3:4], PAIRS[4:]]  # uneven: a mean of means would be another number
LENGTHS = np.array([[len(side.tokens) - side.prompt_len for side in pair] for pair in PAIRS])


def alone(network: Network) -> np.ndarray:
    """Log-probabilities (6, 2) of [chosen, rejected], each side in a row of its own."""
    sides = [side for pair in PAIRS for side in pair]
    batch = {name: np.zeros((len(sides), 16), np.int32) for name in ("tokens", "positions", "segment_ids")}
    for i, side in enumerate(sides):
        n = len(side.tokens)
        batch["tokens"][i, :n], batch["positions"][i, :n], batch["segment_ids"][i, :n] = side.tokens, np.arange(n), 1
    out = np.asarray(logits(network.params, jax.jit(network.forward)(network.params, batch)))
    logprobs = out - np.log(np.exp(out).sum(-1, keepdims=True))
    sums = [
        sum(logprobs[i, t - 1, side.tokens[t]] for t in range(side.prompt_len, len(side.tokens)))
        for i, side in enumerate(sides)
    ]
    return np.array(sums).reshape(-1, 2)


class Example(NamedTuple):
    network: Network
    logps: np.ndarray  # (6, 2) float64, like the rest
    ref_logps: np.ndarray
    direction: dict  # in parameter space
    ahead: np.ndarray  # log-probabilities of the network a small step along `direction`
    behind: np.ndarray


STEP = 1e-5


@functools.cache
def example_of(name: str) -> Example:
    network, rng = {"small": small_network, "real": real_network}[name](), np.random.default_rng(3)
    direction = jax.tree.map(lambda p: rng.normal(size=p.shape), network.params)
    with jax.enable_x64(True):
        logps, ahead, behind = (alone(at(network, step, direction)) for step in (0, STEP, -STEP))
    return Example(network, logps, logps + rng.normal(0, 3, logps.shape), direction, ahead, behind)


@pytest.fixture(scope="module")
def small() -> Example:
    return example_of("small")


def references(config: DpoConfig, example: Example) -> np.ndarray:
    return example.ref_logps if config.needs_reference else np.zeros_like(example.ref_logps)


def batch_of(example: Example) -> dict:
    ends = np.cumsum([len(pairs) for pairs in ROWS])
    return pack(ROWS, T, P, np.split(example.ref_logps, ends[:-1]))


def expected(config: DpoConfig, logps: np.ndarray, ref_logps: np.ndarray) -> tuple[float, dict[str, float]]:
    """Loss and metrics of the pairs, (n, 2) each."""
    divisor = LENGTHS if config.logp == "mean" or config.loss in ("ipo", "simpo", "orpo") else 1
    policy, reference = logps / divisor, ref_logps / divisor
    nll = -logps[:, 0].sum() / LENGTHS[:, 0].sum()
    loss = paper(config, *policy.T, *reference.T).mean() + config.sft_weight * nll
    rewards = config.beta * (policy - reference)
    return loss, {
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/margins": (rewards[:, 0] - rewards[:, 1]).mean(),
        "rewards/accuracies": (rewards[:, 0] > rewards[:, 1]).mean(),
        "logps/chosen": logps[:, 0].mean(),
        "logps/rejected": logps[:, 1].mean(),
        "lengths/chosen": LENGTHS[:, 0].mean(),
        "lengths/rejected": LENGTHS[:, 1].mean(),
        "nll/chosen": nll,
    }


@pytest.mark.parametrize(
    ("network", "config"),
    [
        *(pytest.param("small", config, id=name) for name, config in CONFIGS.items()),
        *(pytest.param("real", CONFIGS[name], id=f"real-{name}") for name in ("sigmoid-with-sft", "orpo")),
    ],
)
def test_a_packed_batch_equals_its_pairs_one_by_one(network: str, config: DpoConfig, double_precision: None):
    example = example_of(network)
    ref_logps = references(config, example)
    loss, metrics, grads = total(config, example.network, batch_of(example))
    want_loss, want_metrics = expected(config, example.logps, ref_logps)
    assert loss == pytest.approx(want_loss, rel=1e-9)
    assert metrics == pytest.approx(want_metrics, rel=1e-9)

    ahead, behind = (expected(config, logps, ref_logps)[0] for logps in (example.ahead, example.behind))
    products = jax.tree.map(lambda g, d: float(np.sum(g * d)), grads, example.direction)
    assert sum(jax.tree.leaves(products)) == pytest.approx((ahead - behind) / (2 * STEP), rel=1e-5, abs=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("accum_steps", [2, 4])
@pytest.mark.parametrize("name", ["sigmoid-with-sft", "orpo", "ipo"])
def test_accumulation_changes_nothing(name: str, accum_steps: int, small: Example, double_precision: None):
    batch = batch_of(small)
    ours, whole = (total(CONFIGS[name], small.network, batch, n) for n in (accum_steps, 1))
    assert_close(ours, whole, rtol=1e-11, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("loss", PREFERENCE_LOSSES)
def test_single_precision_gives_the_same_numbers(loss: str, small: Example):
    config = make_config(loss, sft_weight=1.0)
    network = Network(small.network.forward, single(small.network.params))
    value, metrics, grads = total(config, network, single(batch_of(small)))
    want_loss, want_metrics = expected(config, small.logps, references(config, small))
    assert value == pytest.approx(want_loss, rel=1e-5)
    assert metrics == pytest.approx(want_metrics, rel=1e-5, abs=1e-5)
    assert all(np.isfinite(g).all() and g.dtype == np.float32 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("loss", PREFERENCE_LOSSES)
def test_a_batch_without_pairs_is_exactly_zero(loss: str):
    network = Network(small_network().forward, single(small_network().params))
    value, metrics, grads = total(make_config(loss, sft_weight=1.0), network, single(pack([[]] * 4, T, P)))
    assert value == 0
    assert set(metrics.values()) == {0.0}
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_a_policy_equal_to_its_reference_has_no_reward(double_precision: None):
    """Reference log-probabilities come from `sequence_logprobs`, as in training."""
    network, batch = real_network(), pack(ROWS, T, P)
    ref_logps = np.asarray(jax.jit(sequence_logprobs, static_argnums=0)(network.forward, network.params, batch))
    assert ref_logps.shape == (4, P, 2)
    np.testing.assert_allclose(ref_logps[batch["pair_mask"]], example_of("real").logps, rtol=1e-10)
    assert not ref_logps[~batch["pair_mask"]].any()
    loss, metrics, _ = total(CONFIGS["sigmoid-with-sft"], network, batch | {"ref_logps": ref_logps})
    assert loss - 0.3 * metrics["nll/chosen"] == pytest.approx(np.log(2), rel=1e-9)
    for name in ("chosen", "rejected", "margins"):
        assert metrics[f"rewards/{name}"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", PREFERENCE_LOSSES)
def test_an_answer_without_targets_stays_finite(loss: str, double_precision: None):
    """Data does not make such pairs; if it did, one of them would not spoil the batch."""
    prompt_only = Side(np.array([3, 5, 7]), 3)
    config, batch = make_config(loss), pack([[(prompt_only, PAIRS[0][1]), PAIRS[1]], [], [], []], T, P)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(total(config, small_network(), batch)))


def test_ties_count_half(double_precision: None):
    # Answers of one token: no order of summation can make a difference.
    sides = [Side(np.array([3, 5, answer]), 2) for answer in (7, 9)]
    pairs = [(sides[0], sides[0]), (sides[1], sides[1]), (sides[0], sides[1]), (sides[0], sides[1])]
    accuracy = total(make_config("simpo"), small_network(), pack([pairs, [], [], []], T, P))[1]["rewards/accuracies"]
    assert accuracy in (0.25, 0.75)  # two ties, and two pairs that are both right or both wrong


def test_denominators_count_the_whole_global_batch():
    batch = {k: jnp.asarray(v.reshape(2, 2, *v.shape[1:])) for k, v in pack(ROWS, T, P).items()}
    counts = preference_optimization(make_config("sigmoid")).denominators(batch)
    assert counts == {"pairs": 6, "target_tokens": LENGTHS.sum(), "chosen_tokens": LENGTHS[:, 0].sum()}
    assert all(c.dtype == jnp.int32 for c in counts.values())


def test_the_examples_tell_things_apart(small: Example):
    assert (LENGTHS[:, 0] != LENGTHS[:, 1]).any()
    rewards = small.logps - small.ref_logps
    assert 0 < np.mean(rewards[:, 0] > rewards[:, 1]) < 1
