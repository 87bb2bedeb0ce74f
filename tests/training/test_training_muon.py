"""optim.name=muon: the update against its papers' formulas, its state on disk and on a mesh."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hlo_helpers import collectives
from jax.sharding import PartitionSpec as P
from step_helpers import assert_identical, compiled, snapshot
from test_training_checkpoint import GOLDEN, PARAMS, names_on_disk

from minimind_jax.config import MeshConfig, ModelConfig, OptimConfig
from minimind_jax.model import abstract_params, init_params
from minimind_jax.training.checkpoint import Checkpointer
from minimind_jax.training.job import make_batch
from minimind_jax.training.mesh import make_mesh, state_shardings
from minimind_jax.training.optimizer import make_optimizer
from minimind_jax.training.step import init_state
from minimind_jax.workdir import Workdir, read_params

SMALL = ModelConfig(
    dim=16, n_layers=3, n_heads=2, n_kv_heads=1, ffn_dim=48, vocab_size=64, qk_norm=True, tie_embeddings=False
)
MUONS = {f"blocks.attn.{m}" for m in "qkvo"} | {f"blocks.mlp.{m}" for m in ("gate", "up", "down")}
BETA = 0.95


def by_name(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def orthogonalise(matrix: np.ndarray) -> np.ndarray:
    """Jordan et al. 2024: five quintic Newton-Schulz steps from the matrix over its Frobenius norm."""
    x = matrix / np.sqrt((matrix**2).sum())
    for _ in range(5):
        # As polynomial of the singular values: 3.4445 s - 4.7750 s^3 + 2.0315 s^5.
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def muon_updates(gradients: list[np.ndarray]) -> np.ndarray:
    """The last of the updates for gradients (in, out) of one matrix, in float64."""
    momentum = np.zeros_like(gradients[0])
    for t, gradient in enumerate(gradients, 1):
        momentum = BETA * momentum + (1 - BETA) * gradient
        # Nesterov's look-ahead with both terms freed from their bias towards zero (Dozat 2016).
        ahead = BETA * momentum / (1 - BETA ** (t + 1)) + (1 - BETA) * gradient / (1 - BETA**t)
    return 0.2 * np.sqrt(max(gradient.shape)) * orthogonalise(ahead)  # Liu et al. 2025, eq. 4


def gradients(params: Any, seed: int) -> Any:
    """Random, with singular values of very different sizes in the matrices."""
    rng = np.random.default_rng(seed)

    def one(leaf: jax.Array) -> np.ndarray:
        scales = np.geomspace(1, 1e-2, leaf.shape[-1])
        return (rng.normal(size=leaf.shape) * scales).astype(np.float32)

    return jax.tree.map(one, params)


@pytest.fixture(scope="module")
def three_updates() -> tuple[Any, list[Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters, three gradients, and the third update of Muon and of AdamW, with weight decay and no clipping."""
    params = jax.tree.map(lambda p: p + 0.1, init_params(SMALL, 0))
    grads, last = [gradients(params, seed) for seed in range(3)], []
    for name in ("muon", "adamw"):
        optimizer = make_optimizer(OptimConfig(name=name, weight_decay=0.3, grad_clip=0.0))
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for gradient in grads:
            updates, state = update(gradient, state, params)
        last.append({name: np.asarray(leaf, np.float64) for name, leaf in by_name(updates).items()})
    return params, grads, last[0], last[1]


@pytest.mark.parametrize("name", sorted(MUONS))
def test_each_layer_s_matrix_follows_the_formula(name: str, three_updates):
    params, grads, muon, _ = three_updates
    parameter = np.asarray(by_name(params)[name], np.float64)
    per_step = [np.asarray(by_name(g)[name], np.float64) for g in grads]
    for layer in range(SMALL.n_layers):
        expected = muon_updates([g[layer] for g in per_step]) + 0.3 * parameter[layer]
        np.testing.assert_allclose(muon[name][layer], expected, atol=2e-4)


def test_all_else_is_adamw_s(three_updates):
    _, _, muon, adamw = three_updates
    rest = muon.keys() - MUONS
    assert rest == {"embed", "lm_head", "final_norm", "blocks.attn_norm", "blocks.mlp_norm", "blocks.attn.q_norm", "blocks.attn.k_norm"}  # fmt: skip # noqa: E501
    for name in rest:
        np.testing.assert_array_equal(muon[name], adamw[name])


def test_the_update_is_as_large_as_adamw_s_and_does_not_depend_on_the_gradient_s_scale():
    """Root mean square 0.2, give or take what Newton-Schulz leaves open: what makes AdamW's lr fit."""
    params = init_params(SMALL, 0)
    optimizer = make_optimizer(OptimConfig(name="muon", weight_decay=0.0))
    grads, update = gradients(params, 0), jax.jit(optimizer.update)
    updates = [
        by_name(update(jax.tree.map(lambda g, s=s: g * s, grads), optimizer.init(params), params)[0])
        for s in (1e-3, 1e3)
    ]
    for name in MUONS:
        assert 0.12 < float(jnp.sqrt(jnp.mean(updates[0][name] ** 2))) < 0.25
        np.testing.assert_allclose(updates[0][name], updates[1][name], atol=1e-3)


