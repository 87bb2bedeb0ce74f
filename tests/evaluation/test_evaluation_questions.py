"""Questions with verifiable answers: counting, the two ways of asking, the table, bad records."""

import json
import random
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from minimind_jax.config import ModelConfig
from minimind_jax.data.generate import FAMILIES, LANGUAGES, Sizes, generate, plain_prompt
from minimind_jax.data.generate import records as generator
from minimind_jax.errors import UserError
from minimind_jax.evaluation import ask, questions, questions_table
from minimind_jax.evaluation.questions import Count, read_questions, score_replies
from minimind_jax.inference import Options, generate_text
from minimind_jax.model import abstract_params
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.workdir import LoadedModel

CONFIG = ModelConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=6400, max_seq_len=256)
PER_FAMILY = 2
N = len(FAMILIES) * len(LANGUAGES) * PER_FAMILY


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    generate(out, sizes=Sizes(0, 0, 0, PER_FAMILY), log=lambda line: None)
    return out / "questions.jsonl"


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), abstract_params(CONFIG))
    return LoadedModel(CONFIG, params, load_tokenizer(), 0, Path("model"))


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_replies_are_counted_by_family_and_language(file, model, monkeypatch):
    def knows_units_and_chinese_spelling(config, params, prompts, options, *, eos_id, mesh):
        assert mesh.size == jax.local_device_count()
        assert (config, params, eos_id) == (CONFIG, model.params, model.tokenizer.eos_id)
        assert options == Options(max_new_tokens=24)
        asked, encode = records(file), model.tokenizer.encode
        for prompt, record in zip(prompts, asked, strict=True):
            text = model.tokenizer.apply_chat_template(record["conversations"], add_generation_prompt=True)
            assert prompt == model.tokenizer.encode_rendered(text)
        known = {("units", "zh"), ("units", "en"), ("spelling", "zh")}
        return [encode(f" {r['gt'][-1]}。\n" if (r["family"], r["language"]) in known else "-") for r in asked]

    monkeypatch.setattr(questions, "generate", knows_units_and_chinese_spelling)
    score = ask(model, file)
    assert score.count() == Count(6, N)
    assert score.count("units") == Count(4, 4)
    assert score.count("spelling") == Count(2, 4)
    assert score.count("spelling", "zh") == Count(2, 2)
    assert score.count("spelling", "en") == score.count("story", "zh") == Count(0, 2)
    assert score.count(language="zh") == Count(4, N // 2)
    assert score.count("riddles") is None

    summary = score.to_dict()
    assert (summary["accuracy"], summary["correct"], summary["questions"]) == (6 / N, 6, N)
    assert summary["languages"]["en"] == {"accuracy": 4 / N, "correct": 2, "questions": N // 2}
    assert list(summary["families"]) == [family.name for family in FAMILIES]
    assert summary["families"]["spelling"] == {
        "zh": {"accuracy": 1.0, "correct": 2, "questions": 2},
        "en": {"accuracy": 0.0, "correct": 0, "questions": 2},
    }
    answers = json.loads(json.dumps(score.answers))
    assert [answer["correct"] for answer in answers] == list(score.is_correct) and len(answers) == N
    asked = {(answer["family"], answer["language"]): answer for answer in answers}["units", "en"]
    assert asked["reply"] == f"{asked['gt'][-1]}。" and asked["messages"][-1]["role"] == "user"


def test_plain_prompts_are_those_of_pretraining_documents():
    rng = random.Random(0)
    for family in FAMILIES:
        for language in LANGUAGES:
            item = family.sample(rng, "train", language)
            prompt = plain_prompt(family.name, language, item.question)
            is_story = family.name == "story"
            text = generator._story_with_questions(rng, item) if is_story else generator._asked(item)
            assert re.sub("^ ", "", text.removeprefix(prompt)).split("\n")[0] == item.answer
            assert text.startswith(prompt)


def test_plain_replies_are_one_line_after_the_colon(model, file, monkeypatch):
    asked = read_questions(file)

    def completes(model, prompts, options, mesh):
        assert (options, len(prompts)) == (Options(max_new_tokens=9), N)
        replies = []
        for question, prompt in zip(asked, prompts, strict=True):
            colon = plain_prompt(question.family, question.language, question.conversation.messages[0]["content"])
            assert prompt == colon[:-1] and colon[-1] in ":："
            assert question.conversation.messages[0]["content"] in prompt
            replies.append(f"{colon[-1]} {question.answer}\nQuestion: And more?\nAnswer: something")
        replies[0] = replies[0].replace("\n", " ")
        replies[1] = replies[1][1:]  # no colon of its own
        return replies

    monkeypatch.setattr(questions, "generate_text", completes)
    score = ask(model, file, plain=True, max_new_tokens=9)
    assert score.count() == Count(N - 1, N)
    assert not score.is_correct[0]
    assert score.replies[2] == asked[2].answer  # without the colon


@pytest.mark.parametrize("plain", [False, True])
def test_a_random_model_answers_in_both_ways(model, file, plain):
    score = ask(model, file, plain=plain, max_new_tokens=3)
    assert score.count().questions == N
    assert score.count().accuracy < 0.1
    assert len(set(score.replies)) > 3
    if plain:
        prompt = plain_prompt("arithmetic", "zh", records(file)[0]["conversations"][0]["content"])
        reply = generate_text(model, [prompt[:-1]], Options(max_new_tokens=3))[0]
        assert score.replies[0] == reply.removeprefix("：").split("\n")[0].strip()


def test_table(file):
    asked = read_questions(file)
    replies = [q.answer if q.family in ("lists", "units") and q.language == "zh" else "no\nidea" for q in asked]
    lines = questions_table(score_replies(asked, replies)).splitlines()
    assert lines[0].split() == ["exact", "answers", "zh", "en", "all", "questions"]
    cells = {line[:14].strip(): re.split(r"\s{2,}", line[14:].strip()) for line in lines[1:18]}
    assert list(cells) == [*(family.name for family in FAMILIES), "total"]
    assert cells["units"] == ["100.0 %", "0.0 %", "50.0 %", "4"]
    assert cells["story"] == ["0.0 %", "0.0 %", "0.0 %", "4"]
    assert cells["total"] == ["12.5 %", "0.0 %", "6.2 %", str(N)]
    assert len({len(line) for line in lines[:18]}) == 1  # aligned
    examples = lines[18:]
    assert len(set(examples)) == 4
    assert [line.endswith("(right)") for line in examples] == [True, True, False, False]
    assert all("-> 'no idea' (wrong, " in line for line in examples[2:])


def test_table_of_one_language_and_of_all_right(file):
    asked = [q for q in read_questions(file) if q.language == "en"]
    lines = questions_table(score_replies(asked, [q.gt[-1] for q in asked])).splitlines()
    assert lines[0].split() == ["exact", "answers", "en", "all", "questions"]
    assert lines[17].split() == ["total", "100.0", "%", "100.0", "%", str(N // 2)]
    assert [line.endswith("(right)") for line in lines[18:]] == [True] * 4
    one = questions_table(score_replies(asked[:1], ["?"])).splitlines()
    assert len(one) == 4 and one[3].endswith("is right)")


def test_a_family_that_is_missing_in_a_language(file):
    asked = read_questions(file)
    kept = [q for q in asked if (q.family, q.language) != ("units", "en")]
    table = questions_table(score_replies(kept, ["?"] * len(kept)))
    assert re.search(r"^units +0\.0 % +- +0\.0 % +2$", table, re.MULTILINE)


GOOD = {
    "id": "units-zh-001",
    "family": "units",
    "language": "zh",
    "conversations": [{"role": "user", "content": "3米等于多少厘米？"}],
    "answer": "300厘米",
    "gt": ["300厘米"],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ...}, "lacks `id`"),
        ({"gt": ...}, "lacks `gt`"),
        ({"gt": []}, "`gt` is not a list of accepted answers, or empty"),
        ({"gt": "300"}, "`gt` is not a list"),
        ({"gt": [300]}, "`gt` is not a list"),
        ({"family": ""}, "`family` is not a string, or empty"),
        ({"answer": 300}, "`answer` is not a string"),
        ({"language": "fr"}, "`language` is 'fr', not one of zh, en"),
        ({"conversations": ...}, "lacks `conversations`"),
        ({"conversations": "hi"}, "`conversations` is not a list of messages"),
        ({"conversations": []}, "`conversations` is empty"),
        ({"conversations": ["hi"]}, r"`conversations\[0\]` is not an object with role and content"),
        ({"conversations": [{"role": "bot", "content": "?"}]}, r"`conversations\[0\].role`"),
        ({"conversations": [{"role": "user"}]}, r"`conversations\[0\].content` is missing"),
        (
            {"conversations": [{"role": "assistant", "content": "3"}]},
            "`conversations` does not end",
        ),
    ],
)
def test_bad_records_are_named_by_line_and_field(changes, message, tmp_path):
    bad = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in (GOOD, GOOD, bad)))
    with pytest.raises(UserError, match=rf"q\.jsonl:3 is no question: {message}"):
        read_questions(file)


@pytest.mark.parametrize(
    ("content", "message"), [("", r"q\.jsonl has no question"), ("{bad", r"q\.jsonl:1 is no question: not JSON")]
)
def test_files_without_questions(content, message, tmp_path):
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_questions(tmp_path / "q.jsonl")


def test_conversations_of_several_turns_are_no_plain_text(model, tmp_path):
    system = {"role": "system", "content": "Be brief."}
    record = {**GOOD, "conversations": [system, *GOOD["conversations"]]}
    (tmp_path / "q.jsonl").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"units-zh-001 is a conversation of 2 messages.*leave --plain away"):
        ask(model, tmp_path / "q.jsonl", plain=True)
    assert ask(model, tmp_path / "q.jsonl", max_new_tokens=2).count().questions == 1


def test_a_question_that_is_too_long_for_the_model(model, tmp_path):
    record = {**GOOD, "conversations": [{"role": "user", "content": "word " * 300}]}
    (tmp_path / "q.jsonl").write_text(json.dumps(record))
    for plain in (False, True):
        with pytest.raises(UserError, match=r"prompt 0 has \d+ tokens"):
            ask(model, tmp_path / "q.jsonl", plain=plain)
