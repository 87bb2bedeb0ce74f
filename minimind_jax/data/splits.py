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
from minimind_jax.data.encoders import TEXT_KINDS, Kind
from minimind_jax.data.jsonl import check_bad_lines, name_lines
from minimind_jax.data.sources import Source, parse_sources
from minimind_jax.data.store import FORMAT_VERSION, TokenStore
from minimind_jax.errors import UserError
from minimind_jax.files import unit

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
      data: files and split. `val_fraction` holds out each document whose hash falls below it, but at least one: a
        growing or reordered file keeps its split, and copies of a text (for pairs: all pairs of a prompt) stay on one
        side.
      tokenizer: decides the tokens; loaded again from `tokenizer.path` by the processes that tokenise.
      kind: of the files' records.

    Returns:
      What is trained on, and what is held out, or None where the config holds nothing out.

    Raises:
      UserError: an unusable path, too many bad lines, nothing to be held out.
      OSError: the disk is full.
    """
    sources = parse_sources(data.path)
    val_sources = parse_sources(data.val_path, "data.val_path") if data.val_path else []
    for source in val_sources:
        if source.weight != 1:
            raise UserError(f"data.val_path: {source.path} has a weight; held-out text is read once, leave it out")
    stores = [_open(source, data, tokenizer, kind) for source in sources]
    held_out = [_held_out(store, _threshold(stores, data.val_fraction)) for store in stores]
    if val_sources:
        val_stores = [_open(source, data, tokenizer, kind) for source in val_sources]
        val_parts = [Part(store, np.arange(store.meta.n_docs)) for store in val_stores]
    else:
        val_parts = [Part(store, np.flatnonzero(held)) for store, held in zip(stores, held_out, strict=True)]
    train_parts = [
        Part(store, np.flatnonzero(~held), source.weight)
        for store, held, source in zip(stores, held_out, sources, strict=True)
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
    if kind in TEXT_KINDS.values():
        for phrase, count in meta.notes.items():
            where = f"{count} of {meta.n_records} {unit(source.path)}s"
            print(f"{source.path}: {where}: {phrase} (data.marks={data.marks})", file=sys.stderr)
    if meta.n_dropped:
        named = name_lines(source.path, [line for line in meta.bad if line.dropped], meta.n_dropped)
        print(
            f"{source.path}: dropped {meta.n_dropped} of {meta.n_records} {unit(source.path)}s: {named}",
            file=sys.stderr,
        )
    return store


def _threshold(stores: Sequence[TokenStore], fraction: float) -> int:
    """Documents whose hash is below are held out. Of a few different ones that is at least one, and not all."""
    if not fraction:
        return 0
    smallest = min(int(store.doc_hash.min()) for store in stores)
    largest = max(int(store.doc_hash.max()) for store in stores)
    return min(max(int(fraction * 2**64), smallest + 1), largest)


def _held_out(store: TokenStore, threshold: int) -> np.ndarray:
    """(n_docs,) bool; a document's side depends on its text alone, but for the very few of `_threshold`."""
    return store.doc_hash < np.uint64(threshold)


def _check_split(train: Sequence[Part], val: Sequence[Part], data: DataConfig) -> None:
    n_train, n_val = (sum(len(part.docs) for part in parts) for parts in (train, val))
    if data.val_fraction and not (n_train and n_val):
        which = f"the {n_train + n_val} documents in {data.path} are all alike"
        if n_train + n_val == 1:
            which = f"{data.path} has a single document (in plain text, blank lines separate them)"
        raise UserError(
            f"data.val_fraction={data.val_fraction:g} has nothing to hold out, as {which}: set "
            "--config.data.val_fraction=0, or hold out a file by --config.data.val_path=FILE"
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
