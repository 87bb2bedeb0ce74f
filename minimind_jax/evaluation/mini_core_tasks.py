"""The tasks of mini-CORE: what their matched sets are drawn from. docs/evaluation.md shows a set of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from random import Random

from minimind_jax.data.generate import FAMILIES, Family, Item, plain_prompt
from minimind_jax.data.generate.item import Language, Operands, below, between, distinct, pick
from minimind_jax.data.generate.stories import PLOTS, PROMPTS, STORY, slots_of
from minimind_jax.data.generate.strings import REPEAT
from minimind_jax.data.generate.words import DEFINITION, OPPOSITES_FAMILY, TRANSLATION
from minimind_jax.evaluation.matched_sets import Draw, Drawn, SetKind, open_end, solved, stands_in

_K = 4  # contexts of a set
_SHOTS = 2
_MOST_DRAWS = 500  # for the rest of a set, once its first item is there


def _statements(family: Family, form: Callable[[Item], Hashable]) -> Draw:
    """Statements of a family that end in their answers, all of one form, after training examples of that form."""

    def draw(rng: Random, language: Language) -> Drawn | None:
        items: list[Item] = []
        for _ in range(_MOST_DRAWS):
            item = family.sample(rng, "val", language)
            if open_end(item) and all(form(item) == form(other) and _exclude(item, other) for other in items):
                items.append(item)
            if len(items) == _K:
                break
        else:
            return None
        wanted = form(items[0])
        examples = solved(family, language, _SHOTS, lambda item: form(item) == wanted, wanted)
        shown = "".join(f"{example.statement}\n" for example in examples)
        if any(stands_in(item.answer, shown) for item in items):
            return None
        contexts, choices = zip(*[end for item in items if (end := open_end(item))], strict=True)
        return Drawn(contexts, choices, shown)

    return draw


def _exclude(a: Item, b: Item) -> bool:
    """Whether neither's answer would do for the other's statement."""
    return a.answer not in b.accepted and b.answer not in a.accepted


def _after_the_fact(item: Item) -> Hashable:
    """What is asked of a fact, and how."""
    return item.operands[1:]


def _wording(item: Item) -> Hashable:
    """The statement around its answer."""
    return item.statement.replace(item.answer, "@")


# Where texts are cut: before a space, and in Chinese after marks and particles, for there a word has ended.
_ENDS = "，。、：的了是在去和有把就给“”"
_CHUNK = {"zh": re.compile(f"[^{_ENDS}]*[{_ENDS}]+|[^{_ENDS}]+$"), "en": re.compile(r" ?[^ ]+")}
_OTHER_FAMILIES = [family for family in FAMILIES if family is not STORY]

Texts = Callable[[Random, Language], Sequence[str]]


def _items(rng: Random, language: Language) -> list[Item]:
    """Held-out items of different families, stories left out."""
    families = [_OTHER_FAMILIES[i] for i in distinct(rng, len(_OTHER_FAMILIES), _K)]
    return [family.sample(rng, "val", language) for family in families]


def _statement_texts(rng: Random, language: Language) -> Sequence[str]:
    return [item.statement for item in _items(rng, language)]


def _question_texts(rng: Random, language: Language) -> Sequence[str]:
    return [item.question for item in _items(rng, language)]


def _story_texts(rng: Random, language: Language) -> Sequence[str]:
    return [_text(_held_out_story(rng, number), language) for number in distinct(rng, len(PLOTS), _K)]


def _next(texts: Texts) -> Draw:
    """Texts of four kinds, each up to somewhere, and what comes next there: two words, or in Chinese about as much."""
    n = {"zh": 1, "en": 2}

    def draw(rng: Random, language: Language) -> Drawn | None:
        cut = []
        for text in texts(rng, language):
            chunks = _CHUNK[language].findall(text)
            if len(chunks) < 1 + n[language]:
                return None
            at = between(rng, 1, len(chunks) - n[language])
            cut.append(("".join(chunks[:at]), "".join(chunks[at : at + n[language]])))
        contexts, choices = zip(*cut, strict=True)
        return Drawn(contexts, choices)

    return draw


def _halves(rng: Random, language: Language) -> Drawn | None:
    """Statements of different families, each up to its middle, and the rest of it."""
    cut = []
    for text in _statement_texts(rng, language):
        chunks = _CHUNK[language].findall(text)
        if len(chunks) < 2:
            return None
        middle = min(range(1, len(chunks)), key=lambda at: abs(len("".join(chunks[:at])) - len(text) / 2))
        cut.append(("".join(chunks[:middle]), "".join(chunks[middle:])))
    contexts, choices = zip(*cut, strict=True)
    return Drawn(contexts, choices)


def _held_out_story(rng: Random, number: int) -> Operands:
    """Operands of a story of that plot."""
    while True:
        operands = STORY.draw(rng)
        if operands[0] == number and STORY.split_of(operands) == "val":
            return operands


def _text(operands: Operands, language: Language) -> str:
    plot = PLOTS[operands[0]]
    return (plot.zh if language == "zh" else plot.en).format_map(slots_of(operands, language))


def _asked(operands: Operands, language: Language, question: tuple[str, str, str]) -> tuple[str, str]:
    """The story with the question, and the answer."""
    slots = slots_of(operands, language)
    asked = question[language == "en"].format_map(slots)
    context = plain_prompt(
        STORY.name, language, PROMPTS[language].format(story=_text(operands, language), question=asked)
    )
    return context, ("" if language == "zh" else " ") + slots[question[2]]


def _solved_story(language: Language) -> str:
    (item,) = solved(STORY, language, 1, lambda item: True)
    answer = f"{'' if language == 'zh' else ' '}{item.answer}"
    return f"{plain_prompt(STORY.name, language, item.question)}{answer}\n\n"


def _reading(rng: Random, language: Language) -> Drawn:
    """Stories of one plot with other people, things and places, and one question about them."""
    number = below(rng, len(PLOTS))
    question = pick(rng, PLOTS[number].questions)
    asked = [_asked(_held_out_story(rng, number), language, question) for _ in range(_K)]
    contexts, choices = zip(*asked, strict=True)
    return Drawn(contexts, choices, _solved_story(language))


KINDS = (
    SetKind("statements", _next(_statement_texts), 150),
    SetKind("questions", _next(_question_texts), 150),
    SetKind("stories", _next(_story_texts), 150),
    SetKind("halves", _halves, 150),
    SetKind("repeat", _statements(REPEAT, _wording), 100, in_context=True),
    SetKind("reading", _reading, 100, in_context=True),
    SetKind("definition", _statements(DEFINITION, _after_the_fact), 100),
    SetKind("opposites", _statements(OPPOSITES_FAMILY, _after_the_fact), 100),
    SetKind("translation", _statements(TRANSLATION, _after_the_fact), 100),
)
