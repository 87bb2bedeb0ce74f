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

Record = dict[str, Any]

_QUESTION_ANSWER = {"zh": "问题：{}\n答案：{}", "en": "Question: {}\nAnswer: {}"}
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
    """Pretraining texts, Chinese and English in turn: plain statements, or questions with their answers."""
    while True:
        for language in LANGUAGES:
            family = pick(rng, FAMILIES)
            if family is STORY:
                item = family.sample(rng, split, language)
                text = item.statement if rng.random() < 0.5 else _prose(item)
            elif rng.random() < 0.5:
                items = (family.sample(rng, split, language) for _ in range(between(rng, 2, 4)))
                text = ("" if language == "zh" else " ").join(item.statement for item in items)
            else:
                text = "\n".join(_prose(family.sample(rng, split, language)) for _ in range(between(rng, 2, 3)))
            yield {"text": text}


def _prose(item: Item) -> str:
    if item.family == STORY.name:
        # The prompt has its own "Question:" line, below the story.
        return f"{item.question}\n{'答案：' if item.language == 'zh' else 'Answer: '}{item.answer}"
    return _QUESTION_ANSWER[item.language].format(item.question, item.answer)


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
    return pick(rng, FAMILIES).sample(rng, split, language)


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
