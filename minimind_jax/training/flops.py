"""Model FLOPs utilisation: what share of the hardware's peak goes into the model's arithmetic."""

from __future__ import annotations

import functools
import re
import time

import jax
import jax.numpy as jnp

from minimind_jax.config import ModelConfig
from minimind_jax.model import count_params

# Dense bf16 tensor-core peaks in FLOP/s, from the vendors' data sheets (without sparsity).
_PEAK_BF16 = {
    "A100": 312e12,
    "A800": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H20": 148e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "V100": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Forward and backward FLOPs of one token: 6 N + 12 L D T.

    N all parameters, L layers, D = n_heads * head_dim, T row length (PaLM, Chowdhery et al. 2022,
    arXiv:2204.02311, appendix B). Attention counts as if it were not causal; recomputation does not count.
    """
    return 6 * count_params(model) + 12 * model.n_layers * model.n_heads * model.head_dim * seq_len


def peak_flops() -> tuple[float, str]:
    """Peak FLOP/s of one device and where the figure comes from."""
    kind = jax.devices()[0].device_kind
    # The longest name wins: "H100 PCIe" before "H100". Whole words: an "RTX A1000" is no A100.
    for name in sorted(_PEAK_BF16, key=len, reverse=True):
        if re.search(rf"\b{name}\b", kind, re.IGNORECASE):
            return _PEAK_BF16[name], f"{kind}, bf16 data sheet"
    return _measured_matmul_flops(), f"{kind}, fastest of several float32 matrix products, measured now"


@functools.cache
def _measured_matmul_flops(n: int = 1536, repeats: int = 5) -> float:
    x = jnp.ones((n, n), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best / jax.local_device_count() if jax.default_backend() == "cpu" else 2 * n**3 / best
