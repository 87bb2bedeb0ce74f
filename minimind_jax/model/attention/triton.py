"""FlashAttention (Dao et al. 2022, arXiv:2205.14135) with segments: the Triton kernels of jax.experimental.pallas.

The kernels mask by segment id inside a tile, so nothing of size T x T is in memory. They know one number of heads
(keys and values are repeated) and whole tiles (rows are padded, with a segment of their own). Both passes add up in
a fixed order: the same input gives the same bits. jax 0.10 and 0.11 have them; jax's changelog says they will go.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from minimind_jax.model.attention.xla import AttentionFn

# Queries and keys of a tile, the first that a card's shared memory holds. 64 is among the sizes that jax tests on
# GPUs, and its tests leave out 128 with head_dim 128 on an A100 for its precision; 32 is the default of jax's
# backward pass.
BLOCKS = (64, 32)
# What jax tests: 32, 64 and 128. Others are padded to the next of them: zeros change no score and no output.
_HEAD_DIMS = (32, 64, 128)
MAX_HEAD_DIM = _HEAD_DIMS[-1]
_NO_SEGMENT = -1


def triton_attention(block: int, interpret: bool = False) -> AttentionFn:
    """The backend with tiles of `block` queries and keys.

    In a `jax.shard_map` it needs check_vma=False: jax's kernels do not say over which axes their results vary.

    Args:
      interpret: run the kernels' steps one by one by XLA, on any device (for tests; slow).
    """

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
        from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha  # not every jax will have it

        sizes = BlockSizes(block, block, block, block, block, block)
        T, H, h = q.shape[1:]
        k, v = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k, v))
        rows, width = -T % block, next(n for n in _HEAD_DIMS if n >= h) - h
        q, k, v = (jnp.pad(x, [(0, 0), (0, rows), (0, 0), (0, width)]) for x in (q, k, v))
        segment_ids = jnp.pad(segment_ids, [(0, 0), (0, rows)], constant_values=_NO_SEGMENT)
        out = mha(q, k, v, segment_ids, sm_scale=h**-0.5, causal=True, block_sizes=sizes, interpret=interpret)
        return out[:, :T, :, :h]

    return attend
