"""Reading jsonl line by line in bounded memory; what is wrong with a line is a value, not an exception."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from minimind_jax.errors import UserError
from minimind_jax.files import MAX_LINE_BYTES, locate, open_lines, unit

N_REPORTED = 5  # bad lines that a message names

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


def read_records(file: BinaryIO, parse: Callable[[bytes], Record]) -> Iterator[tuple[int, Record | BadLine]]:
    """Yields (line number, record or what is wrong) for every line that is not blank.

    Never holds more than one line's MAX_LINE_BYTES at once. LF and CRLF end a line.

    Args:
      file: binary, at the start of a line. Line numbers count from 1 there.
      parse: turns a line without its end into a record, or raises LineError.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + len(b"\r\n")):
        number += 1
        ended = line.endswith(b"\n")
        body = line[:-1].removesuffix(b"\r") if ended else line
        too_long = len(body) > MAX_LINE_BYTES
        while not ended and (piece := file.readline(2**20)):
            too_long = True
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
    """`read_records` over a whole file, of any form that `files` knows. Raises UserError as `files.open_lines`."""
    with open_lines(path) as file:
        yield from read_records(file, parse)


def name_lines(path: Path, lines: Sequence[BadLine], n: int) -> str:
    """The first of `n` lines for a message, each reason once: "a.jsonl:3 and 1 more: not JSON (...)"."""
    by_reason: dict[str, list[BadLine]] = {}
    for line in lines:
        by_reason.setdefault(line.reason.partition(" (")[0], []).append(line)
    named = []
    for alike in list(by_reason.values())[:N_REPORTED]:
        others = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
        named.append(f"{locate(path, alike[0].line)}{others}: {alike[0].reason}")
    return "; ".join(named) + ("; ..." if n > len(lines) or len(by_reason) > N_REPORTED else "")


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
    if not n_bad and n_lines:
        return ""
    named, name = name_lines(path, first, n_bad), unit(path)
    if n_bad == n_lines:
        raise UserError(f"{path} has no usable {name}" + (f" ({named})" if n_bad else ""))
    if n_bad > max_bad_share * n_lines:
        raise UserError(
            f"{path}: {n_bad} of {n_lines} {name}s are unusable ({100 * n_bad / n_lines:.3g} %), more than "
            f"data.max_bad_share={max_bad_share:g} tolerates: {named}. Mend these {name}s or raise data.max_bad_share"
        )
    return f"{path}: skipped {n_bad} of {n_lines} {name}s as unusable: {named}"


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
