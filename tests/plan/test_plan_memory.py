"""The plan's memory: the state against real arrays, activations by hand and against XLA's own analysis."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from minimind_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, PrecisionConfig
from minimind_jax.model import abstract_params, count_params, init_params
from minimind_jax.objectives import language_modelling
from minimind_jax.plan.memory import estimate_memory, residual_bytes
from minimind_jax.training.mesh import make_mesh, state_shardings
from minimind_jax.training.optimizer import make_optimizer, make_schedule
from minimind_jax.training.step import init_state, make_forward, make_train_step

F32, BF16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)
MODEL = ModelConfig(dim=64, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=512)


def make_config(remat: str = "none", **changes: Any) -> Config:
    values = {
        "stage": "pretrain",
        "workdir": "out",
        "model": MODEL,
        "data": DataConfig(path="none.jsonl", max_seq_len=128),
        "optim": OptimConfig(),
        "steps": 1,
        "batch_size": 8,
        "remat": remat,
    }
    return Config(**values | changes)


def one_device(config: Config, rows: int = 4, tokens: int = 128, dtype: jnp.dtype = F32):
    return estimate_memory(config, AbstractMesh((1, 1), ("data", "fsdp")), rows, tokens, dtype)


@pytest.mark.parametrize("params_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fsdp", [1, 4])
def test_the_state_is_what_a_device_holds(fsdp: int, params_dtype: str):
    config = make_config(mesh=MeshConfig(data=2, fsdp=fsdp), precision=PrecisionConfig(params=params_dtype))
    mesh, optimizer = make_mesh(config.mesh), make_optimizer(config.optim)

    def fresh():
        return init_state(jax.tree.map(lambda p: p.astype(params_dtype), init_params(MODEL, 0)), optimizer)

    shardings = state_shardings(mesh, MODEL, jax.eval_shape(fresh))
    state = jax.jit(fresh, out_shardings=shardings)()

    def held(tree: Any) -> int:
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    memory = estimate_memory(config, mesh.abstract_mesh, 1, 128, F32)
    assert sum(memory.params.values()) == held(state["params"])
    assert set(memory.params) == {params_dtype}
    assert sum(memory.optimizer.values()) == held(state) - held(state["params"])
    assert memory.state == held(state)
    assert memory.gradients == memory.params


def test_accumulated_gradients_lie_beside_a_micro_batchs():
    assert one_device(make_config(accum_steps=2)).gradients == {"float32": 2 * 4 * count_params(MODEL)}


def test_full_remat_keeps_each_layers_input_and_nothing_else():
    def kept(n_layers: int, dtype: jnp.dtype) -> int:
        model = dataclasses.replace(MODEL, n_layers=n_layers)
        return residual_bytes(make_config("full", model=model), 4, 128, dtype)

    for dtype in (F32, BF16):
        assert kept(6, dtype) - kept(4, dtype) == 2 * (4 * 128 * 64) * dtype.itemsize


def test_activations_grow_with_rows_and_shrink_with_remat():
    none, dots, full = (one_device(make_config(remat)).activations for remat in ("none", "dots", "full"))
    assert none > 1.5 * dots and dots > 1.5 * full
    assert one_device(make_config(), rows=8).activations > 1.8 * none


def test_fsdp_shards_the_working_copies_of_weights():
    # bfloat16 activations need copies of all weights, float32 ones only of the tied embedding, transposed.
    config = make_config(mesh=MeshConfig(data=1, fsdp=4))
    for dtype, copied in ((F32, 4 * MODEL.vocab_size * MODEL.dim), (BF16, 2 * count_params(MODEL))):
        alone = one_device(config, dtype=dtype).activations
        sharded = estimate_memory(config, AbstractMesh((1, 4), ("data", "fsdp")), 4, 128, dtype).activations
        assert alone - sharded == pytest.approx(copied * 3 / 4, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize(
    ("rows", "tokens", "accum_steps"),
    [(8, 128, 1), (2, 512, 1), (4, 256, 2)],
)
def test_xla_plans_about_as_much(remat: str, rows: int, tokens: int, accum_steps: int):
    config = make_config(remat, batch_size=rows * accum_steps, accum_steps=accum_steps)
    optimizer = make_optimizer(config.optim)
    state = jax.eval_shape(lambda p: init_state(p, optimizer), abstract_params(MODEL))
    shape = (accum_steps, rows, tokens)
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    batch["target_mask"] = jax.ShapeDtypeStruct(shape, jnp.bool_)
    schedule = make_schedule(config.optim, 1)
    step = make_train_step(make_forward(config, F32), language_modelling, optimizer, schedule)
    xla = jax.jit(step, donate_argnums=0).lower(state, batch).compile().memory_analysis()
    memory = one_device(config, rows, tokens)
    assert memory.state == pytest.approx(xla.alias_size_in_bytes, rel=0.01)
    assert 0.8 < memory.step / xla.temp_size_in_bytes < 1.25
