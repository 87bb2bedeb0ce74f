"""Reading jsonl line by line in bounded memory; what is wrong with a line is a value, not an exception."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from minimind_jax.errors import UserError

MAX_LINE_BYTES = 16 * 2**20
N_REPORTED = 5  # bad lines that a message names
BOM = b"\xef\xbb\xbf"

Record = TypeVar("Record")


@dataclass(frozen=True)
class BadLine:
    """A line that is skipped: its number in the file (from 1), the reason, and whether it is well-formed for all that.

    `dropped` lines are counted and reported; they are no errors of the file, so `data.max_bad_share` is not for them.
    """

    line: int
    reason: str
    dropped: bool = False


class LineError(ValueError):
    """Raised by a record parser; its text is the reason that a `BadLine` reports."""


class DroppedLineError(LineError):
    """A well-formed record from which nothing can be learnt."""


def open_jsonl(path: Path) -> BinaryIO:
    """Opens a file for `read_records`. Raises UserError where that is not possible."""
    try:
        return open(path, "rb")
    except OSError as e:
        raise UserError(f"{path} cannot be read: {e.strerror}") from None


def parse_object(line: bytes) -> dict[str, object]:
    """One line as a JSON object. Raises LineError: not UTF-8, not JSON, not an object."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as e:
        raise LineError(f"not UTF-8 (byte {e.start + 1})") from None
    except json.JSONDecodeError as e:
        raise LineError(f"not JSON ({e.msg}, column {e.colno})") from None
    except RecursionError:
        raise LineError("not JSON (nested too deeply)") from None
    except ValueError:  # an integer of thousands of digits
        raise LineError("not JSON (a number is too long)") from None
    if not isinstance(value, dict):
        raise LineError(f"not a JSON object but {_json_type(value)}")
    return value


def parse_text(line: bytes) -> str:
    """The `text` of a pretraining record {"text": "..."}. Raises LineError."""
    record = parse_object(line)
    if "text" not in record:
        keys = ", ".join(f"`{k[:20]}`" for k in list(record)[:5]) or "no field at all"
        raise LineError(f"lacks `text`, has {keys}")
    text = record["text"]
    if not isinstance(text, str):
        raise LineError(f"`text` is not a string but {_json_type(text)}")
    if not text.strip():
        raise LineError("`text` is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise LineError("`text` has half of a \\u surrogate pair, which is no character") from None
    return text


def read_records(
    file: BinaryIO,
    n_bytes: int,
    parse: Callable[[bytes], Record],
    on_bytes: Callable[[bytes], object] = lambda piece: None,
) -> Iterator[tuple[int, Record | BadLine]]:
    """Yields (line number, record or what is wrong) for every line that is not blank.

    Reads exactly `n_bytes` from where `file` stands (fewer where the file ends), never more than one line's
    MAX_LINE_BYTES at once. LF and CRLF end a line; a byte order mark at offset 0 is skipped.

    Args:
      file: binary, at the start of a line. Line numbers count from 1 there.
      n_bytes: how far to read; the end of a line or of the file.
      parse: turns a line without its end into a record, or raises LineError.
      on_bytes: called with every piece read, in order (the caller's checksum).
    """
    at_start = file.tell() == 0
    number, left = 0, n_bytes
    limit = MAX_LINE_BYTES + len(b"\r\n")
    while left > 0 and (line := file.readline(min(limit, left))):
        number += 1
        left -= len(line)
        on_bytes(line)
        ended = line.endswith(b"\n")
        body = line[:-1].removesuffix(b"\r") if ended else line
        if at_start and number == 1:
            body = body.removeprefix(BOM)
        too_long = len(body) > MAX_LINE_BYTES
        while not ended and left > 0 and (piece := file.readline(min(2**20, left))):
            too_long = True
            left -= len(piece)
            on_bytes(piece)
            ended = piece.endswith(b"\n")
        if too_long:
            yield number, BadLine(number, f"longer than {MAX_LINE_BYTES >> 20} MiB")
        elif body.strip():
            try:
                yield number, parse(body)
            except LineError as e:
                yield number, as_bad_line(number, e)


def as_bad_line(number: int, error: LineError) -> BadLine:
    """What a parser's error says of line `number`."""
    return BadLine(number, str(error), isinstance(error, DroppedLineError))


def first_lines(lines: Sequence[BadLine], n: int) -> list[BadLine]:
    """The first n bad and the first n dropped lines, in the file's order: neither hides the other in messages."""
    ordered = sorted(lines, key=lambda line: line.line)  # some are found on reading, some later, on encoding
    kept = [[line for line in ordered if line.dropped == dropped][:n] for dropped in (False, True)]
    return sorted(kept[0] + kept[1], key=lambda line: line.line)


def read_jsonl(path: Path, parse: Callable[[bytes], Record]) -> Iterator[tuple[int, Record | BadLine]]:
    """`read_records` over a whole file. Raises UserError where it cannot be opened."""
    with open_jsonl(path) as file:
        yield from read_records(file, path.stat().st_size, parse)


def check_bad_lines(path: Path, n_lines: int, n_bad: int, first: list[BadLine], max_bad_share: float) -> str:
    """Applies `data.max_bad_share` to a file that was read.

    Args:
      path: the file, for messages.
      n_lines: lines that are not blank.
      n_bad: unusable ones among them.
      first: the first of these.
      max_bad_share: the share that is tolerated.

    Returns:
      A sentence on the lines that were skipped; "" where there are none.

    Raises:
      UserError: no usable line, or a share of bad lines above `max_bad_share`.
    """
    named = "; ".join(f"{path}:{bad.line}: {bad.reason}" for bad in first[:N_REPORTED])
    if n_bad > len(first[:N_REPORTED]):
        named += "; ..."
    if n_bad == n_lines:
        raise UserError(f"{path} has no usable line" + (f" ({named})" if n_bad else ""))
    if n_bad > max_bad_share * n_lines:
        raise UserError(
            f"{path}: {n_bad} of {n_lines} lines are unusable ({100 * n_bad / n_lines:.3g} %), more than "
            f"data.max_bad_share={max_bad_share:g} tolerates: {named}. Mend these lines or raise data.max_bad_share"
        )
    return f"{path}: skipped {n_bad} of {n_lines} lines as unusable: {named}" if n_bad else ""


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
