"""The Triton backend: its kernels step by step on the CPU against the reference, and lowered for CUDA."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from minimind_jax.model.attention import AttentionFn, xla_attention
from minimind_jax.model.attention.triton import BLOCKS, triton_attention


def random_case(T: int, H: int, K: int, h: int, B: int = 2) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """q, k, v; segment ids with many segments, one row of nothing but padding; weights of a loss, 0 on padding."""
    rng = np.random.default_rng(T + h)
    qkv = [jnp.asarray(rng.normal(size=(B, T, n, h)), jnp.float32) for n in (H, K, K)]
    ids = np.cumsum(rng.random((B, T)) < 0.03, axis=1).astype(np.int32) + 1
    ids[:, T - T // 10 :] = 0
    ids[-1] = 0
    return qkv, jnp.asarray(ids), jnp.asarray(rng.normal(size=qkv[0].shape) * (ids > 0)[..., None, None], jnp.float32)


def output_and_gradients(attend: AttentionFn, qkv, ids, weights) -> list[np.ndarray]:
    def loss(q, k, v):
        out = attend(q, k, v, ids)
        return jnp.sum(out * weights), out

    grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
    return [np.asarray(x) for x in (out, *grads)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("T", "H", "K", "h", "block"),
    [
        (100, 4, 2, 96, 64),  # shorter than two tiles, a head that is padded to 128
        (320, 2, 1, 128, 64),
        (200, 3, 3, 32, 32),
        (70, 8, 2, 8, 64),
        (512, 8, 2, 64, 64),
        (1024, 8, 2, 128, 64),
        (1024, 4, 4, 96, 32),
    ],
)
def test_kernels_equal_the_reference_in_double_precision(T, H, K, h, block):
    qkv, ids, weights = random_case(T, H, K, h)
    got = output_and_gradients(triton_attention(block, interpret=True), qkv, ids, weights)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x), jnp.float64) for x in (*qkv, weights)]
        expected = output_and_gradients(xla_attention, wide[:3], ids, wide[3])
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert np.isfinite(ours).all()
    assert not got[1][-1].any() and not got[2][-1].any()  # of a row of padding


def test_isolation_is_exact():
    """Whatever stands in other segments, later, or in padding: bit for bit the same output and gradients."""
    (q, k, v), _, _ = random_case(150, 4, 2, 32, B=1)
    ids = jnp.asarray(np.repeat([1, 2, 3, 0], [60, 45, 25, 20])[None], jnp.int32)
    inside = (np.asarray(ids) == 2)[..., None, None]
    others = [jnp.where(inside, x, 9 * x + 1) for x in (q, k, v)]
    weights = jnp.where(inside, q, 0)
    attend = triton_attention(64, interpret=True)
    for a, b in zip(
        output_and_gradients(attend, (q, k, v), ids, weights),
        output_and_gradients(attend, others, ids, weights),
        strict=True,
    ):
        np.testing.assert_array_equal(a[:, 60:105], b[:, 60:105])
    q_grad, k_grad, v_grad = output_and_gradients(attend, others, ids, weights)[1:]
    for grad in (q_grad, k_grad, v_grad):
        assert not np.where(inside, 0, grad).any()


def test_a_scan_over_rematerialised_layers():
    qkv, ids, weights = random_case(96, 2, 1, 32)

    def layers(attend: AttentionFn) -> AttentionFn:
        def run(q, k, v, segment_ids):
            layer = jax.checkpoint(lambda x, _: (x + attend(x, k, v, segment_ids), None), prevent_cse=False)
            return jax.lax.scan(layer, q, length=2)[0]

        return run

    got, expected = (
        output_and_gradients(layers(f), qkv, ids, weights)
        for f in (triton_attention(32, interpret=True), xla_attention)
    )
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


A100 = jax.sharding.AbstractDevice("NVIDIA A100-SXM4-80GB", None, "gpu")


ONE_GPU = jax.sharding.AbstractMesh((1,), ("one",), abstract_device=A100)


def lowered(f, *arrays, mesh: jax.sharding.AbstractMesh = ONE_GPU) -> str:
    # From jax 0.11 on, lowering for a GPU that is not there needs its name.
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(f).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


def shapes(T: int, H: int, K: int, h: int, B: int = 8) -> list[jax.ShapeDtypeStruct]:
    qkv = [jax.ShapeDtypeStruct((B, T, n, h), jnp.bfloat16) for n in (H, K, K)]
    return [*qkv, jax.ShapeDtypeStruct((B, T), jnp.int32)]


def gradient(attend: AttentionFn):
    return jax.grad(lambda *arrays: jnp.sum(attend(*arrays).astype(jnp.float32)), (0, 1, 2))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("T", "h"), [(512, 64), (1024, 96), (1024, 128), (2048, 128)], ids=["512", "768", "1024", "1024, long"]
)
def test_lowers_for_cuda_with_nothing_of_the_square(block, T, h):
    """The recipes' shapes. Lowering runs jax's compiler to Triton's IR; only the card's own compiler is missing."""
    attend = triton_attention(block)
    for f, kernels in ((attend, 1), (gradient(attend), 3)):
        text = lowered(f, *shapes(T, 8, 2, h))
        assert text.count("custom_call @__gpu$xla.gpu.triton") == kernels
        sizes = [[int(n) for n in found.split("x")] for found in re.findall(r"tensor<((?:\d+x)*\d+)x", text)]
        assert [8, T, 8, max(n for n in (64, 128) if n < h + 64)] in sizes
        assert not [size for size in sizes if size.count(T) > 1]


@pytest.mark.slow
def test_on_a_mesh_each_device_keeps_to_its_rows():
    """Under a fully manual shard_map: no collective at all, in what runs here and in what is lowered for CUDA."""
    mesh = jax.make_mesh((2, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = P(("data", "fsdp"))
    qkv, ids, _ = random_case(64, 2, 1, 32, B=4)

    def on_mesh(attend: AttentionFn):
        return jax.shard_map(gradient(attend), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)

    collectives = r"all[-_]gather|all[-_]reduce|all[-_]to[-_]all|collective[-_]permute|reduce[-_]scatter"
    run = jax.jit(on_mesh(triton_attention(32, interpret=True)))
    placed = jax.device_put((*qkv, ids), jax.sharding.NamedSharding(mesh, spec))
    assert not re.search(collectives, run.lower(*placed).compile().as_text())
    for ours, theirs in zip(run(*placed), gradient(xla_attention)(*qkv, ids), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    mesh = jax.sharding.AbstractMesh((2, 2), ("data", "fsdp"), abstract_device=A100)
    text = lowered(on_mesh(triton_attention(64)), *shapes(512, 8, 2, 128), mesh=mesh)
    assert "xla.gpu.triton" in text and not re.search(collectives, text)
