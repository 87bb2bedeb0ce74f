"""What devices send each other in a step, read from the compiled programs of the real recipes at a reduced size.

XLA for the CPU differs from XLA for GPUs in what matters here: it promotes bfloat16 collectives to float32 (so dtypes
are checked before it compiles) and does not overlap them with computing. Which collectives there are, how often and
on what, is written in the program itself (training/layout.py), for both alike.
"""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from hlo_helpers import Collective, collectives
from jax.sharding import PartitionSpec as P

from minimind_jax.config import Config, from_recipe
from minimind_jax.data.dpo import MAX_PAIRS
from minimind_jax.model import abstract_params
from minimind_jax.recipe import load_recipe
from minimind_jax.training.layout import Layout
from minimind_jax.training.mesh import batch_sharding, make_mesh, replicated, state_shardings
from minimind_jax.training.optimizer import make_optimizer, make_schedule
from minimind_jax.training.run import make_objective
from minimind_jax.training.step import compute_dtype, init_state, make_eval_step, make_forward, make_train_step

LAYERS, T = 3, 64
SMALL = {
    "model.dim": 64, "model.n_layers": LAYERS, "model.n_heads": 4, "model.n_kv_heads": 2, "model.vocab_size": 512,
    "data.max_seq_len": T, "init_from": "any", "remat": "dots",
}  # fmt: skip

Shapes = Counter[tuple[int, ...]]


class Program(NamedTuple):
    config: Config
    layout: Layout
    train: jax.stages.Lowered
    validate: jax.stages.Lowered


def program(recipe: str, data: int, fsdp: int, accum_steps: int = 4, **changes: str) -> Program:
    keys = SMALL | {"mesh.data": data, "mesh.fsdp": fsdp, "accum_steps": accum_steps, "batch_size": 8 * accum_steps}
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in (keys | changes).items()]
    config = from_recipe(load_recipe(["train.py", "--config", f"configs/{recipe}.py", *flags])[0])
    mesh, dtype = make_mesh(config.mesh), compute_dtype(config)
    layout, objective, optimizer = (
        Layout(mesh, config.model, dtype),
        make_objective(config),
        make_optimizer(config.optim),
    )
    forward = make_forward(config, dtype, layout)

    state = jax.eval_shape(lambda params: init_state(params, optimizer), abstract_params(config.model))
    shardings = state_shardings(mesh, config.model, state)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)

    def batch(accum_steps: int) -> dict[str, jax.ShapeDtypeStruct]:
        row: dict[str, tuple[tuple[int, ...], Any]] = {
            key: ((T,), jnp.int32) for key in ("tokens", "targets", "segment_ids", "positions")
        }
        row["target_mask"] = ((T,), jnp.bool)
        if config.stage == "dpo":
            row |= {"pair_mask": ((MAX_PAIRS,), jnp.bool), "ref_logps": ((MAX_PAIRS, 2), jnp.float32)}
        sharding = batch_sharding(mesh)
        return {
            key: jax.ShapeDtypeStruct((accum_steps, 8, *shape), dtype, sharding=sharding)
            for key, (shape, dtype) in row.items()
        }

    step = make_train_step(forward, objective, optimizer, make_schedule(config.optim, 100), layout)
    counts = {
        key: jax.ShapeDtypeStruct((), x.dtype, sharding=replicated(mesh))
        for key, x in jax.eval_shape(objective.denominators, batch(1)).items()
    }
    return Program(
        config,
        layout,
        jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)).lower(state, batch(accum_steps)),
        jax.jit(make_eval_step(forward, objective, layout)).lower(state["params"], batch(1), counts),
    )


@pytest.fixture(autouse=True)
def chunks(monkeypatch):
    """Logits in chunks, as at the recipes' own size."""
    module = importlib.import_module("minimind_jax.objectives.token_logprobs")
    monkeypatch.setattr(module, "_MAX_LOGITS", 1)
    monkeypatch.setattr(module, "_MIN_CHUNK", T // 4)


def sent(program: jax.stages.Lowered) -> list[Collective]:
    return collectives(program.compile().as_text() or "")


def arrays(found: list[Collective], kind: str) -> Shapes:
    """Shapes of all results but scalars, counted as often as they are sent in a run of the program."""
    counted = Shapes()
    for c in found:
        for shape in c.shapes:
            if c.kind == kind and shape:
                counted[shape] += c.times
    return counted


def scalars(found: list[Collective]) -> int:
    return sum(c.times for c in found for shape in c.shapes if not shape)


def parameters(layout: Layout) -> dict[str, tuple[tuple[int, ...], P]]:
    """Name -> (shape, spec)."""
    shapes, specs = abstract_params(layout.model), layout.specs
    named = jax.tree_util.tree_leaves_with_path(shapes)
    leaves = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P))
    return {jax.tree_util.keystr(path): (x.shape, spec) for (path, x), spec in zip(named, leaves, strict=True)}


