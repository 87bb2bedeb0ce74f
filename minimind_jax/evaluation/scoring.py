"""Summed log-likelihood of token sequences: what held-out texts and conversations share."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from minimind_jax.config import ModelConfig
from minimind_jax.data.progress import Progress
from minimind_jax.errors import UserError
from minimind_jax.evaluation.positions import PositionScore, position_scores
from minimind_jax.model import Params, hidden_states, output_matrix, xla_attention
from minimind_jax.objectives import token_logprobs
from minimind_jax.workdir import LoadedModel

BATCH_TOKENS = 4096
_SHORTEST_BUCKET = 64


@dataclass(frozen=True)
class Document:
    """What is scored: at most the model's max_seq_len tokens."""

    ids: list[int]
    is_target: np.ndarray  # (len(ids),) bool; the first token is none, whatever stands there
    n_bytes: int  # UTF-8, of the targets' text
    truncated: bool = False  # it was longer


class ByDocument(NamedTuple):
    """The scored documents one by one, each (N,) in order: its number from 0, nats of its targets, these, bytes."""

    number: np.ndarray
    nats: np.ndarray
    targets: np.ndarray
    bytes: np.ndarray


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts the target tokens of held-out documents (texts or conversations)."""

    loss: float  # nats per target token, the mean over all of them
    bits_per_byte: float
    target_tokens: int
    documents: int
    bytes: int  # UTF-8, of what was scored
    truncated: int  # documents longer than the model's limit, cut there; those without a target before it count too
    longest: int  # tokens of the longest one that was scored, as far as it was
    by_position: tuple[PositionScore, ...]  # loss by place in the document
    by_document: ByDocument = field(compare=False, repr=False)
    bad_lines: int = 0


def score_documents(
    model: LoadedModel,
    documents: Iterable[Document],
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> TextScore:
    """Scores documents with the model in float32 on the default device.

    They are padded to one of a few lengths (powers of two), so the forward
    pass compiles that often at most. Sums are float64 on the host.

    Args:
      batch_tokens: padded tokens in one forward pass; a longer document goes alone.

    Raises:
      UserError: nothing to score, or the loss is not finite.
    """
    config, params = model.config, jax.device_put(model.params)
    n_documents, n_bytes, truncated, longest = 0, 0, 0, 0
    of_each: dict[int, tuple[float, int, int]] = {}  # number -> nats, targets, bytes
    nats_at, targets_at = np.zeros(_bucket(config.max_seq_len)), np.zeros(_bucket(config.max_seq_len), np.int64)

    def score(rows: list[tuple[int, Document]], bucket: int) -> None:
        nats, is_target = _batch_nats(config, params, [document for _, document in rows], bucket, batch_tokens)
        nats_at[:bucket] += nats.sum(axis=0)
        targets_at[:bucket] += is_target.sum(axis=0)
        for (number, document), row, targets in zip(rows, nats, is_target, strict=False):  # then there is filling
            of_each[number] = (float(row.sum()), int(targets.sum()), document.n_bytes)

    waiting: dict[int, list[tuple[int, Document]]] = {}  # by bucket; with their numbers
    for document in documents:
        n_documents += 1
        truncated += document.truncated
        if not document.is_target[1:].any():
            continue
        n_bytes += document.n_bytes
        longest = max(longest, len(document.ids))
        bucket = _bucket(len(document.ids) - 1)
        rows = waiting.setdefault(bucket, [])
        rows.append((n_documents - 1, document))
        if len(rows) == _rows_per_batch(bucket, batch_tokens):
            score(waiting.pop(bucket), bucket)
            if progress:
                progress.update(n_documents - sum(map(len, waiting.values())), int(targets_at.sum()))
    for bucket, rows in sorted(waiting.items()):
        score(rows, bucket)
    nats, targets = float(nats_at.sum()), int(targets_at.sum())
    if not targets or not n_bytes:
        raise UserError(
            f"nothing to score: {n_documents} documents with the model's limit max_seq_len={config.max_seq_len}"
        )
    if not math.isfinite(nats):
        raise UserError(f"the loss of {model.path} (step {model.step}) is not finite: its weights are broken")
    numbers = sorted(of_each)
    each = [np.array(column) for column in zip(*(of_each[number] for number in numbers), strict=True)]
    return TextScore(
        loss=nats / targets,
        bits_per_byte=nats / math.log(2) / n_bytes,
        target_tokens=targets,
        documents=n_documents,
        bytes=n_bytes,
        truncated=truncated,
        longest=longest,
        by_position=position_scores(nats_at, targets_at),
        by_document=ByDocument(np.array(numbers), *each),
    )


def _bucket(length: int) -> int:
    return max(_SHORTEST_BUCKET, 1 << (length - 1).bit_length())


def _rows_per_batch(bucket: int, batch_tokens: int) -> int:
    return max(1, batch_tokens // bucket)


def _batch_nats(
    config: ModelConfig, params: Params, rows: list[Document], bucket: int, batch_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihood of the targets, 0 of other tokens, and where they are: (rows of a batch, bucket)."""
    shape = (_rows_per_batch(bucket, batch_tokens), bucket)
    tokens, targets, lengths = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.zeros(shape[0], np.int32)
    is_target = np.zeros(shape, bool)
    for i, document in enumerate(rows):
        lengths[i] = n = len(document.ids) - 1
        tokens[i, :n], targets[i, :n] = document.ids[:-1], document.ids[1:]
        is_target[i, :n] = document.is_target[1:]
    with jax.default_matmul_precision("highest"):  # GPUs would round float32 products to TF32
        logprobs = np.asarray(_logprobs(config, params, tokens, targets, lengths), np.float64)
    return -np.where(is_target, logprobs, 0.0), is_target


@functools.partial(jax.jit, static_argnums=0)
def _logprobs(
    config: ModelConfig, params: Params, tokens: jax.Array, targets: jax.Array, lengths: jax.Array
) -> jax.Array:
    """log p of each target, (B, T) float32; rows are one segment of `lengths` (B,) tokens, then padding."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    hidden = hidden_states(config, params, tokens, positions, segment_ids, attention=xla_attention)
    return token_logprobs(hidden, output_matrix(params), targets)
