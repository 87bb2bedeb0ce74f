"""The tasks of mini-CORE: what their matched sets are drawn from. docs/evaluation.md shows a set of each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Sequence
from random import Random
from string import Formatter

from minimind_jax.data.generate import FAMILIES, Item, plain_prompt
from minimind_jax.data.generate.item import Language, Operands, below, distinct, pick, shuffled
from minimind_jax.data.generate.lexicon import COUNTS, NAMES, OBJECTS, THINGS
from minimind_jax.data.generate.stories import PLOTS, PROMPTS, STORY, USED_SLOTS, slots_of
from minimind_jax.evaluation.matched_sets import Draw, Drawn, SetKind, open_end, solved, stands_in

_FAMILIES = {family.name: family for family in FAMILIES}
_MOST_DRAWS = 500  # for the rest of a set, once its first item is there


def _statements(name: str, k: int, form: Callable[[Item], Hashable], shots: int) -> Draw:
    """k statements of a family that end in their answers, all of one form, after `shots` more of that form."""
    family = _FAMILIES[name]

    def draw(rng: Random, language: Language) -> Drawn | None:
        items: list[Item] = []
        for _ in range(_MOST_DRAWS):
            item = family.sample(rng, "val", language)
            if open_end(item) is None or form(item) is None:
                continue
            if all(form(item) == form(other) and _exclude(item, other) for other in items):
                items.append(item)
            if len(items) == k:
                break
        else:
            return None
        wanted = form(items[0])
        examples = solved(family, language, shots, lambda item: form(item) == wanted, wanted)
        shown = "".join(f"{example.statement}\n" for example in examples)
        if any(stands_in(item.answer, shown) for item in items):
            return None
        contexts, choices = zip(*[end for item in items if (end := open_end(item))], strict=True)
        return Drawn(contexts, choices, shown)

    return draw


def _exclude(a: Item, b: Item) -> bool:
    """Whether neither's answer would do for the other."""
    return a.answer not in b.accepted and b.answer not in a.accepted


def _after_the_fact(item: Item) -> Hashable:
    return item.operands[1:]


def _wording(item: Item) -> Hashable:
    return item.statement.replace(item.answer, "@")


def _wording_of_numbers(item: Item) -> Hashable:
    return re.sub(r"\d+", "#", item.statement)


def _step_of_calendar(item: Item) -> Hashable:
    """Forward or back by how many; None where a month's days are asked for."""
    return None if item.operands[-1] == "days" else item.operands[-1]


def _calendar(rng: Random, language: Language) -> Drawn | None:
    return pick(rng, (_WEEKDAYS, _MONTHS))(rng, language)


_WEEKDAYS, _MONTHS = (_statements(name, 3, _step_of_calendar, shots=0) for name in ("weekday", "month"))


def _agreement(rng: Random, language: Language) -> Drawn | None:
    """English: one thing or several of them. Chinese: which thing a measure word is for."""
    if language == "en":
        thing, n = pick(rng, (*THINGS, *OBJECTS)), COUNTS[2 + below(rng, 8)].en
        before = pick(rng, ("I can see {n}", "There was only {n}", "They came with {n}", "She told us about {n}"))
        return Drawn([before.format(n="one"), before.format(n=n)], [f" {thing.en}.", f" {thing.plural}."])
    things = [THINGS[i] for i in distinct(rng, len(THINGS), 4)]
    if any(a.measures[0] in b.measures for a, b in itertools.permutations(things, 2)):
        return None
    before, n = (
        pick(rng, ("我看见{n}{m}", "那里只有{n}{m}", "他们带来了{n}{m}", "她说起{n}{m}")),
        COUNTS[1 + below(rng, 9)].zh,
    )
    return Drawn([before.format(n=n, m=thing.measures[0]) for thing in things], [f"{thing.zh}。" for thing in things])


_FIRST_OR_LAST = re.compile("first|last|第一个|最后一个")


def _lists(rng: Random, language: Language) -> Drawn | None:
    """One list, asked for its first and for its last word."""
    family = _FAMILIES["lists"]
    operands = family.sample(rng, "val", language).operands
    ends = [open_end(family.item(rng, operands, language)) for _ in range(2)]
    if ends[0] is None or ends[1] is None:
        return None
    wanted = _FIRST_OR_LAST.sub("@", ends[0][0])
    if wanted != _FIRST_OR_LAST.sub("@", ends[1][0]):
        return None
    contexts, choices = zip(*ends, strict=True)
    examples = [
        *solved(family, language, 2, lambda item: _ends_in(item, 0), "first"),
        *solved(family, language, 2, lambda item: _ends_in(item, -1), "last"),
    ]
    return Drawn(contexts, choices, "".join(f"{example.statement}\n" for example in examples))


