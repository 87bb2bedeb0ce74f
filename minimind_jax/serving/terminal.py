"""A chat in the terminal: reads lines, shows answers as they come. Piped, it is one line of text a question."""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable
from typing import TextIO

from minimind_jax.chat import Content, Part, Thought, ToolCall
from minimind_jax.errors import UserError
from minimind_jax.serving.dialogue import Dialogue, Notice, Spent, ToolResult

HELP = "/reset  /think on|off  /system TEXT  /quit      Ctrl-C stops an answer"
_MIN_TIMED = 8  # a step is handed out while the next one runs: over a few of them a rate means nothing
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_PROMPT = "\x01\x1b[1m\x02> \x01\x1b[0m\x02"  # bold; readline is told that the colours have no width
# A model may write any byte: those that steer a terminal are shown as U+FFFD.
_HARMLESS = {code: "\N{REPLACEMENT CHARACTER}" for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


class Terminal:
    """Shows dialogues.

    Args:
      out: for answers.
      notes: for everything else; where it is not interactive, so that `out` holds nothing but answers.
      interactive: a person sits there: colours, a prompt, notes beside the answers.
    """

    def __init__(self, out: TextIO, notes: TextIO, interactive: bool) -> None:
        self._out, self._interactive = out, interactive
        self._notes = out if interactive else notes
        self._shown: type | None = None  # kind of what was written last
        self._at_line_start = True
        self._closing = ""  # what ends the thoughts that are being written
        self._late: collections.deque[str] = collections.deque()  # notes that wait for the end of an answer

    def log(self, text: str) -> None:
        """A note, from any thread; it never lands within an answer."""
        if self._shown is None:
            self._note(text)
        else:
            self._late.append(text)

    def run(self, dialogue: Dialogue, read_line: Callable[[str], str] = input) -> None:
        """Answers line by line, to the end of the input or /quit."""
        if self._interactive:
            self._note(HELP)
        while True:
            try:
                line = read_line(_PROMPT if self._interactive else "").strip()
            except EOFError:
                if self._interactive:
                    self._put("\n")
                break
            except UnicodeDecodeError as e:
                raise UserError(f"the input is not {e.encoding.upper()} text: {e.reason} at byte {e.start}") from None
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                self._note("\n/quit ends")
                continue
            if line == "/quit":
                break
            if line.startswith("/"):
                self._note(_command(dialogue, line))
            elif line:
                self._turn(dialogue, line)

    def ask(self, dialogue: Dialogue, text: str) -> None:
        """One question and its answer."""
        try:
            spent = dialogue.ask(text, self._show)
        finally:
            self._end_line()
        self._note(_summary(spent))

    def _turn(self, dialogue: Dialogue, text: str) -> None:
        try:
            self.ask(dialogue, text)
        except KeyboardInterrupt:
            if not self._interactive:
                raise
            self._note("stopped")
        except UserError as e:
            if not self._interactive:
                raise
            self._note(f"error: {e}")

    def _show(self, part: Part | ToolResult | Notice) -> None:
        if isinstance(part, Thought):
            self._write(part.text, Thought, before="<think>\n", after="\n</think>\n", dim=True)
        elif isinstance(part, Content):
            self._write(part.text, Content)
        elif isinstance(part, ToolCall):
            self._write(f"{part.name}({part.arguments})", ToolCall, dim=True)
            self._end_line()
        elif isinstance(part, ToolResult):
            self._write(f"-> {part.result}", ToolResult, dim=True)
            self._end_line()
        else:
            self._end_line()
            self._note(part.text)

    def _write(self, text: str, kind: type, before: str = "", after: str = "", dim: bool = False) -> None:
        """Text of one kind; `before` and `after` mark it where there are no colours."""
        if self._shown is not kind:
            self._end_line()
            self._shown = kind
            self._closing = "" if self._interactive else after
            if not self._interactive:
                self._put(before)
        text = text.translate(_HARMLESS)
        self._put(f"{_DIM}{text}{_PLAIN}" if dim and self._interactive else text)
        self._at_line_start = text.endswith("\n")

    def _end_line(self) -> None:
        if self._shown is not None:
            self._put(self._closing or ("" if self._at_line_start else "\n"))
        self._shown, self._at_line_start = None, True
        while self._late:
            self._note(self._late.popleft())

    def _put(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()

    def _note(self, text: str) -> None:
        print(f"{_DIM}{text}{_PLAIN}" if self._interactive else text, file=self._notes, flush=True)


def _command(dialogue: Dialogue, line: str) -> str:
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if name == "/reset":
        dialogue.turns.clear()
        return "a new conversation"
    if name == "/think" and argument in ("on", "off"):
        try:
            dialogue.switch_thinking(argument == "on")
        except UserError as e:
            return f"error: {e}"
        return f"thinking is {argument}"
    if name == "/system":
        dialogue.system = argument
        return "a new system prompt" if argument else "no system prompt"
    return f"unknown: {line}\n{HELP}"


def _summary(spent: Spent) -> str:
    tokens = "1 token" if spent.n_tokens == 1 else f"{spent.n_tokens} tokens"
    speed = f", {spent.n_timed / spent.seconds:.1f} tokens/s" if spent.n_timed >= _MIN_TIMED else ""
    return f"{tokens}{speed}, first token after {spent.first_token:.2f} s"


def open_terminal() -> Terminal:
    """At standard input and output; interactive where both are a terminal."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        import readline  # noqa: F401 (gives `input` a history and arrow keys, and only that)
    return Terminal(sys.stdout, sys.stderr, interactive)
