"""Which backend a run takes: by name or by platform, and only what has just proved itself on this device."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError, first_line
from minimind_jax.model.attention import cudnn, triton
from minimind_jax.model.attention.xla import AttentionFn, xla_attention

_OLDEST_GPU = (8, 0)  # A100: the first with bfloat16
_CHECK_TOKENS = 256
# A kernel's error may be so many times that of xla in bfloat16, both against xla in float32.
_MAX_ERROR = 3.0


@dataclass(frozen=True)
class Attention:
    name: str
    why: str  # it was picked, in a few words
    attend: AttentionFn


@functools.lru_cache
def pick_attention(name: str, model: ModelConfig, dtype: jnp.dtype, packed: bool) -> Attention:
    """The backend called `name`; "auto" is the platform's own kernel where that agrees with xla, else xla.

    A GPU kernel is compiled and run once, forward and backward, on small rows with the model's heads, and compared
    with xla. Not to be called while tracing.

    Args:
      name: auto | xla | triton | cudnn.
      dtype: of queries, keys and values.
      packed: rows may hold several segments.

    Raises:
      UserError: the backend asked for cannot do this here, or computes something else.
    """
    if name == "xla":
        return Attention("xla", "as asked", xla_attention)
    if name == "auto" and jax.default_backend() != "gpu":
        return Attention("xla", f"on {jax.default_backend()}", xla_attention)
    kernel = ("triton" if packed else "cudnn") if name == "auto" else name
    problem = _cannot(kernel, model, dtype, packed)
    if not problem:
        check = _Check(model, dtype, packed)
        for attend in _candidates(kernel):
            problem = check.problem_of(attend)
            if not problem:
                return Attention(kernel, "agrees with xla here", attend)
    if name != "auto":
        raise UserError(f"attention={name} {problem}: take attention=auto or attention=xla")
    return Attention("xla", f"{kernel} {problem}", xla_attention)


def _cannot(kernel: str, model: ModelConfig, dtype: jnp.dtype, packed: bool) -> str:
    """Why the kernel cannot do this; "" if it might."""
    if kernel == "cudnn" and packed:
        return "does not keep the documents of a packed row apart"
    if _compute_capability() < _OLDEST_GPU:
        return f"needs an NVIDIA GPU of compute capability 8.0 or newer, not {jax.devices()[0].device_kind}"
    if dtype != jnp.bfloat16:
        return f"computes in bfloat16, not {jnp.dtype(dtype).name}"
    if kernel == "triton" and model.head_dim > triton.MAX_HEAD_DIM:
        return f"takes model.head_dim up to {triton.MAX_HEAD_DIM}, not {model.head_dim}"
    if kernel == "cudnn" and (model.head_dim > cudnn.MAX_HEAD_DIM or model.head_dim % cudnn.HEAD_DIM_MULTIPLE):
        return (
            f"takes multiples of {cudnn.HEAD_DIM_MULTIPLE} up to {cudnn.MAX_HEAD_DIM} as model.head_dim, "
            f"not {model.head_dim}"
        )
    return ""


def _compute_capability() -> tuple[int, int]:
    """Of this process's CUDA GPUs; (0, 0) where there are none (ROCm's name an architecture instead)."""
    if jax.default_backend() != "gpu":
        return 0, 0
    found = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(jax.local_devices()[0], "compute_capability", "")))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _candidates(kernel: str) -> list[AttentionFn]:
    return [cudnn.cudnn_attention] if kernel == "cudnn" else [triton.triton_attention(block) for block in triton.BLOCKS]


class _Check:
    """Small random rows, and what xla makes of them: outputs and gradients in float32 and in `dtype`."""

    def __init__(self, model: ModelConfig, dtype: jnp.dtype, packed: bool):
        self.segment_ids = _check_rows(packed)
        rng, shape = np.random.default_rng(0), self.segment_ids.shape
        heads = (model.n_heads, model.n_kv_heads, model.n_kv_heads, model.n_heads)
        *self.qkv, self.weights = (jnp.asarray(rng.normal(size=(*shape, n, model.head_dim)), dtype) for n in heads)
        with jax.default_matmul_precision("highest"):
            self.exact = self._run(xla_attention, jnp.dtype(jnp.float32))
        self.usual = self._run(xla_attention, dtype)

    def _run(self, attend: AttentionFn, dtype: jnp.dtype) -> list[np.ndarray]:
        is_real = self.segment_ids[..., None, None] > 0

        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = jnp.where(is_real, attend(q, k, v, self.segment_ids), 0)  # what padding gives is nobody's business
            return jnp.sum(out * self.weights, dtype=jnp.float32), out

        grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*(x.astype(dtype) for x in self.qkv))
        return [np.asarray(x, np.float32) for x in (out, *grads)]

    def problem_of(self, attend: AttentionFn) -> str:
        """How outputs and gradients differ from xla's beyond rounding, or the error of the attempt; "" = they agree."""
        try:
            got = self._run(attend, self.qkv[0].dtype)
        except Exception as error:  # whatever a compiler or driver may raise: the answer is another backend
            return f"does not run here ({first_line(error)})"
        for name, exact, usual, ours in zip(("output", "dq", "dk", "dv"), self.exact, self.usual, got, strict=True):
            difference, rounding = (float(np.linalg.norm(x - exact) / np.linalg.norm(exact)) for x in (ours, usual))
            if not difference <= _MAX_ERROR * rounding:  # NaN too
                return f"gives another {name} than xla (relative difference {difference:.1e}, rounding {rounding:.1e})"
        return ""


def _check_rows(packed: bool) -> jax.Array:
    """Segment ids (3, T): several segments, one, none; or for a backend that knows one only, of three lengths."""
    lengths = ([100, 1, 64, 37], [_CHECK_TOKENS], []) if packed else ([200], [_CHECK_TOKENS], [1])
    rows = np.zeros((3, _CHECK_TOKENS), np.int32)
    for row, segments in zip(rows, lengths, strict=True):
        ids = np.repeat(np.arange(1, len(segments) + 1), segments)
        row[: len(ids)] = ids
    return jnp.asarray(rows)
