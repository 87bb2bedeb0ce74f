"""Families about numbers: arithmetic, comparison, unit conversion, sorting, counting."""

from __future__ import annotations

from random import Random

from minimind_jax.data.generate.item import (
    Family,
    Language,
    Operands,
    Text,
    below,
    between,
    distinct,
    other,
    pick,
    shuffled,
)
from minimind_jax.data.generate.lexicon import THINGS, Word

_SUMS = {
    "zh": (
        ("{a}加{b}等于多少？", "{a}加{b}等于{c}。"),
        ("{a} + {b} = ？", "{a} + {b} = {c}。"),
        ("计算：{a} + {b}", "计算可得，{a} + {b} = {c}。"),
        ("{a}和{b}的和是多少？", "{a}和{b}的和是{c}。"),
    ),
    "en": (
        ("What is {a} plus {b}?", "{a} plus {b} is {c}."),
        ("{a} + {b} = ?", "{a} + {b} = {c}."),
        ("Calculate {a} + {b}.", "We calculate that {a} + {b} = {c}."),
        ("What is the sum of {a} and {b}?", "The sum of {a} and {b} is {c}."),
    ),
}
_DIFFERENCES = {
    "zh": (
        ("{a}减{b}等于多少？", "{a}减{b}等于{c}。"),
        ("{a} - {b} = ？", "{a} - {b} = {c}。"),
        ("计算：{a} - {b}", "计算可得，{a} - {b} = {c}。"),
        ("从{a}里去掉{b}，还剩多少？", "从{a}里去掉{b}，还剩{c}。"),
    ),
    "en": (
        ("What is {a} minus {b}?", "{a} minus {b} is {c}."),
        ("{a} - {b} = ?", "{a} - {b} = {c}."),
        ("Calculate {a} - {b}.", "We calculate that {a} - {b} = {c}."),
        ("Take {b} away from {a}. What is left?", "If we take {b} away from {a}, {c} is left."),
    ),
}


def _draw_arithmetic(rng: Random) -> Operands:
    a, b = between(rng, 1, 20), between(rng, 1, 20)
    low, high = min(a, b), max(a, b)
    return (pick(rng, "+-"), low, high)


def _render_arithmetic(rng: Random, operands: Operands, language: Language) -> Text:
    sign, low, high = operands
    if sign == "+":
        a, b = (low, high) if rng.random() < 0.5 else (high, low)
        c = a + b
    else:
        a, b = high, low
        c = a - b
    question, statement = pick(rng, (_SUMS if sign == "+" else _DIFFERENCES)[language])
    wrong = other(rng, range(max(0, c - 3), c + 4), c)
    return Text(question.format(a=a, b=b), str(c), statement.format(a=a, b=b, c=c), str(wrong))


_COMPARISONS = {
    "zh": (
        ("{a}和{b}，哪个数更{w}？", "{a}和{b}中，{c}更{w}。"),
        ("比较{a}和{b}，更{w}的数是哪个？", "比较{a}和{b}，更{w}的数是{c}。"),
        ("{a}与{b}哪个{w}？", "{a}与{b}相比，{c}更{w}。"),
    ),
    "en": (
        ("Which is {w}, {a} or {b}?", "Of {a} and {b}, {c} is {w}."),
        ("Which number is {w}: {a} or {b}?", "Compare {a} and {b}: the {w} number is {c}."),
        ("Name the {w} of {a} and {b}.", "The {w} of {a} and {b} is {c}."),
    ),
}
_LARGER, _SMALLER = Word("大", "larger"), Word("小", "smaller")


def _draw_comparison(rng: Random) -> Operands:
    a, b = distinct(rng, 99, 2)
    return (min(a, b) + 1, max(a, b) + 1)


def _render_comparison(rng: Random, operands: Operands, language: Language) -> Text:
    low, high = operands
    a, b = (low, high) if rng.random() < 0.5 else (high, low)
    which, c, wrong = (_LARGER, high, low) if rng.random() < 0.5 else (_SMALLER, low, high)
    question, statement = pick(rng, _COMPARISONS[language])
    w = which.of(language)
    return Text(question.format(a=a, b=b, w=w), str(c), statement.format(a=a, b=b, c=c, w=w), str(wrong))


# Large unit, small unit, how many of the small one make the large one, largest number asked about.
_UNITS = (
    (Word("米", "metres"), Word("厘米", "centimetres"), 100, 60),
    (Word("厘米", "centimetres"), Word("毫米", "millimetres"), 10, 60),
    (Word("千米", "kilometres"), Word("米", "metres"), 1000, 60),
    (Word("千克", "kilograms"), Word("克", "grams"), 1000, 60),
    (Word("升", "litres"), Word("毫升", "millilitres"), 1000, 60),
    (Word("元", "dollars"), Word("分", "cents"), 100, 60),
    (Word("小时", "hours"), Word("分钟", "minutes"), 60, 10),
    (Word("周", "weeks"), Word("天", "days"), 7, 9),
)
_CONVERSIONS = {
    "zh": (
        ("{n}{u}等于多少{v}？", "{n}{u}等于{m}{v}。"),
        ("{n}{u}是多少{v}？", "{n}{u}是{m}{v}。"),
        ("把{n}{u}换算成{v}。", "把{n}{u}换算成{v}，得到{m}{v}。"),
    ),
    "en": (
        ("How many {v} are in {n} {u}?", "{n} {u} are {m} {v}."),
        ("Convert {n} {u} to {v}.", "{n} {u} make {m} {v}."),
        ("{n} {u} equal how many {v}?", "{n} {u} equal {m} {v}."),
    ),
}


