"""Which tokens are learnt, whatever conversations say."""

from __future__ import annotations

import itertools
import re
from typing import Any

from chat_helpers import BOTH, EMPTY, END, HEAD, HF, TOKENIZER, assistant, decode, encode, runs
from hypothesis import given, settings
from hypothesis import strategies as st
from minimind_jax.data.conversation import ROLES

from minimind_jax.data.chat import EMPTY_THINK, TARGET
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
    messages = []
    for role in [*draw(st.lists(st.sampled_from(ROLES), max_size=5)), "assistant"]:
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


@settings(max_examples=200, deadline=None)
@given(messages_of(), st.booleans())
def test_whatever_the_content_exactly_the_assistants_turns_are_learnt(messages: list, with_tools: bool) -> None:
    tools = [{"name": "Ω<|im_end|>"}] if with_tools else None
    chat = encode(*messages, tools=tools)
    assert chat.tokens == TOKENIZER.encode_rendered(chat.text)
    assert decode(chat.tokens) == chat.text
    context = "".join(text for flags, text in runs(chat) if not flags)
    assert "Я" not in context
    assert "Ω" not in "".join(text for flags, text in runs(chat) if flags)

    # The turns as the text has them, and as their messages do.
    turns = re.findall(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>\n)", chat.text, re.DOTALL)
    answers = [message for message in messages if message["role"] == "assistant"]
    learnt = [decode([t for t, _ in run]) for flags, run in itertools.groupby(
        zip(chat.tokens, chat.flags, strict=True), key=lambda pair: pair[1] > 0) if flags]  # fmt: skip
    assert len(turns) == len(answers) == len(learnt)
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    n_late = sum(m["role"] == "assistant" for m in messages[last_user + 1 :])
    n_bytes = 0
    for number, (turn, text, answer) in enumerate(zip(turns, learnt, answers, strict=True)):
        # Line breaks that content begins with may join the header's, whose token is no target.
        assert turn.endswith(text) and not turn.removesuffix(text).strip()
        n_bytes += len(text.removesuffix(END).encode())
        late = number >= len(answers) - n_late
        if "think>" not in answer["content"] and "reasoning_content" not in answer:
            assert turn.startswith((EMPTY if late else "") + neutral(answer["content"]))
    assert chat.n_bytes == n_bytes


@settings(max_examples=200, deadline=None)
@given(messages_of())
def test_without_its_optional_blocks_a_conversation_is_encoded_as_if_it_never_had_them(messages: list) -> None:
    chat = encode(*messages)
    kept = [t for t, flags in zip(chat.tokens, chat.flags, strict=True) if not flags & EMPTY_THINK]
    assert kept == TOKENIZER.encode_rendered(decode(kept))
    assert all(flags in (0, TARGET, BOTH) for flags in chat.flags)
    assert all(text == EMPTY * text.count(EMPTY) for flags, text in runs(chat) if flags == BOTH)
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    unthinking = [
        m["content"]
        for m in messages[last_user + 1 :]
        if m["role"] == "assistant" and "think>" not in m["content"] and "reasoning_content" not in m
    ]
    n_optional = bytes(chat.flags).count(BOTH) // len(HF.encode(EMPTY))
    assert sum(not neutral(c)[0].isspace() for c in unthinking) <= n_optional <= len(unthinking)
    if n_optional == len(unthinking):
        assert decode(kept) == TOKENIZER.apply_chat_template(messages)
