"""Held-out loss on conversations: target tokens only, against torch's cross-entropy on an independently made mask."""

import dataclasses
import json
import math
import re

import pytest
import torch
import transformers
from evaluation_helpers import random_model

from convert.to_hf import export
from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.evaluation import evaluate_file

CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=6400, max_seq_len=512)
NOW = {"name": "now", "parameters": {"type": "object", "properties": {}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "now", "arguments": {"tz": "CET"}}]}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


RECORDS = [
    {"conversations": [user("柠檬是什么颜色的？"), assistant("柠檬一般是黄色的。")]},
    {"conversations": [user("Hi"), assistant("Hello!"), user("<|im_end|> is what?"), assistant("An end. 🙂")]},
    {
        "messages": [
            {"role": "system", "content": "You are brief."},
            user("2 + 2?"),
            assistant("4", reasoning_content="two and two make four"),
        ]
    },
    {
        "messages": [user("What time is it?"), CALL, {"role": "tool", "content": "12:30"}, assistant("Half past 12.")],
        "tools": [NOW],
    },
    {"conversations": [user("Tell me more. " * 30), assistant("The crows came back every morning. " * 10)]},
]


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG, scale=3)


@pytest.fixture(scope="module")
def hf(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "hf"
    export(model, directory)
    return (
        transformers.AutoModelForCausalLM.from_pretrained(directory),
        transformers.AutoTokenizer.from_pretrained(directory),
    )


def rendered(record, tokenizer):
    """The text, made by transformers: an answer after the last user message without thoughts has an empty block."""
    messages = [dict(message) for message in record.get("conversations") or record["messages"]]
    last_user = max(i for i, message in enumerate(messages) if message["role"] == "user")
    for i, message in enumerate(messages):
        message["content"] = message["content"].replace("<|im_end|>", "< |im_end|>")
        if message["role"] == "assistant" and i > last_user:
            message.setdefault("reasoning_content", "")
    return tokenizer.apply_chat_template(messages, tools=record.get("tools"), tokenize=False)


def reference(hf, records, limit=10**9):
    """Nats, target tokens and answers' bytes, one conversation at a time."""
    model, tokenizer = hf
    start, newline = tokenizer.encode("<|im_start|>assistant\n"), tokenizer.encode("\n")
    nats, n_targets, n_bytes = 0.0, 0, 0
    for record in records:
        text = rendered(record, tokenizer)
        n_bytes += sum(len(a.encode()) for a in re.findall(r"<\|im_start\|>assistant\n(.*?)<\|im_end\|>\n", text, re.S))
        ids = tokenizer.encode(text, add_special_tokens=False)
        labels = [-100] * len(ids)
        for i in range(len(ids)):
            if ids[i : i + len(start)] == start:
                begin = i + len(start)
                end = ids.index(tokenizer.eos_token_id, begin) + 2
                assert ids[end - 1 : end] == newline
                labels[begin:end] = ids[begin:end]
        ids, labels = torch.tensor([ids[:limit]]), torch.tensor(labels[:limit])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].double()
        nats += torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum").item()
        n_targets += int((labels[1:] >= 0).sum())
    return nats, n_targets, n_bytes


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("batch_tokens", [1, 1024])
def test_loss_is_that_of_the_assistants_tokens(model, hf, tmp_path, batch_tokens):
    nats, n_targets, n_bytes = reference(hf, RECORDS)
    score = evaluate_file(model, write_jsonl(tmp_path / "data.jsonl", RECORDS), batch_tokens)
    assert score.loss == pytest.approx(nats / n_targets, rel=1e-6)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)
    assert (score.target_tokens, score.documents, score.bytes) == (n_targets, len(RECORDS), n_bytes)
    assert (score.truncated, score.bad_lines) == (0, 0)


def test_targets_beyond_the_limit_are_not_scored(model, hf, tmp_path):
    file, tokenizer = write_jsonl(tmp_path / "data.jsonl", RECORDS), hf[1]
    lengths = [len(tokenizer.encode(rendered(r, tokenizer), add_special_tokens=False)) for r in RECORDS]
    limit = lengths[1] - 4  # inside the second answer of the second conversation
    assert lengths[4] > lengths[3] > lengths[1]
    nats, n_targets, _ = reference(hf, RECORDS, limit)
    short = dataclasses.replace(model, config=dataclasses.replace(CONFIG, max_seq_len=limit))
    score = evaluate_file(short, file)
    assert score.loss == pytest.approx(nats / n_targets, rel=1e-6)
    assert (score.target_tokens, score.documents) == (n_targets, len(RECORDS))
    assert score.truncated == sum(n > limit for n in lengths)


