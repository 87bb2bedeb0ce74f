"""Which tokens of a conversation are learnt: by hand, and against a mask made of ids alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_helpers import (
    ASK,
    BOTH,
    EMPTY,
    ENCODER,
    END,
    HEAD,
    HF,
    THINK,
    TOKENIZER,
    TOOL,
    A,
    S,
    U,
    assistant,
    calls,
    decode,
    encode,
    encode_pair,
    prompt,
    result,
    runs,
    user,
)
from minimind_jax.data.conversation import Conversation, parse_conversation, parse_pair

from minimind_jax.data.chat import EMPTY_THINK, TARGET, EncodedChat
from minimind_jax.data.jsonl import LineError
from minimind_jax.tokenizer.train import CONTROL_TOKENS

# --- By hand ------------------------------------------------------------------------------------

CALL_F = '<tool_call>\n{"name": "f", "arguments": {"城市": "北京"}}\n</tool_call>'
CALL_G = '<tool_call>\n{"name": "g", "arguments": {"城市": "北京"}}\n</tool_call>'
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