def _draw_units(rng: Random) -> Operands:
    unit = below(rng, len(_UNITS))
    return (unit, between(rng, 2, _UNITS[unit][3]))


def _render_units(rng: Random, operands: Operands, language: Language) -> Text:
    large, small, factor, _ = _UNITS[operands[0]]
    n, u, v = operands[1], large.of(language), small.of(language)
    m = n * factor
    wrong = pick(rng, (m - 2, m - 1, m + 1, m + 2) if factor == 7 else (m * 10, m // 10))
    question, statement = pick(rng, _CONVERSIONS[language])
    space = "" if language == "zh" else " "
    return Text(
        question.format(n=n, u=u, v=v),
        f"{m}{space}{v}",
        statement.format(n=n, u=u, v=v, m=m),
        f"{wrong}{space}{v}",
        (str(m), f"{m}{v}" if space else f"{m} {v}"),
    )


_SORTS = {
    "zh": (
        ("把{x}按{w}的顺序排列。", "把{x}按{w}的顺序排列，得到{y}。"),
        ("请按{w}的顺序排列：{x}", "按{w}的顺序排列{x}，结果是{y}。"),
    ),
    "en": (
        ("Sort {x} {w}.", "Sorted {w}, {x} become {y}."),
        ("Arrange {w}: {x}", "Arranged {w}, {x} become {y}."),
    ),
}
_ASCENDING, _DESCENDING = Word("从小到大", "from small to large"), Word("从大到小", "from large to small")
_ALPHABETICAL = Word("字母表", "alphabetically")


def _draw_sorting(rng: Random) -> Operands:
    if rng.random() < 0.7:
        return ("number", *sorted(k + 1 for k in distinct(rng, 20, 3)))
    return ("letter", *sorted(chr(ord("a") + k) for k in distinct(rng, 26, 3)))


def _render_sorting(rng: Random, operands: Operands, language: Language) -> Text:
    kind, *values = operands
    ordered = [str(value) for value in values]
    how = _ALPHABETICAL
    if kind == "number":
        how = _ASCENDING if rng.random() < 0.5 else _DESCENDING
        if how is _DESCENDING:
            ordered.reverse()
    given = shuffled(rng, ordered)
    wrong = shuffled(rng, ordered)
    while wrong == ordered:
        wrong = shuffled(rng, ordered)
    separator = "、" if language == "zh" else ", "
    x, y = separator.join(given), separator.join(ordered)
    question, statement = pick(rng, _SORTS[language])
    w = how.of(language)
    also = tuple(s.join(ordered) for s in (", ", "、", "，", " "))
    return Text(question.format(x=x, w=w), y, statement.format(x=x, y=y, w=w), separator.join(wrong), also)


_COUNTS = {
    "zh": (
        ("“{x}”里一共有几个词？", "“{x}”里一共有{n}个词。"),
        ("数一数有几个词：{x}", "数一数，“{x}”是{n}个词。"),
        ("下面列出了几个词？{x}", "这里列出了{n}个词：{x}。"),
    ),
    "en": (
        ("How many words are in this list: {x}?", "The list {x} has {n} words in it."),
        ("Count the words: {x}", "We count the words {x} and get {n}."),
        ("How many words do you see? {x}", "Here you see {n} words: {x}."),
    ),
}
_MOST_WORDS = 6


def _draw_counting(rng: Random) -> Operands:
    size = between(rng, 2, _MOST_WORDS)
    if rng.random() < 0.5:
        return (below(rng, len(THINGS)),) * size
    return tuple(sorted(distinct(rng, len(THINGS), size)))


def _render_counting(rng: Random, operands: Operands, language: Language) -> Text:
    n = len(operands)
    x = ("、" if language == "zh" else ", ").join(THINGS[k].of(language) for k in shuffled(rng, operands))
    question, statement = pick(rng, _COUNTS[language])
    wrong = other(rng, range(2, _MOST_WORDS + 1), n)
    also = (f"{n}个", f"{n}个词") if language == "zh" else (f"{n} words",)
    return Text(question.format(x=x), str(n), statement.format(x=x, n=n), str(wrong), also)


ARITHMETIC = Family("arithmetic", _draw_arithmetic, _render_arithmetic)
COMPARISON = Family("comparison", _draw_comparison, _render_comparison)
UNITS = Family("units", _draw_units, _render_units)
SORTING = Family("sorting", _draw_sorting, _render_sorting)
COUNTING = Family("counting", _draw_counting, _render_counting)
