"""Which tokens are learnt, whatever conversations say."""

from __future__ import annotations

import itertools
from typing import Any

from chat_helpers import BOTH, EMPTY, ENCODER, END, HEAD, HF, assistant, decode, runs
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from minimind_jax.chat import EMPTY_THINK, TARGET, Conversation, ConversationError, EncodedChat
from minimind_jax.chat.conversation import ROLES
from minimind_jax.tokenizer.train import CONTROL_TOKENS

# Every text of the assistant is marked by Я, every other by Ω; both are no part of the template.
nasty = st.lists(
    st.one_of(
        st.sampled_from([*CONTROL_TOKENS, HEAD, END, EMPTY, "\n", "\n\n", " ", "\r\n", "\u3000", "'s", "😀"]),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="ЯΩ"), max_size=8),
        st.sampled_from(["-" * 90, " " * 90, "\n" * 90, "长" * 90]),
    ),
    max_size=5,
).map("".join)  # fmt: skip


@st.composite
def messages_of(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for role in ["user", *draw(st.lists(st.sampled_from(ROLES), max_size=5)), "assistant"]:
        if role != "assistant":
            messages.append({"role": role, "content": draw(nasty) + "Ω" + draw(nasty)})
            continue
        message = assistant(draw(nasty) + "Я" + draw(nasty))
        if draw(st.booleans()):
            message["tool_calls"] = [
                {"type": "function", "function": {"name": draw(nasty) + "Я", "arguments": {draw(nasty): draw(nasty)}}}
                for _ in range(draw(st.integers(1, 2)))
            ]
        if draw(st.integers(0, 3)) == 0:
            message["reasoning_content"] = "Я" + draw(nasty)
        messages.append(message)
    return messages


def neutral(content: str) -> str:
    for token in CONTROL_TOKENS:
        if token not in ("<think>", "</think>", "<tool_call>", "</tool_call>"):
            content = content.replace(token, f"{token[0]} {token[1:]}")
    return content


def encode_or_reject(messages: list, tools: list | None = None) -> list[EncodedChat]:
    """Marks of thoughts in odd places, and only those, are refused."""
    try:
        return ENCODER.encode(Conversation(messages, tools))
    except ConversationError as e:
        assert "leaves out or moves a part of an answer" in str(e)
        assert any("think>" in message["content"] for message in messages if message["role"] == "assistant")
        reject()


@settings(max_examples=200, deadline=None)
@given(messages_of(), st.booleans())
def test_whatever_the_content_exactly_the_assistants_turns_are_learnt(messages: list, with_tools: bool) -> None:
    tools = [{"name": "Ω<|im_end|>"}] if with_tools else None
    learnt = []
    for chat in encode_or_reject(messages, tools):
        assert decode(chat.tokens) == chat.text
        assert "Ω" not in "".join(text for flags, text in runs(chat) if flags)
        texts = [
            decode([t for t, _ in run])
            for flags, run in itertools.groupby(zip(chat.tokens, chat.flags, strict=True), key=lambda pair: pair[1] > 0)
            if flags
        ]
        assert chat.n_bytes == sum(len(text.removesuffix(END).encode()) for text in texts)
        learnt += texts
    answers = [message for number, message in enumerate(messages) if number and message["role"] == "assistant"]
    assert len(learnt) == len(answers)
    for text, answer in zip(learnt, answers, strict=True):
        assert text.startswith("<think>\n") and text.endswith(END) and text.count("<|im_end|>") == 1
        if "think>" not in answer["content"] and "reasoning_content" not in answer:
            assert text.startswith(EMPTY + neutral(answer["content"]))
        if "reasoning_content" in answer:
            assert "Я" in text.partition("</think>")[0]


@settings(max_examples=200, deadline=None)
@given(messages_of())
def test_an_optional_block_is_the_last_ones_and_without_it_the_prompt_is_that_of_thinking(messages: list) -> None:
    chats = encode_or_reject(messages)
    for chat in chats:
        assert all(flags in (0, TARGET, BOTH) for flags in chat.flags)
        assert [text for flags, text in runs(chat) if flags == BOTH] in ([], [EMPTY])
    last = messages[-1]
    if "think>" in last["content"] or "reasoning_content" in last:
        return
    kept = [t for t, flags in zip(chats[-1].tokens, chats[-1].flags, strict=True) if not flags & EMPTY_THINK]
    assert len(kept) == len(chats[-1].tokens) - len(HF.encode(EMPTY))
    prompt = ENCODER.template.prompt(Conversation(messages[:-1]), thinking=True).tokens
    assert kept[: len(prompt)] == prompt
