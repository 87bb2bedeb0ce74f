"""Log-probabilities in the forms of OpenAI's two endpoints."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from minimind_jax.inference.request import Token
from minimind_jax.tokenizer import Tokenizer

_LEAST = -9999.0  # JSON has no infinity


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """The entries of `logprobs.content`. All tokens have one, those of thoughts and calls too."""
    return [
        {
            **_entry(tokenizer, token.id, token.logprob),
            "top_logprobs": [_entry(tokenizer, id, logprob) for id, logprob in token.top if id >= 0],
        }
        for token in tokens
    ]


class CompletionLogprobs:
    """The `logprobs` of a completion, piece by piece: offsets count the characters of its text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._offset = tokenizer, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: Sequence[Token]) -> dict[str, list[Any]]:
        return self._entries([], tokens, shows_special=False)

    def push_prompt(self, first: Sequence[int], rest: Sequence[Token], shows_special: bool) -> dict[str, list[Any]]:
        """Of a repeated prompt, before any other tokens.

        Args:
          first: its first token, of which nothing can be said; none where that is not shown.
          shows_special: the text has the special tokens.
        """
        return self._entries(first, rest, shows_special)

    def _entries(self, unknown: Sequence[int], tokens: Sequence[Token], shows_special: bool) -> dict[str, list[Any]]:
        ids = [*unknown, *(token.id for token in tokens)]
        offsets = []
        for token_id in ids:
            offsets.append(self._offset)
            self._offset += self._n_characters(token_id, shows_special)
        nothing = [None] * len(unknown)
        return {
            "tokens": [token_text(self._tokenizer, token_id) for token_id in ids],
            "token_logprobs": [*nothing, *(_finite(token.logprob) for token in tokens)],
            "top_logprobs": [*nothing, *map(self._top, tokens)],
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> dict[str, float]:
        """By text; of several tokens with the same one the most likely."""
        top: dict[str, float] = {}
        for token_id, logprob in token.top:
            if token_id >= 0:
                top.setdefault(token_text(self._tokenizer, token_id), _finite(logprob))
        return top

    def _n_characters(self, token_id: int, shows_special: bool) -> int:
        shown = self._tokenizer.decode([token_id], skip_special_tokens=not shows_special)
        data = self._tokenizer.token_bytes(token_id) if shown else None  # special tokens may not be shown
        return len(shown) if data is None else len(self._decoder.decode(data))


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token's text; of a part of a character its bytes, as OpenAI writes them: `bytes:\\xe4\\xbd`."""
    data = tokenizer.token_bytes(token_id)
    if data is None:
        return tokenizer.decode([token_id], skip_special_tokens=False)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {
        "token": token_text(tokenizer, token_id),
        "logprob": _finite(logprob),
        "bytes": None if data is None else list(data),
    }


def _finite(logprob: float) -> float:
    return max(_LEAST, logprob)  # for nan too: max keeps its first argument where the second is not larger
