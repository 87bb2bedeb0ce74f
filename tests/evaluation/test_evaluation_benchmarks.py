"""Benchmarks read from files in their published layouts, prompted, chosen and counted."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_files import (
    arc_records,
    exam_rows,
    hellaswag_records,
    lines,
    openbookqa_records,
    original,
    piqa_records,
    siqa_records,
    write_ceval,
    write_cmmlu,
)
from evaluation_helpers import random_model

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.evaluation.benchmarks import BENCHMARKS
from minimind_jax.evaluation.benchmarks.prompts import encode
from minimind_jax.evaluation.likelihood import ChoiceScores
from minimind_jax.evaluation.task import TaskOptions
from minimind_jax.evaluation.tasks import TASKS, open_task
from minimind_jax.tokenizer import load_tokenizer

CONFIG = ModelConfig(vocab_size=6400, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, max_seq_len=256)


def opened(name: str, path: Path, **options):
    return open_task(f"{name}:{path}", TaskOptions(**options))


def first(name: str, path: Path, **options):
    """Context, continuations and gold of the first question."""
    question = opened(name, path, **options).questions[0]
    return *question.plain(), question.item.gold


def items(task) -> list:
    return [question.item for question in task.questions]


def scores(*logprobs: list[float]) -> list[ChoiceScores]:
    return [ChoiceScores(np.array(values, float), np.zeros(len(values), bool), False) for values in logprobs]


# --- Prompts: what lm-eval 0.4.13 sends, written out; against lm-eval itself: test_evaluation_lm_eval.py ----------


def test_ceval_and_cmmlu(tmp_path: Path):
    ceval = write_ceval(tmp_path / "ceval", {"law": 3, "physician": 2})
    context, choices, gold = first("ceval", ceval)
    assert context == (
        "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"
        '下列说法，"正确"的是,\n第二行\n'
        + "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", exam_rows(3, 0)[0][1:5], strict=True))
        + "答案："
    )
    assert (choices, gold) == ([" A", " B", " C", " D"], 0)
    task = opened("ceval", ceval)
    assert [(item.group, item.id, item.gold) for item in items(task)] == [
        ("law", "law/0", 0), ("law", "law/1", 1), ("law", "law/2", 2), ("physician", "physician/0", 0),
        ("physician", "physician/1", 1),
    ]  # fmt: skip
    cmmlu = write_cmmlu(tmp_path / "cmmlu", {"arts": 2})
    context, choices, gold = first("cmmlu", cmmlu)
    assert context.startswith("以下是关于艺术学的单项选择题，请直接给出正确答案的选项。\n\n下列说法")
    assert context.endswith("\n答案：") and choices == [" A", " B", " C", " D"]


@pytest.mark.parametrize("part", ["val", "val/law_val.csv"])
def test_an_exam_may_be_named_by_a_split_or_a_file(tmp_path: Path, part: str):
    whole = opened("ceval", write_ceval(tmp_path, {"law": 3}), shots=2)
    assert opened("ceval", tmp_path / part, shots=2).questions == whole.questions


def test_arc_in_both_forms(tmp_path: Path):
    records = arc_records(8)
    hf = lines(tmp_path / "hf.jsonl", records)
    upstream = lines(tmp_path / "upstream.jsonl", [original(record) for record in records])
    assert opened("arc_easy", hf).questions == opened("arc_easy", upstream).questions
    context, choices, gold = first("arc_challenge", hf)
    assert context == f"Question: {records[0]['question']}\nAnswer:"
    assert (choices, gold) == ([f" {text}" for text in records[0]["choices"]["text"]], 0)
    assert [item.gold for item in items(opened("arc_easy", hf))] == [i % k for i, k in enumerate([4, 4, 3, 5] * 2)]


def test_parquet_and_gzip_hold_the_same_questions(tmp_path: Path):
    records = arc_records(5)
    expected = opened("arc_easy", lines(tmp_path / "a.jsonl", records)).questions
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "test-00000-of-00001.parquet")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert opened("arc_easy", tmp_path / "test-00000-of-00001.parquet").questions == expected
    assert opened("arc_easy", tmp_path / "a.jsonl.gz").questions == expected


def test_hellaswag(tmp_path: Path):
    record = {
        "activity_label": "Roof shingle removal", "ctx_a": "[header] A man is sitting on a roof.", "ctx_b": "he STARTS",
        "endings": ["is using wrap [title] of some  kind.", " b [x] c", "c", "d"], "label": "3",
    }  # fmt: skip
    context, choices, gold = first("hellaswag", lines(tmp_path / "v.jsonl", [record]))
    assert context == "Roof shingle removal: A man is sitting on a roof. He starts"
    assert choices == [" is using wrap. of some kind.", " b c", " c", " d"] and gold == 3
    context, _, _ = first("hellaswag", lines(tmp_path / "w.jsonl", [record | {"ctx_b": "", "label": 0}]))
    assert context == "Roof shingle removal: A man is sitting on a roof."


def test_piqa_and_siqa_with_labels_inside_and_beside(tmp_path: Path):
    for name, records, file in (("piqa", piqa_records(5), "valid"), ("siqa", siqa_records(5), "dev")):
        inside = lines(tmp_path / f"{name}.jsonl", records)
        bare = [{key: value for key, value in record.items() if key != "label"} for record in records]
        beside = lines(tmp_path / name / f"{file}.jsonl", bare)
        labels = beside.with_name(f"{file}-labels.lst")
        labels.write_text("".join(f"{record['label']}\n" for record in records))
        assert opened(name, inside).questions == opened(name, beside).questions
        labels.write_text("1\n1\n")
        with pytest.raises(UserError, match=r"jsonl:3: has no label: .*-labels.lst ends with that of record 2"):
            opened(name, beside)
        labels.write_text("1\n" * 9)
        with pytest.raises(UserError, match=r"has 9 labels, .* only 5 questions"):
            opened(name, beside)
    record = piqa_records(1)[0]
    context, choices, gold = first("piqa", tmp_path / "piqa.jsonl")
    assert context == f"Question: {record['goal']}\nAnswer:"
    assert (choices, gold) == ([f" {record['sol1']}", f" {record['sol2']}"], 0)
    context, choices, gold = first("siqa", tmp_path / "siqa.jsonl")
    record = siqa_records(1)[0]
    assert context == f"Q: {record['context']} {record['question']}\nA:" and gold == 0
    assert choices == [f" {record[f'answer{letter}']}" for letter in "ABC"]


def test_openbookqa_in_both_forms(tmp_path: Path):
    records = openbookqa_records(4)
    hf = lines(tmp_path / "hf.jsonl", records)
    upstream = lines(tmp_path / "upstream.jsonl", [original(record, "question_stem") for record in records])
    assert opened("openbookqa", hf).questions == opened("openbookqa", upstream).questions
    assert first("openbookqa", hf)[0] == records[0]["question_stem"]


def test_the_plain_form(tmp_path: Path):
    choices = ["red", "green", "B"]
    path = lines(
        tmp_path / "p.jsonl",
        [
            {"question": "Colour?", "choices": choices, "answer": 1, "subject": "art", "id": "x"},
            {"prompt": "The colour is", "choices": choices, "answer": "green"},
            {"query": "Colour:", "choices": choices, "gold": 1},
            {"question": "Colour?", "choices": choices, "answer": "A"},
        ],
    )
    task = opened("choices", path)
    assert [item.prompt for item in items(task)] == [
        "Question: Colour?\nAnswer:", "The colour is", "Colour:", "Question: Colour?\nAnswer:",
    ]  # fmt: skip
    assert [item.gold for item in items(task)] == [1, 1, 1, 0]
    assert [(item.id, item.group) for item in items(task)][:2] == [("x", "art"), ("2", "")]


# --- Shots --------------------------------------------------------------------------------------------------------


def test_exams_take_the_first_of_the_subjects_dev_file(tmp_path: Path):
    write_ceval(tmp_path, {"law": 3, "physician": 2})
    task = opened("ceval", tmp_path, shots=2)
    question, row = task.questions[3], exam_rows(5, 101)[1]
    context, _ = question.plain()
    blocks = context.split("\n\n")
    assert len(blocks) == 4 and blocks[0].startswith("以下是中国关于医师资格的单项选择题")
    assert blocks[1].endswith("答案： A") and blocks[2].endswith("答案： B") and blocks[3].endswith("答案：")
    assert blocks[2].startswith(f"{row[0]}\nA. {row[1]}\n")
    assert task.source == str(tmp_path / "dev")
    with pytest.raises(UserError, match=r"--shots 6 is more than the 5 examples that .*dev has for law"):
        opened("ceval", tmp_path, shots=6)


def test_shots_come_from_the_training_file_beside_or_the_one_that_is_named(tmp_path: Path):
    test, train = lines(tmp_path / "ARC-Easy-Test.jsonl", arc_records(6)), arc_records(9, seed=8)
    alone = opened("arc_easy", test, shots=3)
    assert alone.source == f"{test} itself, without the question"
    for question in alone.questions:
        assert len(question.examples) == 3 and question.item not in question.examples
    lines(tmp_path / "ARC-Easy-Train.jsonl", train)
    beside = opened("arc_easy", test, shots=3)
    assert beside.source == str(tmp_path / "ARC-Easy-Train.jsonl")
    prompts = {f"Question: {record['question']}\nAnswer:" for record in train}
    assert all(example.prompt in prompts for question in beside.questions for example in question.examples)
    assert len({question.examples[0].prompt for question in beside.questions}) > 1
    named = opened("arc_easy", test, shots=3, shots_from=lines(tmp_path / "other.jsonl", train))
    assert [question.examples for question in named.questions] == [question.examples for question in beside.questions]
    with pytest.raises(UserError, match="--shots 10 is more than the 9 examples of"):
        opened("arc_easy", test, shots=10)
    with pytest.raises(UserError, match=r"--shots 6 needs 7 questions in .*, which has 6"):
        opened("arc_easy", test, shots=6, shots_from=test)


def test_a_question_that_stands_there_twice_is_no_example_of_itself(tmp_path: Path):
    records = [*arc_records(3), *[arc_records(1)[0] | {"id": "again"}] * 2]
    task = opened("arc_easy", lines(tmp_path / "a.jsonl", records), shots=2)
    for question in task.questions:
        assert [example for example in question.examples if example.prompt == question.item.prompt] == []
    with pytest.raises(UserError, match="--shots 3 is more than the 2 other questions"):
        opened("arc_easy", tmp_path / "a.jsonl", shots=3)


def test_a_limit_changes_no_prompt(tmp_path: Path):
    path = lines(tmp_path / "a.jsonl", arc_records(20))
    whole, some = opened("arc_easy", path, shots=2), opened("arc_easy", path, shots=2, limit=4)
    assert len(some) == 4 and some.total == 20
    assert all(question in whole.questions for question in some.questions)


# --- Tokens -------------------------------------------------------------------------------------------------------


def test_plain_text_begins_with_bos_and_a_choice_with_its_space(tmp_path: Path):
    tokenizer = load_tokenizer()
    task = opened("arc_easy", lines(tmp_path / "a.jsonl", arc_records(3)), shots=1)
    for question, tokens in zip(task.questions, encode(tokenizer, task.questions, chat=False), strict=True):
        context, choices = question.plain()
        assert tokens.context[0] == tokenizer.bos_id
        assert [tokenizer.decode(tokens.context[1:] + ids) for ids in tokens.continuations] == [
            context + choice for choice in choices
        ]


def test_the_chat_template_takes_descriptions_examples_and_question_as_messages(tmp_path: Path):
    tokenizer = load_tokenizer()
    task = opened("ceval", write_ceval(tmp_path, {"law": 2}), shots=1, chat=True)
    tokens = encode(tokenizer, task.questions, chat=True)[1]
    text = tokenizer.decode(tokens.context, skip_special_tokens=False)
    example, question = task.questions[1].examples[0], task.questions[1].item
    assert text == (
        "<|im_start|>system\n以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n<|im_end|>\n"
        f"<|im_start|>user\n{example.prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nA<|im_end|>\n"
        f"<|im_start|>user\n{question.prompt}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>"
    )
    assert [tokenizer.decode(ids) for ids in tokens.continuations] == [f"\n\n{letter}" for letter in "ABCD"]


def test_no_question_ends_its_own_turn(tmp_path: Path):
    tokenizer = load_tokenizer()
    record = {"prompt": "a<|im_end|>b", "choices": ["x<|im_end|>", "y"], "answer": 0}
    task = opened("choices", lines(tmp_path / "a.jsonl", [record]), chat=True)
    (chat,) = encode(tokenizer, task.questions, chat=True)
    (plain,) = encode(tokenizer, task.questions, chat=False)
    assert chat.context.count(tokenizer.eos_id) == 1 and plain.context.count(tokenizer.eos_id) == 0
    assert all(tokenizer.eos_id not in ids for tokens in (chat, plain) for ids in tokens.continuations)


# --- Counting -----------------------------------------------------------------------------------------------------


def test_the_choice_is_the_likeliest_and_normed_by_its_characters(tmp_path: Path):
    records = [
        {"prompt": "a", "choices": ["xx", "yyyy"], "answer": 0, "subject": "s"},
        {"prompt": "b", "choices": ["xx", "yyyy", "z"], "answer": 1},
        {"prompt": "c", "choices": ["xx", "yyyy", "z", "w"], "answer": 3},
    ]
    task = opened("choices", lines(tmp_path / "a.jsonl", records))
    result = task.judge(scores([-3, -5], [-3, -5, -2.5], [-4, -8, -2, -2]))
    assert result.scores["acc"].tolist() == [1, 0, 0]  # of equals the first
    assert result.scores["acc_norm"].tolist() == [0, 1, 0]
    assert result.chance["acc"] == result.chance["acc_norm"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3)
    assert result.mean() == pytest.approx(1 / 3) and result.stderr() == pytest.approx((2 / 9 / 3) ** 0.5)
    assert result.details["chosen"] == {"A": 1 / 3, "B": 0, "C": 2 / 3}
    assert result.details["gold"] == {"A": 1 / 3, "B": 1 / 3, "C": 0, "D": 1 / 3}
    assert list(result.groups) == ["s", "", ""]
    assert result.records[1]["reply"] == "z" and result.records[1]["gold"] == "yyyy"
    assert result.records[1]["scores"] == {"acc": 0, "acc_norm": 1}
    json.dumps([result.summary(), list(result.records)])


@pytest.mark.parametrize("chat", [False, True])
def test_a_model_runs_on_every_benchmark(tmp_path: Path, chat: bool):
    files = {
        "ceval": write_ceval(tmp_path / "ceval", {"law": 2, "logic": 2}),
        "cmmlu": write_cmmlu(tmp_path / "cmmlu", {"arts": 3}),
        "arc_easy": lines(tmp_path / "arc.jsonl", arc_records(4)),
        "arc_challenge": tmp_path / "arc.jsonl",
        "hellaswag": lines(tmp_path / "hellaswag.jsonl", hellaswag_records(3)),
        "piqa": lines(tmp_path / "piqa.jsonl", piqa_records(3)),
        "openbookqa": lines(tmp_path / "obqa.jsonl", openbookqa_records(3)),
        "siqa": lines(tmp_path / "siqa.jsonl", siqa_records(3)),
        "choices": lines(tmp_path / "plain.jsonl", [{"query": "a", "choices": ["b", "c"], "gold": 1}]),
    }
    assert files.keys() == BENCHMARKS.keys() <= TASKS.keys()
    model = random_model(CONFIG)
    for name, path in files.items():
        shots = 0 if name == "choices" else 1
        result = opened(name, path, chat=chat, shots=shots).run(model)
        assert result.task == name and set(result.scores) == {"acc", "acc_norm"} and result.main in result.scores
        assert all(np.isfinite(record["logprobs"]).all() for record in result.records)
        assert result.details["shots"] == shots and result.details["chat"] == chat
        assert sum(result.details["chosen"].values()) == pytest.approx(1)


def test_a_prompt_that_is_too_long_is_cut_and_counted(tmp_path: Path):
    records = [
        {"prompt": "long " * 300, "choices": ["a", "b"], "answer": 0},
        {"prompt": "s", "choices": ["a", "b"], "answer": 0},
    ]
    result = opened("choices", lines(tmp_path / "a.jsonl", records)).run(random_model(CONFIG))
    assert result.details["truncated"] == 1
    assert result.records[0]["truncated"] is True and "truncated" not in result.records[1]


# --- Bad input ----------------------------------------------------------------------------------------------------

ARC, HELLASWAG, PIQA, SIQA = arc_records(1)[0], hellaswag_records(1)[0], piqa_records(1)[0], siqa_records(1)[0]
PLAIN = {"question": "q", "choices": ["a", "b"], "answer": 0}


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("arc_easy", PLAIN, "`choices` holds no choices with `text` and `label`"),
        ("arc_easy", {"query": "q"}, "lacks `question`, has `query`"),
        ("arc_easy", ARC | {"answerKey": "F"}, "`answerKey` is 'F', none of the labels 1, 2, 3, 4"),
        ("arc_easy", ARC | {"answerKey": ""}, "`answerKey` is empty: without answers nothing can be scored"),
        ("arc_easy", ARC | {"question": " "}, "`question` is empty"),
        ("arc_easy", ARC | {"choices": {"text": ["a"], "label": ["A"]}}, "`choices.text` has 1 choices, not 2 to 26"),
        ("arc_easy", ARC | {"choices": {"text": ["a", "b"], "label": ["A", "A"]}}, "names two choices alike: A, A"),
        ("arc_easy", ARC | {"choices": {"text": ["a", "b"], "label": ["A"]}}, "`choices.label` is not a list of 2"),
        ("arc_easy", ARC | {"choices": {"text": ["a", ""], "label": ["A", "B"]}}, r"`choices.text\[1\]` is empty"),
        ("openbookqa", ARC, "lacks `question_stem`, has `id`, `question`"),
        ("hellaswag", HELLASWAG | {"label": ""}, "`label` is empty: without answers"),
        ("hellaswag", HELLASWAG | {"label": 4}, "`label` is 4, not a number from 0 to 3"),
        ("hellaswag", HELLASWAG | {"endings": "abc"}, "`endings` is not a list of texts"),
        ("hellaswag", HELLASWAG | {"endings": ["[x]", "b"]}, r"`endings\[0\]` is empty"),
        ("piqa", PIQA | {"label": -1}, "`label` is -1: without answers"),
        ("piqa", {"goal": "g", "sol1": "a", "sol2": "b"}, "lacks `label`, has `goal`, `sol1`, `sol2`: without answers"),
        ("piqa", PIQA | {"label": True}, "`label` is True, not a number from 0 to 1"),
        ("siqa", SIQA | {"label": "0"}, "`label` is '0', not a number from 1 to 3"),
        ("choices", PLAIN | {"choices": ["a", "a"]}, "`choices` has 'a' twice"),
        ("choices", PLAIN | {"answer": 2}, "`answer` is 2, not a number from 0 to 1"),
        ("choices", PLAIN | {"answer": "C"}, "`answer` is 'C': neither one of the choices, nor a letter from A to B"),
        ("choices", PLAIN | {"answer": None}, "`answer` is empty: without answers"),
        ("choices", PLAIN | {"choices": ["B", "A"], "answer": "A"}, "one choice and the letter of another"),
        ("choices", PLAIN | {"choices": [str(i) for i in range(27)]}, "`choices` has 27 choices, not 2 to 26"),
        ("choices", PLAIN | {"choices": ["a", 2]}, r"`choices\[1\]` is not a string"),
        ("choices", PLAIN | {"question": "\ud800"}, "half of a .u surrogate pair"),
        ("choices", [PLAIN], "not a JSON object but a list"),
    ],
)
def test_the_first_record_that_is_wrong_is_named_with_its_field(tmp_path: Path, name: str, record, message: str):
    good = {"arc_easy": ARC, "openbookqa": openbookqa_records(1)[0], "hellaswag": HELLASWAG, "piqa": PIQA, "siqa": SIQA}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (good.get(name, PLAIN), record)))
    with pytest.raises(UserError, match=rf"a\.jsonl:2: .*{message}"):
        opened(name, path)


HEADER = "id,question,A,B,C,D,answer\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER, "has no question"),
        ("", ":1: lacks the columns question, A, B, C, D, answer"),
        ("id,question,A,B,C,D\n0,q,a,b,c,d\n", ":1: lacks the columns answer: the test split of C-Eval has no answers"),
        (HEADER + '0,"q\nr",a,b,c,d,A\n1,q,a,b,c,d,\n', ":4: `answer` is empty"),
        (HEADER + "0,q,a,b,c,d,E\n", ":2: `answer` is 'E', not one of A, B, C, D"),
        (HEADER + "0,,a,b,c,d,A\n", ":2: `question` is empty"),
        (HEADER + "0,q,a,b,c,A\n", ":2: has 6 columns, the header 7"),
        (HEADER + '0,"q,a,b,c,d,A\n', ": no csv"),
        (HEADER.encode() + "0,问,a,b,c,d,A\n".encode("gbk"), "is not UTF-8 .byte"),
    ],
)
def test_the_first_row_of_an_exam_that_is_wrong_is_named(tmp_path: Path, content, message: str):
    path = tmp_path / "law_val.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"law_val\.csv.*{message}"):
        opened("ceval", tmp_path)


def test_paths_that_hold_nothing_are_said(tmp_path: Path):
    with pytest.raises(UserError, match="has no csv file: name the directory that holds val/SUBJECT"):
        opened("ceval", tmp_path)
    with pytest.raises(UserError, match="neither a directory of csv files nor a csv file"):
        opened("cmmlu", tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be read"):
        opened("arc_easy", tmp_path / "nowhere.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="has no question"):
        opened("arc_easy", tmp_path / "empty.jsonl")
    with pytest.raises(UserError, match="write --task piqa:PATH"):
        open_task("piqa", TaskOptions())