def _ends_in(item: Item, position: int) -> bool:
    """Whether the statement ends in its list's word at this position."""
    return open_end(item) is not None and item.answer == THINGS[item.operands[position]].of(item.language)


def _held_out_story(rng: Random, number: int, people: tuple[int, int] | None = None) -> Operands:
    """Operands of a story of that plot, about these two, if they are given."""
    while True:
        operands = list(STORY.draw(rng))
        if operands[0] != number:
            continue
        if people:
            for slot, person in zip("pq", people, strict=True):
                operands[1 + USED_SLOTS[number].index(slot)] = person
        if STORY.split_of(tuple(operands)) == "val":
            return tuple(operands)


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
    asked = [_asked(_held_out_story(rng, number), language, question) for _ in range(4)]
    contexts, choices = zip(*asked, strict=True)
    return Drawn(contexts, choices, _solved_story(language))


def _who(rng: Random, language: Language) -> Drawn | None:
    """A story, and the same with its two people in each other's place."""
    number = below(rng, len(PLOTS))
    questions = [question for question in PLOTS[number].questions if question[2] in "pq"]
    if not questions:
        return None
    question, half = pick(rng, questions), len(NAMES) // 2
    men_or_women = half * below(rng, 2)  # both the same, for the pronouns
    p, q = (men_or_women + i for i in distinct(rng, half, 2))
    operands = _held_out_story(rng, number, (p, q))
    swapped = [*operands]
    at = [1 + USED_SLOTS[number].index(slot) for slot in "pq"]
    swapped[at[0]], swapped[at[1]] = operands[at[1]], operands[at[0]]
    if STORY.split_of(tuple(swapped)) != "val":
        return None
    contexts, choices = zip(*(_asked(o, language, question) for o in (operands, tuple(swapped))), strict=True)
    return Drawn(contexts, choices, _solved_story(language))


def _endings(rng: Random, language: Language) -> Drawn:
    """Stories of several plots about the same two people, and the last sentence of each."""
    p, q = distinct(rng, len(NAMES), 2)
    stop = "。" if language == "zh" else ". "
    cut = []
    for number in distinct(rng, len(PLOTS), 4):
        *story, last = _text(_held_out_story(rng, number, (p, q)), language).strip(stop).rsplit(stop, 1)
        cut.append((story[0] + stop.strip(), ("" if language == "zh" else " ") + last + stop.strip()))
    contexts, choices = zip(*cut, strict=True)
    return Drawn(contexts, choices)


# Slots by the kind of word that fills them; a set has one of each of four kinds.
_KINDS_OF_WORD = ("pq", "lk", "o", "c", "n", "f", "t")


def _words(rng: Random, language: Language) -> Drawn | None:
    """Beginnings of stories, and the word that comes next in each: a person, a place, a colour, a number ..."""
    beginnings = []
    for kind in shuffled(rng, _KINDS_OF_WORD)[:4]:
        beginning = _beginning(rng, kind, language)
        if beginning is None:
            return None
        beginnings.append(beginning)
    contexts, choices = zip(*beginnings, strict=True)
    return Drawn(contexts, choices)


def _beginning(rng: Random, kind: str, language: Language) -> tuple[str, str] | None:
    """A story up to the first word of a kind, and that word."""
    numbers = [i for i, used in enumerate(USED_SLOTS) if set(used) & set(kind)]
    operands = _held_out_story(rng, pick(rng, numbers))
    slots, plot = slots_of(operands, language), PLOTS[operands[0]]
    text = ""
    for literal, slot, _, _ in Formatter().parse(plot.zh if language == "zh" else plot.en):
        text += literal
        if slot == "ac" and kind == "c":  # no colour begins with a vowel
            return f"{text}a", f" {slots['c']}"
        if slot and slot in kind and text.strip():
            context = text.rstrip(" ")
            return context, text[len(context) :] + slots[slot]
        text += slots[slot] if slot else ""
    return None


def _kinds() -> Sequence[SetKind]:
    return (
        SetKind("words", _words, 100),
        SetKind("agreement", _agreement, 100),
        SetKind("repeat", _statements("repeat", 4, _wording, shots=2), 100, "own"),
        SetKind("reading", _reading, 100, "own"),
        SetKind("endings", _endings, 100),
        SetKind("calendar", _calendar, 100),
        SetKind("definition", _statements("definition", 4, _after_the_fact, shots=2), 100),
        SetKind("opposites", _statements("opposites", 4, _after_the_fact, shots=2), 100),
        SetKind("translation", _statements("translation", 4, _after_the_fact, shots=2), 100),
        SetKind("lists", _lists, 100, "all"),
        SetKind("who", _who, 100, "all"),
        SetKind("arithmetic", _statements("arithmetic", 4, _wording_of_numbers, shots=2), 100),
    )


KINDS = _kinds()
