"""Turns items into the records of MiniMind's jsonl formats, as endless streams that hold one record in memory."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from minimind_jax.data.generate.dates import MONTH, WEEKDAY
from minimind_jax.data.generate.item import LANGUAGES, Item, Language, Split, between, pick
from minimind_jax.data.generate.numbers import ARITHMETIC, COMPARISON, COUNTING, SORTING, UNITS
from minimind_jax.data.generate.stories import STORY, follow_up
from minimind_jax.data.generate.strings import LETTERS, LISTS, REPEAT
from minimind_jax.data.generate.words import DEFINITION, OPPOSITES_FAMILY, PLURALS, SPELLING, TRANSLATION

FAMILIES = (
    ARITHMETIC,
    COMPARISON,
    UNITS,
    SORTING,
    COUNTING,
    WEEKDAY,
    MONTH,
    LETTERS,
    LISTS,
    REPEAT,
    DEFINITION,
    OPPOSITES_FAMILY,
    PLURALS,
    TRANSLATION,
    SPELLING,
    STORY,
)

_BY_NAME = {family.name: family for family in FAMILIES}
# The families that a model of a few million parameters can learn in minutes come more often than the others.
_EASY = (COUNTING, WEEKDAY, MONTH, DEFINITION, OPPOSITES_FAMILY, TRANSLATION)
_OFTEN = (*FAMILIES, *_EASY, *_EASY)

Record = dict[str, Any]

_QUESTION = {"zh": "问题：{}", "en": "Question: {}"}
_ANSWER = {"zh": "答案：{}", "en": "Answer: {}"}
_SYSTEMS = {
    "zh": (
        "你是一个乐于助人的助手。",
        "请简短地回答问题。",
        "你是一位耐心的老师，回答要简洁。",
        "只回答答案，不要多说。",
    ),
    "en": (
        "You are a helpful assistant.",
        "Answer the questions briefly.",
        "You are a patient teacher who gives short answers.",
        "Give only the answer and nothing else.",
    ),
}
_SYSTEM_SHARE = 0.15
_MULTI_TURN_SHARE = 0.2


def documents(rng: Random, split: Split) -> Iterator[Record]:
    """Pretraining texts, Chinese and English in turn: statements, questions with answers, on one matter or several."""
    while True:
        for language in LANGUAGES:
            item = _sample(rng, split, language)
            kind = rng.random()
            if item.family == STORY.name:
                text = item.statement if kind < 0.3 else _story_with_questions(rng, item)
            elif kind < 0.4:
                text = "\n".join(_views(rng, item))
            elif kind < 0.7:
                items = [item, *_more(rng, item, split)]
                text = ("" if language == "zh" else " ").join(item.statement for item in items)
            else:
                text = "\n".join(_asked(item) for item in [item, *_more(rng, item, split)])
            yield {"text": text}


def _more(rng: Random, item: Item, split: Split) -> list[Item]:
    family = _BY_NAME[item.family]
    return [family.sample(rng, split, item.language) for _ in range(between(rng, 1, 2))]


def _views(rng: Random, item: Item) -> list[str]:
    """The same operands a few times over, so that a model has a reason to look back at what it has read."""
    family = _BY_NAME[item.family]
    again = [family.item(rng, item.operands, item.language) for _ in range(between(rng, 1, 2))]
    return list(dict.fromkeys([item.statement, *(_asked(view) for view in again)]))


def _story_with_questions(rng: Random, item: Item) -> str:
    question, answer = follow_up(rng, item.operands, item.language, item.question)
    # The item's question already has its "Question:" line, below the story.
    return f"{item.question}\n{_ANSWER[item.language].format(item.answer)}\n" + _prose(item.language, question, answer)


def plain_prompt(family: str, language: Language, question: str) -> str:
    """What stands before the answer in a pretraining document; a space at its end is left to the answer."""
    # A story's question already has its "Question:" line, below the story.
    asked = question if family == STORY.name else _QUESTION[language].format(question)
    return f"{asked}\n{_ANSWER[language].format('').rstrip()}"


def _asked(item: Item) -> str:
    return _prose(item.language, item.question, item.answer)


def _prose(language: Language, question: str, answer: str) -> str:
    return f"{_QUESTION[language].format(question)}\n{_ANSWER[language].format(answer)}"


def conversations(rng: Random, split: Split) -> Iterator[Record]:
    """Chats, Chinese and English in turn: some of several turns, some with a system message."""
    while True:
        for language in LANGUAGES:
            item = _sample(rng, split, language)
            messages = _opening(rng, split, language)
            messages += [_message("user", item.question), _message("assistant", item.answer)]
            if item.family == STORY.name and rng.random() < 0.5:
                question, answer = follow_up(rng, item.operands, language, item.question)
                messages += [_message("user", question), _message("assistant", answer)]
            yield {"conversations": messages}


def pairs(rng: Random, split: Split) -> Iterator[Record]:
    """Preference pairs: one prompt, the right answer chosen, a plausible wrong one rejected (about as long)."""
    while True:
        for language in LANGUAGES:
            item = _sample(rng, split, language)
            prompt = [*_opening(rng, split, language), _message("user", item.question)]
            yield {
                "chosen": [*prompt, _message("assistant", item.answer)],
                "rejected": [*prompt, _message("assistant", item.wrong)],
            }


def questions(rng: Random, per_family: int) -> Iterator[Record]:
    """Held-out questions: `per_family` different ones of each family in each language."""
    for family in FAMILIES:
        for language in LANGUAGES:
            asked: set[str] = set()
            while len(asked) < per_family:
                item = family.sample(rng, "val", language)
                if item.question in asked:
                    continue
                asked.add(item.question)
                yield {
                    "id": f"{family.name}-{language}-{len(asked):03d}",
                    "family": family.name,
                    "language": language,
                    "conversations": [_message("user", item.question)],
                    "answer": item.answer,
                    "gt": list(dict.fromkeys(item.accepted)),
                }


def _sample(rng: Random, split: Split, language: Language) -> Item:
    return pick(rng, _OFTEN).sample(rng, split, language)


def _opening(rng: Random, split: Split, language: Language) -> list[Record]:
    """What stands before the last question: nothing, or a system message, or earlier turns."""
    messages: list[Record] = []
    if rng.random() < _SYSTEM_SHARE:
        messages.append(_message("system", pick(rng, _SYSTEMS[language])))
    if rng.random() < _MULTI_TURN_SHARE:
        for _ in range(between(rng, 1, 2)):
            item = _sample(rng, split, language)
            messages += [_message("user", item.question), _message("assistant", item.answer)]
    return messages


def _message(role: str, content: str) -> Record:
    return {"role": role, "content": content}
