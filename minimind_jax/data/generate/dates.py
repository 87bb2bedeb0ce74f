"""Families about the calendar.

The order of the weekdays and the length of the months cannot be inferred, so training sees all of them; held out are
combinations of an event (or a person) with a day (or a month) and a question about it.
"""

from __future__ import annotations

from random import Random

from minimind_jax.data.generate.item import Family, Language, Operands, Text, below, other, pick
from minimind_jax.data.generate.lexicon import DAYS_IN_MONTH, EVENTS, MONTHS, NAMES, WEEKDAYS

_WEEKDAYS = {
    "zh": {
        1: ("第二天是星期几？", "第二天是{c}。"),
        -1: ("前一天是星期几？", "前一天是{c}。"),
        2: ("再过两天是星期几？", "再过两天是{c}。"),
    },
    "en": {
        1: ("Which day comes right after?", "The day after is {c}."),
        -1: ("Which day comes right before?", "The day before is {c}."),
        2: ("Which day is two days later?", "Two days later it is {c}."),
    },
}
_EVENT_DAYS = {
    "zh": ("{e}在{d}。", "{d}有{e}。", "{e}定在{d}。"),
    "en": ("The {e} is on {d}.", "There is a {e} on {d}.", "We have a {e} on {d}."),
}


def _draw_weekday(rng: Random) -> Operands:
    return (below(rng, len(EVENTS)), below(rng, 7), pick(rng, (1, 1, 1, -1, -1, 2)))


def _render_weekday(rng: Random, operands: Operands, language: Language) -> Text:
    event, day, offset = operands
    lead = pick(rng, _EVENT_DAYS[language]).format(e=EVENTS[event].of(language), d=WEEKDAYS[day].of(language))
    question, statement = _WEEKDAYS[language][offset]
    answer = WEEKDAYS[(day + offset) % 7].of(language)
    wrong = other(rng, WEEKDAYS, WEEKDAYS[(day + offset) % 7]).of(language)
    lead += "" if language == "zh" else " "
    also: tuple[str, ...] = ()
    if language == "zh":
        also = (answer.replace("星期", "周"), answer.replace("星期", "礼拜"), answer.replace("日", "天"))
    return Text(lead + question, answer, lead + statement.format(c=answer), wrong, also)


_MONTHS = {
    "zh": {
        "next": ("{m}的下一个月是几月？", "{m}的下一个月是{c}。"),
        "previous": ("{m}的上一个月是几月？", "{m}的上一个月是{c}。"),
        "days": ("{m}有多少天？", "{m}有{c}天。"),
    },
    "en": {
        "next": ("Which month comes after {m}?", "The month after {m} is {c}."),
        "previous": ("Which month comes before {m}?", "The month before {m} is {c}."),
        "days": ("How many days are in {m}?", "There are {c} days in {m}."),
    },
}
_BIRTHS = {"zh": ("{p}出生在{m}。", "{p}的生日在{m}。"), "en": ("{p} was born in {m}.", "{p} has a birthday in {m}.")}
_FEBRUARY = 1


def _draw_month(rng: Random) -> Operands:
    month = below(rng, 12)
    # February's length depends on the year.
    kind = pick(rng, ("next", "previous") if month == _FEBRUARY else ("next", "previous", "days"))
    return (below(rng, len(NAMES)), month, kind)


def _render_month(rng: Random, operands: Operands, language: Language) -> Text:
    person, month, kind = operands
    m = MONTHS[month].of(language)
    lead = pick(rng, _BIRTHS[language]).format(p=NAMES[person].of(language), m=m)
    question, statement = _MONTHS[language][kind]
    also: tuple[str, ...] = ()
    if kind == "days":
        answer, wrong = str(DAYS_IN_MONTH[month]), str(61 - DAYS_IN_MONTH[month])
        also = (f"{answer}天" if language == "zh" else f"{answer} days",)
    else:
        result = MONTHS[(month + (1 if kind == "next" else -1)) % 12]
        answer, wrong = result.of(language), other(rng, MONTHS, result).of(language)
    lead += "" if language == "zh" else " "
    return Text(lead + question.format(m=m), answer, lead + statement.format(m=m, c=answer), wrong, also)


WEEKDAY = Family("weekday", _draw_weekday, _render_weekday)
MONTH = Family("month", _draw_month, _render_month)
