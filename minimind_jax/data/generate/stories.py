"""Small stories with a question about them, as a reading task.

A story's operands are its plot and everything that fills it (who, what, where, which colour, how many); held out are
combinations of them. The question is no operand: a story is wholly in training or wholly held out, whatever is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from string import Formatter
from typing import NamedTuple

from minimind_jax.data.generate.item import Family, Language, Operands, Text, below, between, distinct, other, pick
from minimind_jax.data.generate.lexicon import (
    COLOURS,
    FOODS,
    NAMES,
    OBJECTS,
    OUTDOORS,
    PETS,
    PLACES,
    SHOPS,
    Thing,
    Word,
)


class Plot(NamedTuple):
    """A story in both languages, its questions (zh, en, the slot that answers) and the places where it can happen."""

    zh: str
    en: str
    questions: tuple[tuple[str, str, str], ...]
    places: tuple[Word, ...] = PLACES


# {p} the person, {he} {him} {his} {He} pronouns, {q} a friend, {o} an object, {m} its measure word, {c} its colour,
# {ac} colour with article, {l} a place, {k} another, {n} a number, {f} a food, {t} a pet.
PLOTS = (
    Plot(
        "一天，{p}去了{l}，在那里捡到一{m}{c}的{o}。{q}正在找它，急得快哭了。{p}把{o}还给了{q}，{q}高兴极了。",
        "One day {p} went to the {l} and found {ac} {o} there. {q} was looking for it and almost cried. "
        "{p} gave the {o} back to {q}, and {q} was very happy.",
        (
            ("谁捡到了{o}？", "Who found the {o}?", "p"),
            ("{p}去了哪里？", "Where did {p} go?", "l"),
            ("{o}是什么颜色的？", "What colour was the {o}?", "c"),
            ("{o}是谁的？", "Whose {o} was it?", "q"),
        ),
    ),
    Plot(
        "{p}带了{n}元钱去{l}，想给{q}买一件礼物。{he}挑了一{m}{c}的{o}。{q}收到礼物，笑着说谢谢。",
        "{p} took {n} dollars to the {l} to buy a present for {q}. {He} chose {ac} {o}. "
        "{q} smiled at the present and said thank you.",
        (
            ("{p}带了多少元钱？", "How many dollars did {p} take?", "n"),
            ("{p}买了什么？", "What did {p} buy?", "o"),
            ("礼物是什么颜色的？", "What colour was the present?", "c"),
            ("礼物是送给谁的？", "Who got the present?", "q"),
        ),
        SHOPS,
    ),
    Plot(
        "{p}的{o}不见了。{he}先去{k}找，没有找到。后来{q}在{l}看见了那{m}{c}的{o}，就叫{p}来拿。",
        "{p} lost {his} {o}. First {he} looked in the {k}, but it was not there. "
        "Later {q} saw the {c} {o} in the {l} and called {p}.",
        (
            ("谁看见了{o}？", "Who saw the {o}?", "q"),
            ("{o}在哪里？", "Where was the {o}?", "l"),
            ("{o}是什么颜色的？", "What colour was the {o}?", "c"),
            ("{p}丢了什么？", "What did {p} lose?", "o"),
        ),
    ),
    Plot(
        "{p}养了一只{t}，每天傍晚都带它去{l}玩。有一天{t}跑丢了，{p}很难过。第二天早上，{q}把它带了回来。",
        "{p} had a {t}, and every evening they played in the {l}. One day the {t} ran away, and {p} was sad. "
        "The next morning {q} brought it back.",
        (
            ("{p}养了什么动物？", "Which animal did {p} have?", "t"),
            ("他们每天去哪里玩？", "Where did they play?", "l"),
            ("谁把{t}带了回来？", "Who brought the {t} back?", "q"),
        ),
        OUTDOORS,
    ),
    Plot(
        "{p}从{l}回来，肚子饿了，就煮了{f}。{q}闻到香味也来了。他们坐在一起，吃得干干净净。",
        "{p} came home from the {l} and was hungry, so {he} cooked {f}. {q} liked the smell and came too. "
        "They sat together and ate everything.",
        (
            ("{p}煮了什么？", "What did {p} cook?", "f"),
            ("谁闻到香味来了？", "Who came too?", "q"),
            ("{p}从哪里回来？", "Where did {p} come from?", "l"),
        ),
    ),
    Plot(
        "春天，{p}和{q}在{l}种了{n}颗种子，天天浇水。夏天来了，那里开出{n}朵{c}的花。",
        "In spring {p} and {q} planted {n} seeds in the {l} and gave them water every day. "
        "When summer came, there were {n} {c} flowers.",
        (
            ("他们种了多少颗种子？", "How many seeds did they plant?", "n"),
            ("花是什么颜色的？", "What colour were the flowers?", "c"),
            ("他们在哪里种花？", "Where did they plant the seeds?", "l"),
        ),
        OUTDOORS,
    ),
    Plot(
        "{p}走到{l}时下起了大雨，可是{he}没有带伞。{q}有一把{c}的伞，就送{p}回家。他们走了{n}分钟。",
        "When {p} came to the {l}, it began to rain, but {he} had no umbrella. {q} had {ac} umbrella and walked "
        "home with {him}. It took {n} minutes.",
        (
            ("谁有伞？", "Who had an umbrella?", "q"),
            ("伞是什么颜色的？", "What colour was the umbrella?", "c"),
            ("谁没有带伞？", "Who had no umbrella?", "p"),
            ("他们走了多少分钟？", "How many minutes did it take?", "n"),
        ),
    ),
    Plot(
        "{p}有{n}块糖，{he}在{l}遇见了{q}。{q}没有糖，很羡慕。{p}把糖分了一半给{q}，两个人都笑了。",
        "{p} had {n} sweets and met {q} in the {l}. {q} had no sweets and looked sad. "
        "{p} gave {q} half of them, and both smiled.",
        (
            ("{p}原来有多少块糖？", "How many sweets did {p} have at first?", "n"),
            ("谁没有糖？", "Who had no sweets?", "q"),
            ("他们在哪里遇见？", "Where did they meet?", "l"),
        ),
    ),
)

_FILLINGS: dict[str, Sequence[Word | Thing]] = {
    "p": NAMES,
    "q": NAMES,
    "o": OBJECTS,
    "c": COLOURS,
    "f": FOODS,
    "t": PETS,
}
# The lowest and highest operand of the slots that are drawn one by one; n is halved, so that the number is even.
_RANGES = {**{slot: (0, len(_FILLINGS[slot]) - 1) for slot in "ocft"}, "n": (2, 6)}
_NAMES_OF_SLOTS = {"he": "p", "him": "p", "his": "p", "He": "p", "ac": "c", "m": "o"}
_USED = tuple(
    sorted({_NAMES_OF_SLOTS.get(slot, slot) for _, slot, _, _ in Formatter().parse(plot.zh + plot.en) if slot})
    for plot in PLOTS
)

PROMPTS = {"zh": "{story}\n问题：{question}", "en": "{story}\nQuestion: {question}"}
_PRONOUNS = (
    {"zh": {"he": "他"}, "en": {"he": "he", "him": "him", "his": "his", "He": "He"}},
    {"zh": {"he": "她"}, "en": {"he": "she", "him": "her", "his": "her", "He": "She"}},
)


def _draw_story(rng: Random) -> Operands:
    """(plot, then the filling of each of its slots in alphabetical order): what a plot does not tell is no operand."""
    number = below(rng, len(PLOTS))
    p, q = distinct(rng, len(NAMES), 2)
    place, elsewhere = distinct(rng, len(PLOTS[number].places), 2)
    drawn = {"p": p, "q": q, "l": place, "k": elsewhere}
    return (number, *(drawn[slot] if slot in drawn else between(rng, *_RANGES[slot]) for slot in _USED[number]))


def slots_of(operands: Operands, language: Language) -> dict[str, str]:
    """What fills the slots of the plot's texts and questions."""
    number, *values = operands
    places = PLOTS[number].places
    slots: dict[str, str] = {}
    for slot, value in zip(_USED[number], values, strict=True):
        if slot == "n":
            slots["n"] = str(2 * value)
        elif slot in "lk":
            slots[slot] = places[value].of(language)
        else:
            slots[slot] = _FILLINGS[slot][value].of(language)
        if slot == "p":
            slots.update(_PRONOUNS[value >= len(NAMES) // 2][language])
        elif slot == "o":
            slots["m"] = OBJECTS[value].measures[0]
        elif slot == "c":
            slots["ac"] = f"{_article(slots['c'])} {slots['c']}"
    return slots


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _wrong(rng: Random, plot: Plot, slot: str, slots: dict[str, str], language: Language) -> str:
    """Another filling of the slot; a person is mistaken for the other one in the story."""
    if slot in "pq":
        return slots["q" if slot == "p" else "p"]
    if slot == "n":
        return str(2 * other(rng, range(2, 7), int(slots["n"]) // 2))
    options = plot.places if slot == "l" else _FILLINGS[slot]
    return other(rng, [option.of(language) for option in options], slots[slot])


def _accepted(slot: str, answer: str, language: Language) -> tuple[str, ...]:
    if language == "zh":
        return {"c": (answer[:-1], f"{answer}的"), "l": (f"在{answer}",)}.get(slot, ())
    return {
        "l": (f"the {answer}", f"in the {answer}", f"at the {answer}", f"to the {answer}", f"from the {answer}"),
        "o": (f"{_article(answer)} {answer}", f"the {answer}"),
        "t": (f"{_article(answer)} {answer}",),
        "q": (f"{answer}'s",),
    }.get(slot, ())


def _asked(rng: Random, plot: Plot, slots: dict[str, str], language: Language) -> tuple[str, str, str, tuple[str, ...]]:
    zh, en, slot = pick(rng, plot.questions)
    answer = slots[slot]
    asked = (zh if language == "zh" else en).format_map(slots)
    return asked, answer, _wrong(rng, plot, slot, slots, language), _accepted(slot, answer, language)


def _render_story(rng: Random, operands: Operands, language: Language) -> Text:
    plot = PLOTS[operands[0]]
    slots = slots_of(operands, language)
    story = (plot.zh if language == "zh" else plot.en).format_map(slots)
    question, answer, wrong, also = _asked(rng, plot, slots, language)
    return Text(PROMPTS[language].format(story=story, question=question), answer, story, wrong, also)


def follow_up(rng: Random, operands: Operands, language: Language, first: str) -> tuple[str, str]:
    """A second question (and its answer) about a story whose first question is in the prompt `first`."""
    plot = PLOTS[operands[0]]
    slots = slots_of(operands, language)
    while True:
        question, answer, _, _ = _asked(rng, plot, slots, language)
        if not first.endswith(question):
            return question, answer


STORY = Family("story", _draw_story, _render_story)
