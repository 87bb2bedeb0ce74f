"""What a family of questions is, how its operands are split, and the few random helpers that all families share."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, NamedTuple, TypeVar

Language = Literal["zh", "en"]
Split = Literal["train", "val"]
Operands = tuple[Any, ...]
T = TypeVar("T")

LANGUAGES: tuple[Language, ...] = ("zh", "en")
HELD_OUT_ONE_IN = 5


class Text(NamedTuple):
    """A family's operands in words: `wrong` is a plausible wrong answer, `also` what is accepted beside `answer`."""

    question: str
    answer: str
    statement: str
    wrong: str
    also: tuple[str, ...] = ()


class Item(NamedTuple):
    """One question with its verifiable answer; `statement` says the same as plain prose, for pretraining."""

    family: str
    language: Language
    operands: Operands
    question: str
    answer: str
    accepted: tuple[str, ...]
    statement: str
    wrong: str


@dataclass(frozen=True)
class Family:
    """A kind of question.

    `draw` picks operands, independent of the language and in canonical order (a sum's are sorted, say), so that one
    fact has one key. `render` words them in a language. Whether operands are held out depends on nothing but the key,
    so training and held-out operands are disjoint by construction, and alike in both languages:

    - `phrasings` 0: one key in five is held out.
    - `phrasings` P: the last operand is one of P ways of asking, the others name a fact that nobody could infer (the
      colour of a lemon). Every fact is held out in exactly one of its P phrasings; training has it in the others.
    """

    name: str
    draw: Callable[[Random], Operands]
    render: Callable[[Random, Operands, Language], Text]
    phrasings: int = 0

    def split_of(self, operands: Operands) -> Split:
        """Says on which side of the split these operands are; the same on every machine."""
        if self.phrasings:
            *fact, phrasing = operands
            held_out = _checksum(self.name, fact) % self.phrasings == phrasing
        else:
            held_out = _checksum(self.name, operands) % HELD_OUT_ONE_IN == 0
        return "val" if held_out else "train"

    def sample(self, rng: Random, split: Split, language: Language) -> Item:
        """Draws one item whose operands belong to `split`."""
        operands = self.draw(rng)
        while self.split_of(operands) != split:
            operands = self.draw(rng)
        return self.item(rng, operands, language)

    def item(self, rng: Random, operands: Operands, language: Language) -> Item:
        """Words the given operands; `rng` chooses among phrasings, presentation orders and wrong answers."""
        question, answer, statement, wrong, also = self.render(rng, operands, language)
        return Item(self.name, language, operands, question, answer, (answer, *also), statement, wrong)


def _checksum(name: str, operands: Sequence[Any]) -> int:
    return zlib.crc32(f"{name} {' '.join(map(str, operands))}".encode())


# Only Random.random() is documented to give the same numbers on every Python version, so all choices are made from it.


def below(rng: Random, n: int) -> int:
    """A whole number 0 <= k < n."""
    return int(rng.random() * n)


def between(rng: Random, low: int, high: int) -> int:
    """A whole number low <= k <= high."""
    return low + int(rng.random() * (high - low + 1))


def pick(rng: Random, options: Sequence[T]) -> T:
    """One of the options."""
    return options[int(rng.random() * len(options))]


def other(rng: Random, options: Sequence[T], than: T) -> T:
    """One of the options that is not `than`; at least one must differ."""
    while (choice := options[int(rng.random() * len(options))]) == than:
        pass
    return choice


def distinct(rng: Random, n: int, size: int) -> list[int]:
    """`size` different whole numbers below n (size is small), in random order."""
    chosen: list[int] = []
    while len(chosen) < size:
        k = int(rng.random() * n)
        if k not in chosen:
            chosen.append(k)
    return chosen


def shuffled(rng: Random, options: Sequence[T]) -> list[T]:
    """A new list in random order."""
    out = list(options)
    for i in range(len(out) - 1, 0, -1):
        j = int(rng.random() * (i + 1))
        out[i], out[j] = out[j], out[i]
    return out


def capital(text: str) -> str:
    """The text with its first letter in upper case, the rest untouched."""
    return text[0].upper() + text[1:]
