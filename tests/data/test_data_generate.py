"""The synthetic corpus: right answers, disjoint operands, honest pairs."""

from __future__ import annotations

import calendar
import json
import re
from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path
from random import Random

import pytest

from minimind_jax.data.generate import FAMILIES, LANGUAGES, Family, Item, Sizes, is_correct
from minimind_jax.data.generate.lexicon import COLOURS, FOODS, NAMES, OBJECTS, OPPOSITES, PETS, PLACES, THINGS
from minimind_jax.data.generate.records import pairs
from minimind_jax.data.generate.write import MAX_QUESTIONS

SMALL = Sizes(documents=400, conversations=200, pairs=100, questions=3)
by_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
BY_NAME = {family.name: family for family in FAMILIES}


def quiet(_: str) -> None:
    pass


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def sampled(family: Family, language: str, n: int, split: str = "train") -> list[Item]:
    rng = Random(f"{family.name} {language} {split}")
    return [family.sample(rng, split, language) for _ in range(n)]


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


@by_family
def test_training_and_held_out_are_disjoint(family):
    operands = {split: set() for split in ("train", "val")}
    texts = {split: set() for split in ("train", "val")}
    for language in LANGUAGES:
        for split in ("train", "val"):
            for item in sampled(family, language, 3000, split):
                operands[split].add(item.operands)
                texts[split] |= {item.question, item.statement}
    # Over both languages together: what is held out in one is held out in the other.
    assert not operands["train"] & operands["val"]
    # The words too, lest an operand that no word shows make two keys of one question.
    assert not texts["train"] & texts["val"]


@by_family
def test_a_fair_share_is_held_out(family):
    rng = Random(0)
    seen = {family.draw(rng) for _ in range(4000)}
    share = sum(family.split_of(operands) == "val" for operands in seen) / len(seen)
    assert 0.14 < share < 0.3


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.phrasings], ids=lambda family: family.name)
def test_every_fact_is_taught_and_held_out_in_one_phrasing(family):
    rng = Random(1)
    splits = defaultdict(dict)
    for _ in range(20000):
        *fact, phrasing = operands = family.draw(rng)
        splits[tuple(fact)][phrasing] = family.split_of(operands)
    for fact, ways in splits.items():
        assert len(ways) == family.phrasings, fact
        assert list(ways.values()).count("val") == 1, fact


@by_family
@pytest.mark.parametrize("language", LANGUAGES)
def test_items_are_well_formed(family, language):
    for item in sampled(family, language, 1000) + sampled(family, language, 300, "val"):
        assert item.accepted[0] == item.answer and item.answer
        assert is_correct(item.answer, item)
        assert not is_correct(item.wrong, item), item
        for text in (item.question, item.statement, item.answer, item.wrong):
            assert text == text.strip() and "{" not in text and "  " not in text
        assert item.statement[-1] in (".", "。", '"')
        if language == "en" and family.name != "translation":
            assert (item.question + item.statement).isascii()
        if language == "en" and family.name != "letters":
            assert not re.search(r"\ba [aeiou]\w|\ban [^aeiou]\w", item.statement), item.statement
        if language == "zh":
            assert not re.search(r"[.,?!]", item.statement), item.statement
        # The statement teaches what the question asks.
        assert item.answer in item.statement, item


@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_are_right(language):
    for item in sampled(BY_NAME["arithmetic"], language, 500):
        a, b = numbers(item.question)
        if re.search(r"加|和是|\+|plus|sum", item.question):
            expected = a + b
        elif item.question.startswith("Take"):
            expected = b - a
        else:
            expected = a - b
        assert item.answer == str(expected) and expected >= 0
        assert numbers(item.statement)[-1] == expected
    for item in sampled(BY_NAME["comparison"], language, 500):
        choose = max if re.search("大|larger", item.question) else min
        assert int(item.answer) == choose(numbers(item.question))
    for item in sampled(BY_NAME["sorting"], language, 500):
        values = re.findall(r"\d+", item.question) or re.findall(r"(?<![a-zA-Z])[a-z](?![a-z])", item.question)
        downwards = bool(re.search("从大到小|large to small", item.question))
        key = int if values[0].isdigit() else str
        assert re.findall(r"\w+", item.answer) == sorted(values, key=key, reverse=downwards)
    for item in sampled(BY_NAME["counting"], language, 500):
        words = re.split("[、,]", item.question)
        assert int(item.answer) == len(words)


# Against a table of its own: metres, kilograms, litres, cents, seconds.
_SIZE = {
    "kilometres": 1000, "metres": 1, "centimetres": 0.01, "millimetres": 0.001, "kilograms": 1, "grams": 0.001,
    "litres": 1, "millilitres": 0.001, "dollars": 100, "cents": 1, "weeks": 604800, "days": 86400, "hours": 3600,
    "minutes": 60, "千米": 1000, "米": 1, "厘米": 0.01, "毫米": 0.001, "千克": 1, "克": 0.001, "升": 1, "毫升": 0.001,
    "元": 100, "分": 1, "周": 604800, "天": 86400, "小时": 3600, "分钟": 60,
}  # fmt: skip
_UNIT = re.compile(r"(\d+) ?(" + "|".join(sorted(_SIZE, key=len, reverse=True)) + ")")


@pytest.mark.parametrize("language", LANGUAGES)
def test_conversions_are_right(language):
    for item in sampled(BY_NAME["units"], language, 1000):
        (n, u), (m, v) = _UNIT.findall(item.statement)
        assert int(n) * _SIZE[u] == pytest.approx(int(m) * _SIZE[v])
        assert _UNIT.fullmatch(item.answer).groups() == (m, v)
        assert is_correct(m, item)
        assert f"{n}{u}" in item.question.replace(" ", "") and v in item.question


