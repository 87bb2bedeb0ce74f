"""From jsonl lines to messages: every shape that is read, and every error by its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from minimind_jax.data.conversation import Conversation, parse_conversation, parse_pair

from minimind_jax.data.jsonl import BadLine, LineError, read_jsonl

S = {"role": "system", "content": "Be brief."}
U = {"role": "user", "content": "你好"}
A = {"role": "assistant", "content": "Hello 😀"}
B = {"role": "assistant", "content": "Go away."}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"x": [1.5, None]}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "北京"}}}


def line(record: Any, **options: Any) -> bytes:
    return json.dumps(record, **options).encode()


def read(messages: Any, **beside: Any) -> Conversation:
    return parse_conversation(line({"conversations": messages, **beside}))


def calling(calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": calls}


# --- Conversations ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conversations", "messages"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_both_shapes(name: str, ascii_only: bool) -> None:
    record = {"id": 7, name: [S, U, A, U, B]}
    assert parse_conversation(line(record, ensure_ascii=ascii_only)) == Conversation([S, U, A, U, B], None)


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("text", [True, False])
def test_tools_and_calls_come_as_json_or_text_bare_or_under_function(bare: bool, text: bool) -> None:
    def written(value: Any) -> Any:
        return json.dumps(value, ensure_ascii=False) if text else value

    tool = TOOL["function"] if bare else TOOL
    call = {"name": "f", "arguments": written({"x": "北京"})}
    calls = written([call if bare else {"function": call}])
    asks = {**calling(calls), "content": None}
    result = {"role": "tool", "content": "20"}
    messages = [S, U, {**calling([CALL]), "content": ""}, result, A]
    assert read([{**S, "tools": written([tool])}, U, asks, result, A]) == Conversation(messages, [tool])
    assert read([S, U, asks, result, A], tools=written([tool])) == Conversation(messages, [tool])
    assert read([U, asks, result, A], tools=written([tool])) == Conversation(messages[1:], [tool])


def test_calls_keep_order_and_ids_and_may_lack_arguments() -> None:
    calls = [{"id": "c1", "name": "f", "arguments": ""}, {"name": "g"}, {"function": {"name": "h", "arguments": "{}"}}]
    result = {"role": "tool", "content": "", "tool_call_id": "c1", "name": "f", "extra": 1}
    _, asks, answer, _ = read([U, calling(calls), result, A]).messages
    assert [c["function"] for c in asks["tool_calls"]] == [{"name": n, "arguments": {}} for n in "fgh"]
    assert [c.get("id") for c in asks["tool_calls"]] == ["c1", None, None]
    assert answer == {"role": "tool", "content": "", "tool_call_id": "c1", "name": "f"}


@pytest.mark.parametrize("none", [None, "", " ", "[]", "null", []])
def test_null_and_empty_are_as_missing(none: Any) -> None:
    blank = None if isinstance(none, list) else none and ""
    messages = [{**m, "tools": none, "tool_calls": none, "reasoning_content": blank} for m in (S, U, A)]
    assert read(messages, tools=none) == Conversation([S, U, A], None)


def test_thoughts_and_content() -> None:
    thinks = {**A, "reasoning_content": "\nhm\n", "weight": 1.0}
    only_thinks = {"role": "assistant", "content": "", "reasoning_content": "hm"}
    blank = {**A, "reasoning_content": " \n"}
    assert read([U, thinks]).messages == [U, {**A, "reasoning_content": "\nhm\n"}]
    assert read([U, only_thinks]).messages == [U, only_thinks]
    assert read([U, blank]).messages == [U, A]
    spaces = {"role": "assistant", "content": " \n x \n"}
    assert read([U, spaces]).messages == [U, spaces]


def test_a_system_message_without_text_counts_as_none_but_its_tools_stay() -> None:
    for empty in ("", None, " \n"):
        system = {"role": "system", "content": empty}
        assert read([system, U, A]) == Conversation([U, A], None)
        assert read([{**system, "tools": [TOOL]}, U, A]) == Conversation([U, A], [TOOL])
    assert read([U, A, S, U, A]).messages == [U, A, S, U, A]


def test_what_follows_the_last_answer_is_dropped() -> None:
    result = {"role": "tool", "content": "20"}
    assert read([U, A, U]).messages == [U, A]
    assert read([S, U, calling([CALL]), result, result, U]).messages == [S, U, calling([CALL])]


BOT = "`conversations[2].role` is 'bot', not one of system, user, assistant, tool"
U_ = "conversations[0]"
A_ = "conversations[1]"
SURROGATE = "\ud800"
DEEP: Any = {}
for _ in range(70):
    DEEP = {"x": DEEP}
BAD_CONVERSATIONS: list[tuple[Any, str]] = [
    ({"text": "hi", "id": 3}, "lacks `conversations` or `messages`, has `text`, `id`"),
    ({}, "has no field at all"),
    ({SURROGATE: 1}, "lacks `conversations` or `messages`, has `\\ud800`"),
    ([{"role": SURROGATE, "content": "x"}, A], f"`{U_}.role` is '\\ud800', not one of"),
    ([U, A], "not a JSON object but a list"),
    ({"conversations": {"role": "user"}}, "`conversations` is not a list of messages"),
    ({"messages": "hi"}, "`messages` is not a list of messages"),
    ({"conversations": None}, "`conversations` is not a list of messages"),
    ({"conversations": []}, "`conversations` is empty"),
    ({"messages": [S, U]}, "`messages` has no assistant message"),
    ({"messages": [{"role": "system", "content": ""}]}, "`messages` has no assistant message"),
    ([U, "hi"], f"`{A_}` is not an object"),
    ([U, None], f"`{A_}` is not an object"),
    ([U, A, {"role": "bot", "content": "x"}], BOT),
    ([{"role": ["user"], "content": "x"}, A], f"`{U_}.role` is ['user'], not one of"),
    ([{"role": None, "content": "x"}, A], f"`{U_}.role` is None, not one of"),
    ([{"from": "human", "value": "x"}, A], f"`{U_}` lacks `role`, has `from`, `value`"),
    ([U, {"role": "assistant", "content": ""}], f"`{A_}.content` is empty"),
    ([U, {"role": "assistant"}], f"`{A_}.content` is empty"),
    ([U, {**calling("[]"), "reasoning_content": " "}], f"`{A_}.content` is empty"),
    ([{"role": "user", "content": " \n"}, A], f"`{U_}.content` is empty"),
    ([{"role": "user", "content": None}, A], f"`{U_}.content` is empty"),
    ([U, {"role": "assistant", "content": 42}], f"`{A_}.content` is not a string"),
    ([{"role": "user", "content": [{"type": "text", "text": "x"}]}, A], f"`{U_}.content` is not a string"),
    ([{"role": "tool", "content": {"x": 1}}, A], f"`{U_}.content` is not a string"),
    ([U, {**A, "reasoning_content": ["hm"]}], f"`{A_}.reasoning_content` is not a string"),
    ([{**U, "reasoning_content": "hm"}, A], f"`{U_}.reasoning_content` on a message of role user"),
    ([{**S, "tool_calls": [CALL]}, U, A], f"`{U_}.tool_calls` on a message of role system"),
    ([U, calling("f(x)")], f"`{A_}.tool_calls` is not JSON (Expecting value, column 1)"),
    ([U, calling("[" * 100_000)], f"`{A_}.tool_calls` is not JSON (nested too deeply"),
    ([U, calling('[{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}]")], f"`{A_}.tool_calls` is not JSON ("),
    ([U, calling({"name": "f"})], f"`{A_}.tool_calls` is not a list"),
    ([U, calling(False)], f"`{A_}.tool_calls` is not a list"),
    ([U, calling([CALL, "f"])], f"`{A_}.tool_calls[1]` is not an object"),
    ([U, calling([CALL, {"arguments": {}}])], f"`{A_}.tool_calls[1]` lacks `name`"),
    ([U, calling([{"name": " ", "arguments": {}}])], f"`{A_}.tool_calls[0]` lacks `name`"),
    ([U, calling([{"name": 3}])], f"`{A_}.tool_calls[0]` lacks `name`"),
    ([U, calling([{"function": {"arguments": {}}}])], f"`{A_}.tool_calls[0].function` lacks `name`"),
    ([U, calling([{"function": "f"}])], f"`{A_}.tool_calls[0].function` is not an object"),
    ([U, calling([{"name": "f", "arguments": "x=1"}])], f"`{A_}.tool_calls[0].arguments` is not JSON"),
    ([U, calling([{"name": "f", "arguments": "[1]"}])], f"`{A_}.tool_calls[0].arguments` is not an object"),
    ([U, calling([{"name": "f", "arguments": 0}])], f"`{A_}.tool_calls[0].arguments` is not an object"),
    ([U, calling([{"function": {"name": "f", "arguments": 5}}])], f"`{A_}.tool_calls[0].function.arguments` is not"),
    ([{**S, "tools": "[{"}, U, A], f"`{U_}.tools` is not JSON"),
    ([{**S, "tools": '{"name": "f"}'}, U, A], f"`{U_}.tools` is not a list"),
    ([{**S, "tools": ["f"]}, U, A], f"`{U_}.tools[0]` is not an object"),
    ([{**S, "tools": [{"type": "function"}]}, U, A], f"`{U_}.tools[0]` lacks `name`"),
    ([{**U, "tools": [TOOL]}, A], f"`{U_}.tools`: only the first message may have tools"),
    ([U, A, {**S, "tools": [TOOL]}, U, A], "`conversations[2].tools`: only the first message may have tools"),
    ({"messages": [U, A], "tools": "f"}, "`tools` is not JSON"),
    ({"messages": [U, A], "tools": [{}]}, "`tools[0]` lacks `name`"),
    ({"messages": [{**S, "tools": [TOOL]}, U, A], "tools": [TOOL]}, "`tools` stand both beside the messages and on"),
    ([{"role": "user", "content": SURROGATE}, A], f"`{U_}.content` has half of a \\u surrogate pair"),
    ([U, {**A, "reasoning_content": "x" + SURROGATE}], f"`{A_}.reasoning_content` has half of a \\u surrogate pair"),
    ([U, calling([{"name": SURROGATE}])], f"`{A_}.tool_calls` has half of a \\u surrogate pair"),
    ([U, calling(json.dumps([{"name": "f", "arguments": {"x": [SURROGATE]}}]))], f"`{A_}.tool_calls` has half of a"),
    ([U, calling([{"name": "f", "arguments": json.dumps({SURROGATE: 1})}])], f"`{A_}.tool_calls` has half of a"),
    ([{**S, "tools": [{"name": "f", SURROGATE: 1}]}, U, A], f"`{U_}.tools` has half of a \\u surrogate pair"),
    ({"messages": [U, A], "tools": [{"name": "f", "x": SURROGATE}]}, "`tools` has half of a \\u surrogate pair"),
    ([U, calling([{"name": "f", "arguments": DEEP}])], f"`{A_}.tool_calls` is nested more than 64 levels deep"),
    ({"messages": [U, A], "tools": [{"name": "f", "x": DEEP}]}, "`tools` is nested more than 64 levels deep"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "reason"), BAD_CONVERSATIONS)
def test_bad_conversations_name_the_field(record: Any, reason: str) -> None:
    if isinstance(record, list) and reason != "not a JSON object but a list":
        record = {"conversations": record}
    with pytest.raises(LineError) as raised:
        parse_conversation(line(record))
    assert reason in str(raised.value)
    str(raised.value).encode()


def test_no_json() -> None:
    with pytest.raises(LineError, match="not JSON"):
        parse_conversation(b'{"conversations": [')


@pytest.mark.parametrize("name", ["sft_512", "sft_2048", "toolcall", "math"])
def test_no_line_of_the_real_data_fails(name: str, shared_data: Path) -> None:
    n_messages = n_calls = 0
    path = shared_data / f"{name}.jsonl"
    for (_, conversation), raw in zip(read_jsonl(path, parse_conversation), path.open(), strict=True):
        assert not isinstance(conversation, BadLine), conversation
        source = json.loads(raw)["conversations"]
        assert [(m["role"], m["content"]) for m in conversation.messages] == [(m["role"], m["content"]) for m in source]
        assert (conversation.tools or []) == json.loads(source[0].get("tools", "[]"))
        for message, original in zip(conversation.messages, source, strict=True):
            calls = json.loads(original.get("tool_calls", "[]"))
            assert [call["function"] for call in message.get("tool_calls", [])] == calls
            assert message.get("reasoning_content") == original.get("reasoning_content")
            n_calls += len(calls)
        n_messages += len(source)
    assert n_messages > 10_000 and (n_calls > 5_000) == (name == "toolcall")


# --- Pairs --------------------------------------------------------------------------------------


def pair(**record: Any) -> tuple[Conversation, Conversation]:
    parsed = parse_pair(line(record))
    return parsed.chosen, parsed.rejected


def test_pairs_of_messages() -> None:
    before = [S, U, A, U]
    assert pair(chosen=[*before, A], rejected=[*before, B]) == (
        Conversation([*before, A], None),
        Conversation([*before, B], None),
    )
    calls = {**calling(json.dumps([{"name": "f", "arguments": {"x": "北京"}}]))}
    chosen, rejected = pair(chosen=[U, calls], rejected=[U, B], tools=json.dumps([TOOL]))
    assert chosen == Conversation([U, calling([CALL])], [TOOL])
    assert rejected == Conversation([U, B], [TOOL])


HI, GO = [U, A], [U, B]
PROMPTS: list[dict[str, Any]] = [
    {"prompt": "你好", "chosen": "Hello 😀", "rejected": "Go away."},
    {"prompt": [U], "chosen": "Hello 😀", "rejected": "Go away."},
    {"prompt": "你好", "chosen": [A], "rejected": [B]},
    {"prompt": [U], "chosen": [A], "rejected": "Go away."},
    {"prompt": "你好", "chosen": HI, "rejected": GO},
    {"prompt": [U], "chosen": HI, "rejected": GO},
    {"prompt": None, "chosen": HI, "rejected": GO},
]


@pytest.mark.parametrize("record", PROMPTS)
def test_prompts_stand_apart_or_in_both_sides(record: dict[str, Any]) -> None:
    assert pair(**record) == (Conversation(HI, None), Conversation(GO, None))
    assert pair(**record, tools=[TOOL]) == (Conversation(HI, [TOOL]), Conversation(GO, [TOOL]))


def test_a_prompt_of_messages_brings_its_tools() -> None:
    system = {**S, "tools": [TOOL]}
    chosen, _ = pair(prompt=[system, U], chosen="Hello 😀", rejected=[B])
    assert chosen == Conversation([S, U, A], [TOOL])
    several = [calling([CALL]), {"role": "tool", "content": "20"}]
    chosen, _ = pair(prompt=[U], chosen=[*several, A], rejected=[*several, B])
    assert chosen.messages == [U, *several, A]


BAD_PAIRS: list[tuple[dict[str, Any], str]] = [
    ({"rejected": HI}, "lacks `chosen`, has `rejected`"),
    ({"chosen": HI, "reject": GO}, "lacks `rejected`, has `chosen`, `reject`"),
    ({"chosen": HI, "rejected": None}, "lacks `rejected`"),
    ({"conversations": HI}, "lacks `chosen`, has `conversations`"),
    ({"chosen": "x", "rejected": "y"}, "lacks `prompt`, and `chosen` has no message before the answer"),
    ({"chosen": [A], "rejected": [B]}, "lacks `prompt`, and `chosen` has no message before the answer"),
    ({"prompt": [{"role": "system", "content": ""}], "chosen": "x", "rejected": "y"}, "has no message before"),
    ({"chosen": HI, "rejected": "y"}, "lacks `prompt`, and `rejected` has no message"),
    ({"chosen": 3, "rejected": GO}, "`chosen` is not a list of messages"),
    ({"chosen": [], "rejected": GO}, "`chosen` is empty"),
    ({"chosen": HI, "rejected": [U]}, "`rejected` does not end with an assistant message"),
    ({"chosen": [U, A, U], "rejected": [U, B, U]}, "`chosen` does not end with an assistant message"),
    ({"chosen": [{"role": "system"}], "rejected": GO}, "`chosen` does not end with an assistant message"),
    ({"chosen": HI, "rejected": [S, U, B]}, "`chosen` and `rejected` differ before their last message"),
    ({"chosen": HI, "rejected": [U, A, U, B]}, "`chosen` and `rejected` differ before their last message"),
    ({"chosen": HI, "rejected": [{**U, "content": "hi"}, B]}, "differ before their last message"),
    ({"chosen": [{**S, "tools": [TOOL]}, U, A], "rejected": [S, U, B]}, "have different `tools`"),
    ({"chosen": HI, "rejected": HI}, "`chosen` and `rejected` are the same"),
    ({"prompt": "p", "chosen": "x", "rejected": "x"}, "`chosen` and `rejected` are the same"),
    ({"chosen": HI, "rejected": [U, {**A, "reasoning_content": ""}]}, "`chosen` and `rejected` are the same"),
    ({"chosen": HI, "rejected": [U, {"role": "bot", "content": "x"}]}, "`rejected[1].role` is 'bot', not one of"),
    ({"chosen": [U, {"role": "assistant"}], "rejected": GO}, "`chosen[1].content` is empty"),
    ({"prompt": "p", "chosen": " ", "rejected": "x"}, "`chosen` is empty"),
    ({"prompt": "", "chosen": "y", "rejected": "x"}, "`prompt` is empty"),
    ({"prompt": [], "chosen": "y", "rejected": "x"}, "`prompt` is empty"),
    ({"prompt": 3, "chosen": "y", "rejected": "x"}, "`prompt` is not a list of messages"),
    ({"prompt": [{"role": "user"}], "chosen": "y", "rejected": "x"}, "`prompt[0].content` is empty"),
    ({"prompt": SURROGATE, "chosen": "y", "rejected": "x"}, "`prompt` has half of a \\u surrogate pair"),
    ({"prompt": "p", "chosen": "y", "rejected": SURROGATE}, "`rejected` has half of a \\u surrogate pair"),
    ({"prompt": [{**S, "tools": [TOOL]}, U], "tools": [TOOL], "chosen": "y", "rejected": "x"}, "`tools` stand both"),
    ({"chosen": HI, "rejected": GO, "tools": "x"}, "`tools` is not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "reason"), BAD_PAIRS)
def test_bad_pairs_name_the_field(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(LineError) as raised:
        pair(**record)
    assert reason in str(raised.value)


def test_no_pair_of_the_real_data_fails(shared_data: Path) -> None:
    path = shared_data / "dpo.jsonl"
    n_pairs = 0
    for (_, parsed), raw in zip(read_jsonl(path, parse_pair), path.open(), strict=True):
        assert not isinstance(parsed, BadLine), parsed
        source = json.loads(raw)
        assert parsed.chosen == Conversation(source["chosen"], None)
        assert parsed.rejected == Conversation(source["rejected"], None)
        n_pairs += 1
    assert n_pairs > 1_000
