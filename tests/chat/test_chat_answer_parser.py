"""Thoughts, content and calls are told apart, and it does not matter how the text was split."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minimind_jax.chat.answer_parser import AnswerParser, Content, Thought, ToolCall

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
F = ToolCall("f", '{"x": 1}')


def joined(parts):
    """Neighbours of one kind as one part."""
    result = []
    for part in parts:
        if result and type(part) is type(result[-1]) and not isinstance(part, ToolCall):
            result[-1] = type(part)(result[-1].text + part.text)
        else:
            result.append(part)
    return result


def parse(pieces, **options):
    parser = AnswerParser(**options)
    return joined([part for piece in pieces for part in parser.push(piece)] + parser.finish())


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("plain\n", [Content("plain\n")]),
        ("<think>\nhm\nso\n</think>\n\nyes", [Thought("hm\nso"), Content("yes")]),
        ("<think>\n\n</think>\n\nyes", [Content("yes")]),
        ("<think>cut off\n", [Thought("cut off")]),
        ("before<think>hm</think>after", [Content("before"), Thought("hm"), Content("after")]),
        ("yes</think>no", [Content("yesno")]),
        (CALL, [F]),
        (f"let me see\n{CALL}\n{CALL}", [Content("let me see"), F, F]),
        (f"<think>\nhm\n</think>\n\n{CALL}\nthat was it", [Thought("hm"), F, Content("that was it")]),
        (CALL.removesuffix("\n</tool_call>"), [F]),
        ('<tool_call>{"name": "f"}</tool_call>', [ToolCall("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', [F]),
        ('<tool_call>{"name": "f", "arguments": {"x": "<think>"}}</tool_call>', [ToolCall("f", '{"x": "<think>"}')]),
        ("<think>a<tool_call>b</think>c", [Thought("a<tool_call>b"), Content("c")]),
        ("a < b, <thin and <tool", [Content("a < b, <thin and <tool")]),
        # What is no call stays what it is.
        ("see\n\n<tool_call>{oops}</tool_call>\n", [Content("see\n\n<tool_call>{oops}</tool_call>\n")]),
        ('<tool_call>{"name": "f", "argu', [Content('<tool_call>{"name": "f", "argu')]),
        ('<tool_call>{"name": 3}</tool_call>', [Content('<tool_call>{"name": 3}</tool_call>')]),
        ('<tool_call>{"name": " "}</tool_call>', [Content('<tool_call>{"name": " "}</tool_call>')]),
        ('<tool_call>{"name":"f","arguments":[]}</tool_call>',) * 2,
        ('<tool_call>{"name":"f","arguments":{"x":NaN}}</tool_call>',) * 2,
        ('<tool_call>{"name":"f","arguments":{"x":"\\ud800"}}</tool_call>',) * 2,
        ("<tool_call>" + "[" * 100_000 + "</tool_call>",) * 2,
    ],
)
def test_parts(text, parts):
    expected = [Content(parts)] if isinstance(parts, str) else parts
    assert parse([text]) == expected
    assert parse(text[:2000]) == parse([text[:2000]])  # character by character


def test_a_prompt_may_open_the_thought():
    assert parse(["\nhm\n</think>\n\nyes"], in_thought=True) == [Thought("hm"), Content("yes")]


def test_without_tools_a_call_is_content():
    assert parse([f"a\n{CALL}"], with_tools=False) == [Content(f"a\n{CALL}")]


def test_text_goes_out_as_soon_as_it_is_certain():
    parser = AnswerParser()
    assert parser.push("<think>\nh") == [Thought("h")]
    assert parser.push("m</thi") == [Thought("m")]
    assert parser.push("s") == [Thought("</this")]
    assert parser.push("\n</think>\n\nyes <") == [Content("yes ")]
    assert parser.push("3\n") == [Content("<3")]
    assert parser.push("more") == [Content("\nmore")]


FRAGMENTS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    CALL,
    "\n",
    "\n\n",
    "<",
    "th",
    "ink>",
    "/",
    "a",
    "汉",
    " ",
]


@st.composite
def splits(draw):
    text = "".join(draw(st.lists(st.sampled_from(FRAGMENTS), max_size=14)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(splits(), st.booleans(), st.booleans())
@example(["\n", "<tool_", 'call>{"name": "f"}</tool_call', ">\n\n", "a"], False, True)
def test_any_split_gives_the_same_answer(pieces, in_thought, with_tools):
    options = {"in_thought": in_thought, "with_tools": with_tools}
    text = "".join(pieces)
    parts = parse(pieces, **options)
    assert parts == parse([text], **options)
    for part in parts:
        if isinstance(part, Thought):
            assert part.text and "</think>" not in part.text and part.text.strip("\n") == part.text
        elif isinstance(part, ToolCall):
            assert with_tools and json.loads(part.arguments) in ({}, {"x": 1})
        else:
            assert part.text
