"""Matched sets: k contexts and k continuations, of which each is right in exactly one of the contexts.

Whatever likes a continuation for its own sake (its words are common, it is short, it comes first) likes it in all
contexts of the set alike, and so is right in one of k: a model that does not read the context is at chance exactly,
by construction. The sets are made from the generator's families, of held-out operands, from a fixed seed: the same
on every machine.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import NamedTuple

from minimind_jax.data.generate import Family, Item
from minimind_jax.data.generate.item import Language

Draw = Callable[[Random, Language], "Drawn | None"]

_TRIES = 1000  # draws that a set may take on average; most take ten
_CLOSING = '。”".!,，'


class Drawn(NamedTuple):
    """A candidate: text `i` of `choices` continues text `i` of `contexts`; `shots` stand before each context."""

    contexts: Sequence[str]
    choices: Sequence[str]
    shots: str = ""


@dataclass(frozen=True)
class MatchedSet:
    """k contexts, k continuations: continuation i is right in context i."""

    id: str
    task: str
    language: Language
    shots: str  # solved examples, the same before each context; "" for none
    contexts: tuple[str, ...]
    choices: tuple[str, ...]


@dataclass(frozen=True)
class SetKind:
    """How the sets of one task are made.

    Attributes:
      name: of the task.
      draw: a candidate, or None where the draw came to nothing.
      sets: how many in each language.
      in_context: whether each continuation stands in its own context already, as an answer does in its story. In the
        other contexts none stands: what only repeats words would be misled.
    """

    name: str
    draw: Draw
    sets: int
    in_context: bool = False


def make_sets(kind: SetKind, language: Language, seed: int, most: int | None = None) -> list[MatchedSet]:
    """The sets of one task in one language, no two alike, or the first `most`; a pure function of its arguments."""
    wanted = kind.sets if most is None else min(most, kind.sets)
    rng = Random(zlib.crc32(f"{seed} {kind.name} {language}".encode()))
    made: dict[tuple[frozenset[str], frozenset[str]], MatchedSet] = {}
    for _ in range(_TRIES * wanted):
        drawn = kind.draw(rng, language)
        if drawn is None or not _is_fair(drawn, kind.in_context):
            continue
        key = frozenset(drawn.contexts), frozenset(drawn.choices)
        if key not in made:
            name = f"{kind.name}-{language}-{len(made) + 1:03d}"
            made[key] = MatchedSet(name, kind.name, language, drawn.shots, tuple(drawn.contexts), tuple(drawn.choices))
        if len(made) == wanted:
            return list(made.values())
    raise AssertionError(f"{kind.name} has fewer than {wanted} sets in {language}")


def digest(sets: Sequence[MatchedSet]) -> str:
    """SHA-256 of the texts, by which a version of a definition is recognised."""
    return hashlib.sha256(json.dumps([asdict(s) for s in sets], ensure_ascii=False).encode()).hexdigest()


def _is_fair(drawn: Drawn, in_context: bool) -> bool:
    """Whether contexts and choices differ, and each choice stands in its own context, or in none."""
    k, bare = len(drawn.contexts), [choice.strip(_CLOSING + " ") for choice in drawn.choices]
    if len(set(drawn.contexts)) < k or len(set(bare)) < k or not all(bare):
        return False
    for j, choice in enumerate(bare):
        found = [stands_in(choice, context) for context in drawn.contexts]
        if found != [in_context and i == j for i in range(k)]:
            return False
    return True


def stands_in(words: str, text: str) -> bool:
    """Whether the text has these words, not within longer words or numbers."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(words)}(?![A-Za-z0-9])", text) is not None


def open_end(item: Item) -> tuple[str, str] | None:
    """An item's statement before its answer, and the rest of it; None where the answer is not what it ends in.

    English continuations begin with the space, as lm-eval has them.
    """
    head, answer, tail = item.statement.rpartition(item.answer)
    if not answer or tail.strip(_CLOSING) or not head.strip():
        return None
    context = head.rstrip(" ")
    return context, head[len(context) :] + answer + tail


def solved(family: Family, language: Language, n: int, fits: Callable[[Item], bool], *key: object) -> list[Item]:
    """`n` training items that fit, always the same ones for a key: examples to be shown before the contexts."""
    rng = Random(zlib.crc32(repr((family.name, language, *key)).encode()))
    items: list[Item] = []
    while len(items) < n:
        item = family.sample(rng, "train", language)
        if fits(item) and item.answer not in [other.answer for other in items]:
            items.append(item)
    return items
