"""cuDNN's backend: lowered for CUDA, and around a stand-in for the call that only a GPU can run."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minimind_jax.model.attention import xla_attention
from minimind_jax.model.attention.cudnn import cudnn_attention


@pytest.mark.parametrize(("T", "h"), [(1024, 128), (256, 96)])
def test_lowers_to_flash_attention_without_a_mask_in_memory(monkeypatch, T, h):
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)  # there is none here
    shapes = [jax.ShapeDtypeStruct((4, T, n, h), jnp.bfloat16) for n in (8, 2, 2)]
    arrays = [*shapes, jax.ShapeDtypeStruct((4, T), jnp.int32)]
    gradient = jax.grad(lambda *a: jnp.sum(cudnn_attention(*a).astype(jnp.float32)), (0, 1, 2))
    for f, calls in ((cudnn_attention, ["fmhaSoftmax"]), (gradient, ["fmhaSoftmax", "fmhaSoftmaxBackward"])):
        text = jax.jit(f).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
        assert re.findall(r"custom_call @__cudnn\$(\w+)\(", text) == calls  # with a bias: fmhaScaleBiasSoftmax
        kinds = re.findall(r"mask_type\W+22: \W+22(\w+?)\W", text)
        assert kinds == ["PADDING_CAUSAL"] * len(calls)
        sizes = [found.split("x") for found in re.findall(r"tensor<((?:\d+x)*\d+)x", text)]
        assert ["4", str(T), "2", str(h)] in sizes  # keys and values are not repeated
        assert not [size for size in sizes if size.count(str(T)) > 1]


def test_rows_of_one_segment_equal_the_reference_and_packed_rows_are_not_finite(monkeypatch):
    """jax's own XLA implementation of the same call in cuDNN's place."""
    call = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, **k: call(*a, **{**k, "implementation": "xla"}))
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(4, 40, n, 16)), jnp.float32) for n in (4, 2, 2))
    ids = jnp.asarray(np.arange(40) < np.array([[40], [17], [1], [0]]), jnp.int32)
    is_real = (ids > 0)[..., None, None]

    def loss(attend, q, k, v):
        out = attend(q, k, v, ids)
        return jnp.sum(jnp.sin(jnp.where(is_real, out, 0))), out

    (ours, out), (theirs, expected) = (
        jax.jit(jax.grad(functools.partial(loss, attend), (0, 1, 2), has_aux=True))(q, k, v)
        for attend in (cudnn_attention, xla_attention)
    )
    np.testing.assert_allclose(out, jnp.where(is_real, expected, 0), atol=2e-6)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)

    packed = ids.at[0, 20:].set(2)
    assert [bool(jnp.isnan(row).any()) for row in cudnn_attention(q, k, v, packed)] == [True, False, False, False]
