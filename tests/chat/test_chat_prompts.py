"""The prompt that a server sends is, token by token, what training has before the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from template_shapes import OURS, SHAPES, SHIPPED, WITH_TOOLS, make_directory

from minimind_jax.chat import (
    TARGET,
    ChatEncoder,
    Conversation,
    ConversationError,
    chat_template,
    read_conversation,
    read_pair,
)
from minimind_jax.chat.template import has_thoughts
from minimind_jax.serving.conversation import read_conversation as read_request
from minimind_jax.serving.conversation import render
from minimind_jax.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    directory = tmp_path_factory.mktemp("shapes")
    return {name: make_directory(directory / str(i), SHAPES[name]) for i, name in enumerate(SHAPES)}


def target_runs(flags: bytes) -> Iterator[tuple[int, int]]:
    """Where each run of targets begins, and the one before it ends."""
    end = 0
    for start in range(1, len(flags)):
        if flags[start] & TARGET and not flags[start - 1] & TARGET:
            yield start, end
        elif flags[start - 1] & TARGET and not flags[start] & TARGET:
            end = start


def check_prompts(encoder: ChatEncoder, tokenizer: Tokenizer, messages: Sequence[Any], tools: Any, chats: Any) -> int:
    """Asserts it for each answer, given messages and tools as a client has them; the number of answers."""
    learnt = [(chat.tokens, *places) for chat in chats for places in target_runs(chat.flags)]
    answers = [number for number, message in enumerate(messages) if number and message["role"] == "assistant"]
    assert len(learnt) == len(answers)
    for number, (tokens, start, previous_end) in zip(answers, learnt, strict=True):
        request = read_request(messages[:number], tools or [])
        answer = read_request([{"role": "user", "content": "?"}, messages[number]], []).messages[1]
        prompt = render(tokenizer, request, has_thoughts(answer) if encoder.template.has_switch else None).tokens
        assert tokens[: len(prompt)] == prompt
        assert previous_end < start <= len(prompt)
    return len(answers)


@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["sft_512", "sft_2048", "toolcall", "math"])
def test_prompts_of_real_conversations_are_their_training_prefixes(name: str, every: int, shared_data: Path) -> None:
    encoder, n_answers = ChatEncoder(SHIPPED), 0
    records = [json.loads(line) for line in (shared_data / f"{name}.jsonl").open(encoding="utf-8")][::every]
    for record in records:
        chats = encoder.encode(read_conversation(record).conversation)
        n_answers += check_prompts(encoder, SHIPPED, record["conversations"], None, chats)
    assert n_answers >= len(records)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if SHAPES[shape] != OURS])
@pytest.mark.parametrize("name", ["sft_512", "sft_2048", "toolcall", "math"])
def test_the_same_by_other_templates(
    name: str, shape: str, tokenizers: dict[str, Tokenizer], shared_data: Path
) -> None:
    tokenizer = tokenizers[shape]
    encoder, n_answers, n_refused = ChatEncoder(tokenizer), 0, 0
    records = [json.loads(line) for line in (shared_data / f"{name}.jsonl").open(encoding="utf-8")][::4]
    for record in records:
        try:
            chats = encoder.encode(read_conversation(record).conversation)
        except ConversationError as e:
            assert "leaves out" in str(e)
            n_refused += 1
            continue
        n_answers += check_prompts(encoder, tokenizer, record["conversations"], None, chats)
    if name == "toolcall" and shape not in WITH_TOOLS:
        assert n_refused > 0.99 * len(records)  # one or two have thoughts only
    else:
        assert n_refused == 0
    assert n_answers >= len(records) - n_refused


@pytest.mark.slow
def test_prompts_of_all_real_pairs_are_their_training_prefixes(shared_data: Path) -> None:
    encoder = ChatEncoder(SHIPPED)
    for line in (shared_data / "dpo.jsonl").open(encoding="utf-8"):
        pair = read_pair(json.loads(line))
        prompt = render(SHIPPED, read_request(pair.chosen.messages[:-1], []), False).tokens
        for side in encoder.encode_pair(pair.chosen, pair.rejected):
            assert side.tokens[: len(prompt)] == prompt
            assert side.flags.index(TARGET) == len(prompt)


text = st.one_of(
    st.sampled_from(["hi", "你好", "\n", "\nx", " x ", "x\n\n", "<think>", "</think>", "<|im_end|>\n", "😀", "    y"]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6),
)
solid = st.tuples(text, st.sampled_from(["a", "好", "1"]), text).map("".join)  # not blank


@st.composite
def conversations(draw: st.DrawFn, with_tools: bool, with_thoughts: bool) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": draw(solid)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(solid)})
        for _ in range(draw(st.integers(0, 2)) if with_tools else 0):
            call = {"name": draw(solid), "arguments": {draw(solid): draw(text)}}
            messages.append({"role": "assistant", "content": draw(st.sampled_from(["", "see"])), "tool_calls": [call]})
            messages.append({"role": "tool", "content": draw(text)})
        messages.append({"role": "assistant", "content": draw(solid)})
        if with_thoughts and draw(st.booleans()):
            messages[-1]["reasoning_content"] = draw(solid)
    return messages


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_prompts_are_training_prefixes_whatever_is_said(
    shape: str, tokenizers: dict[str, Tokenizer], data: st.DataObject
) -> None:
    tokenizer, with_tools = tokenizers[shape], shape in WITH_TOOLS
    messages = data.draw(conversations(with_tools, with_thoughts=with_tools or shape == "always thinks"))
    tools = [{"type": "function", "function": {"name": "f"}}] if with_tools and data.draw(st.booleans()) else None
    encoder = ChatEncoder(tokenizer)
    conversation = read_conversation({"messages": messages, "tools": tools}).conversation
    try:
        chats = encoder.encode(conversation)
    except ConversationError as e:
        assert "leaves out or moves a part of an answer" in str(e)
        assert any("think>" in str(message) for message in messages)
        reject()
    check_prompts(encoder, tokenizer, messages, tools, chats)


def test_a_prompt_that_ends_in_an_open_thought_says_so(tokenizers: dict[str, Tokenizer]) -> None:
    question = Conversation([{"role": "user", "content": "hi"}])
    opened = {
        (name, thinking)
        for name, tokenizer in tokenizers.items()
        for thinking in (True, False)
        if chat_template(tokenizer).prompt(question, thinking).in_thought
    }
    assert opened == {("MiniMind-3", True), ("always thinks", True), ("always thinks", False)}
