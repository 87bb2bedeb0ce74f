"""Causal attention over packed rows: one signature, several backends.

A backend takes `q (B, T, H, h)`, `k, v (B, T, K, h)` and `segment_ids int32 (B, T)`, 0 = padding, and returns
`(B, T, H, h)`. Position t attends to s <= t of its own segment only. A backend that cannot keep
segments apart must refuse to be built, never ignore them.

  xla     the reference: everywhere, any dtype
  triton  FlashAttention of jax.experimental.pallas: CUDA GPUs, bfloat16, packed rows
  cudnn   FlashAttention of cuDNN: CUDA GPUs, bfloat16, rows of one segment

tokamax (0.0.12), the successor of jax's Triton kernels, is no backend: its backward pass reads the segments as a
boolean T x T array from memory, and it brings ten dependencies, with typeguard pinned to a release of 2021.
"""

from minimind_jax.model.attention.choice import Attention, pick_attention
from minimind_jax.model.attention.xla import AttentionFn, masked_attention, xla_attention

__all__ = ["Attention", "AttentionFn", "masked_attention", "pick_attention", "xla_attention"]
