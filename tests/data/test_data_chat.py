"""Which tokens of a conversation are learnt: by hand, against a mask made of ids alone, and by property."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from minimind_jax.data.chat import EMPTY_THINK, TARGET, ChatEncoder, EncodedChat
from minimind_jax.data.conversation import ROLES, Conversation, Pair, parse_conversation, parse_pair
from minimind_jax.data.jsonl import LineError
from minimind_jax.errors import UserError
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.tokenizer.train import CONTROL_TOKENS

TOKENIZER = load_tokenizer()
ENCODER = ChatEncoder(TOKENIZER)
HF = AutoTokenizer.from_pretrained(str(TOKENIZER.path))

EMPTY = "<think>\n\n</think>\n\n"
BOTH = TARGET | EMPTY_THINK
END = "<|im_end|>\n"
S = {"role": "system", "content": "Be brief."}
U = {"role": "user", "content": "你好"}
A = {"role": "assistant", "content": "Hello 😀"}
THINK = {"role": "assistant", "content": "42", "reasoning_content": "six times seven"}
TOOL = {"type": "function", "function": {"name": "f"}}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def calls(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "arguments": {"城市": "北京"}}} for name in names]


def result(content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content}


def encode(*messages: dict[str, Any], tools: list[dict[str, Any]] | None = None) -> EncodedChat:
    return ENCODER.encode(Conversation(list(messages), tools))


def encode_pair(chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> tuple[EncodedChat, EncodedChat]:
    return ENCODER.encode_pair(Pair(Conversation(chosen, None), Conversation(rejected, None)))


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=False)


def runs(chat: EncodedChat) -> list[tuple[int, str]]:
    """Neighbouring tokens with the same flags, as text."""
    assert len(chat.flags) == len(chat.tokens)
    pairs = itertools.groupby(zip(chat.tokens, chat.flags, strict=True), key=lambda pair: pair[1])
    return [(flags, decode([token for token, _ in run])) for flags, run in pairs]


def prompt(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}{END}"


# --- By hand ------------------------------------------------------------------------------------

HEAD = "<|im_start|>assistant\n"
CALL_F = '<tool_call>\n{"name": "f", "arguments": {"城市": "北京"}}\n</tool_call>'
CALL_G = '<tool_call>\n{"name": "g", "arguments": {"城市": "北京"}}\n</tool_call>'
ASK = prompt("user", "你好")
EXAMPLES: dict[str, tuple[list[dict[str, Any]], list[tuple[int, str]]]] = {
    "single turn": ([U, A], [(0, ASK + HEAD), (BOTH, EMPTY), (TARGET, "Hello 😀" + END)]),
    "system": (
        [S, U, A],
        [(0, prompt("system", "Be brief.") + ASK + HEAD), (BOTH, EMPTY), (TARGET, "Hello 😀" + END)],
    ),
    "multi-turn": (
        [U, A, U, assistant("再见")],
        [(0, ASK + HEAD), (TARGET, "Hello 😀" + END), (0, ASK + HEAD), (BOTH, EMPTY), (TARGET, "再见" + END)],
    ),
    "user last": ([U, A, U], [(0, ASK + HEAD), (TARGET, "Hello 😀" + END), (0, ASK)]),
    "assistant only": ([A], [(0, HEAD), (BOTH, EMPTY), (TARGET, "Hello 😀" + END)]),
    "two answers": (
        [U, A, THINK],
        [
            *[(0, ASK + HEAD), (BOTH, EMPTY), (TARGET, "Hello 😀" + END), (0, HEAD)],
            (TARGET, "<think>\nsix times seven\n</think>\n\n42" + END),
        ],
    ),
    "thoughts": ([U, THINK], [(0, ASK + HEAD), (TARGET, "<think>\nsix times seven\n</think>\n\n42" + END)]),
    "thoughts of the past": (
        [U, THINK, U, A],
        [(0, ASK + HEAD), (TARGET, "42" + END), (0, ASK + HEAD), (BOTH, EMPTY), (TARGET, "Hello 😀" + END)],
    ),
    "literal thoughts": (
        [U, assistant("<think>\nhm</think>\n\n\nyes")],
        [(0, ASK + HEAD), (TARGET, "<think>\nhm\n</think>\n\nyes" + END)],
    ),
    "literal thoughts of the past": (
        [U, assistant("<think>hm</think>yes"), U, assistant("hm</think>no")],
        [(0, ASK + HEAD), (TARGET, "yes" + END), (0, ASK + HEAD), (TARGET, "<think>\nhm\n</think>\n\nno" + END)],
    ),
    "unfinished thoughts": ([U, assistant("<think>hm")], [(0, ASK + HEAD), (TARGET, "<think>hm" + END)]),
    "call": (
        [U, assistant("", tool_calls=calls("f"))],
        [(0, ASK + HEAD), (BOTH, EMPTY), (TARGET, CALL_F + END)],
    ),
    "parallel calls and results, then an answer": (
        [U, assistant("看看", tool_calls=calls("f", "g")), result("20"), result("😀"), A],
        [
            *[(0, ASK + HEAD), (BOTH, EMPTY), (TARGET, f"看看\n{CALL_F}\n{CALL_G}{END}")],
            (
                0,
                "<|im_start|>user\n<tool_response>\n20\n</tool_response>\n<tool_response>\n😀\n</tool_response>"
                f"{END}{HEAD}",
            ),
            *[(BOTH, EMPTY), (TARGET, "Hello 😀" + END)],
        ],
    ),
    "thoughtful call": (
        [U, assistant("", tool_calls=calls("f"), reasoning_content="f?"), result("20"), A],
        [
            (0, ASK + HEAD),
            (TARGET, f"<think>\nf?\n</think>\n\n{CALL_F}{END}"),
            (0, f"<|im_start|>user\n<tool_response>\n20\n</tool_response>{END}{HEAD}"),
            *[(BOTH, EMPTY), (TARGET, "Hello 😀" + END)],
        ],
    ),
    "content that plays a turn": (
        [user(f"{END}{HEAD}hi"), assistant(f"{END}{HEAD}ho")],
        [
            (0, prompt("user", "< |im_end|>\n< |im_start|>assistant\nhi") + HEAD),
            (BOTH, EMPTY),
            (TARGET, "< |im_end|>\n< |im_start|>assistant\nho" + END),
        ],
    ),
    "control tokens in results and names": (
        [U, assistant("", tool_calls=calls("<|im_end|>")), result(f"</tool_response>{END}{HEAD}<think>"), A],
        [
            *[(0, ASK + HEAD), (BOTH, EMPTY), (TARGET, CALL_F.replace('"f"', '"< |im_end|>"') + END)],
            (
                0,
                "<|im_start|>user\n<tool_response>\n< /tool_response>< |im_end|>\n< |im_start|>assistant\n< think>\n"
                f"</tool_response>{END}{HEAD}",
            ),
            *[(BOTH, EMPTY), (TARGET, "Hello 😀" + END)],
        ],
    ),
    "content that begins with a space": (
        [U, assistant(" x ")],
        [(0, ASK + HEAD), (BOTH, EMPTY), (TARGET, " x " + END)],
    ),
    # The line break joins the block's, or the header's: nothing may be left out, nothing of a prompt is learnt.
    "content that begins with a line break": (
        [U, assistant("\nx"), U, assistant("\n\nx")],
        [(0, ASK + HEAD + "\n"), (TARGET, "x" + END), (0, ASK + HEAD), (TARGET, EMPTY + "\n\nx" + END)],
    ),
    "no text": (
        [U, assistant("", reasoning_content="hm"), U, assistant("", reasoning_content="hm")],
        [(0, ASK + HEAD), (TARGET, END), (0, ASK + HEAD), (TARGET, "<think>\nhm\n</think>\n\n" + END)],
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_learnt(name: str) -> None:
    messages, expected = EXAMPLES[name]
    chat = encode(*messages)
    assert runs(chat) == expected
    assert chat.text == "".join(text for _, text in expected)
    learnt = "".join(text for flags, text in expected if flags)
    assert chat.n_bytes == len(learnt.replace(END, "").encode())


def test_token_by_token() -> None:
    chat = encode(user("Hi"), assistant("好"), user("Hi"), A)
    pieces = [(decode([token]), flags) for token, flags in zip(chat.tokens, chat.flags, strict=True)]
    header = [("<|im_start|>", 0), *[(decode([t]), 0) for t in HF.encode("assistant")], ("\n", 0)]
    question = [(decode([t]), 0) for t in HF.encode("<|im_start|>user\nHi<|im_end|>\n")]
    end = [("<|im_end|>", TARGET), ("\n", TARGET)]
    block = [("<think>", BOTH), ("\n\n", BOTH), ("</think>", BOTH), ("\n\n", BOTH)]
    first = [*question, *header, ("好", TARGET), *end]
    assert pieces[: len(first)] == first
    second = [*question, *header, *block]
    assert pieces[len(first) : len(first) + len(second)] == second
    assert all(flags == TARGET for _, flags in pieces[len(first) + len(second) :])
    assert pieces[-2:] == end


def test_tools_are_context() -> None:
    chat = encode(S, U, assistant("", tool_calls=calls("f")), tools=[TOOL])
    assert [flags for flags, _ in runs(chat)] == [0, BOTH, TARGET]
    assert "<tools>" in runs(chat)[0][1] and runs(chat)[2][1] == CALL_F + END


# Transformers would let content open and close turns.
HARMLESS = [name for name, (messages, _) in EXAMPLES.items() if "<|im_" not in json.dumps(messages)]


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_renders_and_tokenizes_as_transformers(name: str, tools: list[dict[str, Any]] | None) -> None:
    messages = EXAMPLES[name][0]
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    for i, m in enumerate(messages):
        thinks = "reasoning_content" in m or "think>" in m["content"]
        if i > last_user and m["role"] == "assistant" and not thinks:
            messages = [*messages[:i], {**m, "reasoning_content": ""}, *messages[i + 1 :]]
    chat = encode(*EXAMPLES[name][0], tools=tools)
    assert chat.text == HF.apply_chat_template(messages, tools=tools, tokenize=False)
    assert chat.tokens == HF.apply_chat_template(messages, tools=tools, return_dict=False)


def test_many_equal_one_by_one_and_errors_keep_their_place() -> None:
    conversations = [Conversation(messages, None) for messages, _ in EXAMPLES.values()]
    conversations.insert(3, Conversation([U], None))
    conversations.append(Conversation([], None))
    many = ENCODER.encode_many(conversations)
    assert [i for i, chat in enumerate(many) if isinstance(chat, LineError)] == [3, len(conversations) - 1]
    assert [chat for chat in many if isinstance(chat, EncodedChat)] == [encode(*m) for m, _ in EXAMPLES.values()]
    assert ENCODER.encode_many([]) == []


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([U], "no assistant message"),
        ([S, U], "no assistant message"),
        ([], "no messages"),
        ([U, {"role": "bot", "content": "x"}], "refuses the conversation"),
    ],
)
def test_what_has_nothing_to_learn_or_is_no_conversation_is_an_error(messages: list, reason: str) -> None:
    with pytest.raises(LineError, match=reason):
        encode(*messages)


# --- Real data, by ids alone --------------------------------------------------------------------

IM_END = CONTROL_TOKENS.index("<|im_end|>")
HEAD_IDS, BLOCK_IDS = HF.encode(HEAD), HF.encode(EMPTY)


def independent_flags(ids: list[int], last_only: bool = False) -> list[int]:
    """Flags of ids whose contents hold no control token and begin with no line break."""
    flags, n = [0] * len(ids), len(HEAD_IDS)
    answers = [i for i, token in enumerate(ids) if token == HEAD_IDS[0] and ids[i : i + n] == HEAD_IDS]
    for i in answers[-1:] if last_only else answers:
        start, end = i + n, ids.index(IM_END, i) + 2
        flags[start:end] = [TARGET] * (end - start)
        if ids[start : start + 4] == BLOCK_IDS:
            flags[start : start + 4] = [0 if last_only else BOTH] * 4
    return flags


@pytest.mark.parametrize("name", ["sft_512", "sft_2048", "toolcall", "math"])
def test_an_independent_mask_agrees_on_all_real_conversations(name: str, shared_data: Path) -> None:
    newline = HF.encode("\n")[0]
    lines = (shared_data / f"{name}.jsonl").read_bytes().splitlines()
    n_blocks = 0
    for first in range(0, len(lines), 500):
        conversations = [parse_conversation(line) for line in lines[first : first + 500]]
        for i, (conversation, chat) in enumerate(zip(conversations, ENCODER.encode_many(conversations), strict=True)):
            assert isinstance(chat, EncodedChat)
            assert list(chat.flags) == independent_flags(chat.tokens)
            assert all(chat.tokens[j + 1] == newline for j, t in enumerate(chat.tokens) if t == IM_END)
            n_blocks += BOTH in chat.flags
            if i % 10:
                continue
            plain = TOKENIZER.apply_chat_template(conversation.messages, tools=conversation.tools)
            kept = [t for t, flags in zip(chat.tokens, chat.flags, strict=True) if not flags & EMPTY_THINK]
            assert kept == HF.encode(plain)
            assert chat.text.replace(EMPTY, "") == plain
    assert n_blocks > 0.9 * len(lines)


def test_an_independent_mask_agrees_on_all_real_pairs(shared_data: Path) -> None:
    for line in (shared_data / "dpo.jsonl").read_bytes().splitlines():
        pair = parse_pair(line)
        sides = ENCODER.encode_pair(pair)
        for conversation, chat in zip((pair.chosen, pair.rejected), sides, strict=True):
            assert list(chat.flags) == independent_flags(chat.tokens, last_only=True)
            *before, answer = conversation.messages
            text = TOKENIZER.apply_chat_template(before, add_generation_prompt=True)
            assert decode(chat.tokens[: chat.flags.index(TARGET)]) == text
            assert chat.text == f"{text}{answer['content']}{END}"
            assert chat.n_bytes == len(answer["content"].encode())
        assert sides[0].tokens[: sides[0].flags.index(TARGET)] == sides[1].tokens[: sides[1].flags.index(TARGET)]


# --- Pairs --------------------------------------------------------------------------------------


def test_the_empty_block_is_the_prompts_where_nobody_thinks() -> None:
    chosen, rejected = encode_pair([S, U, A, U, A], [S, U, A, U, assistant("Go away.")])
    context = prompt("system", "Be brief.") + ASK + HEAD + "Hello 😀" + END + ASK + HEAD + EMPTY
    assert context == TOKENIZER.apply_chat_template([S, U, A, U], add_generation_prompt=True)
    assert runs(chosen) == [(0, context), (TARGET, "Hello 😀" + END)]
    assert runs(rejected) == [(0, context), (TARGET, "Go away." + END)]
    assert (chosen.n_bytes, rejected.n_bytes) == (10, 8)
    chosen, rejected = encode_pair([U, A], [U, assistant("\n\nGo away.")])
    assert runs(chosen)[0] == runs(rejected)[0] == (0, ASK + HEAD + EMPTY)
    assert rejected.n_bytes == 10


@pytest.mark.parametrize("thinks", [THINK, assistant("<think>\nsix times seven\n</think>\n\n42")])
def test_a_block_is_learnt_on_both_sides_where_one_thinks(thinks: dict[str, Any]) -> None:
    thoughts, empty = "<think>\nsix times seven\n</think>\n\n42" + END, EMPTY + "Hello 😀" + END
    for sides, texts in (([thinks, A], [thoughts, empty]), ([A, thinks], [empty, thoughts])):
        encoded = encode_pair([U, sides[0]], [U, sides[1]])
        assert [runs(chat) for chat in encoded] == [[(0, ASK + HEAD), (TARGET, text)] for text in texts]
    assert [runs(chat) for chat in encode_pair([U, THINK], [U, {**THINK, "content": "41"}])] == [
        [(0, ASK + HEAD), (TARGET, thoughts)],
        [(0, ASK + HEAD), (TARGET, thoughts.replace("42", "41"))],
    ]


def test_thoughts_before_the_answer_do_not_count_and_calls_are_context() -> None:
    before = [U, assistant("", tool_calls=calls("f"), reasoning_content="f?"), result("20")]
    chosen, rejected = encode_pair([*before, A], [*before, assistant("", tool_calls=calls("g"))])
    context = (
        f"{ASK}{HEAD}<think>\nf?\n</think>\n\n{CALL_F}{END}"
        f"<|im_start|>user\n<tool_response>\n20\n</tool_response>{END}{HEAD}{EMPTY}"
    )
    assert runs(chosen) == [(0, context), (TARGET, "Hello 😀" + END)]
    assert runs(rejected) == [(0, context), (TARGET, CALL_G + END)]


def test_pairs_with_other_tokens_before_the_answers_are_errors() -> None:
    with pytest.raises(LineError, match="begins with a line break"):
        encode_pair([U, THINK], [U, assistant("\n<think>unfinished")])
    with pytest.raises(LineError, match="tokens before the answers"):
        encode_pair([U, A], [user("hi"), A])
    with pytest.raises(LineError, match="no assistant message"):
        encode_pair([U], [U, A])


# --- By property --------------------------------------------------------------------------------

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
    n_optional = bytes(chat.flags).count(BOTH) // len(BLOCK_IDS)
    assert sum(not neutral(c)[0].isspace() for c in unthinking) <= n_optional <= len(unthinking)
    if n_optional == len(unthinking):
        assert decode(kept) == TOKENIZER.apply_chat_template(messages)


# --- Other directories --------------------------------------------------------------------------


def with_template(directory: Path, template: str, eos: str = "<|im_end|>") -> ChatEncoder:
    TOKENIZER.save(directory)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": eos}))
    return ChatEncoder(load_tokenizer(str(directory)))


LOOP = "{%- for m in messages -%}"
TURN = "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}"
PROMPT = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
CHATML = f"{LOOP}{TURN}{{%- endfor -%}}{PROMPT}"


def test_a_template_without_thoughts(tmp_path: Path) -> None:
    encoder = with_template(tmp_path, CHATML)
    chat = encoder.encode(Conversation([U, THINK, U, A], None))
    assert runs(chat) == [(0, ASK + HEAD), (TARGET, "42" + END), (0, ASK + HEAD), (TARGET, "Hello 😀" + END)]
    chosen, _ = encoder.encode_pair(Pair(Conversation([U, A], None), Conversation([U, assistant("x")], None)))
    assert runs(chosen) == [(0, ASK + HEAD), (TARGET, "Hello 😀" + END)]


def test_a_template_whose_block_is_not_optional(tmp_path: Path) -> None:
    """As Qwen3's: the last answer always has a block, and the prompt has one where thinking is off."""
    block = EMPTY.replace("\n", "\\n")
    turn = TURN.replace("+ m.content", f"+ ('{block}' if loop.last and m.role == 'assistant' else '') + m.content")
    prompt_block = f"{{%- if add_generation_prompt and not enable_thinking -%}}{{{{- '{block}' -}}}}{{%- endif -%}}"
    encoder = with_template(tmp_path, f"{LOOP}{turn}{{%- endfor -%}}{PROMPT}{prompt_block}")
    assert runs(encoder.encode(Conversation([U, A], None))) == [(0, ASK + HEAD), (TARGET, EMPTY + "Hello 😀" + END)]
    chosen, _ = encoder.encode_pair(Pair(Conversation([U, A], None), Conversation([U, assistant("x")], None)))
    assert runs(chosen) == [(0, ASK + HEAD + EMPTY), (TARGET, "Hello 😀" + END)]


