"""Answers of /v1/completions: texts are continued as in pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minimind_jax.inference.engine import Engine
from minimind_jax.inference.request import Piece
from minimind_jax.serving.answer import Answer, new_tokens_limit
from minimind_jax.serving.answer_grammar import json_grammar
from minimind_jax.serving.errors import bad_request
from minimind_jax.serving.logprobs import CompletionLogprobs
from minimind_jax.serving.models import ServedModel
from minimind_jax.serving.requests import MAX_SEQUENCES, CompletionRequest
from minimind_jax.serving.settings import Settings


class CompletionAnswer(Answer):
    """The text of each choice; n to a prompt. Raises ApiError (400) for a request that cannot be answered."""

    id_prefix, object, chunk_object = "cmpl-", "text_completion", "text_completion"

    def __init__(self, request: CompletionRequest, model: ServedModel, settings: Settings) -> None:
        engine = model.engine
        if not request.prompts:
            raise bad_request("`prompt` is empty: give a text, token ids, or a list of them", "prompt")
        if len(request.prompts) * request.n > MAX_SEQUENCES:
            raise bad_request(
                f"`prompt` and `n` ask for more than {MAX_SEQUENCES} texts: send several requests", "prompt"
            )
        if request.max_tokens == 0 and not request.echo:
            raise bad_request("`max_tokens`: 0 needs `echo`: true, else there is nothing to answer", "max_tokens")
        prompts = [_tokens(engine, prompt) for prompt in request.prompts]
        limit = new_tokens_limit(request, max(map(len, prompts)), engine.max_context, settings)
        top_logprobs = -1 if request.logprobs is None else request.logprobs
        schema = request.wanted_schema
        options = request.options(
            limit,
            settings.temperature,
            settings.top_p,
            top_logprobs,
            grammar="" if schema is None else json_grammar(engine.grammars, schema),
            score_prompt=request.echo and (top_logprobs >= 0 or limit == 0),
        )

        def choice(number: int) -> _Choice:
            logprobs = CompletionLogprobs(engine.tokenizer) if top_logprobs >= 0 else None
            return _Choice(_echo(engine, request.prompts[number], prompts[number]) if request.echo else None, logprobs)

        super().__init__(request, model, prompts, options, choice)


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


@dataclass(frozen=True)
class _Echo:
    """A prompt as it is repeated."""

    text: str
    first: list[int]  # its first token, unless that is a bos which the client did not write
    shows_special: bool  # the text has the special tokens too


def _echo(engine: Engine, asked: str | list[int], prompt: list[int]) -> _Echo:
    if not isinstance(asked, str):
        return _Echo(engine.tokenizer.decode(asked), prompt[:1], shows_special=False)
    has_own_bos = engine.tokenizer.encode_rendered(asked) == prompt
    return _Echo(asked, prompt[:1] if has_own_bos else [], shows_special=True)


class _Choice:
    def __init__(self, echo: _Echo | None, logprobs: CompletionLogprobs | None) -> None:
        self._echo = echo
        self._texts: list[str] = []
        self._new = echo.text if echo else ""  # text of which no chunk has told yet
        self._logprobs = logprobs
        self._new_logprobs: dict[str, list[Any]] = {}  # likewise
        self._all_logprobs: dict[str, list[Any]] = {}
        self._finish_reason: str | None = None

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        self._new += piece.text
        if self._logprobs:
            if self._echo and piece.prompt is not None:
                echoed = self._logprobs.push_prompt(self._echo.first, piece.prompt, self._echo.shows_special)
                _extend(self._new_logprobs, echoed)
            _extend(self._new_logprobs, self._logprobs.push([*piece.tokens, *([piece.end] if piece.end else [])]))
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
        new, self._new_logprobs = self._new_logprobs, {}
        _extend(self._all_logprobs, new)
        return new


def _extend(lists: dict[str, list[Any]], new: dict[str, list[Any]]) -> None:
    for key, values in new.items():
        lists.setdefault(key, []).extend(values)