def shard(shape: tuple[int, ...], spec: P, fsdp: int) -> tuple[int, ...]:
    return tuple(n // fsdp if axis == "fsdp" else n for n, axis in zip(shape, spec, strict=True))


def test_trips_of_nested_loops_are_counted():
    """The counting itself: a sum in two loops of known length, one of unknown length, and one in none."""
    mesh = jax.make_mesh((8,), ("x",))

    def inner(x, length):
        return jax.lax.scan(lambda c, _: (jnp.sin(jax.lax.psum(c, "x")), None), x, length=length)[0]

    def known(x):
        return jax.lax.scan(lambda c, _: (inner(c, 5), None), jax.lax.psum(x, "x"), length=7)[0]

    def unknown(x):
        return jax.lax.while_loop(lambda c: c.sum() < 9, lambda c: jax.lax.psum(c, "x"), x)

    def text(f: Callable) -> str:
        run = jax.shard_map(f, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
        return jax.jit(run).lower(jnp.ones((3, 4))).compile().as_text() or ""

    found = collectives(text(known))
    assert sorted((c.kind, c.shapes, c.bytes, c.times) for c in found) == [
        ("all-reduce", ((3, 4),), 48, 1),
        ("all-reduce", ((3, 4),), 48, 35),
    ]
    with pytest.raises(ValueError, match="unknown length"):
        collectives(text(unknown))


@pytest.mark.parametrize("recipe", ["pretrain", pytest.param("sft_2048", marks=pytest.mark.slow), "dpo"])
def test_data_parallelism_sums_each_gradient_once_a_step(recipe: str):
    lowered = program(recipe, data=8, fsdp=1)
    found = sent(lowered.train)
    assert {c.kind for c in found} == {"all-reduce"}
    assert {c.times for c in found} == {1}  # after the four micro-batches, not after each
    gradients = [shape for shape, _ in parameters(lowered.layout).values()]
    assert arrays(found, "all-reduce") == Counter(gradients)  # nothing else: no activation, no parameter
    assert scalars(found) <= 20  # loss, metrics and counts
    assert sum(c.total for c in found) < 1.001 * 4 * sum(map(math.prod, gradients))

    found = sent(lowered.validate)
    assert {c.kind for c in found} == {"all-reduce"} and not arrays(found, "all-reduce")


@pytest.mark.parametrize(
    ("recipe", "changes", "data", "fsdp"),
    [
        ("pretrain", {}, 4, 2),
        ("pretrain", {"remat": "none", "model.tie_embeddings": "False"}, 1, 8),
        pytest.param("pretrain", {"remat": "full", "model.qk_norm": "True"}, 4, 2, marks=pytest.mark.slow),
        pytest.param("dpo", {}, 2, 4, marks=pytest.mark.slow),
    ],
)
def test_fsdp_gathers_weights_and_scatters_gradients(recipe: str, changes: dict, data: int, fsdp: int):
    accum_steps = 4
    lowered = program(recipe, data, fsdp, accum_steps, **changes)
    found = sent(lowered.train)
    gathered, scattered, summed, forward_only = (Shapes() for _ in range(4))
    for name, (shape, spec) in parameters(lowered.layout).items():
        part = shard(shape, spec, fsdp)
        if part == shape:  # norms' scales lie whole on every device
            summed[shape] += 1
        elif "blocks" in name:
            # One layer at a time, in the forward pass and again in the backward pass.
            gathered[shape[1:]] += 2 * LAYERS * accum_steps
            scattered[part[1:]] += LAYERS * accum_steps
            forward_only[shape[1:]] += LAYERS
        else:
            gathered[shape] += 1
            scattered[part] += 1
            forward_only[shape] += 1
        if part != shape and data > 1:
            summed[part] += 1
    assert arrays(found, "all-gather") == gathered
    assert arrays(found, "reduce-scatter") == scattered
    assert arrays(found, "all-reduce") == summed
    assert {c.kind for c in found} == {"all-gather", "reduce-scatter", "all-reduce"}
    assert scalars(found) <= 60  # of the gradients' norm, one for each parameter, too

    found = sent(lowered.validate)
    assert arrays(found, "all-gather") == forward_only
    assert {c.kind for c in found} == {"all-gather", "all-reduce"} and not arrays(found, "all-reduce")


def test_layers_travel_in_bfloat16_and_gradients_in_float32():
    text = program("pretrain", 4, 2, **{"precision.compute": "bfloat16"}).train.as_text()
    gathers = Counter(re.findall(r"stablehlo\.all_gather.*-> tensor<[\dx]*x(\w+)>", text))
    scatters = Counter(re.findall(r"stablehlo\.reduce_scatter.*?\) -> tensor<[\dx]*x(\w+)>", text, re.DOTALL))
    assert gathers == {"bf16": 14, "f32": 1}  # seven matrices, forward and backward; the embedding
    assert scatters == {"f32": 8}
