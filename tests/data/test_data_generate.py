"""The synthetic corpus: right answers, disjoint operands, honest pairs, reproducible and safe files."""

from __future__ import annotations

import calendar
import hashlib
import json
import re
import subprocess
import sys
from collections import defaultdict
from datetime import date, timedelta
from pathlib import Path
from random import Random

import pytest

from minimind_jax.data.generate import FAMILIES, LANGUAGES, MANIFEST, Family, Item, Sizes, generate, is_correct
from minimind_jax.data.generate.__main__ import main
from minimind_jax.data.generate.lexicon import COLOURS, FOODS, NAMES, OBJECTS, OPPOSITES, PETS, PLACES, THINGS
from minimind_jax.data.generate.records import pairs
from minimind_jax.data.generate.write import MAX_QUESTIONS
from minimind_jax.errors import UserError

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


def test_the_files_have_minimind_formats(tmp_path):
    generate(tmp_path, sizes=SMALL, log=quiet)
    expected = {"pretrain": 400, "pretrain_val": 20, "sft": 200, "sft_val": 10, "dpo": 100, "dpo_val": 5}
    for name, n in expected.items():
        assert len(records(tmp_path / f"{name}.jsonl")) == n
    texts = [record["text"] for record in records(tmp_path / "pretrain.jsonl")]
    assert all(texts)
    chinese = sum(bool(re.search("[。：]", text)) for text in texts)
    assert chinese == len(texts) // 2
    chats = [record["conversations"] for record in records(tmp_path / "sft.jsonl")]
    for chat in chats:
        roles = [message["role"] for message in chat if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert "system" not in [message["role"] for message in chat[1:]]
    assert sum(chat[0]["role"] == "system" for chat in chats) > 10
    assert sum(len(chat) > 3 for chat in chats) > 20
    questions = records(tmp_path / "questions.jsonl")
    assert len(questions) == 3 * len(FAMILIES) * len(LANGUAGES) == len({q["id"] for q in questions})
    for q in questions:
        assert set(q) == {"id", "family", "language", "conversations", "answer", "gt"}
        assert q["gt"][0] == q["answer"] and is_correct(q["answer"], q)


def test_no_held_out_question_stands_in_a_training_file(tmp_path):
    generate(tmp_path, sizes=Sizes(3000, 2000, 500, 20), log=quiet)
    training = "\n".join(
        text
        for name in ("pretrain", "sft", "dpo")
        for record in records(tmp_path / f"{name}.jsonl")
        for text in (record.get("text"), *(m["content"] for k in record if k != "text" for m in record[k]))
        if text
    )
    for question in records(tmp_path / "questions.jsonl"):
        asked = question["conversations"][0]["content"]
        # A whole line: "1 + 2" is also the end of "11 + 2".
        assert not re.search(rf"(?m)^((问题：|Question: )?){re.escape(asked)}$", training), asked


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_bytes_depend_on_the_seed_alone(tmp_path):
    generate(tmp_path / "a", 7, SMALL, log=quiet)
    script = "from minimind_jax.data.generate.__main__ import main; main()"
    flags = [
        "--seed",
        "7",
        "--documents",
        "400",
        "--conversations",
        "200",
        "--pairs",
        "100",
        "--questions",
        "3",
        "--out",
    ]
    for name, hash_seed in (("b", "1"), ("c", "2")):
        command = [sys.executable, "-c", script, *flags, str(tmp_path / name)]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)})
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")
    generate(tmp_path / "d", 8, SMALL, log=quiet)
    assert not set(digest(tmp_path / "a").values()) & set(digest(tmp_path / "d").values())


def test_the_bytes_of_this_version_are_known(tmp_path):
    """Fails when the corpus changes: then raise VERSION, so that nobody takes old files for new ones."""
    generate(tmp_path, 0, SMALL, log=quiet)
    digests = "".join(sha for name, sha in digest(tmp_path).items() if name != MANIFEST)
    assert hashlib.sha256(digests.encode()).hexdigest()[:16] == "78229b3362e70dcb"


