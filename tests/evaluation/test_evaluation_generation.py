"""Generation tasks: answers on the engine, pass@k, GSM8K, exact answers, tool calls; bad records by line and field."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from evaluation_helpers import random_model
from hypothesis import given
from hypothesis import strategies as st

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.evaluation import TaskOptions, asking, open_task
from minimind_jax.evaluation.generation import Answer, pass_at_k, write_answers
from minimind_jax.evaluation.tool_calls import judge, parse_tool_calls, same_json
from minimind_jax.inference import Options, generate
from minimind_jax.tokenizer import load_tokenizer

CONFIG = ModelConfig(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=6400, max_seq_len=256)
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("add", "now")
]
TEN = [{"name": "add", "arguments": {"a": 4, "b": 6}}]


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, scale=3)


def write(path: Path, records) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path


@pytest.fixture
def scripted(monkeypatch, model, tmp_path):
    """Runs a task on records with answers that are given, one a sample of each record."""

    def run(task, records, answers, **options):
        seen = []

        def answer(of, prompts, generation, samples, what):
            seen.extend(of.tokenizer.decode(p, skip_special_tokens=False) for p in prompts)
            lists = [a if isinstance(a, list) else [a] for a in answers]
            assert {len(a) for a in lists} == {samples}
            return [[Answer(text, len(text), "stop") for text in a] for a in lists]

        monkeypatch.setattr(asking, "write_answers", answer)
        file = write(tmp_path / "data.jsonl", records)
        result = open_task(f"{task}:{file}", TaskOptions(**options)).run(model)
        return result, seen

    return run


# --- Answers --------------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_batch_generation(model):
    prompts = [model.tokenizer.encode(text) for text in ("the sea", "柠檬一般是", "one two three four five")]
    answers = write_answers(model, prompts, Options(max_new_tokens=7), 1, "test")
    eos_id = model.tokenizer.eos_id
    expected = generate(model.config, model.params, prompts, Options(max_new_tokens=7), eos_id=eos_id)
    assert [a.text for (a,) in answers] == [model.tokenizer.decode(ids) for ids in expected]
    assert [a.tokens for (a,) in answers] == [len(ids) for ids in expected]
    assert {a.reason for (a,) in answers} == {"length"}


def test_samples_differ_and_do_not_depend_on_the_batch(model):
    prompts = [model.tokenizer.encode("the sea")] * 2
    options = Options(max_new_tokens=6, temperature=1.0)
    both = write_answers(model, prompts, options, 3, "test")
    texts = [a.text for of_prompt in both for a in of_prompt]
    assert len(set(texts)) == 6
    assert [a.text for a in write_answers(model, prompts[:1], options, 3, "test")[0]] == texts[:3]


def test_a_prompt_without_room_is_not_answered(model):
    prompts = [[5] * 256, [5] * 255]
    none, one = write_answers(model, prompts, Options(max_new_tokens=9), 2, "test")
    assert none == [Answer("", 0, "no room")] * 2
    assert [(a.tokens, a.reason) for a in one] == [(1, "length")] * 2


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n_c_k):
    n, correct, k = n_c_k
    tries = [i < correct for i in range(n)]
    draws = [any(draw) for draw in itertools.combinations(tries, k)]
    assert pass_at_k(n, correct, k) == pytest.approx(sum(draws) / len(draws))


# --- GSM8K ----------------------------------------------------------------------------------------

SOLVED = {"question": "How much?", "answer": "She has 3 * 4 = <<3*4=12>>12 eggs.\n#### 1,012"}


def lm_eval_matches(reply: str, gold: str) -> tuple[bool, bool]:
    """The two filters and exact_match with the regexes of lm-eval's gsm8k.yaml."""

    def bare(text):
        for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"):
            text = re.sub(pattern, "", text)
        return text.lower()

    strict = re.findall(r"#### (\-?[0-9\.\,]+)", reply)
    flexible = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", reply)
    first = strict[0].strip() if strict else "[invalid]"
    last = next(part for part in flexible[-1] if part).strip() if flexible else "[invalid]"
    return bare(first) == bare(gold), bare(last) == bare(gold)


REPLIES = [
    "so 1,000 + 12 = 1012.", "#### 1,012", "it is 1012\n#### 7", "#### 1012 eggs, and 5 more", "$1,012.", "no idea", "",
    "#### -1012", "#### $1012", "1012.0", "##### 1012", "#### 7\n#### 1012", "...", "1012 .",
]  # fmt: skip


