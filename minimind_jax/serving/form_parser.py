"""Reads answers of a form that the request has fixed, while their text still arrives."""

from __future__ import annotations

from collections.abc import Iterator

from minimind_jax.chat.answer_parser import CALL, END_CALL, END_THINK, THINK, AnswerParser, Content, Part, parse_call
from minimind_jax.tokenizer.text_stream import overlap


class FormParser:
    """An incremental parser of what follows `answer_grammar.chat_grammar`.

    It knows where marks can stand, so that JSON may hold the text of one: `AnswerParser` finds them anywhere.

    Args:
      in_thought: the prompt ends with an open `<think>`.
    """

    def __init__(self, in_thought: bool) -> None:
        self._thoughts = AnswerParser(in_thought=True) if in_thought else None
        self._state = "thoughts" if in_thought else "start"
        self._held = ""

    def push(self, text: str) -> list[Part]:
        """The parts that are certain now."""
        self._held += text
        return list(self._read())

    def finish(self) -> list[Part]:
        """What is left at the end; of a call that was cut off its text."""
        held, self._held = self._held, ""
        if self._state == "thoughts" and self._thoughts:
            return self._thoughts.push(held) + self._thoughts.finish()
        if self._state == "call":
            return [parse_call(held) or Content(CALL + held)]
        return [Content(held)] if held.strip("\n") else []

    def _read(self) -> Iterator[Part]:
        while True:
            before = (self._state, self._held)
            if self._state == "start":
                self._begin()
            elif self._state == "thoughts":
                yield from self._read_thoughts()
            elif self._state == "call":
                yield from self._read_call()
            elif self._held:
                yield Content(self._held)
                self._held = ""
            if (self._state, self._held) == before:
                break

    def _begin(self) -> None:
        held = self._held.lstrip("\n")
        if held.startswith(THINK):
            self._state, self._held, self._thoughts = "thoughts", held[len(THINK) :], AnswerParser(in_thought=True)
        elif held.startswith(CALL):
            self._state, self._held = "call", held[len(CALL) :]
        elif not THINK.startswith(held) and not CALL.startswith(held):
            self._state, self._held = "json", held

    def _read_thoughts(self) -> Iterator[Part]:
        assert self._thoughts
        end = self._held.find(END_THINK)
        n_certain = end if end >= 0 else len(self._held) - overlap(self._held, END_THINK)
        yield from self._thoughts.push(self._held[:n_certain])
        self._held = self._held[n_certain:]
        if end >= 0:
            yield from self._thoughts.finish()
            self._state, self._held = "start", self._held[len(END_THINK) :]

    def _read_call(self) -> Iterator[Part]:
        end = self._held.find(END_CALL)
        while end >= 0:
            if call := parse_call(self._held[:end]):
                yield call
                self._state, self._held = "start", self._held[end + len(END_CALL) :]
                break
            end = self._held.find(END_CALL, end + 1)
