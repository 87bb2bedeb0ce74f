"""A conversation with the engine, turn by turn: history, what fits into the context, tool calls."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from minimind_jax.chat import (
    AnswerParser,
    Content,
    Conversation,
    Part,
    Prompt,
    Thought,
    ToolCall,
    chat_template,
)
from minimind_jax.errors import UserError
from minimind_jax.inference.engine import Engine, Piece
from minimind_jax.inference.options import Options
from minimind_jax.serving import demo_tools

_MAX_ROUNDS = 5  # of tool calls in one turn


@dataclass(frozen=True)
class ToolResult:
    name: str
    result: str


@dataclass(frozen=True)
class Notice:
    """What the user should know, beside the answer."""

    text: str


@dataclass
class Spent:
    """What a turn has cost."""

    n_tokens: int = 0
    seconds: float = 0.0  # from the first token on, prompts not counted
    n_timed: int = 0  # tokens that came in them
    first_token: float = 0.0  # seconds before the first token


@dataclass
class Dialogue:
    """One conversation. `ask` adds a turn.

    Attributes:
      system: system prompt; "" = none.
      with_tools: the model may call `demo_tools`.
    """

    engine: Engine
    options: Options
    system: str = ""
    thinking: bool = False
    with_tools: bool = False
    turns: list[list[dict[str, Any]]] = field(default_factory=list)  # each begins with the user's message

    def __post_init__(self) -> None:
        if self.thinking:
            self.switch_thinking(True)

    def switch_thinking(self, on: bool) -> None:
        """Raises UserError where the model's chat template knows no thinking, or nothing else."""
        chat_template(self.engine.tokenizer).check_switch(on)
        self.thinking = on

    def ask(self, text: str, show: Callable[[Part | ToolResult | Notice], None]) -> Spent:
        """Answers `text`, showing the answer as it comes.

        KeyboardInterrupt ends the answer: what there is of it stays in the conversation, and it goes on to the caller.

        Raises:
          UserError: the question alone does not fit, or the model does not run; it is not part of the conversation.
        """
        spent = Spent()
        self.turns.append([{"role": "user", "content": text}])
        try:
            for n_round in range(_MAX_ROUNDS + 1):
                calls = self._answer(show, spent, n_round)
                if not calls:
                    break
                if n_round == _MAX_ROUNDS:
                    show(Notice(f"the model has called functions {_MAX_ROUNDS} times: its last calls are not run"))
                    break
                for call in calls:
                    result = demo_tools.call(call.name, call.arguments)
                    show(ToolResult(call.name, result))
                    self.turns[-1].append({"role": "tool", "content": result})
        finally:
            if len(self.turns[-1]) == 1:
                self.turns.pop()  # a question without any answer
        return spent

    def _answer(self, show: Callable[[Part | ToolResult | Notice], None], spent: Spent, n_round: int) -> list[ToolCall]:
        """One message of the assistant; the calls in it."""
        prompt = self._fitting_prompt(show)
        parser = AnswerParser(prompt.in_thought, with_tools=self.with_tools)
        parts: list[Part] = []
        pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        seed = (self.options.seed + 1000 * len(self.turns) + n_round) % 2**32  # other noise in every turn
        request = self.engine.submit(prompt.tokens, replace(self.options, seed=seed), pieces.put)
        try:
            first_time = last_time = 0.0
            n_tokens = 0
            while True:
                piece = pieces.get()
                if piece.tokens:
                    last_time = time.monotonic()
                    first_time = first_time or last_time
                    n_tokens += len(piece.tokens)
                new = parser.push(piece.text) + (parser.finish() if piece.finish_reason else [])
                for part in new:
                    parts.append(part)
                    show(part)
                if piece.error:
                    raise UserError(f"the model does not run: {piece.error}")
                if piece.finish_reason:
                    break
            spent.first_token = spent.first_token or first_time - request.submitted
            spent.n_tokens += n_tokens
            spent.n_timed += max(n_tokens - 1, 0)
            spent.seconds += last_time - first_time
            if piece.finish_reason == "length":
                show(Notice(f"cut off after {n_tokens} tokens"))
        finally:
            request.cancel()
            calls = [part for part in parts if isinstance(part, ToolCall)]
            if parts:
                self.turns[-1].append(_message(parts, calls))
        return calls

    def _fitting_prompt(self, show: Callable[[Part | ToolResult | Notice], None]) -> Prompt:
        """The conversation without its oldest turns, where it leaves no room for an answer."""
        limit = self.engine.max_context
        room = min(self.options.max_new_tokens, limit // 4)
        n_dropped = 0
        while True:
            prompt = self._prompt()
            if len(prompt.tokens) + room <= limit or len(self.turns) == 1:
                break
            del self.turns[0]
            n_dropped += 1
        if n_dropped:
            turns = "the oldest turn" if n_dropped == 1 else f"the {n_dropped} oldest turns"
            show(Notice(f"{turns} left out: the context has {limit} tokens"))
        return prompt

    def _prompt(self) -> Prompt:
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *(message for turn in self.turns for message in turn)]
        conversation = Conversation(messages, demo_tools.TOOLS if self.with_tools else None)
        return chat_template(self.engine.tokenizer).prompt(conversation, self.thinking)


def _message(parts: list[Part], calls: list[ToolCall]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(part.text for part in parts if isinstance(part, Content)),
    }
    thoughts = "".join(part.text for part in parts if isinstance(part, Thought))
    if thoughts.strip():
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in calls
        ]
    return message
