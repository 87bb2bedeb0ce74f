"""cuDNN's FlashAttention for rows of one segment: a prompt or a document, then padding.

jax.nn.dot_product_attention knows lengths of rows, not segments; a mask would become a T x T bias in memory. jax's
private function behind it takes offsets of segments, on Hopper and newer. It is not used: it needs the greatest
number of segments a row beforehand, nothing runs it without such a card, and it is private.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 128, 8


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """The backend for rows that start with segment 1 and may end in padding, in bfloat16 or float16.

    A row with another segment comes out as NaN: better loud than two documents that see each other.
    Padding comes out as zeros.
    """
    is_real = segment_ids > 0
    lengths = jnp.maximum(jnp.sum(is_real, axis=1, dtype=jnp.int32), 1)  # 1: no softmax over nothing
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    out = jnp.where(is_real[..., None, None], out, 0)
    is_packed = jnp.any(segment_ids > 1, axis=1)
    return jnp.where(is_packed[:, None, None, None], jnp.nan, out)
