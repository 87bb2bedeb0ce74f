"""What the two kinds of answers have in common: id, time, usage, and the chunks of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from minimind_jax.inference.options import Options
from minimind_jax.inference.request import Piece
from minimind_jax.serving.errors import bad_request
from minimind_jax.serving.models import ServedModel
from minimind_jax.serving.requests import GenerationRequest
from minimind_jax.serving.settings import Settings


class Choice(Protocol):
    """One of an answer's texts, in the form of its endpoint."""

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        """Takes a piece; the chunks that it gives a stream, without their index."""

    def whole(self) -> dict[str, Any]:
        """What there is now, without its index."""


class Answer:
    """An answer on its way.

    Args:
      make_choice: makes the choice of each sequence, by its prompt's number.

    Attributes:
      model: the one that answers.
      sequences: prompt and options of every choice, in the order of their indices.
    """

    id_prefix: str
    object: str
    chunk_object: str

    def __init__(
        self,
        request: GenerationRequest,
        model: ServedModel,
        prompts: Sequence[list[int]],
        options: Sequence[Options],
        make_choice: Callable[[int], Choice],
    ) -> None:
        self.model, self.stream = model, request.stream
        self.sequences = [(prompt, option) for prompt in prompts for option in options]
        self._choices = [make_choice(number) for number in range(len(prompts)) for _ in options]
        self.n_prompt_tokens = sum(map(len, prompts))
        self._include_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._n_new_tokens = 0
        name = request.model or model.name
        self._head = {"id": self.id_prefix + secrets.token_hex(12), "created": int(time.time()), "model": name}

    def push(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Takes a piece of choice `index`; the chunks that it gives a stream."""
        self._n_new_tokens += len(piece.tokens)
        return [self._chunk([{"index": index, **chunk}]) for chunk in self._choices[index].push(piece)]

    def first_chunks(self) -> list[dict[str, Any]]:
        return []

    def last_chunks(self) -> list[dict[str, Any]]:
        return [{**self._chunk([]), "usage": self._usage()}] if self._include_usage else []

    def whole(self) -> dict[str, Any]:
        choices = [{"index": index, **choice.whole()} for index, choice in enumerate(self._choices)]
        return {**self._head, "object": self.object, "choices": choices, "usage": self._usage()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "object": self.chunk_object, "choices": choices}
        return {**chunk, "usage": None} if self._include_usage else chunk

    def _usage(self) -> dict[str, int]:
        total = self.n_prompt_tokens + self._n_new_tokens
        return {
            "prompt_tokens": self.n_prompt_tokens,
            "completion_tokens": self._n_new_tokens,
            "total_tokens": total,
        }


def new_tokens_limit(request: GenerationRequest, longest_prompt: int, max_context: int, settings: Settings) -> int:
    """How many tokens an answer may have.

    Raises:
      ApiError: 400 context_length_exceeded, where the prompt, or with it what the request asks for, does not fit.
    """
    room, wanted = max_context - longest_prompt, request.new_tokens_limit
    if room < (1 if wanted is None else wanted):
        asked = f" and asks for {wanted} new ones" if wanted else ""
        advice = "shorten the prompt" + (f" or ask for {room} at most" if wanted and room > 0 else "")
        message = (
            f"This model's maximum context length is {max_context} tokens, but the request has {longest_prompt} in its "
            f"prompt{asked}: {advice}"
        )
        field = "messages" if "messages" in type(request).model_fields else "prompt"
        raise bad_request(message, field, "context_length_exceeded")
    return min(settings.max_tokens, room) if wanted is None else wanted
