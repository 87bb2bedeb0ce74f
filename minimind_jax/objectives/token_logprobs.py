"""Per-token log-probabilities without ever holding all logits: what every objective is made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Logits that are held at once; a batch with fewer keeps them all and recomputes nothing.
_MAX_LOGITS = 2**24
_MIN_CHUNK = 128


def chunk_length(n_rows: int, n_tokens: int, vocab_size: int) -> int:
    """Positions of a row whose logits exist at a time, unless `token_logprobs` is told otherwise."""
    return min(max(_MIN_CHUNK, _MAX_LOGITS // (n_rows * vocab_size)), n_tokens)


def token_logprobs(hidden: jax.Array, output_matrix: jax.Array, targets: jax.Array, chunk: int = 0) -> jax.Array:
    """log p(target) of every position.

    The time axis goes through a scan in chunks, and each chunk's logits are recomputed in the
    backward pass, so at most (B, chunk, V) logits exist at a time. Chunking time, not batch,
    moves no data where the batch is sharded.

    Args:
      hidden: (B, T, D), the model's final hidden states.
      output_matrix: (D, V), cast to hidden's dtype.
      targets: int (B, T), values in [0, V).
      chunk: positions of a row at a time; T is padded up to a multiple of it. 0 = as many as give
        16 M logits, at least 128.

    Returns: (B, T) in at least float32; the log-softmax is computed in that dtype.
    """
    B, T, D = hidden.shape
    chunk = min(chunk, T) if chunk else chunk_length(B, T, output_matrix.shape[1])
    n_chunks = -(-T // chunk)
    padding = n_chunks * chunk - T
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(B, n_chunks, chunk, D)
    targets = jnp.pad(targets, ((0, 0), (0, padding))).reshape(B, n_chunks, chunk)
    matrix = output_matrix.astype(hidden.dtype)
    accum = jnp.promote_types(hidden.dtype, jnp.float32)

    def chunk_logprobs(h: jax.Array, y: jax.Array) -> jax.Array:  # (B, chunk, D), (B, chunk) -> (B, chunk)
        logits = jnp.matmul(h, matrix, preferred_element_type=accum)
        chosen = jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    if n_chunks == 1:
        return chunk_logprobs(hidden[:, 0], targets[:, 0])

    def body(_: None, h_and_y: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        return None, jax.checkpoint(chunk_logprobs)(*h_and_y)

    _, out = jax.lax.scan(body, None, (hidden.swapaxes(0, 1), targets.swapaxes(0, 1)))  # (n_chunks, B, chunk)
    return out.swapaxes(0, 1).reshape(B, n_chunks * chunk)[:, :T]
