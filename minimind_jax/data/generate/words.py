"""Families about words: definition, opposite, plural and measure word, translation, spelling.

What a word means cannot be inferred, so training sees every fact; held out are combinations of a fact with a way of
asking for it. Each fact is held out in exactly one of `PHRASINGS` ways of asking, and in training in the others
(`Family.phrasings`); its other direction or attribute is a fact of its own.
"""

from __future__ import annotations

from random import Random

from minimind_jax.data.generate.item import Family, Language, Operands, Text, below, capital, pick
from minimind_jax.data.generate.lexicon import COLOURS, OPPOSITES, THINGS, UNCOUNTABLE, Thing, Word

PHRASINGS = 4

# {t} the thing, {a} and {A} the English thing with its article, {c} the answer.
_DEFINITIONS = {
    "zh": {
        "category": (
            ("{t}属于哪一类？", "{t}属于{c}。"),
            ("{t}是一种什么？", "{t}是一种{c}。"),
            ("请说出{t}的类别。", "{t}的类别是{c}。"),
            ("人们把{t}归为哪一类？", "人们把{t}归为{c}。"),
        ),
        "colour": (
            ("{t}一般是什么颜色？", "{t}一般是{c}。"),
            ("{t}的颜色是什么？", "{t}的颜色是{c}。"),
            ("请说出{t}常见的颜色。", "{t}常见的颜色是{c}。"),
            ("画{t}要用什么颜色？", "画{t}要用{c}。"),
        ),
        "use": (
            ("{t}是用来做什么的？", "{t}是用来{c}的。"),
            ("{t}有什么用处？", "{t}的用处是{c}。"),
            ("请说出{t}的用途。", "{t}的用途是{c}。"),
            ("人们用{t}做什么？", "人们用{t}来{c}。"),
        ),
    },
    "en": {
        "category": (
            ("What kind of thing is {a}?", "{A} is a kind of {c}."),
            ("Which group does {a} belong to?", "{A} belongs to this group: {c}."),
            ("Name the category of {a}.", "The category of {a} is {c}."),
            ("What sort of thing do we call {a}?", "We call {a} a sort of {c}."),
        ),
        "colour": (
            ("What colour is {a}?", "{A} is usually {c}."),
            ("Which colour does {a} have?", "{A} has this colour: {c}."),
            ("Name the usual colour of {a}.", "The usual colour of {a} is {c}."),
            ("Which colour do we use to paint {a}?", "To paint {a} we use {c}."),
        ),
        "use": (
            ("What is {a} used for?", "{A} is used for {c}."),
            ("What is the use of {a}?", "The use of {a} is {c}."),
            ("Name the purpose of {a}.", "The purpose of {a} is {c}."),
            ("What do people use {a} for?", "People use {a} for {c}."),
        ),
    },
}
_FACTS = tuple(
    (thing, attribute)
    for attribute in ("category", "colour", "use")
    for thing, entry in enumerate(THINGS)
    if getattr(entry, attribute) is not None
)


def _draw_definition(rng: Random) -> Operands:
    thing, attribute = pick(rng, _FACTS)
    return (thing, attribute, below(rng, PHRASINGS))


def _render_definition(rng: Random, operands: Operands, language: Language) -> Text:
    thing, attribute, phrasing = operands
    entry = THINGS[thing]
    answer = getattr(entry, attribute).of(language)
    # Another thing's value, so that wrong answers are as common and as long as right ones.
    while True:
        rival = getattr(pick(rng, THINGS), attribute)
        if rival is not None and (wrong := rival.of(language)) != answer:
            break
    also: tuple[str, ...] = ()
    if language == "zh" and attribute == "colour":
        also = (answer[:-1], f"{answer}的")
    elif language == "en" and attribute == "category" and entry.category not in UNCOUNTABLE:
        also = (f"an {answer}" if answer[0] in "aeiou" else f"a {answer}",)
    return _worded(_DEFINITIONS[language][attribute][phrasing], entry, answer, wrong, also)


