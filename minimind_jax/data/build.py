"""Building a token store: streaming, in worker processes, atomic, safe under concurrent builders."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minimind_jax.config import token_cache
from minimind_jax.data.content import Content, read_again, recall_hash, remember_hash, scan
from minimind_jax.data.encoders import TEXT_KINDS, Kind
from minimind_jax.data.jsonl import BadLine, check_bad_lines, first_lines
from minimind_jax.data.progress import Progress
from minimind_jax.data.store import META_NAME, CorruptStoreError, StoreMeta, TokenStore, store_key
from minimind_jax.data.worker import MAX_BAD_KEPT, tokenize_chunks
from minimind_jax.errors import UserError
from minimind_jax.files import recognise

if TYPE_CHECKING:
    from minimind_jax.tokenizer import Tokenizer

MAX_NOTES = 50  # different ones that are kept, the commonest
# Below this, starting processes takes longer than tokenising.
MIN_BYTES_FOR_WORKERS = 4 * 2**20


def open_store(
    path: Path, tokenizer: Tokenizer, cache_dir: str = "", num_workers: int = 0, kind: Kind = "text"
) -> TokenStore:
    """The token store of a file, built where it is not there yet.

    A second call for an unchanged file only looks at its size and time and opens the store. Building reads the file
    twice, to identify it and to tokenise it, and needs about 40 MB of anonymous memory for itself and for each worker
    process, whatever the file's size (of parquet 40 MB more). A single long document takes about 120 bytes per byte
    while it is encoded: 2 GB for the longest, of 16 MiB.

    Args:
      path: a file of any form that `files` knows.
      tokenizer: for more than one worker it must be loadable from `tokenizer.path`.
      cache_dir: where stores live; "" = ~/.cache/minimind_jax/tokens.
      num_workers: processes that tokenise; 0 = one per CPU core.
      kind: of the records.

    Raises:
      UserError: the file or the cache directory cannot be used, the file changes meanwhile, or is plain text where
        conversations are wanted.
      OSError: ENOSPC, the disk is full; nothing of the store is left.
    """
    cache = token_cache(cache_dir)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        known = recall_hash(path, cache)
        store = _open_existing(cache / store_key(known, tokenizer, kind)) if known else None
        return store or _scan_and_build(path, tokenizer, cache, num_workers, kind)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            # write() and fsync() do not say which file; the user needs to know which disk.
            raise OSError(e.errno, e.strerror, str(cache)) from e
        if isinstance(e, PermissionError | NotADirectoryError | FileExistsError) or e.errno == errno.EROFS:
            raise UserError(
                f"data.cache_dir: {cache} cannot be used ({e.strerror}): name a directory that you can write to"
            ) from e
        raise


def _scan_and_build(path: Path, tokenizer: Tokenizer, cache: Path, num_workers: int, kind: Kind) -> TokenStore:
    try:
        stat = path.stat()
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None
    if kind not in TEXT_KINDS.values() and recognise(path).kind == "text":
        raise UserError(f"{path} is plain text, which has no conversations: train on it in stage pretrain")
    content = scan(path)
    remember_hash(path, content.hash, stat, cache)
    target = cache / store_key(content.hash, tokenizer, kind)
    with _locked(cache, target.name, path) as locked:
        store = _open_existing(target)  # another process may have built it while we waited
        if store is None:
            _remove_rubbish(cache, target.name if locked else None)
            _build(path, content, tokenizer, target, _count_workers(num_workers, content), kind)
            store = TokenStore.open(target)
    return store


def _open_existing(path: Path) -> TokenStore | None:
    try:
        return TokenStore.open(path)
    except FileNotFoundError:
        return None
    except CorruptStoreError as e:
        print(f"the token store is damaged and is built anew ({e})", file=sys.stderr)
        return None


def _count_workers(num_workers: int, content: Content) -> int:
    if content.n_bytes < MIN_BYTES_FOR_WORKERS:
        return 0
    # The affinity mask is smaller than the machine under Slurm and in containers; not every system has one.
    wanted = num_workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return 0 if wanted == 1 else min(wanted, len(content))


def _build(path: Path, content: Content, tokenizer: Tokenizer, target: Path, num_workers: int, kind: Kind) -> None:
    temporary = _temporary(target)
    temporary.mkdir()
    try:
        meta = _write_arrays(path, content, tokenizer, temporary, target.name, num_workers, kind)
        with open(temporary / META_NAME, "w", encoding="utf-8") as file:
            file.write(meta.to_json())
            file.flush()
            os.fsync(file.fileno())
        _sync_dir(temporary)
        _publish(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_arrays(
    path: Path, content: Content, tokenizer: Tokenizer, directory: Path, key: str, num_workers: int, kind: Kind
) -> StoreMeta:
    n_lines = n_records = n_bad = n_dropped = n_docs = n_tokens = 0
    bad: list[BadLine] = []
    notes: Counter[str] = Counter()
    progress = Progress(f"tokenising {path}", content.n_bytes)
    with ExitStack() as stack:
        names = ("tokens", "flags", "offsets", "n_bytes", "doc_hash")
        tokens, flags, offsets, n_bytes, doc_hash = (
            stack.enter_context(open(directory / f"{name}.bin", "wb")) for name in names
        )
        offsets.write(np.zeros(1, np.uint64).tobytes())
        chunks = stack.enter_context(closing(read_again(path, content)))
        parts = stack.enter_context(closing(tokenize_chunks(path, chunks, tokenizer, num_workers, kind)))
        for end, part in zip(content.ends, parts, strict=True):
            tokens.write(part.tokens.data)
            flags.write(part.flags.data)
            offsets.write((n_tokens + np.cumsum(part.lengths, dtype=np.uint64)).data)
            n_bytes.write(part.n_bytes.data)
            doc_hash.write(part.doc_hash.data)
            bad += [dataclasses.replace(b, line=n_lines + b.line) for b in part.bad]
            bad = first_lines(bad, MAX_BAD_KEPT)
            notes += part.notes
            if len(notes) > 100 * MAX_NOTES:  # each record has another one: do not keep them all until the end
                notes = Counter(dict(notes.most_common(50 * MAX_NOTES)))
            n_lines += part.n_lines
            n_records += part.n_records
            n_bad += part.n_bad
            n_dropped += part.n_dropped
            n_docs += len(part.lengths)
            n_tokens += len(part.tokens)
            progress.update(end, n_tokens)
        for file in (tokens, flags, offsets, n_bytes, doc_hash):
            file.flush()
            os.fsync(file.fileno())
    progress.close(n_tokens)
    if not n_docs:
        check_bad_lines(path, n_records, n_bad + n_dropped, bad, max_bad_share=1.0)  # raises
    return StoreMeta(
        key=key,
        kind=kind,
        content_hash=content.hash,
        tokenizer=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        n_docs=n_docs,
        n_tokens=n_tokens,
        n_records=n_records,
        n_bad=n_bad,
        n_dropped=n_dropped,
        bad=tuple(bad),
        notes=dict(notes.most_common(MAX_NOTES)),
    )


def _publish(temporary: Path, target: Path) -> None:
    """Renames the finished store into place; a damaged one that is there moves out of the way first."""
    if target.exists():
        try:
            TokenStore.open(target)
            return  # only where locks do not work: another builder was faster, and its store is as good
        except CorruptStoreError:
            grave = _temporary(target)
            os.rename(target, grave)
            shutil.rmtree(grave, ignore_errors=True)
    try:
        os.rename(temporary, target)
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    _sync_dir(target.parent)


# --- Locks and rubbish --------------------------------------------------------------------------


@contextmanager
def _locked(cache: Path, key: str, path: Path) -> Iterator[bool]:
    """Holds the key's lock; the kernel releases it when the process ends, however that happens.

    Yields False on a file system that has no locks: two builders then do the same work twice, and the renames keep
    the result whole.
    """
    with open(cache / f"{key}.lock", "ab") as file:
        try:
            if not _try_lock(file.fileno()):
                print(f"waiting for another process that tokenises {path}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except OSError:
            locked = False
        yield locked


def _try_lock(fd: int) -> bool:
    """False where somebody else holds it. Raises OSError where the file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_rubbish(cache: Path, own_key: str | None) -> None:
    """Removes what killed builders left: temporary directories of our own key, and of keys whose lock is free.

    Args:
      cache: the cache directory.
      own_key: the key whose lock we hold; None where there are no locks, and so no telling who is alive.
    """
    for temporary in cache.glob("*.tmp-*") if own_key else ():
        key = temporary.name.partition(".tmp-")[0]
        with open(cache / f"{key}.lock", "ab") as lock:
            if key == own_key or _try_lock(lock.fileno()):
                shutil.rmtree(temporary, ignore_errors=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f"{target.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