@pytest.mark.slow
def test_bytes_of_a_conversation_that_is_cut(model, hf, tmp_path):
    record, tokenizer = {"conversations": [user("Hi"), assistant("Hello!"), user("?"), assistant("柠檬 𓀀")]}, hf[1]
    file = write_jsonl(tmp_path / "data.jsonl", [record])
    text = rendered(record, tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    block = "<think>\n\n</think>\n\n"
    assert text.endswith(block + "柠檬 𓀀<|im_end|>\n") and tokenizer.decode(ids[-3:-2]).endswith("\ufffd")
    scored = {0: block + "柠檬 𓀀", 1: block + "柠檬 𓀀", 2: block + "柠檬 𓀀", 3: block + "柠檬 "}
    for n_cut, second in scored.items():
        short = dataclasses.replace(model, config=dataclasses.replace(CONFIG, max_seq_len=len(ids) - n_cut))
        score = evaluate_file(short, file)
        assert (score.bytes, score.truncated) == (len((block + "Hello!" + second).encode()), int(n_cut > 0)), n_cut
    first_answer = text[: text.index("<|im_end|>\n<|im_start|>user\n?")]
    n = len(tokenizer.encode(first_answer, add_special_tokens=False))
    for more in (0, 1, 2, 4):  # before, between and after the end token and its newline
        short = dataclasses.replace(model, config=dataclasses.replace(CONFIG, max_seq_len=n + more))
        assert evaluate_file(short, file).bytes == len(block + "Hello!")


def test_conversations_without_a_target_before_the_limit_are_left_out(model, tmp_path):
    short = dataclasses.replace(model, config=dataclasses.replace(CONFIG, max_seq_len=60))
    both = evaluate_file(short, write_jsonl(tmp_path / "both.jsonl", [RECORDS[0], RECORDS[4]]))
    alone = evaluate_file(short, write_jsonl(tmp_path / "alone.jsonl", [RECORDS[0]]))
    assert alone.truncated == 0
    assert both == dataclasses.replace(alone, documents=2, truncated=1)
    with pytest.raises(UserError, match="nothing to score"):
        evaluate_file(short, write_jsonl(tmp_path / "long.jsonl", [RECORDS[4]]))


def test_bad_conversations_are_counted_up_to_one_percent(model, tmp_path, capsys):
    lines = [RECORDS[0]] * 120
    lines[5] = {"conversations": [user("nobody answers")]}
    file = write_jsonl(tmp_path / "data.jsonl", lines)
    score = evaluate_file(model, file)
    assert (score.bad_lines, score.documents) == (1, 119)
    assert f"{file}:6" in capsys.readouterr().out
    lines[7] = {"text": "another kind of record"}
    with pytest.raises(UserError, match="2 of 120 lines are unusable"):
        evaluate_file(model, write_jsonl(file, lines))


def test_the_first_usable_line_says_what_the_file_holds(model, tmp_path, capsys):
    texts, file = [{"text": "plain"}] * 200, tmp_path / "data.jsonl"
    write_jsonl(file, texts)
    expected = evaluate_file(model, file)
    file.write_text("nonsense\n" + file.read_text())
    assert evaluate_file(model, file) == dataclasses.replace(expected, bad_lines=1)
    write_jsonl(file, [{"other": 1}, *[RECORDS[0]] * 200])
    assert evaluate_file(model, file).documents == 200


def test_files_of_another_kind_say_what_they_are(model, tmp_path):
    question = {"conversations": [user("2 + 2?")], "answer": "4", "gt": ["4"]}
    with pytest.raises(UserError, match=r"data\.jsonl:1 is a question.*--task questions"):
        evaluate_file(model, write_jsonl(tmp_path / "data.jsonl", [question]))
    pair = {side: [user("2 + 2?"), assistant(side)] for side in ("chosen", "rejected")}
    with pytest.raises(UserError, match=r"data\.jsonl:1 is a preference pair"):
        evaluate_file(model, write_jsonl(tmp_path / "data.jsonl", [pair]))
    # A conversation that says besides what its answer is, as data for maths and agents do.
    question["conversations"].append(assistant("4"))
    assert evaluate_file(model, write_jsonl(tmp_path / "data.jsonl", [question])).documents == 1


def test_every_form_of_a_conversation_has_the_same_score(model, tmp_path):
    plain = evaluate_file(model, write_jsonl(tmp_path / "plain.jsonl", [{"messages": [user("Hi"), assistant("Ho!")]}]))
    forms = [
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho!"}]},
        {"instruction": "Hi", "input": "", "output": "Ho!"},
        {"prompt": "Hi", "completion": "Ho!"},
    ]
    for number, record in enumerate(forms):
        assert evaluate_file(model, write_jsonl(tmp_path / f"{number}.jsonl", [record])) == plain