def test_a_smaller_corpus_is_a_prefix(tmp_path):
    generate(tmp_path / "a", sizes=Sizes(50, 0, 0, 0), log=quiet)
    generate(tmp_path / "b", sizes=Sizes(2100, 0, 0, 0), log=quiet)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        MANIFEST,
        "pretrain.jsonl",
        "pretrain_val.jsonl",
    ]
    small, large = ((tmp_path / d / "pretrain.jsonl").read_bytes() for d in "ab")
    assert large.startswith(small)


def test_a_second_run_keeps_the_files_and_makes_missing_ones(tmp_path, capsys):
    generate(tmp_path, 0, SMALL, log=quiet)
    before, times = digest(tmp_path), {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    main(
        [
            *["--documents", "400", "--conversations", "200", "--pairs", "100", "--questions", "3", "--out"],
            str(tmp_path),
        ]
    )
    assert "already generated" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times
    (tmp_path / "sft.jsonl").unlink()
    generate(tmp_path, 0, SMALL, log=quiet)
    assert digest(tmp_path) == before
    assert (tmp_path / "dpo.jsonl").stat().st_mtime_ns == times["dpo.jsonl"]


def test_nothing_is_overwritten_without_force(tmp_path):
    mine = tmp_path / "sft.jsonl"
    mine.write_text("mine\n")
    with pytest.raises(UserError, match=r"sft\.jsonl.*--force"):
        generate(tmp_path, 0, SMALL, log=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["sft.jsonl"] and mine.read_text() == "mine\n"
    generate(tmp_path, 0, SMALL, force=True, log=quiet)
    assert len(records(mine)) == 200
    with pytest.raises(UserError, match="--force"):
        generate(tmp_path, 1, SMALL, log=quiet)
    mine.write_text("edited\n")
    with pytest.raises(UserError, match=r"has sft\.jsonl, not"):
        generate(tmp_path, 0, SMALL, log=quiet)
    (tmp_path / MANIFEST).write_text('{"files": {"sft.jsonl": 3}}')
    with pytest.raises(UserError, match="--force"):
        generate(tmp_path, 0, SMALL, log=quiet)


@pytest.mark.parametrize("name", ["sft.jsonl", MANIFEST])
def test_a_directory_in_the_way_is_left_alone(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="is a directory"):
        generate(tmp_path, 0, SMALL, force=True, log=quiet)
    assert (tmp_path / name).is_dir()
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def stop(message: str) -> None:
        if message.startswith("sft.jsonl"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, 0, SMALL, log=stop)
    assert list(tmp_path.iterdir()) == []


def test_bad_values_are_one_sentence(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for flags, words in (
        (["--out", str(file)], "is a file"),
        (["--out", str(file / "below")], "below a file"),
        (["--out", str(tmp_path / "a"), "--documents", "-1"], "--documents -1"),
        (["--out", str(tmp_path / "a"), "--questions", str(MAX_QUESTIONS + 1)], "--questions"),
        (
            [
                "--out",
                str(tmp_path / "a"),
                *["--documents", "0", "--conversations", "0", "--pairs", "0", "--questions", "0"],
            ],
            "nothing",
        ),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(flags)
        assert words in str(exit_.value) and str(exit_.value).startswith("error: ")
    assert not (tmp_path / "a").exists()
    with pytest.raises(SystemExit) as exit_:
        main(["--out", str(tmp_path / "a"), "--documents", "many"])
    assert exit_.value.code == 2 and "--documents" in capsys.readouterr().err


def test_needs_only_the_standard_library():
    """The generator's own modules import nothing but the standard library and the errors."""
    folder = Path(sys.modules[generate.__module__].__file__).parent
    for path in folder.glob("*.py"):
        for module in re.findall(r"(?m)^\s*(?:from|import) ([\w.]+)", path.read_text("utf-8")):
            if not module.startswith("minimind_jax.data.generate") and module != "minimind_jax.errors":
                assert module.split(".")[0] in sys.stdlib_module_names, (path.name, module)
