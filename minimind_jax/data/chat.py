"""Lines that hold conversations or pairs: `minimind_jax.chat` reads them, and its errors become bad lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from minimind_jax.chat import ConversationError, ConversationRecord, PairRecord, read_conversation, read_pair
from minimind_jax.data.jsonl import DroppedLineError, LineError, parse_object

_Record = TypeVar("_Record")


def parse_conversation(line: bytes) -> ConversationRecord:
    """One line. Raises LineError for what is no JSON object, or what `read_conversation` refuses."""
    return _read(line, read_conversation)


def parse_pair(line: bytes) -> PairRecord:
    """One line. Raises LineError for what is no JSON object, or what `read_pair` refuses."""
    return _read(line, read_pair)


def as_line_error(error: ConversationError) -> LineError:
    """What is wrong with a conversation, as what is wrong with its line."""
    return (DroppedLineError if error.dropped else LineError)(str(error))


def _read(line: bytes, read: Callable[[Mapping[str, Any]], _Record]) -> _Record:
    record = parse_object(line)
    try:
        return read(record)
    except ConversationError as e:
        raise as_line_error(e) from None
