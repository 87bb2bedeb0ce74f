"""From `config.data` to the rows of DPO: whole pairs, the two sides next to each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minimind_jax.chat import TARGET
from minimind_jax.config import DataConfig, token_cache
from minimind_jax.data.packed import Documents, PackedRows, Segment, kept_lengths, report_fit
from minimind_jax.data.packing import VERSION, cached_best_fit
from minimind_jax.data.rows import Batch, empty_batch
from minimind_jax.data.splits import Part, fingerprint, open_parts

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

MAX_PAIRS = 32  # of a row: the shape of what is computed for each pair


class PairRows(PackedRows):
    """Pairs in rows of 2 * max_seq_len tokens: segment 2p + 1 is the chosen, 2p + 2 the rejected side of pair p.

    Attributes:
      reference: (n_rows, MAX_PAIRS, 2) float32, log-probabilities of both answers under the reference, by row of the
        plan; None while there are none.
    """

    def __init__(
        self, documents: Documents, kept: np.ndarray, max_seq_len: int, fingerprint: str, cache: Path, seed: int | None
    ) -> None:
        """`kept`: tokens that are used of each document, (n_docs,); a pair is documents 2p and 2p + 1."""
        self._documents, self._kept = documents, kept.reshape(-1, 2)
        self._pairs = np.flatnonzero(self._kept.all(axis=1))
        lengths = self._kept[self._pairs].sum(axis=1)
        self.reference: np.ndarray | None = None
        plan = cached_best_fit(lengths, 2 * max_seq_len, MAX_PAIRS, cache)
        super().__init__(plan, lengths, 2 * max_seq_len, fingerprint, seed, n_bytes=0)

    def segments(self, item: int, epoch: int) -> list[Segment]:
        pair = self._pairs[item]
        sides = (self._documents.read(2 * pair + side, self._kept[pair, side]) for side in (0, 1))
        return [Segment(tokens, flags & TARGET > 0) for tokens, flags in sides]

    def empty(self, n: int) -> Batch:
        """Empty rows, with two more arrays: pair_mask (n, MAX_PAIRS) bool, ref_logps (n, MAX_PAIRS, 2) float32."""
        return empty_batch(n, self.seq_len) | {
            "pair_mask": np.zeros((n, MAX_PAIRS), bool),
            "ref_logps": np.zeros((n, MAX_PAIRS, 2), np.float32),
        }

    def plan_batch(self, rows: np.ndarray) -> Batch:
        """Rows (n,) by their number in the plan, whatever the epoch's order; -1 gives an empty row."""
        batch = self.empty(len(rows))
        for i, row in enumerate(rows.tolist()):
            if row >= 0:
                self._fill(batch, i, 0, row)
        return batch

    def prompts(self, n: int, max_len: int) -> list[list[int]]:
        """Up to n prompts of at most `max_len` tokens, evenly spread over the pairs: ids up to the answers."""
        found = []
        for pair in self._pairs.tolist():
            tokens, flags = self._documents.read(2 * pair, self._kept[pair, 0])
            length = int(np.argmax(flags & TARGET > 0))
            if length <= max_len:
                found.append(tokens[:length])
        if not found:
            return []
        return [found[i].tolist() for i in np.unique(np.linspace(0, len(found) - 1, n).round().astype(int))]

    def _fill(self, batch: Batch, i: int, epoch: int, row: int) -> None:
        super()._fill(batch, i, epoch, row)
        batch["pair_mask"][i, : len(self.plan.row(row))] = True
        if self.reference is not None:
            batch["ref_logps"][i] = self.reference[row]


def open_dpo(data: DataConfig, tokenizer: Tokenizer, seed: int) -> tuple[PairRows, PairRows | None]:
    """Rows of training and of validation. Pairs that do not fit are reported on stderr.

    Raises:
      UserError: as `open_parts`; no pair that fits.
      OSError: the disk is full.
    """
    train, val = open_parts(data, tokenizer, "pairs")
    cache = token_cache(data.cache_dir)
    decides = {"truncate": data.truncate, "packing": VERSION}

    def rows(role: str, parts: Sequence[Part], order: int | None) -> PairRows:
        documents, kept = _fitting(parts, data, held_out=role == "val")
        return PairRows(documents, kept, data.max_seq_len, fingerprint(role, parts, data, decides), cache, order)

    return rows("train", train, seed), rows("val", val, None) if val is not None else None


def _fitting(parts: Sequence[Part], data: DataConfig, held_out: bool) -> tuple[Documents, np.ndarray]:
    # Cut back to a whole turn, a side would have lost its answer: here "turn" means "drop".
    documents = Documents(parts)
    kept = kept_lengths(documents, data.max_seq_len, data.truncate)
    sides, lengths = kept.reshape(-1, 2), documents.lengths.reshape(-1, 2)
    whole = sides.all(axis=1)
    n_cut, n_dropped = int((whole & (sides < lengths).any(axis=1)).sum()), int((~whole).sum())
    report_fit(data, "pairs", "have a side longer than", held_out, documents, n_cut, n_dropped, sides=2)
    return documents, kept
