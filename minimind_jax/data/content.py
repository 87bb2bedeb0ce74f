"""What a file holds, independent of its name and place: a hash, and the line-aligned chunks it is computed over.

Both are of the lines that the file is read as (`files.open_lines`): data that is compressed keeps its identity.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from array import array
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from minimind_jax.data.progress import Progress
from minimind_jax.errors import UserError
from minimind_jax.files import MAX_LINE_BYTES, VERSION, open_lines

CHUNK_BYTES = 2**20
DIGEST_BYTES = 16
# A file that was written less than this ago may change once more without a new modification time.
RACY_NS = 100_000_000


@dataclass
class Content:
    """A file's chunks, 24 bytes each: where they end in its lines, and their digests; see `read_chunks`."""

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

    def digest(self, chunk: int) -> bytes:
        return bytes(self.digests[chunk * DIGEST_BYTES : (chunk + 1) * DIGEST_BYTES])


def scan(path: Path) -> Content:
    """Reads the whole file once, in bounded memory. Raises UserError where it cannot be read or is being written."""
    content = Content()
    with open_lines(path) as file:
        before = file.stat()
        progress = Progress(f"reading {path}", before.st_size)
        for _, digest, n_bytes in read_chunks(file):
            content.ends.append(content.n_bytes + n_bytes)
            content.digests += digest
            progress.update(file.position())
        progress.close()
        after = file.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise changed(path)
    return content


def read_again(path: Path, content: Content) -> Generator[bytes, None, None]:
    """The chunks of a file that was scanned, as `read_chunks` has them. Raises UserError where it is another now."""
    n = 0
    with open_lines(path) as file:
        for data, digest, _ in read_chunks(file):
            if digest != content.digest(n):
                raise changed(path)
            yield data
            n += 1
    if n < len(content):
        raise changed(path)


def read_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes, int]]:
    """Cuts jsonl into chunks of CHUNK_BYTES and up to the next line end.

    Yields:
      Each chunk, of a line that is too long only as much as shows that; the digest and the length of all of it.
    """
    while data := file.read(CHUNK_BYTES):
        digest, n_bytes, kept = hashlib.blake2b(data, digest_size=DIGEST_BYTES), len(data), [data]
        room = MAX_LINE_BYTES + len(b"\r\n")
        while not data.endswith(b"\n") and (data := file.readline(CHUNK_BYTES)):
            digest.update(data)
            n_bytes += len(data)
            if room >= 0:
                kept.append(data)
            room -= len(data)
        yield b"".join(kept), digest.digest(), n_bytes


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
    return {"path": os.path.realpath(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "lines": VERSION}
