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
    """The `logprobs` of a completion, piece by piece: offsets count the answer's characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._offset = tokenizer, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: Sequence[Token]) -> dict[str, list[Any]]:
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += self._n_characters(token.id)
        return {
            "tokens": [token_text(self._tokenizer, token.id) for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [
                {token_text(self._tokenizer, id): _finite(logprob) for id, logprob in token.top if id >= 0}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _n_characters(self, token_id: int) -> int:
        shown = self._tokenizer.decode([token_id])
        data = self._tokenizer.token_bytes(token_id) if shown else None  # special tokens are not shown
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
