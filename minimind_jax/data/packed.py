"""Rows of whole sequences: packed best-fit once, permuted each epoch."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from minimind_jax.chat import TARGET
from minimind_jax.config import DataConfig
from minimind_jax.data.packing import Plan
from minimind_jax.data.rows import Batch, empty_batch, epoch_order
from minimind_jax.data.splits import Part
from minimind_jax.errors import UserError


class Segment(NamedTuple):
    """One sequence as it stands in a row: tokens (n,) and which of them are targets, (n,) bool."""

    tokens: np.ndarray
    is_target: np.ndarray


class Documents:
    """The documents of some parts, numbered through; weights counted."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.stores = [part.store for part in parts]
        docs = [np.tile(part.docs, part.weight) for part in parts]
        self.store_of = np.repeat(np.arange(len(parts), dtype=np.uint16), list(map(len, docs)))
        self.starts = _concatenate([part.store.offsets[d] for part, d in zip(parts, docs, strict=True)])
        ends = _concatenate([part.store.offsets[d + 1] for part, d in zip(parts, docs, strict=True)])
        self.lengths = ends - self.starts
        self.n_bytes = _concatenate([part.store.n_bytes[d] for part, d in zip(parts, docs, strict=True)])

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, doc: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `length` tokens of a document, and their flags; views."""
        store, start = self.stores[self.store_of[doc]], self.starts[doc]
        return store.tokens[start : start + length], store.flags[start : start + length]


def kept_lengths(documents: Documents, limit: int, truncate: str) -> np.ndarray:
    """How many tokens of each document are used, (n_docs,) int64; 0 = none.

    A document of at most `limit` tokens is kept whole. Of a longer one:
      turn: everything up to the last turn that ends within the limit and is a target.
      cut: its first `limit` tokens.
      drop: nothing.
    With none of its targets left, nothing is kept.
    """
    kept = documents.lengths.copy()
    for doc in np.flatnonzero(kept > limit).tolist():
        kept[doc] = 0
        if truncate == "drop":
            continue
        is_target = documents.read(doc, limit + 1)[1] & TARGET > 0
        if truncate == "cut":
            kept[doc] = limit if is_target[:limit].any() else 0
        else:
            (ends,) = np.nonzero(is_target[:-1] & ~is_target[1:])
            kept[doc] = ends[-1] + 1 if len(ends) else 0
    return kept


def needed_lengths(documents: Documents, truncate: str) -> np.ndarray:
    """The shortest limit with which `kept_lengths` keeps something of each document, (n_docs,) int64."""
    needed = documents.lengths.copy()
    if truncate == "drop":
        return needed
    for doc, length in enumerate(documents.lengths.tolist()):
        is_target = documents.read(doc, length)[1] & TARGET > 0
        wanted = is_target if truncate == "cut" else is_target[:-1] & ~is_target[1:]
        if wanted.any():
            needed[doc] = wanted.argmax() + 1
    return needed


def report_fit(
    data: DataConfig,
    name: str,
    longer: str,
    held_out: bool,
    documents: Documents,
    n_cut: int,
    n_dropped: int,
    sides: int = 1,
) -> None:
    """Says on stderr what does not fit into a row.

    Args:
      name: what is packed, in the plural.
      longer: "are longer than", in the words that go with `name`.
      documents: all of it.
      n_cut, n_dropped: those that are cut and those that are left out.
      sides: documents of each, which are kept together or not at all.

    Raises:
      UserError: nothing is left.
    """
    which = f"held-out {name}" if held_out else name
    n = len(documents) // sides
    if n_dropped == n:

        def shortest(truncate: str) -> int:
            return int(needed_lengths(documents, truncate).reshape(-1, sides).max(axis=1).min())

        cut = ", or set --config.data.truncate=cut"
        raise UserError(
            f"none of the {which} in {data.val_path if held_out and data.val_path else data.path} fits into "
            f"data.max_seq_len={data.max_seq_len} tokens with data.truncate={data.truncate}: set "
            f"--config.data.max_seq_len={shortest(data.truncate)} for the shortest, {documents.lengths.max()} for all"
            + (cut if data.truncate != "cut" and shortest("cut") <= data.max_seq_len else "")
        )
    if n_dropped or n_cut:
        print(
            f"of {n} {which} {n_dropped + n_cut} {longer} data.max_seq_len={data.max_seq_len}: {n_cut} are cut, "
            f"{n_dropped} dropped (data.truncate={data.truncate})",
            file=sys.stderr,
        )


class PackedRows(ABC):
    """A `RowSource` over a packing plan; what an item of the plan puts into a row is the subclass's to say.

    Attributes:
      n_docs: conversations (or pairs) an epoch.
      n_tokens: their tokens as planned, with room for augmentations.
    """

    def __init__(
        self, plan: Plan, lengths: np.ndarray, row_len: int, fingerprint: str, seed: int | None, n_bytes: int
    ) -> None:
        """`lengths` (n_docs,) are those that the plan was made for; `seed` None keeps the plan's order (validation)."""
        self.plan = plan
        self.seq_len = row_len
        self.fingerprint = fingerprint
        self.n_bytes = n_bytes
        self.rows_per_epoch = plan.n_rows
        self.n_docs, self.n_tokens = len(lengths), int(lengths.sum())
        self._order = lru_cache(maxsize=2)(lambda epoch: epoch_order(plan.n_rows, seed, epoch, plan.n_rows))

    @cached_property
    def n_targets(self) -> int:
        """Targets of an epoch (of its first one, where augmentations differ)."""
        items = range(self.n_docs)
        return sum(int(segment.is_target[1:].sum()) for item in items for segment in self.segments(item, 0))

    def batch(self, row_ids: np.ndarray) -> Batch:
        """See `RowSource.batch`. Raises IndexError for a row that validation does not have."""
        batch = self.empty(len(row_ids))
        for i, row_id in enumerate(np.asarray(row_ids, np.int64).tolist()):
            if row_id >= 0:
                epoch, index = divmod(row_id, self.rows_per_epoch)
                self._fill(batch, i, epoch, int(self._order(epoch)[index]))
        return batch

    def empty(self, n: int) -> Batch:
        return empty_batch(n, self.seq_len)

    @abstractmethod
    def segments(self, item: int, epoch: int) -> list[Segment]:
        """What an item of the plan puts into its row."""

    def _fill(self, batch: Batch, i: int, epoch: int, row: int) -> None:
        """Writes row `row` of the plan to line `i` of the batch."""
        segments = [segment for item in self.plan.row(row).tolist() for segment in self.segments(item, epoch)]
        at = 0
        for number, (tokens, is_target) in enumerate(segments, 1):
            end = at + len(tokens)
            batch["tokens"][i, at:end] = tokens
            batch["segment_ids"][i, at:end] = number
            batch["positions"][i, at:end] = np.arange(len(tokens))
            batch["target_mask"][i, at : end - 1] = is_target[1:]
            batch["targets"][i, at : end - 1] = np.where(is_target[1:], tokens[1:], 0)
            at = end


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays).astype(np.int64)
