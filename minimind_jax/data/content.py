"""What a file holds, independent of its name and place: a hash, and the line-aligned chunks it is computed over."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from minimind_jax.data.progress import Progress
from minimind_jax.errors import UserError

CHUNK_BYTES = 2**20
DIGEST_BYTES = 16
# A file that was written less than this ago may change once more without a new modification time.
RACY_NS = 100_000_000


@dataclass(frozen=True)
class Chunk:
    """Bytes [start, end) of a file, both at the start of a line (or the file's end), and their digest."""

    start: int
    end: int
    digest: bytes


@dataclass
class Content:
    """A file's chunks, 24 bytes each, of CHUNK_BYTES and up to the next line end."""

    ends: array[int] = field(default_factory=lambda: array("Q"))
    digests: bytearray = field(default_factory=bytearray)

    @property
    def hash(self) -> str:
        """Hash of the content: chunk borders follow from the bytes, so equal bytes give equal hashes."""
        return hashlib.sha256(bytes(self.digests)).hexdigest()

    @property
    def n_bytes(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[Chunk]:
        start = 0
        for i, end in enumerate(self.ends):
            yield Chunk(start, end, bytes(self.digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]))
            start = end


def new_digest() -> hashlib.blake2b:
    """The hash of one chunk."""
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


def scan(path: Path) -> Content:
    """Reads the whole file once, in bounded memory. Raises UserError where it cannot be read or is being written."""
    content = Content()
    try:
        with open(path, "rb") as file:
            before = os.fstat(file.fileno())
            progress = Progress(f"reading {path}", before.st_size)
            while piece := file.read(CHUNK_BYTES):
                digest = new_digest()
                digest.update(piece)
                while not piece.endswith(b"\n") and (piece := file.readline(CHUNK_BYTES)):
                    digest.update(piece)
                content.ends.append(file.tell())
                content.digests += digest.digest()
                progress.update(content.n_bytes)
            progress.close()
            after = os.fstat(file.fileno())
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or content.n_bytes != after.st_size:
        raise changed(path)
    return content


def changed(path: Path) -> UserError:
    """The error for a file that changes under our hands."""
    return UserError(f"{path} changed while it was being read: let its writer finish, then run the same command again")


# --- The remembered hash of an unchanged file ---------------------------------------------------


def remember_hash(path: Path, content_hash: str, before: os.stat_result, cache_dir: Path) -> None:
    """Notes the hash of a file whose `before` was taken before it was read, so that it need not be read again."""
    if time.time_ns() - before.st_mtime_ns < RACY_NS:
        return
    note = _note_path(path, cache_dir)
    note.parent.mkdir(parents=True, exist_ok=True)
    partial = note.with_name(f"{note.name}.{secrets.token_hex(8)}")
    try:
        partial.write_text(json.dumps({**_identity(path, before), "content_hash": content_hash}), "utf-8")
        os.replace(partial, note)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def recall_hash(path: Path, cache_dir: Path) -> str | None:
    """The remembered hash, where path, size and modification time are still the same."""
    try:
        note = json.loads(_note_path(path, cache_dir).read_text("utf-8"))
        identity = _identity(path, path.stat())
        if all(note[key] == value for key, value in identity.items()):
            return str(note["content_hash"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no note, or an unreadable one: the file is hashed anew
    return None


def _note_path(path: Path, cache_dir: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    return cache_dir / "content" / f"{name}.json"


def _identity(path: Path, stat: os.stat_result) -> dict[str, object]:
    return {"path": os.path.realpath(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
