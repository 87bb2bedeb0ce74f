"""The chat page for tests: an engine that writes given texts token by token, and what a user does on the page."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from serving_helpers import TOKENIZER, ScriptedEngine

from minimind_jax.inference.request import Piece, QueueFullError, Token
from minimind_jax.tokenizer.text_stream import TextStream

THINKING = "<think>\nTwo and two. Let me see.\n</think>\n\n"


def call_text(name: str, **arguments: Any) -> str:
    """What a model writes to call a tool."""
    call = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{call}\n</tool_call>"


class WritingEngine(ScriptedEngine):
    """Writes the next of `texts` at each request (the last one again and again), one real token a piece.

    Attributes:
      gate: while it is cleared, an answer pauses after `before_gate` tokens.
      n_full: so many requests find the queue full first.
      n_cancelled: requests that ended early.
    """

    max_context = 4096  # tools take 530 tokens

    def __init__(self, *texts: str, before_gate: int = 4, pause: float = 0.0) -> None:
        super().__init__(texts[0], pause=pause)
        self.texts, self.before_gate = list(texts), before_gate
        self.gate = threading.Event()
        self.gate.set()
        self.n_full = self.n_cancelled = 0
        self.finish_reasons: list[str] = []  # of the next answers; "stop" when empty

    def submit(self, prompt: Any, options: Any, on_piece: Any) -> Any:
        if self.n_full:
            self.n_full -= 1
            raise QueueFullError
        return super().submit(prompt, options, on_piece)

    def _write(self, request: SimpleNamespace, on_piece: Any) -> None:
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        reason = self.finish_reasons.pop(0) if self.finish_reasons else "stop"
        stream = TextStream(TOKENIZER)
        n_top = self.options[-1].top_logprobs
        for number, token in enumerate(TOKENIZER.encode(text)):
            while number >= self.before_gate and not self.gate.is_set() and not request.cancelled:
                time.sleep(0.005)
            if request.cancelled:
                break
            top = tuple((other, -0.3 - 0.7 * i) for i, other in enumerate((token, 300, 301, 302, 303)[: max(n_top, 0)]))
            on_piece(Piece(stream.push(token), (Token(token, -0.1 * (number % 30), top),)))
            time.sleep(self.pause)
        self.n_running -= 1
        self.n_cancelled += request.cancelled
        on_piece(Piece(stream.finish(), (), "cancelled" if request.cancelled else reason))


def ask(page: Any, text: str) -> None:
    """Types a question and sends it by Enter."""
    page.locator("#input").fill(text)
    page.keyboard.press("Enter")


def wait_idle(page: Any) -> None:
    """Until no answer is being written."""
    page.locator(".send:not(.stops)").wait_for()


def ask_and_wait(page: Any, text: str) -> None:
    n = page.locator(".answer").count()
    ask(page, text)
    page.locator(".answer").nth(n).wait_for()
    wait_idle(page)


def answers(page: Any) -> list[str]:
    """The texts of the answers that are shown, as Markdown draws them."""
    return [text.strip() for text in page.locator(".answer .part > .prose").all_text_contents()]


def questions(page: Any) -> list[str]:
    return page.locator(".bubble").all_text_contents()


def stored(page: Any) -> list[dict[str, Any]]:
    """All conversations that the browser keeps."""
    return page.evaluate(
        """() => new Promise((resolve, reject) => {
          const request = indexedDB.open("minimind", 1);
          request.onerror = () => reject(request.error);
          request.onsuccess = () => {
            const all = request.result.transaction("bodies").objectStore("bodies").getAll();
            all.onsuccess = () => { resolve(all.result); request.result.close(); };
          };
        })"""
    )


def wait_stored(page: Any, n_messages: Sequence[int]) -> None:
    """Until the kept conversations have so many messages each, none of them still being written."""
    deadline = time.monotonic() + 10
    while True:
        found = stored(page)
        counts = sorted(len(conversation["messages"]) for conversation in found)
        running = any(message.get("status") == "running" for c in found for message in c["messages"])
        if counts == sorted(n_messages) and not running:
            return
        assert time.monotonic() < deadline, f"kept: {counts}, running: {running}"
        page.wait_for_timeout(50)
