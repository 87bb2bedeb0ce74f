"""From jsonl lines to messages: every shape that is read, and every error by its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minimind_jax.chat import Conversation, ConversationError, read_conversation, read_pair
from minimind_jax.data.chat import parse_conversation, parse_pair
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
    return parse_conversation(line({"conversations": messages, **beside})).conversation


def calling(calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": calls}


# --- Conversations ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conversations", "messages"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_both_shapes(name: str, ascii_only: bool) -> None:
    record = {"id": 7, name: [S, U, A, U, B]}
    assert parse_conversation(line(record, ensure_ascii=ascii_only)).conversation == Conversation([S, U, A, U, B], None)


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
    ({"text": "hi", "id": 3}, "or prompt and completion), has `text`, `id`"),
    ({}, "has no field at all"),
    ({SURROGATE: 1}, "or prompt and completion), has `\\ud800`"),
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
    ([{"name": "human", "value": "x"}, A], f"`{U_}` lacks `role`, has `name`, `value`"),
    ([{"from": "bing", "value": "x"}, A], f"`{U_}.from` is 'bing', not one of"),
    ([{"from": "human", "value": " "}, A], f"`{U_}.value` is empty"),
    ([{"from": "human", "value": 3}, A], f"`{U_}.value` is not a string"),
    ([U, {"from": "gpt", "value": ""}], f"`{A_}.value` is empty"),
    ([U, {"from": "function_call", "value": "f(x)"}, A], f"`{A_}.value` is not JSON"),
    ([U, {"from": "function_call", "value": ""}, A], f"`{A_}.value` is empty"),
    ([U, {"role": "assistant", "content": ""}], f"`{A_}.content` is empty"),
    ([U, {"role": "assistant"}], f"`{A_}.content` is empty"),
    ([U, {**calling("[]"), "reasoning_content": " "}], f"`{A_}.content` is empty"),
    ([{"role": "user", "content": " \n"}, A], f"`{U_}.content` is empty"),
    ([{"role": "user", "content": None}, A], f"`{U_}.content` is missing"),
    ([{"role": "user"}, A], f"`{U_}.content` is missing"),
    ([U, {"role": "assistant", "content": 42}], f"`{A_}.content` is not a string"),
    ([{"role": "user", "content": [{"type": "text", "text": 3}]}, A], f"`{U_}.content[0].text` is not a string"),
    ([{"role": "user", "content": [{"type": "image_url"}]}, A], f"`{U_}.content[0]` is a part of type 'image_url'"),
    ([{"role": "user", "content": ["x"]}, A], f"`{U_}.content[0]` is a part without a type"),
    ([U, {**A, "weight": 0.5}], f"`{A_}.weight` is neither 0 (not learnt) nor 1"),
    ([U, {**A, "weight": 0}], "every answer in `conversations` has `weight` 0"),
    ([U, {**A, "function_call": {"name": ""}}], f"`{A_}.function_call[0]` lacks `name`"),
    ([{**S, "tools": [TOOL], "functions": [TOOL]}, U, A], f"`{U_}.tools` and `{U_}.functions` are the same thing"),
    ({"messages": [U, A], "functions": "f"}, "`functions` is not JSON"),
    ({"messages": [U, A], "tools": [TOOL], "functions": [TOOL]}, "`tools` and `functions` are the same thing"),
    ({"messages": [S, U, A], "system": "x"}, "a system prompt stands both in `system` and in the first"),
    ({"messages": [U, A], "system": ["x"]}, "`system` is not a string"),
    ({"messages": [U, A], "images": ["a.png"]}, "has `images`: this model reads text only"),
    ({"instruction": "x"}, "lacks `conversations` or `messages`"),
    ({"instruction": " ", "input": "", "output": "y"}, "`instruction` is empty"),
    ({"instruction": "x", "output": ""}, "`output` is empty"),
    ({"instruction": "x", "output": ["y"]}, "`output` is not a string"),
    ({"instruction": 3, "output": "y"}, "`instruction` is not a string"),
    ({"instruction": "x", "input": 3, "output": "y"}, "`input` is not a string"),
    ({"instruction": "x", "history": "h", "output": "y"}, "`history` is not a list of [question, answer]"),
    ({"instruction": "x", "history": [["h"]], "output": "y"}, "`history[0]` is not a pair of question and answer"),
    ({"instruction": "x", "history": [["h", ""]], "output": "y"}, "`history[0][1]` is empty"),
    ({"prompt": "x", "completion": ""}, "`completion` is empty"),
    ({"prompt": "x", "completion": "y", "label": False}, "`label` is false"),
    ({"prompt": "", "completion": "y"}, "`prompt` is empty"),
    ({"prompt": [U], "completion": [U]}, "`completion` has no assistant message"),
    ({"prompt": [U, A], "completion": "x"}, "`prompt` ends with the assistant's message"),
    ({"conversations": [U, A], "messages": [U, B]}, "`conversations` and `messages` are the same thing and differ"),
    ([U, {**A, "value": "other"}], f"`{A_}.content` and `{A_}.value` are the same thing and differ"),
    ([U, {**A, "from": "human"}], f"`{A_}.role` and `{A_}.from` are the same thing and differ"),
    ([U, {**A, "reasoning": "a", "reasoning_content": "b"}], "are the same thing and differ"),
    ([U, {**calling([CALL]), "function_call": {"name": "g"}}], "are the same thing and differ"),
    ([U, {"from": "function_call", "value": '{"name": "f"}', "tool_calls": [CALL]}], "has `tool_calls` besides"),
    ([U, calling([{"name": "f", "args": {"x": 1}}])], f"`{A_}.tool_calls[0]` has no `arguments` but `args`"),
    ([U, calling([{"name": "f", "arguments": {"x": 1}, "parameters": {"x": 2}}])], "are the same thing and differ"),
    ([{"role": "tool", "content": {"x": 1}}, A], f"`{U_}.content` is not a string"),
    ([U, {**A, "reasoning_content": {"x": 1}}], f"`{A_}.reasoning_content` is not a string"),
    ([{**U, "reasoning_content": "hm"}, A], f"`{U_}.reasoning_content` on a message of role user"),
    ([{**S, "tool_calls": [CALL]}, U, A], f"`{U_}.tool_calls` on a message of role system"),
    ([U, calling("f(x)")], f"`{A_}.tool_calls` is not JSON (Expecting value, column 1)"),
    ([U, calling("[" * 100_000)], f"`{A_}.tool_calls` is not JSON (nested too deeply"),
    ([U, calling('[{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}]")], f"`{A_}.tool_calls` is not JSON ("),
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
    for (_, parsed), raw in zip(read_jsonl(path, parse_conversation), path.open(), strict=True):
        assert not isinstance(parsed, BadLine), parsed
        conversation = parsed.conversation
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


# --- Other people's forms -----------------------------------------------------------------------


def form_of(record: Any) -> tuple[Conversation, str, tuple[str, ...]]:
    parsed = read_conversation(record)
    return parsed.conversation, parsed.form, parsed.unknown


def test_sharegpt() -> None:
    call = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": "北京"}}'}
    record = {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "你好"},
            call,
            {"from": "observation", "value": "20"},
            {"from": "gpt", "value": "Hello 😀"},
        ],
        "tools": json.dumps([TOOL]),
    }
    wanted = Conversation([S, U, calling([CALL]), {"role": "tool", "content": "20"}, A], [TOOL])
    assert form_of(record) == (wanted, "`conversations` by ShareGPT (`from`, `value`)", ())
    several = [{"name": "f", "arguments": {"x": "北京"}}, {"name": "g", "arguments": {}}]
    record["conversations"][2] = {"from": "function_call", "value": json.dumps(several)}
    assert len(read_conversation(record).conversation.messages[2]["tool_calls"]) == 2
    for user_name, assistant_name in (("user", "assistant"), ("human", "chatgpt")):
        messages = [{"from": user_name, "value": "你好"}, {"from": assistant_name, "value": "Hello 😀"}]
        assert read_conversation({"messages": messages}).conversation == Conversation([U, A])


def test_alpaca() -> None:
    one = {"instruction": "你好", "input": "", "output": "Hello 😀"}
    assert form_of(one) == (Conversation([U, A]), "Alpaca (`instruction`, `output`)", ())
    assert form_of({**one, "input": None, "history": [], "system": ""})[0] == Conversation([U, A])
    thoughts = form_of({**one, "reasoning_content": "hm", "system_prompt": "Be brief."})[0]
    assert thoughts == Conversation([S, U, {**A, "reasoning_content": "hm"}])
    both = read_conversation({**one, "instruction": "Translate.", "input": "你好"}).conversation
    assert both.messages[0] == {"role": "user", "content": "Translate.\n你好"}
    assert read_conversation({**one, "instruction": "", "input": "你好"}).conversation == Conversation([U, A])
    more = {**one, "system": "Be brief.", "history": [["hi", "ho"], ["你好", "Go away."]], "tools": [TOOL]}
    first = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert form_of(more)[0] == Conversation([S, *first, U, B, U, A], [TOOL])


@pytest.mark.parametrize("prompt", ["你好", [U], [{"from": "human", "value": "你好"}]])
@pytest.mark.parametrize("completion", ["Hello 😀", A, [A]])
def test_prompt_and_completion(prompt: Any, completion: Any) -> None:
    record = {"prompt": prompt, "completion": completion}
    assert form_of(record) == (Conversation([U, A]), "`prompt`, `completion`", ())
    assert form_of({**record, "system": "Be brief.", "label": True})[0] == Conversation([S, U, A])


def test_functions_and_system_beside_or_on_the_system_message() -> None:
    text = json.dumps([TOOL], ensure_ascii=False)
    for functions in ([TOOL], text):
        assert read([{"role": "system", "content": "", "functions": functions}, U, A]) == Conversation([U, A], [TOOL])
        assert read([{**S, "functions": functions}, U, A]) == Conversation([S, U, A], [TOOL])
        assert read([U, A], functions=functions) == Conversation([U, A], [TOOL])
    assert read([U, A], system="Be brief.", tools=text) == Conversation([S, U, A], [TOOL])
    assert read([{**S, "content": " "}, U, A], system="Be brief.") == Conversation([S, U, A])


def test_openais_messages() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "me"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": "北京"}'}},
        {"role": "function", "name": "f", "content": "20"},
        {"role": "assistant", "content": "Hello 😀", "reasoning": "hm", "refusal": None},
    ]
    record = {"messages": messages, "parallel_tool_calls": False}
    conversation, form, unknown = form_of(record)
    assert (form, unknown) == ("`messages`", ("parallel_tool_calls", "messages.refusal"))
    assert conversation.messages == [
        S,
        {"role": "user", "content": "one\ntwo"},
        calling([CALL]),
        {"role": "tool", "content": "20", "name": "f"},
        {**A, "reasoning_content": "hm"},
    ]


def test_what_has_weight_0_is_context() -> None:
    first, second = {**A, "weight": 0}, {**B, "weight": 1}
    blank = {"role": "system", "content": ""}
    assert read([blank, U, first, U, second]) == Conversation([U, A, U, B], context=frozenset({1}))
    assert read([U, {"role": "assistant", "content": "", "weight": 0}, U, A]).context == {1}
    system = read([U, first, U, second], system="Be brief.")
    assert system == Conversation([S, U, A, U, B], context=frozenset({2}))
    with pytest.raises(ConversationError, match="weight") as raised:
        read_conversation({"messages": [U, first]})
    assert raised.value.dropped


def test_of_two_keys_for_one_thing_the_filled_one_counts() -> None:
    assert read([U, {**calling([]), "function_call": CALL["function"]}]).messages[1] == calling([CALL])
    assert read([U, {**A, "reasoning_content": "", "reasoning": "hm"}]).messages[1] == {**A, "reasoning_content": "hm"}
    assert read([U, {"role": "assistant", "content": None, "value": "Hello 😀"}]).messages == [U, A]
    assert read([U, calling([{"name": "f", "parameters": {"x": "北京"}}])]).messages[1] == calling([CALL])
    for empty in (None, []):
        assert read_conversation({"conversations": empty, "messages": [U, A]}).conversation == Conversation([U, A])


def test_only_the_completion_is_learnt() -> None:
    record = {"prompt": [U, B, U], "completion": "Hello 😀"}
    assert read_conversation(record).conversation == Conversation([U, B, U, A], context=frozenset({1}))
    assert read([U, {**B, "train": False}, U, {**A, "loss": True}]).context == {1}


def test_unknown_keys_are_told_of() -> None:
    record = {"messages": [{**U, "id": 1}, {**A, "score": 2, "name": "me"}], "source": "x", "lang": None}
    assert form_of(record)[2] == ("source", "messages.id", "messages.score")
    pair_record = read_pair({"prompt": "你好", "chosen": "Hello 😀", "rejected": "x", "score_chosen": 5})
    assert (pair_record.form, pair_record.unknown) == (
        "`chosen` and `rejected`, `prompt` beside them",
        ("score_chosen",),
    )


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


def test_other_peoples_pairs() -> None:
    wanted = (Conversation(HI, None), Conversation(GO, None))
    sharegpt = {"from": "gpt", "value": "Hello 😀"}, {"from": "gpt", "value": "Go away."}
    assert pair(conversations=[{"from": "human", "value": "你好"}], chosen=sharegpt[0], rejected=sharegpt[1]) == wanted
    assert pair(instruction="你好", input="", chosen="Hello 😀", rejected="Go away.") == wanted
    assert pair(messages=[U], chosen=A, rejected=[B]) == wanted
    with_system = (Conversation([S, *HI], [TOOL]), Conversation([S, *GO], [TOOL]))
    for record in (*PROMPTS, {"instruction": "你好", "chosen": "Hello 😀", "rejected": "Go away."}):
        assert pair(**record, system="Be brief.", functions=json.dumps([TOOL])) == with_system
    earlier = [{**S, "functions": [TOOL]}, U]
    assert pair(chosen=[*earlier, A], rejected=[*earlier, B]) == with_system


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
    ({"chosen": [U, {"role": "assistant"}], "rejected": GO}, "`chosen` is empty: its last message says nothing"),
    ({"chosen": [U, {**A, "weight": 0}], "rejected": GO}, "the last message of `chosen` has `weight` 0"),
    ({"chosen": HI, "rejected": GO, "system": 3}, "`system` is not a string"),
    ({"chosen": [S, *HI], "rejected": [S, *GO], "system": "x"}, "a system prompt stands both in `system` and in the"),
    ({"chosen": HI, "rejected": GO, "image": "a.png"}, "has `image`: this model reads text only"),
    ({"prompt": "p", "chosen": " ", "rejected": "x"}, "`chosen` is empty"),
    ({"prompt": "", "chosen": "y", "rejected": "x"}, "lacks `prompt`, and `chosen` has no message before the answer"),
    ({"prompt": [], "chosen": "y", "rejected": "x"}, "lacks `prompt`, and `chosen` has no message before the answer"),
    ({"prompt": " ", "chosen": "y", "rejected": "x"}, "`prompt` is empty"),
    ({"prompt": 3, "chosen": "y", "rejected": "x"}, "`prompt` is not a list of messages"),
    ({"prompt": [{"role": "user"}], "chosen": "y", "rejected": "x"}, "`prompt[0].content` is missing"),
    ({"prompt": "other", "chosen": HI, "rejected": GO}, "`prompt` is not what `chosen` has before its answer"),
    ({"prompt": "p", "chosen": [S, A], "rejected": [S, B]}, "`prompt` is not what `chosen` has before its answer"),
    ({"prompt": [S, U], "chosen": HI, "rejected": GO}, "`prompt` is not what `chosen` has before its answer"),
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
