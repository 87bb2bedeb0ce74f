"""Answers of a fixed form: any split of a text gives the same parts, and JSON may hold the text of marks."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_jax.chat.answer_parser import Content, Thought, ToolCall
from minimind_jax.serving.form_parser import FormParser

TRICKY = st.text() | st.sampled_from(["</tool_call>", "\n</tool_call>\n<tool_call>\n", "<think>", "</think>", "<tool"])
VALUES = st.recursive(
    st.none() | st.integers() | TRICKY, lambda x: st.lists(x) | st.dictionaries(TRICKY, x), max_leaves=6
)


def parse(text, cuts=(), in_thought=False):
    """(kind, text) of the parts, neighbours joined."""
    parser, parts = FormParser(in_thought), []
    edges = [0, *sorted({c for c in cuts if c < len(text)}), len(text)]
    for start, end in itertools.pairwise(edges):
        parts += parser.push(text[start:end])
    parts += parser.finish()
    joined = []
    for part in parts:
        if joined and type(joined[-1]) is type(part) and not isinstance(part, ToolCall):
            joined[-1] = type(part)(joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


def call(name, arguments):
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {json.dumps(arguments)}}}\n</tool_call>'


CUTS = st.lists(st.integers(0, 200))
THOUGHTS = st.sampled_from(["", "a", "\nhm <tool_call> 汉\n", "\n\n", "<b"])


@settings(max_examples=80, deadline=None)
@given(value=VALUES, thoughts=st.none() | THOUGHTS, in_thought=st.booleans(), cuts=CUTS)
def test_json(value, thoughts, in_thought, cuts):
    text = json.dumps(value, ensure_ascii=False)
    expected = [Content(text)]
    if thoughts is not None or in_thought:
        text = ("" if in_thought else "<think>") + f"{thoughts or ''}</think>\n\n{text}"
        shown = (thoughts or "").strip("\n")
        expected = [*([Thought(shown)] if shown else []), *expected]
    assert parse(text, cuts, in_thought) == expected


@settings(max_examples=80, deadline=None)
@given(calls=st.lists(st.tuples(st.sampled_from(["f", "</tool_call>", "名"]), st.dictionaries(TRICKY, VALUES)),
                      min_size=1, max_size=3), thoughts=st.none() | THOUGHTS, cuts=CUTS)  # fmt: skip
def test_calls(calls, thoughts, cuts):
    text = "\n".join(call(*c) for c in calls)
    shown = (thoughts or "").strip("\n")
    if thoughts is not None:
        text = f"<think>{thoughts}</think>\n{text}"
    parts = parse(text, cuts)
    if shown:
        assert parts.pop(0) == Thought(shown)
    assert [(part.name, json.loads(part.arguments)) for part in parts] == calls


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("\n", []),
        ("<thi", [Content("<thi")]),
        ("<think>", []),
        ("<think>\nso far</thi", [Thought("so far</thi")]),
        ("<think>x</think>\n", [Thought("x")]),
        ('{"a', [Content('{"a')]),
        ('<tool_call>\n{"name": "f", "arg', [Content('<tool_call>\n{"name": "f", "arg')]),
        ('<tool_call>\n{"name": "f", "arguments": {}}\n', [ToolCall("f", "{}")]),
        (call("f", {}) + "\n<tool_c", [ToolCall("f", "{}"), Content("\n<tool_c")]),
    ],
)
def test_answers_that_were_cut_off(text, parts):
    for cuts in ((), range(len(text))):
        assert parse(text, cuts) == parts
