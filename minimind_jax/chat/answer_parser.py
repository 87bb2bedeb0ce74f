"""From the text of an answer to its thoughts, its content and its tool calls, while the text still arrives.

    <think>\\nthoughts\\n</think>\\n\\ncontent\\n<tool_call>\\n{"name": "f", "arguments": {"x": 1}}\\n</tool_call>

is what the shipped chat template renders, and what models write (as Qwen3 does). Any split of a text into pieces gives
the same answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minimind_jax.tokenizer.text_stream import overlap

THINK, END_THINK, CALL, END_CALL = "<think>", "</think>", "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Thought:
    text: str


@dataclass(frozen=True)
class Content:
    text: str


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: str  # a JSON object


Part = Thought | Content | ToolCall


class AnswerParser:
    """An incremental parser.

    Line breaks that belong to the marks are dropped: those at both ends of the thoughts, and those of the content
    next to thoughts and calls. `</think>` without its beginning is dropped too. What stands in `<tool_call>` but is no
    JSON object with a name stays content, marks and all. Text that may be the beginning of a mark is held back.

    Args:
      in_thought: the prompt ends with an open `<think>`.
      with_tools: else `<tool_call>` is content like any other text.
    """

    def __init__(self, in_thought: bool = False, with_tools: bool = True) -> None:
        self._with_tools = with_tools
        self._state: type[Part] = Thought if in_thought else Content
        self._held = ""  # perhaps the beginning of a mark
        self._breaks = ""  # line breaks that a mark may swallow; not yet part of anything
        self._at_start = in_thought  # only line breaks since the last mark, which swallows them
        self._call: list[str] = []  # text after `<tool_call>`

    def push(self, text: str) -> list[Part]:
        """The parts that are certain now; neighbours of one kind are joined."""
        return self._read(self._held + text, at_end=False)

    def finish(self) -> list[Part]:
        """What is left at the end. A call without its closing mark counts if it is complete."""
        parts = self._read(self._held, at_end=True)
        if self._state is ToolCall:
            parts += self._end_call(closing="")
        elif self._state is Content:
            parts += self._take_breaks()
        return _joined(parts)

    def _read(self, text: str, at_end: bool) -> list[Part]:
        parts: list[Part] = []
        while True:
            found = [(position, mark) for mark in self._marks() if (position := text.find(mark)) >= 0]
            if not found:
                break
            position, mark = min(found)
            parts += self._plain(text[:position])
            parts += self._mark(mark)
            text = text[position + len(mark) :]
        kept = 0 if at_end else max(overlap(text, mark) for mark in self._marks())
        self._held = text[len(text) - kept :]
        return _joined(parts + self._plain(text[: len(text) - kept]))

    def _marks(self) -> Sequence[str]:
        if self._state is Thought:
            return (END_THINK,)
        if self._state is ToolCall:
            return (END_CALL,)
        return (THINK, END_THINK, CALL) if self._with_tools else (THINK, END_THINK)

    def _plain(self, text: str) -> list[Part]:
        if self._state is ToolCall:
            self._call.append(text)
            return []
        if self._at_start:
            text = text.lstrip("\n")
            self._at_start = not text
        body = text.rstrip("\n")
        parts = self._take_breaks() if body else []
        self._breaks += text[len(body) :]
        return [*parts, self._part(body)] if body else parts

    def _mark(self, mark: str) -> list[Part]:
        if mark == CALL:  # the line breaks stay in doubt: they are dropped before a call only
            self._state = ToolCall
            return []
        if mark == END_CALL:
            return self._end_call(closing=END_CALL)
        self._breaks, self._at_start = "", True
        self._state = Thought if mark == THINK else Content
        return []

    def _end_call(self, closing: str) -> list[Part]:
        text = "".join(self._call)
        self._call, self._state = [], Content
        call = parse_call(text)
        if call is None:
            parts = self._take_breaks()
            self._at_start = False
            return [*parts, Content(CALL + text + closing)]
        self._breaks, self._at_start = "", True
        return [call]

    def _take_breaks(self) -> list[Part]:
        breaks, self._breaks = self._breaks, ""
        return [self._part(breaks)] if breaks else []

    def _part(self, text: str) -> Part:
        return Thought(text) if self._state is Thought else Content(text)


def parse_call(text: str) -> ToolCall | None:
    """A call from {"name": ..., "arguments": an object or a string of one}; None if it is anything else."""
    call = _json(text)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"].strip():
        return None
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments)
    if not isinstance(arguments, dict):
        return None
    encoded = json.dumps(arguments, ensure_ascii=False)
    try:
        (call["name"] + encoded).encode()
    except UnicodeEncodeError:  # half of a \\u surrogate pair
        return None
    return ToolCall(call["name"], encoded)


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _joined(parts: Sequence[Part]) -> list[Part]:
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, Content) and isinstance(last, Content):
            joined[-1] = Content(last.text + part.text)
        elif isinstance(part, Thought) and isinstance(last, Thought):
            joined[-1] = Thought(last.text + part.text)
        else:
            joined.append(part)
    return joined
