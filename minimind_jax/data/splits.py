"""From `config.data` to the documents that are trained on and those that are held out."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minimind_jax.config import DataConfig
from minimind_jax.data.build import open_store
from minimind_jax.data.encoders import Kind
from minimind_jax.data.jsonl import check_bad_lines, name_lines
from minimind_jax.data.sources import Source, parse_sources
from minimind_jax.data.store import FORMAT_VERSION, TokenStore
from minimind_jax.errors import UserError

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer


@dataclass(frozen=True)
class Part:
    """The documents that one store contributes, (n_docs,) indices in ascending order, each `weight` times an epoch."""

    store: TokenStore
    docs: np.ndarray
    weight: int = 1


def open_parts(data: DataConfig, tokenizer: Tokenizer, kind: Kind) -> tuple[list[Part], list[Part] | None]:
    """Opens, or first builds, the token stores of a stage. Skipped lines are reported on stderr.

    Args:
      data: files and split. `val_fraction` holds out each document whose hash falls below it: a growing or reordered
        file keeps its split, and copies of a text (for pairs: all pairs of a prompt) stay on one side.
      tokenizer: decides the tokens; loaded again from `tokenizer.path` by the processes that tokenise.
      kind: of the files' records.

    Returns:
      What is trained on, and what is held out, or None where the config holds nothing out.

    Raises:
      UserError: an unusable path, too many bad lines, a split that leaves a side without documents.
      OSError: the disk is full.
    """
    sources = parse_sources(data.path)
    val_sources = parse_sources(data.val_path, "data.val_path") if data.val_path else []
    for source in val_sources:
        if source.weight != 1:
            raise UserError(f"data.val_path: {source.path} has a weight; held-out text is read once, leave it out")
    stores = [_open(source, data, tokenizer, kind) for source in sources]
    if val_sources:
        val_stores = [_open(source, data, tokenizer, kind) for source in val_sources]
        val_parts = [Part(store, np.arange(store.meta.n_docs)) for store in val_stores]
    else:
        val_parts = [Part(store, np.flatnonzero(_held_out(store, data.val_fraction))) for store in stores]
    train_parts = [
        Part(store, np.flatnonzero(~_held_out(store, data.val_fraction)), source.weight)
        for store, source in zip(stores, sources, strict=True)
    ]
    _check_split(train_parts, val_parts, data)
    return train_parts, val_parts if data.val_path or data.val_fraction else None


def _open(source: Source, data: DataConfig, tokenizer: Tokenizer, kind: Kind) -> TokenStore:
    store = open_store(source.path, tokenizer, data.cache_dir, data.num_workers, kind)
    meta = store.meta
    bad = [line for line in meta.bad if not line.dropped]
    skipped = check_bad_lines(source.path, meta.n_records, meta.n_bad, bad, data.max_bad_share)
    if skipped:
        print(skipped, file=sys.stderr)
    if meta.n_dropped:
        named = name_lines(source.path, [line for line in meta.bad if line.dropped], meta.n_dropped)
        print(f"{source.path}: dropped {meta.n_dropped} of {meta.n_records} lines: {named}", file=sys.stderr)
    return store


def _held_out(store: TokenStore, fraction: float) -> np.ndarray:
    """(n_docs,) bool; a document's side depends on its text alone."""
    return store.doc_hash < np.uint64(int(fraction * 2**64))


def _check_split(train: Sequence[Part], val: Sequence[Part], data: DataConfig) -> None:
    n_train, n_val = (sum(len(part.docs) for part in parts) for parts in (train, val))
    if data.val_fraction and not (n_train and n_val):
        side = "validation" if n_train else "training"
        raise UserError(
            f"data.val_fraction={data.val_fraction:g} leaves no {side} document of the {n_train + n_val} in "
            f"{data.path}: change it, or hold out a file by data.val_path"
        )


def fingerprint(role: str, parts: Sequence[Part], data: DataConfig, options: dict[str, Any] | None = None) -> str:
    """Identifies what rows hold, independent of where the files lie. `options`: what else decides the rows."""
    content = {
        "version": FORMAT_VERSION,
        "role": role,
        "stores": [[part.store.meta.key, part.weight] for part in parts],
        "val_fraction": data.val_fraction,
        "seq_len": data.max_seq_len,
        **(options or {}),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
