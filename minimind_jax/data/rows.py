"""Rows: which tokens stand in which row, as a pure function of the row's number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np

from minimind_jax.data.splits import Part

Batch = dict[str, np.ndarray]


class RowSource(Protocol):
    """Rows of `seq_len` tokens. Row r is row `r % rows_per_epoch` of epoch `r // rows_per_epoch`.

    `fingerprint` identifies the rows' content (files, tokenizer, weights, split, seq_len), not where it lies.
    `n_docs`, `n_tokens` and `n_targets` count an epoch's documents (conversations, pairs), their tokens and which of
    these are targets, weights counted.
    `n_bytes` counts the UTF-8 bytes of what is learnt in an epoch: with the sum of its losses, that is bits per byte;
    0 where that says nothing.
    """

    rows_per_epoch: int
    seq_len: int
    fingerprint: str
    n_docs: int
    n_tokens: int
    n_bytes: int

    @property
    def n_targets(self) -> int: ...

    def batch(self, row_ids: np.ndarray) -> Batch:
        """The rows of these ids, (n,) int64; a negative id gives an empty row, all zeros.

        Returns arrays (n, seq_len):
          tokens: int32 inputs.
          targets: int32, the token that follows in the same document, also where it stands in the next row.
          segment_ids: int32, 1, 2, ... by document within the row, 0 = padding.
          positions: int32, from 0 within each segment.
          target_mask: bool, False where the next token is none of the document or not to be learnt: `targets` is 0.
        Pairs have more arrays, also (n, ...).
        """
        ...


def step_row_ids(step: int, batch_size: int, total_rows: int | None = None) -> np.ndarray:
    """The rows of a step's global batch: [step * batch_size, (step + 1) * batch_size).

    Args:
      step: from 0.
      batch_size: rows a step, over all devices and accumulation.
      total_rows: ids from here on become -1, empty rows; None = endless.

    Returns:
      (batch_size,) int64.
    """
    ids = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    if total_rows is not None:
        ids[ids >= total_rows] = -1
    return ids


def count_rows(epochs: float, rows_per_epoch: int) -> int:
    """Rows of that many epochs, rounded up; 0.07 epochs of 100 rows are 7, as written, whatever binary makes of it."""
    return math.ceil(Fraction(repr(epochs)) * rows_per_epoch)


@dataclass(frozen=True)
class _Epoch:
    """One epoch's documents in order: `order` (n,) uint32 entries, `ends` (n + 1,) int64 ends in the token stream."""

    order: np.ndarray
    ends: np.ndarray


