"""A request to the engine, and what comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax

from minimind_jax.inference.cache import Cache
from minimind_jax.inference.constraint import Constraint
from minimind_jax.inference.decode import Step
from minimind_jax.inference.options import Options
from minimind_jax.tokenizer.text_stream import TextStream


class QueueFullError(Exception):
    """More requests wait than the engine takes: try again later."""


@dataclass(frozen=True)
class Token:
    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (id, log-probability), most likely first


@dataclass(frozen=True)
class Piece:
    """What one step adds to an answer. `finish_reason` ends it: stop, length, cancelled or error."""

    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: str = ""
    error: str = ""
    end: Token | None = None  # the end token or stop token that ended it, which is none of its tokens
    prompt: tuple[Token, ...] | None = None  # the prompt from its second token on, if asked for; before any token


@dataclass(eq=False)
class Request:
    """One sequence on its way through the engine; made by `Engine.submit`."""

    prompt: Sequence[int]
    options: Options
    on_piece: Callable[[Piece], None]  # called in the engine's thread: it must not block; an error cancels the request
    max_new_tokens: int
    stream: TextStream
    constraint: Constraint | None = None
    submitted: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    # The engine's own notes.
    begun: bool = False
    prompt_cache: Cache | None = None
    prompt_scores: list[tuple[int, Step]] = field(default_factory=list)  # (positions that count, their scores)
    n_read: int = 0  # tokens of the prompt in `prompt_cache`
    n_dispatched: int = 0  # steps in which it took part
    n_new: int = 0  # tokens handed out
    done: bool = False

    def cancel(self) -> None:
        """Frees its row at the next round; it ends with the reason "cancelled"."""
        self.cancelled = True

    def token(self, step: Step, row: int) -> Token:
        """What a step, on the host, says of the token of a row."""
        n = max(self.options.top_logprobs, 0)
        top = zip(step.top_ids[row, :n].tolist(), step.top_logprobs[row, :n].tolist(), strict=True)
        return Token(int(step.tokens[row]), float(step.logprobs[row]), tuple(top))

    def take_prompt_tokens(self) -> tuple[Token, ...]:
        """The prompt's tokens from the second one on; waits for the device."""
        scores, self.prompt_scores = jax.device_get(self.prompt_scores), []
        return tuple(self.token(step, row) for n, step in scores for row in range(n))
