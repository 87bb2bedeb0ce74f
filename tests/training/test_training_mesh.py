"""Devices: mesh shapes, how state and batches lie on them, and that the numbers do not depend on it."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from step_helpers import MODEL, RandomRows, T, compiled, fresh_state, make_config, make_job

from minimind_jax.config import MeshConfig, ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.training.job import make_batch
from minimind_jax.training.mesh import batch_sharding, check_divisible, make_mesh, put_batch


@pytest.mark.parametrize(
    ("data", "fsdp", "shape"),
    [(-1, 1, (8, 1)), (-1, 2, (4, 2)), (2, -1, (2, 4)), (1, 1, (1, 1)), (2, 2, (2, 2)), (1, 8, (1, 8))],
)
def test_mesh_shapes(data: int, fsdp: int, shape: tuple[int, int]):
    mesh = make_mesh(MeshConfig(data, fsdp))
    assert mesh.devices.shape == shape and mesh.axis_names == ("data", "fsdp")
    assert mesh.devices.flatten().tolist() == jax.devices()[: mesh.size]


@pytest.mark.parametrize(
    ("data", "fsdp", "words"),
    [
        (-1, 3, "8 devices cannot be split into mesh.fsdp=3"),
        (3, -1, "8 devices cannot be split into mesh.data=3"),
        (-1, 16, "8 devices cannot be split into mesh.fsdp=16"),
        (4, 4, "mesh.data=4 x mesh.fsdp=4 needs 16 devices, there are 8"),
        (9, 1, "needs 9 devices, there are 8"),
    ],
)
def test_devices_that_cannot_be_split(data: int, fsdp: int, words: str):
    with pytest.raises(UserError) as caught:
        make_mesh(MeshConfig(data, fsdp))
    assert words in str(caught.value)


def test_the_batch_must_be_divisible_by_devices_and_accumulation():
    mesh = make_mesh(MeshConfig(4, 2))
    check_divisible(make_config(batch_size=16, accum_steps=2), mesh)
    with pytest.raises(UserError, match="batch_size=24 is not divisible by 8 devices x accum_steps=2"):
        check_divisible(make_config(batch_size=24, accum_steps=2), mesh)
    with pytest.raises(UserError, match=r"model\.dim=18 is not divisible by mesh\.fsdp=4"):
        model = ModelConfig(dim=18, n_layers=1, n_heads=1, n_kv_heads=1)
        check_divisible(make_config(model=model), make_mesh(MeshConfig(2, 4)))


@pytest.mark.parametrize(("data", "fsdp"), [(1, 1), (8, 1), (4, 2), (2, 2), (1, 8)])
def test_a_batch_on_the_devices_is_the_rows_batch(data: int, fsdp: int):
    ids = np.asarray([[5, 2, 7, 900, 1, 0, 3, 4], [9, 8, 11, 10, 12, -1, -1, 13]])
    batch = put_batch(RandomRows(), ids, batch_sharding(make_mesh(MeshConfig(data, fsdp))))
    expected = RandomRows().batch(ids.reshape(-1))
    assert batch.keys() == expected.keys()
    for key, value in batch.items():
        assert value.shape == (2, 8, T) and value.dtype == expected[key].dtype
        np.testing.assert_array_equal(value, expected[key].reshape(2, 8, T))
        n_devices = data * fsdp
        assert {shard.data.shape for shard in value.addressable_shards} == {(2, 8 // n_devices, T)}


def test_each_device_builds_its_rows_once():
    asked: list[int] = []

    class Counting(RandomRows):
        def batch(self, row_ids: np.ndarray) -> dict[str, np.ndarray]:
            asked.extend(row_ids.tolist())
            return super().batch(row_ids)

    put_batch(Counting(), np.arange(16).reshape(2, 8), batch_sharding(make_mesh(MeshConfig(4, 2))))
    assert sorted(row for row in asked if row >= 0) == list(range(16))  # and one empty row, for the shapes


@pytest.mark.slow
def test_the_moments_lie_like_their_parameters():
    run = compiled(4, 2)

    def specs(tree: object) -> dict[str, P]:
        return {
            jax.tree_util.keystr(path, simple=True, separator="."): leaf.sharding.spec
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    params = specs(run.abstract["params"])
    assert params["blocks.attn.q"] == P(None, "fsdp", None) and params["blocks.attn.o"] == P(None, None, "fsdp")
    assert params["embed"] == P(None, "fsdp") and params["final_norm"] == P(None)
    everything = specs(run.abstract["opt_state"])
    for name in ("mu", "nu"):
        assert {k.partition(f"{name}.")[2]: v for k, v in everything.items() if f"{name}." in k} == params
    assert [v for k, v in everything.items() if "mu." not in k and "nu." not in k] == [P()]  # Adam's count
    leaf = run.state()["params"]["blocks"]["mlp"]["up"]
    shape = (MODEL.n_layers, MODEL.dim // 2, MODEL.ffn_dim)
    assert {shard.data.shape for shard in leaf.addressable_shards} == {shape}


MESHES = [(1, 1, 2), (8, 1, 1), (4, 2, 1)]


@pytest.fixture(scope="module")
def results() -> dict[tuple[int, int, int], tuple[list[float], dict]]:
    """Losses and final parameters of three steps on each mesh."""
    out = {}
    for mesh in MESHES:
        run = compiled(*mesh)
        state, losses = run.state(), []
        for step in range(3):
            state, report = run.train_step(state, make_batch(run.job, step))
            losses.append(float(report["loss"]))
            for leaf, want in zip(jax.tree.leaves(state), jax.tree.leaves(run.abstract), strict=True):
                assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)  # or the next step would not fit
        out[mesh] = (losses, jax.tree.map(np.asarray, state["params"]))
    return out


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_losses_and_parameters_do_not_depend_on_the_mesh(mesh: tuple[int, int, int], results: dict):
    (losses, params), (expected_losses, expected_params) = results[mesh], results[MESHES[0]]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    # Adam turns the sign of a gradient near zero into a full step, so rounding shows at the scale of lr.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), params, expected_params)
    differing = [np.mean(np.abs(a - b) > 1e-5) for a, b in zip(*map(jax.tree.leaves, (params, expected_params)))]  # noqa: B905
    assert np.mean(differing) < 0.01


def test_a_fresh_state_does_not_depend_on_the_mesh(tmp_path: Path):
    state, run = fresh_state(make_job(tmp_path, MeshConfig(4, 2))), compiled(4, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state, run.initial)
    for leaf, want in zip(jax.tree.leaves(state), jax.tree.leaves(run.abstract), strict=True):
        assert leaf.sharding == want.sharding
