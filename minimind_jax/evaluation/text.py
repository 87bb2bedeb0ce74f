"""Held-out loss and bits per byte on plain text.

A text is bos + tokens + eos, scored whole up to the model's limit; all but bos are targets. So the
numbers of two models with the same tokenizer compare by `loss`, with different ones by `bits_per_byte`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from minimind_jax.config import ModelConfig
from minimind_jax.data.jsonl import N_REPORTED, BadLine, check_bad_lines, parse_text, read_jsonl
from minimind_jax.data.progress import Progress
from minimind_jax.errors import UserError
from minimind_jax.model import Params, get_attention, hidden_states, masked_attention, output_matrix
from minimind_jax.objectives import token_logprobs
from minimind_jax.workdir import LoadedModel

BATCH_TOKENS = 4096
MAX_BAD_SHARE = 0.01
_SHORTEST_BUCKET = 64
_ENCODED_AT_ONCE = 64  # texts
_QUERY_BLOCK = 256  # divides every bucket that needs it
_LONG = 4096  # tokens from which attention goes block by block


@dataclass(frozen=True)
class TextScore:
    loss: float  # nats per target token, the mean over all of them
    bits_per_byte: float
    target_tokens: int
    documents: int
    bytes: int  # UTF-8, of what was scored
    truncated: int  # documents longer than the model's limit, cut there
    bad_lines: int = 0


def evaluate_file(model: LoadedModel, path: Path, batch_tokens: int = BATCH_TOKENS) -> TextScore:
    """Scores a jsonl file of {"text": ...} records.

    Args:
      path: the file; it is read twice, in bounded memory.
      batch_tokens: padded tokens in one forward pass; a longer text goes alone.

    Raises:
      UserError: no such file, no usable line, more than 1 % bad lines, or what `score_texts` raises.
    """
    n_lines, n_bad = 0, 0
    first_bad: list[BadLine] = []
    for _, record in read_jsonl(path, parse_text):
        n_lines += 1
        if isinstance(record, BadLine):
            n_bad += 1
            if len(first_bad) < N_REPORTED:
                first_bad.append(record)
    if warning := check_bad_lines(path, n_lines, n_bad, first_bad, MAX_BAD_SHARE):
        print(warning, flush=True)

    texts = (record for _, record in read_jsonl(path, parse_text) if not isinstance(record, BadLine))
    progress = Progress(f"scoring {path}", n_lines - n_bad)
    score = score_texts(model, texts, batch_tokens, progress)
    progress.close(score.target_tokens)
    return dataclasses.replace(score, bad_lines=n_bad)


def score_texts(
    model: LoadedModel, texts: Iterable[str], batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
) -> TextScore:
    """Scores texts with the model in float32 on the default device.

    Texts are padded to one of a few lengths (powers of two), so the forward
    pass compiles that often at most. Sums are float64 on the host.

    Raises:
      UserError: nothing to score, or the loss is not finite.
    """
    config, params = model.config, jax.device_put(model.params)
    nats, targets, documents, n_bytes, truncated = 0.0, 0, 0, 0, 0
    waiting: dict[int, list[list[int]]] = {}  # by bucket
    for text, ids in _encode(model, texts):
        documents += 1
        if len(ids) > config.max_seq_len:
            ids = ids[: config.max_seq_len]
            truncated += 1
            # A cut inside a character leaves bytes that decode to U+FFFD: that character counts as not scored.
            text = model.tokenizer.decode(ids[1:], skip_special_tokens=False).rstrip("\ufffd")
        n_bytes += len(text.encode())
        targets += len(ids) - 1
        bucket = _bucket(len(ids) - 1)
        rows = waiting.setdefault(bucket, [])
        rows.append(ids)
        if len(rows) == _rows_per_batch(bucket, batch_tokens):
            nats += _batch_nats(config, params, waiting.pop(bucket), bucket, batch_tokens)
            if progress:
                progress.update(documents - sum(map(len, waiting.values())), targets)
    for bucket, rows in sorted(waiting.items()):
        nats += _batch_nats(config, params, rows, bucket, batch_tokens)
    if not targets or not n_bytes:
        raise UserError(f"nothing to score: {documents} texts with the model's limit max_seq_len={config.max_seq_len}")
    if not math.isfinite(nats):
        raise UserError(f"the loss of {model.path} (step {model.step}) is not finite: its weights are broken")
    return TextScore(nats / targets, nats / math.log(2) / n_bytes, targets, documents, n_bytes, truncated)


def _encode(model: LoadedModel, texts: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    """Each text with bos + tokens + eos."""
    tokenizer, rest = model.tokenizer, iter(texts)
    while some := list(itertools.islice(rest, _ENCODED_AT_ONCE)):
        for text, tokens in zip(some, tokenizer.encode_batch(some), strict=True):
            yield text, [tokenizer.bos_id, *tokens, tokenizer.eos_id]


def _bucket(length: int) -> int:
    return max(_SHORTEST_BUCKET, 1 << (length - 1).bit_length())


def _rows_per_batch(bucket: int, batch_tokens: int) -> int:
    return max(1, batch_tokens // bucket)


def _batch_nats(config: ModelConfig, params: Params, rows: list[list[int]], bucket: int, batch_tokens: int) -> float:
    """Summed negative log-likelihood of all targets of `rows`."""
    shape = (_rows_per_batch(bucket, batch_tokens), bucket)
    tokens, targets, lengths = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
    for i, ids in enumerate(rows):
        lengths[i] = n = len(ids) - 1
        tokens[i, :n], targets[i, :n] = ids[:-1], ids[1:]
    with jax.default_matmul_precision("highest"):  # GPUs would round float32 products to TF32
        logprobs = np.asarray(_logprobs(config, params, tokens, targets, lengths), np.float64)
    return -float(logprobs[np.arange(bucket) < lengths[:, None]].sum())


@functools.partial(jax.jit, static_argnums=0)
def _logprobs(
    config: ModelConfig, params: Params, tokens: jax.Array, targets: jax.Array, lengths: jax.Array
) -> jax.Array:
    """log p of each target, (B, T) float32; rows are one segment of `lengths` (B,) tokens, then padding."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    attention = get_attention("auto") if tokens.shape[1] < _LONG else _blockwise_attention
    hidden = hidden_states(config, params, tokens, positions, segment_ids, attention=attention)
    return token_logprobs(hidden, output_matrix(params), targets)


def _blockwise_attention(q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array) -> jax.Array:
    """Attention, a fixed number of queries at a time: memory grows with T, not with its square."""
    B, T, H, h = q.shape
    n_blocks = T // _QUERY_BLOCK

    def block(i: jax.Array) -> jax.Array:  # (B, _QUERY_BLOCK, H, h)
        start = i * _QUERY_BLOCK
        queries, segments = (jax.lax.dynamic_slice_in_dim(x, start, _QUERY_BLOCK, axis=1) for x in (q, segment_ids))
        causal = start + jnp.arange(_QUERY_BLOCK)[:, None] >= jnp.arange(T)
        same_segment = segments[:, :, None] == segment_ids[:, None, :]  # (B, _QUERY_BLOCK, T)
        return masked_attention(queries, k, v, (causal & same_segment)[:, None, None])

    return jax.lax.map(block, jnp.arange(n_blocks)).swapaxes(0, 1).reshape(B, T, H, h)
