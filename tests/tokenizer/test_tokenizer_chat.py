"""The chat template: equal to `transformers` for every kind of conversation; content opens and closes nothing."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import nodes
from transformers import AutoTokenizer

from minimind_jax.errors import UserError
from minimind_jax.tokenizer import load_tokenizer
from minimind_jax.tokenizer.chat import Neutralizer, compile_template
from minimind_jax.tokenizer.train import CHAT_TEMPLATE, CONTROL_TOKENS

OURS = load_tokenizer()
HF = AutoTokenizer.from_pretrained(str(OURS.path))

TOOLS = [
    {"type": "function", "function": {"name": "天气", "description": "<b>天气 & 'more'</b>", "parameters": {"n": 1.5}}},
    {"name": "now", "parameters": {}},
]
S = {"role": "system", "content": "You are 小明."}
U = {"role": "user", "content": "你好\n"}
A = {"role": "assistant", "content": " Hello! "}
THINK = {"role": "assistant", "content": "42", "reasoning_content": "\nsix times seven\n"}
EMPTY_THINK = {"role": "assistant", "content": "42", "reasoning_content": ""}
LITERAL = {"role": "assistant", "content": "<think>\nhm</think>\n\n\nyes"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "天气", "arguments": {"城市": "北京", "n": 1}}]}
CALLS = {
    "role": "assistant",
    "content": "Let me see.",
    "reasoning_content": "two calls",
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "now", "arguments": '{"a":  "b\\n"}'}},
        {"type": "function", "function": {"name": 'quo"te', "arguments": {}}},
    ],
}
NULL_CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "now", "arguments": {}}]}
T = {"role": "tool", "content": '{"温度": 20}', "name": "天气"}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user only": [U],
    "single turn": [U, A],
    "system": [S, U, A],
    "system in the middle": [U, A, S, U, A],
    "multi-turn": [S, U, A, U, A, U],
    "assistant only": [THINK],
    "thoughts": [U, THINK],
    "empty thoughts": [U, EMPTY_THINK],
    "thoughts of the past": [U, THINK, U, LITERAL, U, THINK],
    "literal thoughts": [U, LITERAL],
    "literal thoughts of the past": [U, LITERAL, U],
    "call": [S, U, CALL],
    "null content": [U, NULL_CALL],
    "parallel calls and results": [S, U, CALLS, T, T, A],
    "calls in a row": [U, CALLS, T, CALL, T, THINK],
    "calls, then the user": [U, CALLS, T, A, U, CALL, T, A],
    "empty content": [{"role": "system", "content": ""}, {"role": "user", "content": ""}, A],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [], TOOLS])
@pytest.mark.parametrize("prompt", [{}, {"enable_thinking": True}, {"open_thinking": True}, {"enable_thinking": False}])
def test_renders_and_tokenizes_as_transformers(name: str, tools: list | None, prompt: dict) -> None:
    conversation = CONVERSATIONS[name]
    for add in (False, True):
        ours = OURS.apply_chat_template(conversation, tools=tools, add_generation_prompt=add, **prompt)
        theirs = {"tools": tools, "add_generation_prompt": add, **prompt}
        assert ours == HF.apply_chat_template(conversation, tokenize=False, **theirs)
        assert OURS.encode_rendered(ours) == HF.apply_chat_template(conversation, return_dict=False, **theirs)


def test_a_plain_conversation() -> None:
    assert OURS.apply_chat_template([S, U, A]) == (
        "<|im_start|>system\nYou are 小明.<|im_end|>\n"
        "<|im_start|>user\n你好\n<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n Hello! <|im_end|>\n"
    )


def test_tools_calls_and_results() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert OURS.apply_chat_template([S, U, CALLS, T, T, A], tools=[tool]) == (
        "<|im_start|>system\nYou are 小明.\n\n# Tools\n\nThe functions you may call, one JSON signature a line:\n"
        '<tools>\n{"type": "function", "function": {"name": "f"}}\n</tools>\n\n'
        "To call functions, write for each call:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <arguments-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n你好\n<|im_end|>\n"
        "<|im_start|>assistant\n<think>\ntwo calls\n</think>\n\nLet me see.\n"
        '<tool_call>\n{"name": "now", "arguments": {"a":  "b\\n"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "quo\\"te", "arguments": {}}\n</tool_call><|im_end|>\n'
        '<|im_start|>user\n<tool_response>\n{"温度": 20}\n</tool_response>\n'
        '<tool_response>\n{"温度": 20}\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\n<think>\n\n</think>\n\n Hello! <|im_end|>\n"
    )
    assert OURS.apply_chat_template([U, CALL]).endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        '<tool_call>\n{"name": "天气", "arguments": {"城市": "北京", "n": 1}}\n'
        "</tool_call><|im_end|>\n"
    )


def test_thoughts_stay_after_the_last_user_message_only() -> None:
    block = "<think>\nsix times seven\n</think>\n\n42<|im_end|>"
    assert OURS.apply_chat_template([U, THINK]).count(block) == 1
    assert OURS.apply_chat_template([U, THINK, U, THINK]).count(block) == 1
    assert OURS.apply_chat_template([U, THINK, T, THINK]).count(block) == 2
    empty = "<think>\n\n</think>\n\n"
    rest = OURS.apply_chat_template([U, THINK, U, LITERAL, U]).replace(empty, "")
    assert "<think>" not in rest and "six" not in rest and "hm" not in rest
    assert OURS.apply_chat_template([U, LITERAL, U, A]).count(f"assistant\n{empty}yes<|im_end|>") == 1
    assert OURS.apply_chat_template([U, LITERAL]).endswith("assistant\n<think>\nhm\n</think>\n\nyes<|im_end|>\n")


def test_the_generation_prompt_begins_the_turn_it_prompts_for() -> None:
    off = OURS.apply_chat_template([U], add_generation_prompt=True)
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert off == OURS.apply_chat_template([U], add_generation_prompt=True, enable_thinking=False)
    assert OURS.apply_chat_template([U, EMPTY_THINK]) == off + "42<|im_end|>\n"
    assert OURS.apply_chat_template([U, A]) == off + A["content"] + "<|im_end|>\n"
    for switch in ("enable_thinking", "open_thinking"):
        on = OURS.apply_chat_template([U], add_generation_prompt=True, **{switch: True})
        assert on.endswith("<|im_start|>assistant\n")
        for turn in (A, THINK, CALL):
            assert OURS.apply_chat_template([U, turn]).startswith(on)


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "no messages"),
        (["hi"], "message 0 .* not an object"),
        ([{"role": "bot", "content": "a"}], "none of the roles"),
        ([{"content": "a"}], "none of the roles"),
        ([{"role": "user", "content": ["a"]}], "content of a message must be a string"),
        ([U, {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}], "refuses the conversation"),
        ([U, {"role": "assistant", "content": "", "tool_calls": '[{"name": "f"}]'}], "refuses the conversation"),
    ],
)
def test_what_is_no_conversation_is_a_clear_error(conversation: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        OURS.apply_chat_template(conversation)


# --- Content opens and closes nothing -----------------------------------------------------------

hostile = st.lists(
    st.one_of(st.sampled_from([*CONTROL_TOKENS, "<|im_", "end|>", "<", ">", "/", "\n", " ", "\\", '"']), st.text()),
    max_size=6,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(hostile, hostile, hostile)
def test_content_leaves_the_control_tokens_as_they_are(one: str, two: str, three: str) -> None:
    def conversation(a: str, b: str, c: str) -> list[dict[str, Any]]:
        call = {"name": a, "arguments": {b: [c]}}
        return [
            {"role": "system", "content": a},
            {"role": "user", "content": b},
            {
                "role": "assistant",
                "content": "x",
                "reasoning_content": c,
                "tool_calls": [call, {**call, "arguments": b}],
            },
            {"role": "tool", "content": c},
            {"role": "assistant", "content": "x"},
        ]

    def control_ids(messages: list[dict[str, Any]], tool: str) -> list[int]:
        text = OURS.apply_chat_template(messages, tools=[{"name": tool, tool: 1}], add_generation_prompt=True)
        return [i for i in OURS.encode_rendered(text) if i < len(CONTROL_TOKENS)]

    assert control_ids(conversation(one, two, three), two) == control_ids(conversation("a", "b", "c"), "d")


@settings(max_examples=200, deadline=None)
@given(hostile)
def test_assistant_content_never_ends_its_turn(content: str) -> None:
    text = OURS.apply_chat_template([U, {"role": "assistant", "content": content}, U])
    turns = [i for i in OURS.encode_rendered(text) if i < 3 or i in range(7, 16)]
    assert turns == [1, 2, 1, 2, 1, 2]


def test_the_assistant_may_write_its_own_marks() -> None:
    content = '<tool_call>\n{"name": "f"}\n</tool_call><|im_end|><tool_response>'
    assert OURS.apply_chat_template([U, {"role": "assistant", "content": content}]).endswith(
        '</think>\n\n<tool_call>\n{"name": "f"}\n</tool_call>< |im_end|>< tool_response><|im_end|>\n'
    )
    assert "< think>" in OURS.apply_chat_template([{"role": "user", "content": "<think>"}])


def test_template_variables_are_neutralized(tmp_path: Any) -> None:
    OURS.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ note }}{{ eos_token }}")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.apply_chat_template([U], note="<|im_end|>") == "< |im_end|><|im_end|>"


def test_overlapping_control_tokens_are_all_broken_up() -> None:
    neutralizer = Neutralizer({"<ab>", "b><", "§", "<ab>c"})
    text = neutralizer.text("<ab>< § <ab>c")
    assert not any(token in text for token in ("<ab>", "b><", "§"))


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_ordinary_text_is_not_touched(text: str) -> None:
    assert Neutralizer(set(CONTROL_TOKENS)).text(text) == text or any(t in text for t in CONTROL_TOKENS)


# --- The template itself ------------------------------------------------------------------------


def test_one_template() -> None:
    assert (OURS.path / "chat_template.jinja").read_bytes() == CHAT_TEMPLATE.read_bytes()


def test_only_constructs_that_llama_cpp_knows() -> None:
    tree = jinja2.Environment().parse(CHAT_TEMPLATE.read_text())
    assert {f.name for f in tree.find_all(nodes.Filter)} == {"tojson"}
    assert {t.name for t in tree.find_all(nodes.Test)} <= {"string", "defined", "none"}
    called = {c.node.attr if isinstance(c.node, nodes.Getattr) else c.node.name for c in tree.find_all(nodes.Call)}
    assert called == {"namespace", "raise_exception", "split", "strip", "lstrip"}
    assert not list(tree.find_all((nodes.Macro, nodes.CallBlock, nodes.Include, nodes.Import, nodes.Extends)))


def test_helpers_that_transformers_gives_templates() -> None:
    render = compile_template("{{ strftime_now('%Y') }}{% for i in x %}{% break %}{% endfor %}").render
    assert render(x=[1])[:2] == "20"
    compact = compile_template("{{ x | tojson(indent=1, separators=(',', ':'), sort_keys=True) }}")
    assert compact.render(x={"b": "<é>", "a": 1}) == '{\n "a":1,\n "b":"<é>"\n}'
    with pytest.raises(jinja2.exceptions.SecurityError):
        compile_template("{{ x.__class__.__mro__ }}{{ x.append(1) }}").render(x=[])
