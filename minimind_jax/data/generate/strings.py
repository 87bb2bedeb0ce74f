"""Families about strings of letters and lists of words: first, last, reverse, repeat."""

from __future__ import annotations

from random import Random

from minimind_jax.data.generate.item import Family, Language, Operands, Text, below, between, distinct, other, pick
from minimind_jax.data.generate.lexicon import COLOURS, COUNTS, OBJECTS, THINGS

_LETTERS = {
    "zh": {
        "first": ("字母 {x} 中，第一个是什么？", "字母 {x} 中，第一个是 {y}。"),
        "last": ("字母 {x} 中，最后一个是什么？", "字母 {x} 中，最后一个是 {y}。"),
        "reverse": ("把字母 {x} 倒过来写。", "把字母 {x} 倒过来写，就是 {y}。"),
    },
    "en": {
        "first": ("What is the first of the letters {x}?", "The first of the letters {x} is {y}."),
        "last": ("What is the last of the letters {x}?", "The last of the letters {x} is {y}."),
        "reverse": ("Write the letters {x} backwards.", "The letters {x} written backwards are {y}."),
    },
}


def _draw_letters(rng: Random) -> Operands:
    return tuple(chr(ord("a") + k) for k in distinct(rng, 26, between(rng, 3, 4)))


def _render_letters(rng: Random, operands: Operands, language: Language) -> Text:
    x = " ".join(operands)
    task = pick(rng, ("first", "last", "reverse"))
    also: tuple[str, ...] = ()
    if task == "reverse":
        backwards = operands[::-1]
        y = " ".join(backwards)
        # A usual slip: the first two letters of the result change places.
        wrong = " ".join((backwards[1], backwards[0], *backwards[2:]))
        also = ("".join(backwards),)
    else:
        y = operands[0] if task == "first" else operands[-1]
        wrong = other(rng, operands, y)
    question, statement = _LETTERS[language][task]
    return Text(question.format(x=x), y, statement.format(x=x, y=y), wrong, also)


_LISTS = {
    "zh": {
        "first": (
            ("{x}，其中第一个是什么？", "{x}，其中第一个是{y}。"),
            ("请说出第一个词：{x}", "在“{x}”里，第一个词是{y}。"),
        ),
        "last": (
            ("{x}，其中最后一个是什么？", "{x}，其中最后一个是{y}。"),
            ("请说出最后一个词：{x}", "在“{x}”里，最后一个词是{y}。"),
        ),
    },
    "en": {
        "first": (
            ("What comes first in this list: {x}?", "In the list {x}, the first word is {y}."),
            ("Name the first word: {x}", "The first word of {x} is {y}."),
        ),
        "last": (
            ("What comes last in this list: {x}?", "In the list {x}, the last word is {y}."),
            ("Name the last word: {x}", "The last word of {x} is {y}."),
        ),
    },
}


def _draw_lists(rng: Random) -> Operands:
    return tuple(distinct(rng, len(THINGS), between(rng, 2, 4)))


def _render_lists(rng: Random, operands: Operands, language: Language) -> Text:
    words = [THINGS[k].of(language) for k in operands]
    x = ("、" if language == "zh" else ", ").join(words)
    task = "first" if rng.random() < 0.5 else "last"
    y = words[0] if task == "first" else words[-1]
    question, statement = pick(rng, _LISTS[language][task])
    return Text(question.format(x=x), y, statement.format(x=x, y=y), other(rng, words, y))


_REPEATS = {
    "zh": (
        ("请重复一遍：{x}", "老师说“{x}”，学生也说“{x}”。"),
        ("跟我说：{x}", "我说“{x}”，你也说“{x}”。"),
        ("请照抄：{x}", "纸上写着“{x}”，照抄就是“{x}”。"),
    ),
    "en": (
        ("Repeat: {x}", 'The teacher said "{x}", and the class said "{x}" too.'),
        ("Say after me: {x}", 'I said "{x}", and you said "{x}" too.'),
        ("Copy this: {x}", 'The paper said "{x}", so the copy said "{x}".'),
    ),
}


def _phrase(operands: Operands, language: Language) -> str:
    n, colour, thing = COUNTS[operands[0]].of(language), COLOURS[operands[1]].of(language), OBJECTS[operands[2]]
    if language == "zh":
        return f"{n}{thing.measures[0]}{colour}的{thing.zh}"
    return f"{n} {colour} {thing.plural}"


def _draw_repeat(rng: Random) -> Operands:
    return (between(rng, 2, 9), below(rng, len(COLOURS)), below(rng, len(OBJECTS)))


def _render_repeat(rng: Random, operands: Operands, language: Language) -> Text:
    x = _phrase(operands, language)
    wrong = x
    while wrong == x:
        changed = list(operands)
        part = below(rng, 3)
        changed[part] = _draw_repeat(rng)[part]
        wrong = _phrase(tuple(changed), language)
    question, statement = pick(rng, _REPEATS[language])
    return Text(question.format(x=x), x, statement.format(x=x), wrong)


LETTERS = Family("letters", _draw_letters, _render_letters)
LISTS = Family("lists", _draw_lists, _render_lists)
REPEAT = Family("repeat", _draw_repeat, _render_repeat)
