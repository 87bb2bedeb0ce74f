"""From `config.data` to the rows of SFT: whole conversations, with MiniMind's two augmentations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minimind_jax.chat import EMPTY_THINK, TARGET, target_bytes
from minimind_jax.config import DataConfig, SftConfig, token_cache
from minimind_jax.data.packed import Documents, PackedRows, Segment, kept_lengths, report_fit
from minimind_jax.data.packing import VERSION, cached_best_fit
from minimind_jax.data.splits import Part, fingerprint, open_parts
from minimind_jax.data.system_prompts import SYSTEM_PROMPTS, SystemPrompts, encode_system_prompts

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

_AUGMENTATION = 2**32  # keeps its random stream apart from the one of the rows' order


class SftRows(PackedRows):
    """Conversations in rows of `seq_len` tokens.

    Which conversations an epoch augments is a pure function of (seed, epoch, conversation). The plan leaves room for
    the longest system prompt where one may come, so that it holds for every epoch.
    """

    def __init__(
        self,
        documents: Documents,
        kept: np.ndarray,
        seq_len: int,
        fingerprint: str,
        cache: Path,
        seed: int | None = None,
        options: SftConfig | None = None,
        prompts: SystemPrompts | None = None,
        n_bytes: int = 0,
    ) -> None:
        """`kept`: tokens that are used of each document, (n_docs,). Without `options` nothing is augmented."""
        self._documents = documents
        self._docs = np.flatnonzero(kept)
        self._kept = kept[self._docs]
        self._options, self._prompts = options, prompts
        self._takes_prompt = np.zeros(len(self._docs), bool)
        lengths = self._kept.copy()
        if prompts:
            fits = self._kept + prompts.max_len <= seq_len
            has_none = [not prompts.has_system(documents.read(d, prompts.header_len)[0]) for d in self._docs.tolist()]
            self._takes_prompt = fits & np.array(has_none, bool)
            lengths[self._takes_prompt] += prompts.max_len
        self._seed = seed or 0
        plan = cached_best_fit(lengths, seq_len, 0, cache)
        super().__init__(plan, lengths, seq_len, fingerprint, seed, n_bytes)
        self._draws = lru_cache(maxsize=2)(self._draw)

    def segments(self, item: int, epoch: int) -> list[Segment]:
        """The conversation `item` as `epoch` has it."""
        tokens, flags = self._documents.read(self._docs[item], self._kept[item])
        is_target = flags & TARGET > 0
        if self._options:
            draw = self._draws(epoch)[item]
            if draw[0] < self._options.empty_think_drop_prob:
                stays = flags & EMPTY_THINK == 0
                tokens, is_target = tokens[stays], is_target[stays]
            if self._prompts and self._takes_prompt[item] and draw[1] < self._options.system_prompt_prob:
                prompt = self._prompts.tokens[int(draw[2] * len(self._prompts.tokens))]
                tokens = np.concatenate([prompt, tokens])
                is_target = np.concatenate([np.zeros(len(prompt), bool), is_target])
        return [Segment(tokens, is_target)]

    def _draw(self, epoch: int) -> np.ndarray:
        """Uniform numbers in [0, 1) for each conversation, (n_docs, 3) float32."""
        key = np.array([self._seed, _AUGMENTATION + epoch], np.uint64)
        raw = np.random.Philox(key=key).random_raw(self.n_docs)
        parts = [(raw >> np.uint64(shift)) & np.uint64(2**21 - 1) for shift in (0, 21, 42)]
        return np.stack(parts, axis=1).astype(np.float32) / 2**21


def open_sft(data: DataConfig, options: SftConfig, tokenizer: Tokenizer, seed: int) -> tuple[SftRows, SftRows | None]:
    """Rows of training and of validation, which is never augmented. What does not fit a row is reported on stderr.

    Raises:
      UserError: as `open_parts`; no conversation that fits; a chat template that cannot take system prompts.
      OSError: the disk is full.
    """
    train, val = open_parts(data, tokenizer, "chat")
    prompts = encode_system_prompts(tokenizer) if options.system_prompt_prob else None
    cache = token_cache(data.cache_dir)
    fixed = {"truncate": data.truncate, "packing": VERSION}
    decides = fixed | dataclasses.asdict(options)
    if prompts:
        decides |= {"system_prompts": SYSTEM_PROMPTS}

    documents, kept = _fitting(train, data, held_out=False)
    identity = fingerprint("train", train, data, decides)
    train_rows = SftRows(documents, kept, data.max_seq_len, identity, cache, seed, options, prompts)
    if val is None:
        return train_rows, None
    documents, kept = _fitting(val, data, held_out=True)
    identity = fingerprint("val", val, data, fixed)
    n_bytes = _count_bytes(documents, kept, tokenizer)
    return train_rows, SftRows(documents, kept, data.max_seq_len, identity, cache, n_bytes=n_bytes)


def _fitting(parts: Sequence[Part], data: DataConfig, held_out: bool) -> tuple[Documents, np.ndarray]:
    documents = Documents(parts)
    kept = kept_lengths(documents, data.max_seq_len, data.truncate)
    n_cut, n_dropped = int(((kept < documents.lengths) & (kept > 0)).sum()), int((kept == 0).sum())
    report_fit(data, "conversations", "are longer than", held_out, documents, n_cut, n_dropped)
    return documents, kept


def _count_bytes(documents: Documents, kept: np.ndarray, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the text that is scored, without end tokens and the newlines after them."""
    whole = kept == documents.lengths
    total = int(documents.n_bytes[whole].sum())
    for doc in np.flatnonzero(~whole & (kept > 0)).tolist():
        tokens, flags = documents.read(doc, kept[doc])
        total += target_bytes(tokenizer, tokens.tolist(), flags & TARGET > 0)
    return total
