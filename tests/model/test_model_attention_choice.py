"""Which backend is picked, what is refused, and that a kernel which computes something else is caught."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.model.attention import choice, cudnn, triton, xla_attention
from minimind_jax.model.attention.choice import Attention

xla_results = functools.lru_cache(choice._Check)  # of the small rows: the same in all tests
MODEL = ModelConfig(dim=64, n_heads=2, n_kv_heads=1)
BF16, F32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)


def pick(name: str, dtype: jnp.dtype = BF16, packed: bool = True, model: ModelConfig = MODEL) -> Attention:
    choice.pick_attention.cache_clear()  # its answers hold for one device, and tests change it
    try:
        return choice.pick_attention(name, model, dtype, packed)
    finally:
        choice.pick_attention.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA GPU as far as the choice can see. Kernels still run here: the real ones fail, as on a wrong card."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(choice, "_compute_capability", lambda: (8, 0))
    monkeypatch.setattr(choice, "_Check", xla_results)


def interpreted(monkeypatch, *blocks: int) -> None:
    """The Triton kernels run step by step for tiles of `blocks`, and fail for others."""
    real = triton.triton_attention
    monkeypatch.setattr(triton, "triton_attention", lambda block: real(block, interpret=block in blocks))


def test_on_the_cpu():
    assert pick("auto") == Attention("xla", "on cpu", xla_attention)
    assert pick("xla") == Attention("xla", "as asked", xla_attention)
    for name, packed in (("triton", True), ("cudnn", False)):
        with pytest.raises(UserError, match=rf"^attention={name} needs an NVIDIA GPU .* take attention=auto or"):
            pick(name, packed=packed)


@pytest.mark.slow
def test_auto_on_a_gpu_takes_the_kernel_that_agrees(gpu, monkeypatch):
    interpreted(monkeypatch, 64, 32)
    picked = pick("auto")
    assert (picked.name, picked.why) == ("triton", "agrees with xla here")
    assert picked.attend is not xla_attention


def test_the_smaller_tiles_are_next(gpu, monkeypatch):
    interpreted(monkeypatch, 32)
    assert pick("triton").name == "triton"


def test_a_kernel_that_does_not_run(gpu):
    picked = pick("auto")  # the real kernels: there is no GPU
    assert picked.attend is xla_attention and "\n" not in picked.why
    assert picked.why.startswith("triton does not run here (")
    with pytest.raises(UserError, match="attention=triton does not run here"):
        pick("triton")


def leaks_one_token(q, k, v, segment_ids):
    return xla_attention(q, k, v, segment_ids.at[0, 100].set(1))


def wrong_gradient(q, k, v, segment_ids):
    return xla_attention(q, k + 0.03 * jax.lax.stop_gradient(k) - 0.03 * k, v, segment_ids)


def not_finite(q, k, v, segment_ids):
    return xla_attention(q, k, v, segment_ids) * jnp.where(segment_ids == 3, jnp.nan, 1)[..., None, None]


@pytest.mark.parametrize(
    ("kernel", "found"),
    [
        (lambda q, k, v, s: xla_attention(q, k, v, jnp.ones_like(s)), "output"),
        (leaks_one_token, "output"),
        (wrong_gradient, "dk"),
        (not_finite, "output"),
        (lambda q, k, v, s: xla_attention(1.03 * q, k, v, s), "output"),
        (lambda q, k, v, s: xla_attention(q, k[:, :, ::-1] if k.shape[2] > 1 else -k, v, s), "output"),
    ],
)
def test_a_kernel_that_computes_something_else(gpu, monkeypatch, kernel, found):
    monkeypatch.setattr(choice, "_candidates", lambda name: [kernel])
    picked = pick("auto")
    assert picked.attend is xla_attention
    assert picked.why.startswith(f"triton gives another {found} than xla (relative difference ")


@pytest.mark.parametrize(
    ("name", "kwargs", "why"),
    [
        ("triton", {"dtype": F32}, "computes in bfloat16, not float32"),
        ("triton", {"model": ModelConfig(dim=320, n_heads=2, n_kv_heads=1)}, "model.head_dim up to 128, not 160"),
        ("cudnn", {"packed": True}, "does not keep the documents of a packed row apart"),
        ("cudnn", {"packed": False, "model": ModelConfig(dim=24, n_heads=2, n_kv_heads=1)}, "multiples of 8 .* not 12"),
    ],
)
def test_what_a_kernel_cannot_do_is_said(gpu, name, kwargs, why):
    with pytest.raises(UserError, match=rf"^attention={name} .*{why}: take attention=auto or attention=xla$"):
        pick(name, **kwargs)
    if name == "triton":
        assert re.search(why, pick("auto", **kwargs).why)


@pytest.mark.parametrize(("capability", "found"), [("9.0", (9, 0)), ("12.1", (12, 1)), ("gfx942", (0, 0))])
def test_compute_capability(monkeypatch, capability, found):
    class Device:
        compute_capability = capability

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert choice._compute_capability() == found


def test_rows_of_one_segment_go_to_cudnn(gpu, monkeypatch):
    monkeypatch.setattr(cudnn, "cudnn_attention", xla_attention)
    assert pick("auto", packed=False) == Attention("cudnn", "agrees with xla here", xla_attention)
    assert pick("cudnn", packed=False).name == "cudnn"