@pytest.mark.parametrize("reply", REPLIES)
def test_gsm8k_is_scored_as_lm_eval_does(scripted, reply):
    result, _ = scripted("gsm8k", [SOLVED], [reply])
    found = tuple(bool(result.mean(metric)) for metric in ("strict", "flexible"))
    assert found == lm_eval_matches(reply.strip(), SOLVED["answer"])
    assert result.records[0]["reply"] == reply and result.records[0]["gold"] == "1,012"


def test_examples_are_of_another_file_or_the_first_ones(scripted, tmp_path):
    records = [{"question": f"What is {i} + 1?", "answer": f"<<x={i}>>It is\n#### {i + 1}"} for i in range(5)]
    result, (first, *_) = scripted("gsm8k", records, ["3", "4", "9"], shots=2, chat=False)
    assert [r["id"] for r in result.records] == ["3", "4", "5"]
    assert result.scores["flexible"].tolist() == [1, 1, 0]
    shown = "".join(f"Question: What is {i} + 1?\nAnswer: It is\n#### {i + 1}\n\n" for i in (0, 1))
    bos = load_tokenizer().decode([load_tokenizer().bos_id], skip_special_tokens=False)
    assert first == f"{bos}{shown}Question: What is 2 + 1?\nAnswer:"
    other = write(tmp_path / "train.jsonl", [SOLVED])
    result, (first, *_) = scripted("gsm8k", records, ["1"] * 5, shots=1, shots_from=other)
    assert len(result) == 5
    turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)", first, re.S)
    assert [role for role, _ in turns] == ["user", "assistant", "user", "assistant"]
    assert turns[0][1] == "How much?" and turns[1][1].endswith("12 eggs.\n#### 1,012") and "<<" not in turns[1][1]


# --- Exact answers --------------------------------------------------------------------------------


def test_exact_answers_in_all_forms(scripted):
    user = {"role": "user", "content": "5 + 1?"}
    records = [
        {"question": "柠檬是什么颜色的？", "answer": ["黄色", "黄"]},
        {"prompt": "2 + 2?", "answer": 4},
        {"conversations": [{"role": "user", "content": "2 + 3?"}], "gt": ["5"]},
        {
            "messages": [user, {"role": "assistant", "content": "work\n#### 6"}],
            "answer": "6",
        },
    ]
    answers = ["黄色。", "the answer is 4", "First 4.\n#### 5", "7\n6"]
    result, prompts = scripted("exact", records, answers)
    assert result.scores["exact"].tolist() == [1, 0, 1, 0]
    assert "number" not in result.scores  # 黄色 is none
    assert "work" not in prompts[3]
    assert scripted("exact", records[1:], answers[1:])[0].scores["number"].tolist() == [1, 1, 1]


def test_numbers_are_compared_by_value_and_thoughts_do_not_count(scripted):
    record = {"question": "?", "answer": "1.5"}
    for reply, right in [("it is 1.50", 1), ("１.5", 1), ("1.5 or 2", 0), ("<think>\n1.5\n</think>\n\n3", 0)]:
        result, _ = scripted("exact", [record], [reply])
        assert result.scores["number"].tolist() == [right], reply


def test_of_plain_text_the_first_line_counts(scripted):
    result, _ = scripted("exact", [{"question": "?", "answer": "yes"}], [" Yes.\nNo"], chat=False)
    assert result.mean() == 1


def test_several_tries(scripted):
    records = [{"question": "?", "answer": "yes"}] * 2
    replies = [["yes", "no", "no", "no"], ["no"] * 4]
    result, _ = scripted("exact", records, replies, samples=4, temperature=1.0)
    assert {m: result.mean(m) for m in result.scores} == {"exact": 1 / 8, "pass@1": 1 / 8, "pass@4": 1 / 2}
    assert [a["text"] for a in result.records[0]["answers"]] == replies[0]
    result, _ = scripted("exact", records, replies, samples=4, temperature=1.0, pass_at=(2,))
    assert result.scores["pass@2"].tolist() == [0.5, 0]


# --- Tool calls -----------------------------------------------------------------------------------


