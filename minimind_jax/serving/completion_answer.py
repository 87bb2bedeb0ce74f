"""Answers of /v1/completions: texts are continued as in pretraining."""

from __future__ import annotations

from typing import Any

from minimind_jax.inference.engine import Engine
from minimind_jax.inference.request import Piece, Token
from minimind_jax.serving.answer import Answer, new_tokens_limit
from minimind_jax.serving.errors import bad_request
from minimind_jax.serving.logprobs import CompletionLogprobs
from minimind_jax.serving.requests import MAX_SEQUENCES, CompletionRequest
from minimind_jax.serving.settings import Settings
from minimind_jax.tokenizer import Tokenizer


class CompletionAnswer(Answer):
    """The text of each choice; n to a prompt. Raises ApiError (400) for a request that cannot be answered."""

    id_prefix, object, chunk_object = "cmpl-", "text_completion", "text_completion"

    def __init__(self, request: CompletionRequest, engine: Engine, settings: Settings) -> None:
        if not request.prompts:
            raise bad_request("`prompt` is empty: give a text, token ids, or a list of them", "prompt")
        if len(request.prompts) * request.n > MAX_SEQUENCES:
            raise bad_request(
                f"`prompt` and `n` ask for more than {MAX_SEQUENCES} texts: send several requests", "prompt"
            )
        if request.echo and request.logprobs is not None:
            raise bad_request("`echo` together with `logprobs` is not supported: leave one away", "echo")
        prompts = [_tokens(engine, prompt) for prompt in request.prompts]
        limit = new_tokens_limit(request, max(map(len, prompts)), engine.max_context, settings)
        top_logprobs = -1 if request.logprobs is None else request.logprobs
        options = request.options(limit, settings.temperature, settings.top_p, top_logprobs)

        def choice(number: int) -> _Choice:
            echo = _echo(engine.tokenizer, request.prompts[number]) if request.echo else ""
            return _Choice(engine.tokenizer, echo, top_logprobs >= 0)

        super().__init__(request, settings, prompts, options, choice)


def _tokens(engine: Engine, prompt: str | list[int]) -> list[int]:
    """Token ids as they are, or bos and the text's; control tokens in it are meant, unlike those in messages."""
    if not isinstance(prompt, str):
        for token in prompt:
            if not 0 <= token < engine.config.vocab_size:
                message = f"`prompt` holds the token {token}, but the vocabulary has {engine.config.vocab_size}"
                raise bad_request(message, "prompt")
        if not prompt:
            raise bad_request(
                "`prompt` holds a list without tokens: give at least one, such as the bos token", "prompt"
            )
        return prompt
    tokens = engine.tokenizer.encode_rendered(prompt)
    return tokens if tokens[:1] == [engine.tokenizer.bos_id] else [engine.tokenizer.bos_id, *tokens]


def _echo(tokenizer: Tokenizer, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


class _Choice:
    def __init__(self, tokenizer: Tokenizer, echo: str, with_logprobs: bool) -> None:
        self._texts: list[str] = []
        self._new = echo  # text of which no chunk has told yet
        self._tokens: list[Token] = []  # likewise
        self._logprobs = CompletionLogprobs(tokenizer) if with_logprobs else None
        self._all_logprobs: dict[str, list[Any]] = {}
        self._finish_reason: str | None = None

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        self._new += piece.text
        self._tokens += piece.tokens
        self._finish_reason = piece.finish_reason or None
        if not self._new and not self._finish_reason:
            return []
        text, self._new = self._new, ""
        self._texts.append(text)
        return [{"text": text, "logprobs": self._take_logprobs(), "finish_reason": self._finish_reason}]

    def whole(self) -> dict[str, Any]:
        logprobs = self._all_logprobs if self._logprobs else None
        return {"text": "".join(self._texts), "logprobs": logprobs, "finish_reason": self._finish_reason}

    def _take_logprobs(self) -> dict[str, list[Any]] | None:
        if not self._logprobs:
            return None
        new = self._logprobs.push(self._tokens)
        self._tokens = []
        for key, values in new.items():
            self._all_logprobs.setdefault(key, []).extend(values)
        return new