def _worded(
    phrasing: tuple[str, str], entry: Thing | Word, answer: str, wrong: str, also: tuple[str, ...] = ()
) -> Text:
    question, statement = phrasing
    a = entry.a if isinstance(entry, Thing) else entry.en
    slots = {"t": entry.zh, "e": entry.en, "a": a, "A": capital(a), "c": answer}
    return Text(question.format_map(slots), answer, statement.format_map(slots), wrong, also)


_OPPOSITE = {
    "zh": (
        ("“{t}”的反义词是什么？", "“{t}”的反义词是“{c}”。"),
        ("和“{t}”意思相反的词是什么？", "和“{t}”意思相反的词是“{c}”。"),
        ("请写出“{t}”的反义词。", "我们写出“{t}”的反义词：“{c}”。"),
        ("“{t}”的反面是什么？", "“{t}”的反面是“{c}”。"),
    ),
    "en": (
        ("What is the opposite of {e}?", "The opposite of {e} is {c}."),
        ("Which word means the opposite of {e}?", "The word that means the opposite of {e} is {c}."),
        ("Give the opposite of {e}.", "We give {c} as the opposite of {e}."),
        ("{e} is the opposite of which word?", "{e} is the opposite of {c}."),
    ),
}
_DIRECTED = tuple(pair for a, b in OPPOSITES for pair in ((a, b), (b, a)))


def _draw_opposites(rng: Random) -> Operands:
    return (below(rng, len(_DIRECTED)), below(rng, PHRASINGS))


def _render_opposites(rng: Random, operands: Operands, language: Language) -> Text:
    word, opposite = _DIRECTED[operands[0]]
    answer = opposite.of(language)
    while (wrong := pick(rng, _DIRECTED)[1].of(language)) in (answer, word.of(language)):
        pass
    question, answer, statement, wrong, also = _worded(_OPPOSITE[language][operands[1]], word, answer, wrong)
    return Text(capital(question), answer, capital(statement), wrong, also)


_PLURALS = {
    "zh": (
        ("“{t}”的量词是什么？", "“{t}”的量词是“{c}”。"),
        ("数{t}的时候用哪个量词？", "数{t}的时候用量词“{c}”。"),
        ("填量词：一（ ）{t}", "我们说“一{c}{t}”。"),
        ("请写出{t}的量词。", "{t}的量词写作“{c}”。"),
    ),
    "en": (
        ("What is the plural of {e}?", "The plural of {e} is {c}."),
        ("How do you write more than one {e}?", "More than one {e} is written {c}."),
        ("One {e}, two what?", "One {e}, two {c}."),
        ("Give the plural form of {e}.", "The plural form of {e} is {c}."),
    ),
}


def _draw_plurals(rng: Random) -> Operands:
    return (below(rng, len(THINGS)), below(rng, PHRASINGS))


def _render_plurals(rng: Random, operands: Operands, language: Language) -> Text:
    entry = THINGS[operands[0]]
    phrasing = _PLURALS[language][operands[1]]
    if language == "zh":
        # A measure word of another thing, but none that would also do for this one.
        while (wrong := pick(rng, THINGS).measures[0]) in entry.measures:
            pass
        return _worded(phrasing, entry, entry.measures[0], wrong, tuple(entry.measures[1:]))
    return _worded(phrasing, entry, entry.plural, _wrong_plural(rng, entry))


def _wrong_plural(rng: Random, entry: Thing) -> str:
    """A misspelt plural: the singular, or an ending that belongs to other words."""
    return pick(rng, [form for form in (entry.en, f"{entry.en}s", f"{entry.en}es") if form != entry.plural])