def test_a_matrix_without_a_gradient_stands_still():
    """Zero over its norm is no number: padding rows, or residual matrices that start at zero."""
    params = init_params(SMALL, 0)
    optimizer = make_optimizer(OptimConfig(name="muon", weight_decay=0.0))
    updates, _ = jax.jit(optimizer.update)(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))


# --- The train step, checkpoints, the mesh ---------------------------------------------------------

MESHES = [(1, 1, 2), (4, 2, 1)]


@pytest.fixture(scope="module")
def results() -> dict[tuple[int, int, int], tuple[list[float], Any]]:
    """Losses and final state of four steps on each mesh."""
    out = {}
    for mesh in MESHES:
        run = compiled(*mesh, optimizer="muon")
        state, losses = run.state(), []
        for step in range(4):
            state, report = run.train_step(state, make_batch(run.job, step))
            losses.append(float(report["loss"]))
        out[mesh] = (losses, snapshot(state))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES[1:])
def test_losses_and_matrices_do_not_depend_on_the_mesh(mesh: tuple[int, int, int], results: dict):
    (losses, state), (expected_losses, expected) = results[mesh], results[MESHES[0]]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    ours, theirs = by_name(state["params"]), by_name(expected["params"])
    for name in MUONS:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)  # lr is 1e-2


def test_it_learns(results: dict):
    run = compiled(*MESHES[0], optimizer="muon")
    state, batch, losses = run.state(), make_batch(run.job, 0), []
    for _ in range(8):
        state, report = run.train_step(state, batch)
        losses.append(float(report["loss"]))
    assert all(later < earlier for earlier, later in itertools.pairwise(losses)) and losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize(("n_layers", "whole_layers"), [(2, True), (3, False)])
def test_momenta_lie_by_layer_where_layers_can_be_dealt_out(n_layers: int, whole_layers: bool):
    model = dataclasses.replace(SMALL, n_layers=n_layers)
    optimizer = make_optimizer(OptimConfig(name="muon"))
    abstract = jax.eval_shape(lambda p: init_state(p, optimizer), abstract_params(model))
    shardings = state_shardings(make_mesh(MeshConfig(4, 2)), model, abstract)
    specs = {name: sharding.spec for name, sharding in by_name(shardings).items()}
    assert specs["params.blocks.attn.q"] == P(None, "fsdp", None)
    seen = set()
    for name, spec in specs.items():
        _, moment, parameter = name.partition(".mu.") if ".mu." in name else name.partition(".nu.")
        if moment:
            by_layer = whole_layers and parameter in MUONS
            assert spec == (P("fsdp") if by_layer else specs[f"params.{parameter}"]), name
            seen.add((moment, parameter))
    names = by_name(abstract["params"]).keys()
    assert seen == {(".mu.", name) for name in names} | {(".nu.", name) for name in names - MUONS}


@pytest.mark.slow
def test_newton_schulz_sends_nothing():
    """Gradients come to whole layers and updates go back, by all-to-all; all else is sent as with AdamW."""
    sent: dict[str, Counter[str]] = {"adamw": Counter(), "muon": Counter()}
    for optimizer, bytes_of in sent.items():
        run = compiled(4, 2, optimizer=optimizer)
        for found in collectives(run.train_step.as_text() or ""):
            bytes_of[found.kind] += found.total
    matrices = sum(leaf.nbytes for name, leaf in by_name(run.initial["params"]).items() if name in MUONS)
    moved = sent["muon"].pop("all-to-all")
    assert sent["muon"] == sent["adamw"]
    assert 0 < moved <= 2 * matrices


@pytest.mark.slow
def test_it_goes_on_from_a_checkpoint_bit_for_bit(results: dict, tmp_path: Path):
    workdir, run = Workdir(tmp_path), compiled(4, 2, optimizer="muon")
    state = run.state()
    for step in range(2):
        state, _ = run.train_step(state, make_batch(run.job, step))
    with contextlib.closing(Checkpointer(workdir, keep=2)) as checkpointer:
        checkpointer.save(state, 2, {})
        checkpointer.wait()
        state, _ = checkpointer.restore(run.abstract, 2)
    for step in range(2, 4):
        state, _ = run.train_step(state, make_batch(run.job, step))
    assert_identical(snapshot(state), results[4, 2, 1][1])
    assert names_on_disk(workdir, 2, "params") == GOLDEN["params"]
    assert read_params(workdir, 2, run.job.config.model)["embed"].shape == (64, 16)
    # What is on users' disks. A change here makes their checkpoints unreadable.
    adam, muon = (f"optimizer.1.inner_states.{name}.inner_state" for name in ("adam", "muon"))
    rest = [name for name in PARAMS if name not in MUONS]
    assert names_on_disk(workdir, 2, "opt_state") == sorted(
        {
            f"{adam}.count",
            *(f"{adam}.{moment}.{name}" for moment in ("mu", "nu") for name in rest),
            f"{muon}.0.count",
            f"{muon}.0.ns_coeffs",
            *(f"{muon}.0.mu.{name}" for name in MUONS),
            "skipped",
            "step",
        }
    )
