"""Bytes of a file piece by piece, decompressed where need be; and pieces as a stream."""

from __future__ import annotations

import gzip
import io
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from minimind_jax.errors import UserError, first_line

PIECE_BYTES = 2**20


def file_pieces(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file. Raises UserError where reading fails."""
    try:
        while piece := file.read(PIECE_BYTES):
            yield piece
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None


def decompressed(path: Path, file: BinaryIO, compression: str) -> Iterator[bytes]:
    """What `file` holds in gzip or zstd, all members or frames of it.

    Raises:
      UserError: on reading, where it is damaged or ends before its end mark: never is it silently shorter.
    """
    return _gunzip(path, file) if compression == "gzip" else _unzstd(path, file)


def _gunzip(path: Path, file: BinaryIO) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece
    except EOFError:
        raise _cut_short(path, "gzip") from None
    except (OSError, zlib.error) as e:
        raise _damaged(path, "gzip", e) from None


def _unzstd(path: Path, file: BinaryIO) -> Iterator[bytes]:
    import pyarrow as pa  # only where it is needed: it takes a moment to load

    try:
        with pa.CompressedInputStream(pa.PythonFile(_Unclosed(file), mode="r"), "zstd") as stream:
            while piece := stream.read(PIECE_BYTES):
                yield piece
    except (OSError, pa.ArrowException) as e:
        if "Truncated" in str(e):
            raise _cut_short(path, "zstd") from None
        if "too much memory" in str(e):  # made by zstd --long, and unpacked by the same option only
            new = path.with_name(f"{path.stem}.unpacked.jsonl")
            raise UserError(
                f"{path} is compressed with a longer window than zstd unpacks by itself: unpack it by "
                f"`zstd --long=31 -dc {shlex.quote(str(path))} > {shlex.quote(str(new))}`"
            ) from None
        raise _damaged(path, "zstd", e) from None


def as_stream(pieces: Iterator[bytes]) -> io.RawIOBase:
    """Pieces as a raw stream, to be buffered. What `pieces` raises comes out of reading."""
    return _Pieces(pieces)


class _Pieces(io.RawIOBase):
    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(piece)
        n = min(len(buffer), len(self._rest))
        buffer[:n], self._rest = self._rest[:n], self._rest[n:]
        return n


class _Unclosed:
    """A file that the library cannot close: whoever opened it still asks for its size."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read

    def close(self) -> None:
        pass


def _cut_short(path: Path, compression: str) -> UserError:
    return UserError(f"{path} is cut short: its {compression} data has no end; download or write it again")


def _damaged(path: Path, compression: str, error: Exception) -> UserError:
    return UserError(f"{path} is damaged {compression} data ({first_line(error)}): download or write it again")
