"""One way to read every form of file: as the lines of a jsonl file, streaming, in bounded memory."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from minimind_jax.errors import UserError
from minimind_jax.files.convert import MAX_LINE_BYTES, arrow_lines, json_lines, parquet_lines, text_lines
from minimind_jax.files.pieces import PIECE_BYTES, as_stream, decompressed, file_pieces
from minimind_jax.files.recognise import HEAD_BYTES, Form, compression_of, form_of_head

__all__ = ["MAX_LINE_BYTES", "VERSION", "Lines", "locate", "open_lines", "recognise", "unit"]

VERSION = 1  # of the lines that files of any form become: hashes of them are remembered
_BOM = b"\xef\xbb\xbf"


class Lines(io.BufferedReader):
    """The file as jsonl; closing it closes the file.

    Every record stands on a line of its own, so that line N is record N; only of jsonl and of plain text, line N of
    the file. Of a text that is line N where the document begins, and its other lines are blank.

    Attributes:
      form: what the file is.
    """

    def __init__(self, pieces: Iterator[bytes], form: Form, file: BinaryIO) -> None:
        super().__init__(as_stream(pieces), PIECE_BYTES)
        self.form = form
        self._file = file

    def stat(self) -> os.stat_result:
        """Of the file itself."""
        return os.fstat(self._file.fileno())

    def position(self) -> int:
        """How many bytes of the file itself were read, roughly: for showing progress."""
        return self._file.tell()

    def close(self) -> None:
        super().close()
        self._file.close()


def open_lines(path: Path) -> Lines:
    """Opens a file of any known form: jsonl, a JSON array, plain text, also in gzip or zstd; parquet, Arrow.

    The form follows from the content; only plain text is told by its name, .txt, as any file would be text.

    Raises:
      UserError: it cannot be opened, or is something else, with what to do about it. Reading raises it too, where
        the file turns out to be damaged or cut short.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed by Lines
    except OSError as e:
        raise _unreadable(path, e) from None
    try:
        return _open(path, file)
    except OSError as e:
        file.close()
        raise _unreadable(path, e) from None
    except BaseException:
        file.close()
        raise


def recognise(path: Path) -> Form:
    """A file's form. Raises UserError as `open_lines`."""
    with open_lines(path) as lines:
        return lines.form


def unit(path: Path) -> str:
    """What line numbers of `open_lines(path)` count: "line"s of the file, or "record"s."""
    try:
        return "line" if recognise(path).counts_lines else "record"
    except UserError:
        return "line"  # it went away or changed since: no reason to hide what was to be said


def locate(path: Path, line: int) -> str:
    """Where a line of `open_lines(path)` stands, for messages: "a.jsonl:3" or "a.parquet: record 3"."""
    return f"{path}:{line}" if unit(path) == "line" else f"{path}: record {line}"


def _open(path: Path, file: BinaryIO) -> Lines:
    start = file.read(HEAD_BYTES)
    file.seek(0)
    compression = compression_of(start)
    pieces = decompressed(path, file, compression) if compression else file_pieces(path, file)
    head, pieces = _peek(pieces)
    form = form_of_head(path, head, compression)
    if form.kind == "parquet":
        lines = parquet_lines(path, file)
    elif form.kind == "arrow":
        lines = arrow_lines(path, file)
    elif form.kind == "text":
        lines = text_lines(pieces)
    elif form.kind == "jsonl":
        lines = pieces
    else:
        lines = json_lines(path, pieces)
    if form.kind in ("parquet", "arrow"):
        file.seek(0)
    return Lines(lines, form, file)


def _peek(pieces: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The beginning, and everything with the beginning; a byte order mark is left out."""
    head = b""
    while len(head) < HEAD_BYTES and (piece := next(pieces, b"")):
        head += piece
    head = head.removeprefix(_BOM)
    return head[:HEAD_BYTES], chain([head], pieces)


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read: {error.strerror or error}")
