"""The one place that decides whether a reply answers a generated question."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from minimind_jax.data.generate.item import Item

_SPACES = re.compile(r"\s+")


def is_correct(reply: str, item: Item | Mapping[str, Any]) -> bool:
    """True if the reply is an accepted answer, apart from case, width, runs of spaces and punctuation around it.

    `item` is an `Item` or a record of questions.jsonl (its `gt` lists the accepted answers). The match is exact: a
    sentence that contains the answer among other words does not count, so "not 42" never passes for "42".
    """
    accepted = item.accepted if isinstance(item, Item) else item["gt"]
    return _bare(reply) in {_bare(answer) for answer in accepted}


def _bare(text: str) -> str:
    text = _SPACES.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    start, end = 0, len(text)
    # A sign that begins a number is part of the number.
    while start < end and _is_edge(text[start]) and not (text[start] == "-" and text[start + 1 : start + 2].isdigit()):
        start += 1
    while end > start and _is_edge(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_edge(char: str) -> bool:
    return char.isspace() or unicodedata.category(char).startswith("P")