def call(name, arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>\n"


def ask_to_call(calls):
    user = {"role": "user", "content": "What is 4 + 6?"}
    last = {"role": "assistant", "content": "" if calls else "I cannot.", **({"tool_calls": calls} if calls else {})}
    return {"conversations": [{"role": "system", "content": "", "tools": json.dumps(TOOLS)}, user, last]}


@pytest.mark.parametrize(
    ("gold", "reply", "exact", "names", "calls", "parsable"),
    [
        (TEN, call("add", {"b": 6.0, "a": 4}), 1, 1, 1, 1),  # by value, in any order
        (TEN, call("add", {"a": 4, "b": 7}), 0, 1, 0, 1),
        (TEN, call("add", {"a": 4, "b": "6"}), 0, 1, 0, 1),
        (TEN, call("now", {"a": 4, "b": 6}), 0, 0, 0, 1),
        (TEN, call("add", {"a": 4, "b": 6}) * 2, 0, 2 / 3, 2 / 3, 1),  # one too many
        (TEN, "<tool_call>\n{nonsense\n</tool_call>", 0, 0, 0, 0),
        (TEN, "It is 10.", 0, 0, 0, 1),
        ([], "I cannot.", 1, 1, 1, 1),
        ([], call("now", {}), 0, 0, 0, 1),
        ([{"name": "now", "arguments": {}}, *TEN], call("add", {"a": 4, "b": 6}) + call("now", {}), 1, 1, 1, 1),
        ([{"name": "now", "arguments": {}}, *TEN], call("now", {}), 0, 2 / 3, 2 / 3, 1),
    ],
)
def test_tool_calls(scripted, gold, reply, exact, names, calls, parsable):
    result, (prompt,) = scripted("toolcall", [ask_to_call(gold)], [reply])
    expected = {"exact": exact, "names": names, "calls": calls, "parsable": parsable}
    assert {metric: result.mean(metric) for metric in result.scores} == pytest.approx(expected)
    assert '"add"' in prompt and "I cannot." not in prompt and prompt.count("<tool_call>") <= 1  # the template's own


def test_counts_over_all_calls(scripted):
    records = [ask_to_call(TEN), ask_to_call([]), ask_to_call([{"name": "now", "arguments": {}}, *TEN])]
    replies = [call("add", {"a": 4, "b": 6}), call("now", {}), call("add", {"a": 1})]
    details = scripted("toolcall", records, replies)[0].details
    assert (details["calls_wanted"], details["calls_made"], details["calls_right"]) == (3, 3, 1)
    assert (details["names_right"], details["turns_called_without_need"]) == (2, 1)
    assert (details["precision"], details["recall"], details["f1"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert details["arguments"] == 0.5


def test_the_last_call_is_asked_for_and_calls_may_stand_beside(scripted):
    record = ask_to_call(TEN)
    more = [{"role": "tool", "content": "10"}, {"role": "assistant", "content": "Ten."}]
    record["conversations"] += more
    result, (prompt,) = scripted("toolcall", [record], [call("add", {"a": 4, "b": 6})])
    assert result.mean() == 1 and "Ten." not in prompt
    messages = [m for m in record["conversations"][:-3]]
    result, _ = scripted("toolcall", [{"conversations": messages, "gt": TEN}], [call("add", {"a": 4, "b": 6})])
    assert result.mean() == 1


def test_json_is_equal_by_value():
    assert same_json({"a": [1, 2.0], "b": None}) == same_json({"b": None, "a": [1.0, 2]})
    for a, b in [(1, True), (0, False), (1, "1"), ([1, 2], [2, 1]), ({}, []), ({"a": None}, {}), (None, False)]:
        assert same_json(a) != same_json(b)


# --- Runs and bad input ---------------------------------------------------------------------------


def test_a_random_model_runs_all_tasks(model, tmp_path):
    files = {
        "gsm8k": [SOLVED] * 3,
        "exact": [{"question": "?", "answer": "yes"}, {"question": "word " * 400, "answer": "no"}],
        "toolcall": [ask_to_call(TEN)],
    }
    for name, records in files.items():
        file = write(tmp_path / f"{name}.jsonl", records)
        result = open_task(f"{name}:{file}", TaskOptions(max_new_tokens=5)).run(model)
        assert len(result) == len(records)
        json.dumps([result.summary(), *result.records], allow_nan=False)
        if name == "exact":
            assert result.details["no_room"] == 0.5
            assert any("fill the model's context: they count as wrong" in note for note in result.details["notes"])


def test_where_the_list_of_tools_is_empty_no_call_is_right(tmp_path):
    none = {
        "conversations": [{"role": "system", "content": "", "tools": "[]"}, *ask_to_call(TEN)["conversations"][1:2]]
    }
    none["conversations"].append({"role": "assistant", "content": "No tool does that."})
    problem = parse_tool_calls(none)
    assert problem.gold == [] and not problem.conversation.tools
    reply = asking.Reply("I cannot.", (), False, Answer("I cannot.", 3, "stop"))
    assert judge(problem, reply) == {"exact": 1, "names": 1, "calls": 1, "parsable": 1}
    written = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    calling = asking._take_apart(Answer(written, 9, "stop"), problem, False, False)
    assert judge(problem, calling)["exact"] == 0


@pytest.mark.parametrize(
    ("task", "record", "message"),
    [
        ("gsm8k", {"question": "?"}, "lacks `answer`, has `question`"),
        ("gsm8k", {"question": "", "answer": "#### 1"}, "`question` is not a text, or empty"),
        ("gsm8k", {"question": "?", "answer": "12"}, '`answer` does not end in a line "#### number"'),
        ("gsm8k", {"question": "?", "answer": "#### many"}, '`answer` does not end in a line "#### number"'),
        ("exact", {"question": "?"}, "lacks `answer`"),
        ("exact", {"answer": "?"}, "lacks `question`, `prompt`, `conversations` or `messages`"),
        ("exact", {"question": "?", "answer": [""]}, "`answer` is not a text, a number or a list"),
        ("exact", {"question": "?", "answer": True}, "`answer` is not a text, a number or a list"),
        ("exact", {"messages": [{"role": "bot"}], "answer": "a"}, r"`messages\[0\].role` is 'bot'"),
        ("exact", {"messages": [{"role": "assistant", "content": "b"}], "answer": "a"}, "no question of the user"),
        ("exact", {"messages": ask_to_call(TEN)["conversations"], "gt": ["a"]}, "scored by --task toolcall"),
        ("toolcall", {"messages": [{"role": "user", "content": "?"}]}, "no assistant message"),
        ("toolcall", {**ask_to_call(TEN), "gt": ["10"]}, "answers are scored by --task exact"),
        ("toolcall", {"messages": [{"role": "user", "content": "?"}], "gt": TEN}, "has no `tools`"),
        ("toolcall", {"prompt": "?", "completion": "b"}, "has no `tools`: there is nothing to call"),
        ("toolcall", {"messages": [{"role": "user", "content": "?"}], "tools": [], "gt": TEN}, "`tools` is empty"),
    ],
)  # fmt: skip
def test_bad_records_are_named_by_line_and_field(tmp_path, task, record, message):
    good = {"gsm8k": SOLVED, "exact": {"question": "?", "answer": "a"}, "toolcall": ask_to_call(TEN)}[task]
    file = write(tmp_path / "data.jsonl", [good, record])
    with pytest.raises(UserError, match=rf"data\.jsonl:2: .*{message}"):
        open_task(f"{task}:{file}", TaskOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 2}, "has 2 problems, too few for --shots 2, and those that are shown are not asked"),
        ({"samples": 2}, "add --temperature"),
        ({"samples": 2, "temperature": 1.0, "pass_at": (3,)}, "--k 3 is not from 1 to --samples 2"),
        ({"pass_at": (1,)}, "--k belongs to --samples of more than 1"),
        ({"shots_from": Path("x")}, "--shots-from belongs to --shots"),
        ({"limit": 0}, "--limit=0 must be at least 1"),
        ({"batch_tokens": 9}, "--batch-tokens means nothing to --task exact"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    file = write(tmp_path / "data.jsonl", [{"question": "?", "answer": "a"}] * 2)
    with pytest.raises(UserError, match=message):
        open_task(f"exact:{file}", TaskOptions(**options))


def test_files_and_names_that_are_none(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="is empty: there is nothing to ask"):
        open_task(f"exact:{tmp_path / 'empty.jsonl'}", TaskOptions())
    with pytest.raises(UserError, match="there is no task 'mmlu', there are loss, questions"):
        open_task("mmlu", TaskOptions())
    with pytest.raises(UserError, match="write --task exact:PATH"):
        open_task("exact", TaskOptions())
    with pytest.raises(UserError, match="leave --plain away"):
        open_task(f"toolcall:{write(tmp_path / 'a.jsonl', [ask_to_call(TEN)])}", TaskOptions(chat=False))
    two = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}], "answer": "a"}
    with pytest.raises(UserError, match=r"b\.jsonl:1 is a conversation of 2 messages.*leave --plain away"):
        open_task(f"exact:{write(tmp_path / 'b.jsonl', [two])}", TaskOptions(chat=False))