class PretrainRows:
    """Documents in a fresh order each epoch, concatenated and cut into rows; see `RowSource`.

    Every token of an epoch but the documents' first is a target exactly once. Only an epoch's last row has padding.

    Anonymous memory: 12 bytes a document (weights counted), 12 for each of two epochs that are kept, and 28 more
    while an epoch is laid out. For 1.4 M documents 50 MB stay and the peak is 90 MB; the tokens stay on the disk.

    Attributes:
      n_docs, n_tokens, n_targets: per epoch, weights counted; tokens with BOS and EOS.
    """

    def __init__(self, parts: Sequence[Part], seq_len: int, fingerprint: str, seed: int | None) -> None:
        """`seed` None keeps the documents in the files' order and knows epoch 0 only (validation)."""
        self.seq_len = seq_len
        self.fingerprint = fingerprint
        self._seed = seed
        self._tokens = [part.store.tokens for part in parts]
        # Token i of store s has the address _bases[s] + i.
        self._bases = np.cumsum([0, *(len(tokens) for tokens in self._tokens)], dtype=np.int64)
        starts, lengths = [], []
        self.n_bytes = 0
        for part, base in zip(parts, self._bases, strict=False):
            offsets = part.store.offsets
            start = offsets[part.docs].astype(np.int64)
            starts += [start + base] * part.weight
            lengths += [(offsets[part.docs + 1].astype(np.int64) - start).astype(np.uint32)] * part.weight
            self.n_bytes += part.weight * int(part.store.n_bytes[part.docs].sum(dtype=np.int64))
        self._starts = np.concatenate(starts)
        self._lengths = np.concatenate(lengths)
        self.n_docs = len(self._starts)
        self.n_tokens = int(self._lengths.sum(dtype=np.int64))
        self.n_targets = self.n_tokens - self.n_docs
        self.rows_per_epoch = -(-self.n_tokens // seq_len)
        self._epoch = lru_cache(maxsize=2)(self._lay_out)

    def batch(self, row_ids: np.ndarray) -> Batch:
        """See `RowSource.batch`. Raises IndexError for a row that validation does not have."""
        row_ids = np.asarray(row_ids, np.int64)
        epochs, index = np.divmod(row_ids, self.rows_per_epoch)
        epochs[row_ids < 0] = -1
        present = np.unique(epochs)
        if len(present) == 1:
            return self._rows(int(present[0]), index)
        batch = empty_batch(len(row_ids), self.seq_len)
        for epoch in present[present >= 0]:
            chosen = np.flatnonzero(epochs == epoch)
            for name, rows in self._rows(int(epoch), index[chosen]).items():
                batch[name][chosen] = rows
        return batch

    def _rows(self, epoch: int, index: np.ndarray) -> Batch:
        """Rows `index` (k,) of one epoch."""
        T = self.seq_len
        if epoch < 0:
            return empty_batch(len(index), T)
        plan = self._epoch(epoch)
        row_start = index * T
        row_end = np.minimum(row_start + T, self.n_tokens)

        # Segments, (S,): one for each document that a row touches, row by row.
        first = np.searchsorted(plan.ends, row_start, "right") - 1
        n_segments = np.searchsorted(plan.ends, row_end, "left") - first
        segment_in_row = _ranges(n_segments)
        row = np.repeat(np.arange(len(index)), n_segments)
        doc = first[row] + segment_in_row
        start = np.maximum(plan.ends[doc], row_start[row])
        end = np.minimum(plan.ends[doc + 1], row_end[row])
        length = end - start
        # The address of stream position p in a segment is p + shift.
        shift = self._starts[plan.order[doc]] - plan.ends[doc]

        # Tokens, (M,): the segments' tokens one after the other.
        positions = _ranges(length)
        tokens = self._gather(positions + np.repeat(start + shift, length))
        targets = np.zeros_like(tokens)
        targets[:-1] = tokens[1:]
        mask = np.ones(len(tokens), bool)
        last = np.cumsum(length) - 1
        finished = end == plan.ends[doc + 1]
        targets[last[finished]] = 0
        mask[last[finished]] = False
        cut = ~finished  # by the row's end: the next token opens the next row
        targets[last[cut]] = self._gather(end[cut] + shift[cut])

        flat = {
            "tokens": tokens,
            "targets": targets,
            "segment_ids": np.repeat((segment_in_row + 1).astype(np.int32), length),
            "positions": positions.astype(np.int32),
            "target_mask": mask,
        }
        if len(tokens) == len(index) * T:
            return {name: values.reshape(len(index), T) for name, values in flat.items()}
        batch = empty_batch(len(index), T)
        real = np.arange(T) < (row_end - row_start)[:, None]
        for name, values in flat.items():
            batch[name][real] = values
        return batch

    def _gather(self, addresses: np.ndarray) -> np.ndarray:
        """Tokens (M,) int32 at addresses (M,) int64."""
        if len(self._tokens) == 1:
            return self._tokens[0][addresses].astype(np.int32)
        out = np.empty(len(addresses), np.int32)
        # uint16, so that it is sorted by radix; a process cannot map as many files as would overflow it.
        store = (np.searchsorted(self._bases, addresses, "right") - 1).astype(np.uint16)
        by_store = np.argsort(store, kind="stable")
        present, first = np.unique(store[by_store], return_index=True)
        for s, chosen in zip(present, np.split(by_store, first[1:]), strict=False):
            out[chosen] = self._tokens[s][addresses[chosen] - self._bases[s]]
        return out

    def _lay_out(self, epoch: int) -> _Epoch:
        order = epoch_order(self.n_docs, self._seed, epoch, self.rows_per_epoch)
        ends = np.zeros(self.n_docs + 1, np.int64)
        np.cumsum(self._lengths[order], out=ends[1:])
        return _Epoch(order, ends)


def epoch_order(n: int, seed: int | None, epoch: int, n_rows: int) -> np.ndarray:
    """The order of an epoch's n entries, (n,) uint32: `permutation`, or as they are without a seed (validation).

    Raises IndexError for a second epoch of validation, which has one, of `n_rows` rows.
    """
    if seed is not None:
        return permutation(n, seed, epoch)
    if epoch:
        raise IndexError(f"row of epoch {epoch}: validation rows have one epoch, of {n_rows} rows")
    return np.arange(n, dtype=np.uint32)


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of n entries, (n,) uint32, a pure function of its arguments.

    Sorts the raw stream of Philox, which numpy keeps stable across versions, as it does not keep
    `Generator.permutation`: a run that is resumed after an upgrade must see the same order.
    """
    keys = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    return np.argsort(keys, kind="stable").astype(np.uint32)


def empty_batch(n: int, seq_len: int) -> Batch:
    """n empty rows: what a step's batch is filled up with after the last row."""
    batch = {name: np.zeros((n, seq_len), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    batch["target_mask"] = np.zeros((n, seq_len), bool)
    return batch


def _ranges(lengths: np.ndarray) -> np.ndarray:
    """[0, ..., lengths[0] - 1, 0, ..., lengths[1] - 1, ...], (sum of lengths,) int64."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
