"""Records of other forms as the lines of a jsonl file, streaming."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from minimind_jax.errors import UserError, first_line
from minimind_jax.files.pieces import PIECE_BYTES, as_stream

MAX_LINE_BYTES = 16 * 2**20  # a longer line is unusable, and never in memory as a whole
_ROWS = 64  # of a table that are converted together: also rows of a MB each must not fill the memory
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # Arrow's
_SPACE = re.compile(r"[ \t\r\n]*")
_WIDE_SPACE = "\u3000".encode()


def text_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Documents, each up to a blank line, as {"text": ...} on the line where they begin; the other lines are blank.

    A line that is no UTF-8 stands for its document, as it is, so that whoever reads it names that line. A document of
    more than MAX_LINE_BYTES becomes a line that is too long as well.
    """
    stream = io.BufferedReader(as_stream(pieces), PIECE_BYTES)
    document: list[bytes] = []
    n_bytes = n_lines = 0  # of the document, also of what was let go of
    while line := stream.readline(MAX_LINE_BYTES):
        if line.replace(_WIDE_SPACE, b"").strip():
            document.append(line)
            n_bytes += len(line)
            n_lines += line.endswith(b"\n")
            if n_bytes > MAX_LINE_BYTES:
                yield b"".join(document).replace(b"\n", b" ")
                document = []
            continue
        if n_bytes:
            yield _text_record(document, n_lines)
            document, n_bytes, n_lines = [], 0, 0
        yield b"\n"
    if n_bytes:
        yield _text_record(document, n_lines)


def _text_record(document: list[bytes], n_lines: int) -> bytes:
    """The record, or the first line that is no UTF-8 in its place, with `n_lines` line ends."""
    for number, line in enumerate(document):
        try:
            line.decode()
        except UnicodeDecodeError:
            return b"\n" * number + line.rstrip(b"\r\n") + b"\n" * (n_lines - number)
    if not document:
        return b"\n" * n_lines
    text = b"".join(document).decode().replace("\r\n", "\n").strip("\n")
    return json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" * n_lines


def json_lines(path: Path, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The elements of a JSON array, or JSON values one after another, each on a line of its own.

    Raises:
      UserError: what follows is no JSON, or the end is missing. Unlike a bad line of jsonl it cannot be skipped, as
        nobody knows where it ends.
    """
    reader = _JsonText(path, pieces)
    if not reader.take("["):
        while reader.next_character():
            yield reader.line()
        return
    if not reader.take("]"):
        yield reader.line()
        while reader.take(","):
            yield reader.line()
        if not reader.take("]"):
            raise reader.damaged("after it neither a comma nor the array's end")
    if reader.next_character():
        raise UserError(
            f"{path} goes on after the end of its JSON array: write one array of all records, or one record a line"
        )


class _JsonText:
    """A window on JSON text: what is left to read of it begins at `at`."""

    def __init__(self, path: Path, pieces: Iterator[bytes]) -> None:
        self._path, self._pieces = path, pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        # Numbers need not be understood here: those of thousands of digits would be an error.
        self._decode = json.JSONDecoder(parse_int=len, parse_float=len).raw_decode
        self._window, self.at = "", 0
        self._number = 0  # of the value that was begun last

    def next_character(self) -> str:
        """The next one that is no white space; "" at the end."""
        while True:
            self.at = _skip(self._window, self.at)
            if self.at < len(self._window):
                return self._window[self.at]
            if not self._more():
                return ""

    def take(self, character: str) -> bool:
        """Goes past `character` where it is the next one."""
        found = self.next_character() == character
        self.at += found
        return found

    def line(self) -> bytes:
        """The next value on a line of its own."""
        self.next_character()
        self._number += 1
        while True:
            try:
                _, end = self._decode(self._window, self.at)
                if end < len(self._window) or not self._more():  # digits at the window's end may go on
                    text, self.at = self._window[self.at : end], end
                    return text.replace("\n", " ").replace("\r", " ").encode() + b"\n"
            except (json.JSONDecodeError, RecursionError) as e:
                # At first the window ends too early. What is still wrong with this much more is wrong by itself.
                if len(self._window) - self.at > MAX_LINE_BYTES or not self._more():
                    reason = e.msg if isinstance(e, json.JSONDecodeError) else "nested too deeply"
                    raise self.damaged(reason) from None

    def damaged(self, reason: str) -> UserError:
        return UserError(
            f"{self._path}: its JSON cannot be read at record {max(self._number, 1)} ({reason}): the file is damaged "
            "or cut short, download or write it again"
        )

    def _more(self) -> bool:
        piece = next(self._pieces, None)
        try:
            text = self._decoder.decode(piece or b"", final=piece is None)
        except UnicodeDecodeError:
            raise self.damaged("not UTF-8") from None
        self._window, self.at = self._window[self.at :] + text, 0
        return piece is not None


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def parquet_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The rows of a parquet file as objects by column. Raises UserError where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Without a buffer, columns of whole row groups would come into memory, which may be the whole file.
        table = pq.ParquetFile(file, buffer_size=PIECE_BYTES, pre_buffer=False)
        for batch in table.iter_batches(batch_size=_ROWS, use_threads=False):
            yield _rows(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise _damaged(path, "parquet", e) from None


def arrow_lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The rows of an Arrow file or stream (what `datasets` saves). Raises UserError where it cannot be read."""
    import pyarrow as pa

    try:
        is_file = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file:
            table = pa.ipc.open_file(file)
            batches = (table.get_batch(i) for i in range(table.num_record_batches))
        else:
            # The library takes the end of the file for the end of the stream.
            file.seek(-len(_END_OF_STREAM), 2)
            if file.read() != _END_OF_STREAM:
                raise UserError(f"{path} is cut short: its Arrow stream has no end; download or write it again")
            file.seek(0)
            batches = iter(pa.ipc.open_stream(file))
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                yield _rows(batch.slice(start, _ROWS))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise _damaged(path, "Arrow", e) from None


def _rows(batch: Any) -> bytes:
    rows = [{key: _without_nulls(value) for key, value in row.items()} for row in batch.to_pylist()]
    return b"".join(json.dumps(row, ensure_ascii=False, default=_as_json).encode() + b"\n" for row in rows)


def _without_nulls(value: Any) -> Any:
    """Structs without their null fields: all rows of a table have the fields of each, and nobody wrote these."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _as_json(value: Any) -> str:
    """Of types that JSON lacks, which no record of ours has, but columns beside them may."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"{len(value)} bytes"
    return str(value)


def _damaged(path: Path, form: str, error: Exception) -> UserError:
    reason = "text that is not UTF-8" if isinstance(error, UnicodeDecodeError) else first_line(error)
    return UserError(f"{path} is a damaged or incomplete {form} file ({reason}): download or write it again")
