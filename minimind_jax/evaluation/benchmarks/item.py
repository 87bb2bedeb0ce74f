"""A multiple-choice question, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimind_jax.chat import ConversationError, conversation
from minimind_jax.chat.conversation import name_keys
from minimind_jax.data.chat import as_line_error
from minimind_jax.data.jsonl import LineError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class ChoiceItem:
    """A prompt, and the choices of which one is right.

    Attributes:
      id: from the file, or the record's number in it.
      choices: what is scored after the prompt; the texts themselves, or letters.
      gold: number of the right one, from 0.
      group: its subject, "" where there is none.
    """

    id: str
    prompt: str
    choices: tuple[str, ...]
    gold: int
    group: str = ""


def text_field(record: Mapping[str, Any], field: str, where: str = "", *, blank: bool = False) -> str:
    """A string field of a record, or of an object `where` in it. Raises LineError.

    Args:
      blank: it may be empty.
    """
    if field not in record:
        raise LineError(f"lacks `{where}{field}`, has {name_keys(record)}")
    return check_text(record[field], where + field, blank=blank)


def check_text(value: Any, name: str, *, blank: bool = False) -> str:
    """`value`, a string of whole characters; not empty unless it may be `blank`. Raises LineError."""
    if not isinstance(value, str):
        raise LineError(f"`{name}` is not a string")
    if not blank and not value.strip():
        raise LineError(f"`{name}` is empty")
    try:
        conversation.check_text(value, name)
    except ConversationError as e:
        raise as_line_error(e) from None
    return value


def texts_field(value: Any, name: str) -> tuple[str, ...]:
    """A list of 2 to 26 strings. Raises LineError."""
    if not isinstance(value, list):
        raise LineError(f"`{name}` is not a list of texts")
    if not 2 <= len(value) <= len(LETTERS):
        raise LineError(f"`{name}` has {len(value)} choices, not 2 to {len(LETTERS)} (one for each letter)")
    return tuple(check_text(text, f"{name}[{i}]") for i, text in enumerate(value))


def number_field(record: Mapping[str, Any], field: str, n: int, first: int = 0) -> int:
    """The right one of n choices, by its number (or its digits) counted from `first`; returned from 0.

    Raises LineError.
    """
    value = record.get(field)
    if value is None or (isinstance(value, str) and not value.strip()) or value in (-1, "-1"):
        raise no_answer(record, field)
    text = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not (text.isascii() and text.isdigit()) or not first <= int(text) < first + n:
        raise LineError(f"`{field}` is {value!r:.40}, not a number from {first} to {first + n - 1}")
    return int(text) - first


def label_field(record: Mapping[str, Any], field: str, labels: Sequence[str]) -> int:
    """The right choice by its label. Raises LineError."""
    value = record.get(field)
    if value is None or value == "":
        raise no_answer(record, field)
    if not isinstance(value, str) or value.strip() not in labels:
        raise LineError(f"`{field}` is {value!r:.40}, none of the labels {', '.join(labels)}")
    return list(labels).index(value.strip())


def no_answer(record: Mapping[str, Any], field: str) -> LineError:
    """The error of a record that lacks the field with its answer, or has nothing there."""
    value = record.get(field)
    what = f"`{field}` is {'empty' if value in (None, '') else repr(value)}"
    if field not in record:
        what = f"lacks `{field}`, has {name_keys(record)}"
    return LineError(f"{what}: without answers nothing can be scored, take a split that has them, such as validation")