_TRANSLATIONS = {
    "zh": {
        "en": (
            ("“{t}”用英语怎么说？", "“{t}”用英语说是 {c}。"),
            ("“{t}”的英文是什么？", "“{t}”的英文是 {c}。"),
            ("把“{t}”翻译成英语。", "把“{t}”翻译成英语是 {c}。"),
            ("请写出“{t}”的英文单词。", "“{t}”的英文单词写作 {c}。"),
        ),
        "zh": (
            ("{e} 是什么意思？", "{e} 的意思是{c}。"),
            ("{e} 用中文怎么说？", "{e} 用中文说是{c}。"),
            ("把 {e} 翻译成中文。", "把 {e} 翻译成中文是{c}。"),
            ("英文单词 {e} 的中文是什么？", "英文单词 {e} 的中文是{c}。"),
        ),
    },
    "en": {
        "en": (
            ("What does {t} mean in English?", "In English {t} means {c}."),
            ("What is the English word for {t}?", "The English word for {t} is {c}."),
            ("Translate {t} into English.", "Translated into English, {t} is {c}."),
            ("How do you say {t} in English?", "In English we say {c} for {t}."),
        ),
        "zh": (
            ("What does {e} mean in Chinese?", "In Chinese {e} means {c}."),
            ("What is the Chinese word for {e}?", "The Chinese word for {e} is {c}."),
            ("Translate {e} into Chinese.", "Translated into Chinese, {e} is {c}."),
            ("How do you say {e} in Chinese?", "In Chinese we say {c} for {e}."),
        ),
    },
}
_VOCABULARY: tuple[Thing | Word, ...] = (*THINGS, *COLOURS)


def _draw_translation(rng: Random) -> Operands:
    return (below(rng, len(_VOCABULARY)), pick(rng, ("zh", "en")), below(rng, PHRASINGS))


def _render_translation(rng: Random, operands: Operands, language: Language) -> Text:
    word, target, phrasing = operands
    entry = _VOCABULARY[word]
    while (rival := pick(rng, _VOCABULARY)) is entry:
        pass
    return _worded(_TRANSLATIONS[language][target][phrasing], entry, entry.of(target), rival.of(target))


_SPELLINGS = {
    "zh": {
        "first": (
            ("“{t}”的第一个字是什么？", "“{t}”的第一个字是“{c}”。"),
            ("“{t}”以哪个字开头？", "“{t}”以“{c}”字开头。"),
            ("写“{t}”先写哪个字？", "写“{t}”先写“{c}”字。"),
            ("请说出“{t}”的首字。", "“{t}”的首字是“{c}”。"),
        ),
        "last": (
            ("“{t}”的最后一个字是什么？", "“{t}”的最后一个字是“{c}”。"),
            ("“{t}”以哪个字结尾？", "“{t}”以“{c}”字结尾。"),
            ("写“{t}”最后写哪个字？", "写“{t}”最后写“{c}”字。"),
            ("请说出“{t}”的尾字。", "“{t}”的尾字是“{c}”。"),
        ),
    },
    "en": {
        "first": (
            ("What is the first letter of {e}?", "The first letter of {e} is {c}."),
            ("Which letter does {e} begin with?", "The word {e} begins with {c}."),
            ("With which letter do we start to write {e}?", "We start to write {e} with {c}."),
            ("Name the letter at the start of {e}.", "The letter at the start of {e} is {c}."),
        ),
        "last": (
            ("What is the last letter of {e}?", "The last letter of {e} is {c}."),
            ("Which letter does {e} end with?", "The word {e} ends with {c}."),
            ("With which letter do we finish writing {e}?", "We finish writing {e} with {c}."),
            ("Name the letter at the end of {e}.", "The letter at the end of {e} is {c}."),
        ),
    },
}
# One character has no first and last.
_SPELLED = tuple(thing for thing, entry in enumerate(THINGS) if len(entry.zh) > 1)


def _draw_spelling(rng: Random) -> Operands:
    return (pick(rng, _SPELLED), pick(rng, ("first", "last")), below(rng, PHRASINGS))


def _render_spelling(rng: Random, operands: Operands, language: Language) -> Text:
    thing, which, phrasing = operands
    position = 0 if which == "first" else -1
    entry = THINGS[thing]
    answer = entry.of(language)[position]
    while (wrong := THINGS[pick(rng, _SPELLED)].of(language)[position]) == answer:
        pass
    return _worded(_SPELLINGS[language][which][phrasing], entry, answer, wrong)


DEFINITION = Family("definition", _draw_definition, _render_definition, PHRASINGS)
OPPOSITES_FAMILY = Family("opposites", _draw_opposites, _render_opposites, PHRASINGS)
PLURALS = Family("plurals", _draw_plurals, _render_plurals, PHRASINGS)
TRANSLATION = Family("translation", _draw_translation, _render_translation, PHRASINGS)
SPELLING = Family("spelling", _draw_spelling, _render_spelling, PHRASINGS)
