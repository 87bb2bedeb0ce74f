"""The token store: a file tokenised once, as memory-mapped arrays in a directory of the cache.

    <cache_dir>/<key>/       tokens.bin offsets.bin n_bytes.bin doc_hash.bin meta.json; of conversations also flags.bin
    <cache_dir>/<key>.lock   held by the process that builds the store
    <cache_dir>/<key>.tmp-*  a store that is being built; without a holder of the lock it is rubbish
    <cache_dir>/content/     remembered content hashes of files

The key is a hash of the file's content, the tokenizer, the record format and the format's version: two copies of a
file share a store, a changed file gets a new one. A store appears by one rename, complete or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minimind_jax.data.encoders import RECORD_FORMATS, TEXT_KINDS, Kind
from minimind_jax.data.jsonl import BadLine

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

FORMAT_VERSION = 4
META_NAME = "meta.json"


class CorruptStoreError(Exception):
    """A store that is there, but not whole."""


@dataclass(frozen=True)
class StoreMeta:
    """What `meta.json` says.

    Attributes:
      key: the store's name, and its identity.
      kind: of its records.
      content_hash: hash of the lines that the file is read as.
      tokenizer: the tokenizer's fingerprint.
      vocab_size: of that tokenizer; decides the type of `tokens`.
      n_docs, n_tokens: documents (two for each pair), and their tokens.
      n_records: lines (records) of the file that are not blank.
      n_bad, n_dropped: unusable lines among them, and well-formed ones that teach nothing.
      bad: the first of these.
      notes: what was noticed about records, and of how many; the commonest first.
    """

    key: str
    kind: Kind
    content_hash: str
    tokenizer: str
    vocab_size: int
    n_docs: int
    n_tokens: int
    n_records: int
    n_bad: int
    n_dropped: int
    bad: tuple[BadLine, ...]
    notes: dict[str, int]
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> StoreMeta:
        """Raises ValueError, KeyError or TypeError on anything but what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, "bad": tuple(BadLine(**bad) for bad in values["bad"])})


@dataclass(frozen=True, eq=False)
class TokenStore:
    """A tokenised file; the arrays are memory-mapped and read-only.

    Attributes:
      tokens: (n_tokens,) uint16 while the vocabulary fits, else uint32; see `encoders` for what a document is.
      flags: (n_tokens,) uint8, bits of `chat`; (0,) for texts, whose tokens are all targets.
      offsets: (n_docs + 1,) uint64; document d is tokens[offsets[d] : offsets[d + 1]].
      n_bytes: (n_docs,) uint32, UTF-8 bytes of the text that is learnt of each.
      doc_hash: (n_docs,) uint64, decides on which side of a split a document is.
    """

    path: Path
    meta: StoreMeta
    tokens: np.ndarray
    flags: np.ndarray
    offsets: np.ndarray
    n_bytes: np.ndarray
    doc_hash: np.ndarray

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Opens a store; of its arrays only the offsets are read.

        Raises:
          FileNotFoundError: no such directory.
          CorruptStoreError: a file is missing, cut short or contradicts the meta data.
        """
        if not path.is_dir():
            raise FileNotFoundError(path)
        try:
            meta = StoreMeta.from_json((path / META_NAME).read_text("utf-8"))
            arrays = {name: _map(path / f"{name}.bin", dtype, n) for name, (dtype, n) in _layout(meta).items()}
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise CorruptStoreError(f"{path}: {e}") from e
        if meta.key != path.name or meta.format_version != FORMAT_VERSION:
            raise CorruptStoreError(f"{path}: belongs to another store")
        offsets = arrays["offsets"]
        if offsets[0] != 0 or offsets[-1] != meta.n_tokens or (offsets[1:] < offsets[:-1]).any():
            raise CorruptStoreError(f"{path}: offsets do not fit the tokens")
        return cls(path=path, meta=meta, **arrays)


def format_of(kind: Kind) -> str:
    """What this version makes of records of a kind. A run's identity has it: another version's store is another one."""
    return f"{FORMAT_VERSION}; {RECORD_FORMATS[kind]}"


def store_key(content_hash: str, tokenizer: Tokenizer, kind: Kind) -> str:
    """The name of a store."""
    parts = [format_of(kind), content_hash, tokenizer.fingerprint]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest stored type that holds every token id."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def _layout(meta: StoreMeta) -> dict[str, tuple[np.dtype, int]]:
    return {
        "tokens": (token_dtype(meta.vocab_size), meta.n_tokens),
        "flags": (np.dtype(np.uint8), 0 if meta.kind in TEXT_KINDS.values() else meta.n_tokens),
        "offsets": (np.dtype(np.uint64), meta.n_docs + 1),
        "n_bytes": (np.dtype(np.uint32), meta.n_docs),
        "doc_hash": (np.dtype(np.uint64), meta.n_docs),
    }


def _map(path: Path, dtype: np.dtype, n: int) -> np.ndarray:
    if not n:
        return np.zeros(0, dtype)  # nothing to map
    size = path.stat().st_size
    if size != n * dtype.itemsize:
        raise ValueError(f"{path.name} has {size} bytes instead of {n * dtype.itemsize}")
    # A plain view: np.memmap's own indexing is several times slower.
    return np.asarray(np.memmap(path, dtype, mode="r", shape=(n,)))