@pytest.mark.parametrize("language", LANGUAGES)
def test_dates_are_right(language):
    names = [[f"星期{c}" for c in "一二三四五六日"], list(calendar.day_name)][language == "en"]
    for item in sampled(BY_NAME["weekday"], language, 1000):
        (start,) = [i for i, name in enumerate(names) if name in item.question]
        offset = (
            2 if re.search("两天|two days", item.question) else -1 if re.search("前一天|before", item.question) else 1
        )
        monday = date(2024, 1, 1)
        assert item.answer == names[(monday + timedelta(days=start + offset)).weekday()]
    names = [[f"{m}月" for m in range(1, 13)], list(calendar.month_name)[1:]][language == "en"]
    for item in sampled(BY_NAME["month"], language, 1000):
        month = max(names, key=lambda name: len(name) if name in item.question else 0)
        k = names.index(month)
        if re.search("多少天|How many", item.question):
            assert int(item.answer) == calendar.monthrange(2023, k + 1)[1] == calendar.monthrange(2024, k + 1)[1]
        else:
            assert item.answer == names[(k + (-1 if re.search("上一个|before", item.question) else 1)) % 12]


@pytest.mark.parametrize("language", LANGUAGES)
def test_strings_are_right(language):
    for item in sampled(BY_NAME["letters"], language, 500):
        letters = re.search(r"(?<![a-z])[a-z](?: [a-z](?![a-z]))+", item.question)[0].split()
        if re.search("倒|backwards", item.question):
            assert item.answer.split() == letters[::-1]
        else:
            assert item.answer == letters[-1 if re.search("最后|last", item.question) else 0]
    for item in sampled(BY_NAME["lists"], language, 500):
        words = {thing.of(language) for thing in THINGS}
        listed = [w for w in re.split(r"[、,，：:？? ]+", item.question) if w in words]
        assert item.answer == listed[-1 if re.search("最后|last", item.question) else 0]
    for item in sampled(BY_NAME["repeat"], language, 500):
        assert re.split("[:：] ?", item.question)[1] == item.answer
    for item in sampled(BY_NAME["spelling"], language, 500):
        thing = THINGS[item.operands[0]].of(language)
        assert thing in item.question
        assert item.answer == thing[-1 if re.search("最后|结尾|尾字|last|end|finish", item.question) else 0]


@pytest.mark.parametrize("language", LANGUAGES)
def test_stories_tell_the_answer(language):
    fillings = [word.of(language) for words in (COLOURS, FOODS, NAMES, OBJECTS, PETS) for word in words]
    for item in sampled(BY_NAME["story"], language, 1000):
        story, question = item.question.split("\n")
        assert item.answer in story
        assert item.statement == story
        assert item.answer in fillings or item.answer.isdigit() or item.answer not in question
        if language == "en":
            assert question.startswith("Question: ") and question.endswith("?")
            she = any(name.en in story.split(". ")[0] for name in NAMES[6:])
            assert she or not re.search(r"\b(she|her)\b", story)
        else:
            assert question.startswith("问题：") and question.endswith("？")


def test_the_lexicon_is_unambiguous():
    for language in LANGUAGES:
        for words in (THINGS, COLOURS, NAMES, PLACES, OBJECTS, FOODS, PETS):
            spelled = [word.of(language) for word in words]
            assert len(set(spelled)) == len(spelled)
        opposites = [word.of(language) for pair in OPPOSITES for word in pair]
        assert len(set(opposites)) == len(opposites)


def test_pairs_differ_in_the_answer_alone_and_length_tells_nothing():
    rng = Random(3)
    lengths = []
    stream = pairs(rng, "train")
    for _ in range(6000):
        pair = next(stream)
        chosen, rejected = pair["chosen"], pair["rejected"]
        assert chosen[:-1] == rejected[:-1] and chosen[-2]["role"] == "user" and chosen[-1] != rejected[-1]
        lengths.append((len(chosen[-1]["content"]), len(rejected[-1]["content"])))
    n = len(lengths)
    assert abs(sum(a - b for a, b in lengths)) / n < 0.15
    assert abs(sum(a > b for a, b in lengths) - sum(a < b for a, b in lengths)) / n < 0.05


@by_family
@pytest.mark.parametrize("language", LANGUAGES)
def test_each_family_can_fill_the_questions(family, language):
    assert len({item.question for item in sampled(family, language, 4000, "val")}) >= MAX_QUESTIONS


@pytest.mark.parametrize(
    ("reply", "gt", "right"),
    [
        ("42", ["42"], True),
        (" 42。\n", ["42"], True),
        ("４２", ["42"], True),
        ("“黄色”", ["黄色", "黄"], True),
        ("黄", ["黄色", "黄"], True),
        ("The  Park.", ["the park"], True),
        ("-3", ["3"], False),
        ("-3", ["-3"], True),
        ("- 3", ["3"], True),
        ("420", ["42"], False),
        ("4 2", ["42"], False),
        ("not 42", ["42"], False),
        ("the answer is 42", ["42"], False),
        ("5, 9, 12", ["5, 9, 12"], True),
        ("9, 5, 12", ["5, 9, 12"], False),
        ("", ["42"], False),
        ("。", ["42"], False),
    ],
)
def test_is_correct(reply, gt, right):
    assert is_correct(reply, {"answer": gt[0], "gt": gt}) is right
    item = Item("f", "en", (), "q", gt[0], tuple(gt), "s", "w")
    assert is_correct(reply, item) is right