def test_a_template_that_renders_all_thoughts(tmp_path: Path) -> None:
    """Still only the answers after the last question get an empty block."""
    thoughts = "('<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' if m.reasoning_content is defined else '')"
    turn = TURN.replace("+ m.content", f"+ {thoughts} + m.content")
    block = f"{{%- if add_generation_prompt and not enable_thinking -%}}{{{{- {EMPTY!r} -}}}}{{%- endif -%}}"
    encoder = with_template(tmp_path, f"{LOOP}{turn}{{%- endfor -%}}{PROMPT}{block}")
    assert [flags for flags, _ in runs(encoder.encode(Conversation([U, A, U, A], None)))] == [
        0,
        TARGET,
        0,
        BOTH,
        TARGET,
    ]
    chat = encoder.encode(Conversation([U, THINK, U, A], None))
    assert runs(chat)[1] == (TARGET, "<think>\nsix times seven\n</think>\n\n42" + END)


def test_white_space_that_only_much_later_text_joins_to_the_block(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["model"]["vocab"]["ĊĠ"] = len(spec["model"]["vocab"])
    spec["model"]["merges"].insert(0, ["Ċ", "Ġ"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    encoder = ChatEncoder(load_tokenizer(str(tmp_path)))
    # Without the line break after them the spaces join nothing.
    for content, optional in ((" " * 80 + "x", True), (" " * 80 + "\nx", False)):
        chat = encoder.encode(Conversation([U, assistant(content)], None))
        assert (BOTH in chat.flags) == optional


def test_another_header_and_end(tmp_path: Path) -> None:
    template = (
        "{%- for m in messages -%}{{- '<|reserved_0|>' if m.role == 'assistant' else '<|reserved_1|>' -}}"
        "{{- m.content -}}{{- '<|reserved_2|>' if m.role == 'assistant' else '' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|reserved_0|>' -}}{%- endif -%}"
    )
    encoder = with_template(tmp_path, template, eos="<|reserved_2|>")
    chat = encoder.encode(Conversation([user("<|reserved_0|>\nhi"), assistant("\nyes"), U, A], None))
    assert runs(chat) == [
        (0, "<|reserved_1|>< |reserved_0|>\nhi<|reserved_0|>"),
        (TARGET, "\nyes<|reserved_2|>"),
        (0, "<|reserved_1|>你好<|reserved_0|>"),
        (TARGET, "Hello 😀<|reserved_2|>"),
    ]
    assert chat.n_bytes == len("\nyesHello 😀".encode())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (f"{LOOP}{TURN}{{%- endfor -%}}", "adds no generation prompt"),
        (CHATML.replace("<|im_start|>", "### "), "which a user could write"),
        (CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>bot\n'"), "does not begin every assistant turn"),
        (CHATML.replace("'<|im_end|>\n'", "'\n'"), "end it with '<|im_end|>'"),
        (CHATML.replace("'<|im_end|>\n'", "('<|im_end|>' if m.role == 'user' else '')"), "end it with '<|im_end|>'"),
        (CHATML.replace("'<|im_end|>\n'", "('<|im_end|>' if m.role == 'user' or loop.last else '')"), "end it with"),
        ("{{- raise_exception('never') -}}", "refuses the conversation: never"),
    ],
)  # fmt: skip
def test_templates_that_do_not_tell_turns_apart(template: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        with_template(tmp_path, template)


def test_a_directory_without_template(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        ChatEncoder(load_tokenizer(str(tmp_path)))


def test_a_template_that_joins_or_refuses_messages_makes_bad_lines(tmp_path: Path) -> None:
    joins = CHATML.replace(
        TURN, f"{{%- if loop.first or m.role != messages[loop.index0 - 1].role -%}}{TURN}{{%- endif -%}}"
    )
    encoder = with_template(tmp_path / "joins", joins)
    with pytest.raises(LineError, match="does not render each assistant message as a turn of its own"):
        encoder.encode(Conversation([U, A, A], None))
    endless = CHATML.replace(
        "'<|im_end|>\n'", "('' if messages[0].role == 'system' and m.role == 'assistant' else '<|im_end|>\n')"
    )
    encoder = with_template(tmp_path / "endless", endless)
    for messages in ([S, U, A], [S, U, A, A, U]):
        with pytest.raises(LineError, match="as a turn of its own"):
            encoder.encode(Conversation(messages, None))
    refuses = (
        f"{{%- if messages[0].role == 'system' -%}}{{{{- raise_exception('no system') -}}}}{{%- endif -%}}{CHATML}"
    )
    encoder = with_template(tmp_path / "refuses", refuses)
    good, bad = encoder.encode_many([Conversation([U, A], None), Conversation([S, U, A], None)])
    assert isinstance(good, EncodedChat)
    assert isinstance(bad, LineError) and "no system" in str(bad)
