"""Reads prompts into caches of their own, in pieces, so that nobody waits for a long one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from minimind_jax.config import ModelConfig
from minimind_jax.inference import decode
from minimind_jax.inference.cache import MIN_SLOTS, Cache, empty_cache, power_of_two
from minimind_jax.inference.prompt_logprobs import read_and_score_piece, read_and_score_prompt
from minimind_jax.inference.request import Request
from minimind_jax.model import Params

_MIN_PIECE, PIECE = 16, 512  # tokens of a prompt that are read at once


class PromptReader:
    """Reads pieces of prompts.

    Args:
      params: of `unstack_layers`.
      compiling: told the kind and sizes of each program before it is used.
    """

    def __init__(self, config: ModelConfig, params: Params, dtype: jnp.dtype, compiling: Callable[..., None]) -> None:
        self._config, self._params, self._dtype, self._compiling = config, params, dtype, compiling
        self._last_read: tuple[Sequence[int], Cache] | None = None  # a prompt but for its last token, and its cache

    def forget(self) -> None:
        self._last_read = None

    def read(self, request: Request) -> int:
        """Reads the next piece, with its scores if they are asked for; how many tokens of work it was.

        All but the last token goes into the cache: that one is the first that a decode step reads.
        """
        request.begun = True
        scored = request.options.score_prompt
        before_last = request.prompt[:-1]
        # The choices of one request come one after another.
        if self._last_read and self._last_read[0] == before_last and not scored:
            request.prompt_cache, request.n_read = self._last_read[1], len(before_last)
            return 1
        n_slots = power_of_two(len(before_last), MIN_SLOTS)
        size = min(power_of_two(len(before_last), _MIN_PIECE), PIECE)
        piece = before_last[request.n_read : request.n_read + size]
        tokens, targets = np.zeros((1, size), np.int32), np.zeros(size, np.int32)
        tokens[0, : len(piece)] = piece
        targets[: len(piece)] = request.prompt[request.n_read + 1 :][: len(piece)]
        self._compiling("score" if scored else "prompt", size, n_slots)
        request.prompt_cache, scores = self._dispatch(request, tokens, targets, n_slots)
        if scores:
            request.prompt_scores.append((len(piece), scores))
        request.n_read += len(piece)
        if request.n_read == len(before_last):
            self._last_read = (before_last, request.prompt_cache)
        return size

    def _dispatch(
        self, request: Request, tokens: np.ndarray, targets: np.ndarray, n_slots: int
    ) -> tuple[Cache, decode.Step | None]:
        model, scored = (self._config, self._params), request.options.score_prompt
        if len(request.prompt) - 1 <= len(targets):
            attention = decode.prompt_attention(self._config, self._dtype, len(targets))
            if scored:
                return read_and_score_prompt(*model, tokens, targets, n_slots, attention)
            return decode.read_prompts(*model, tokens, n_slots, attention), None
        cache = request.prompt_cache or empty_cache(self._config, 1, n_slots, self._dtype)
        start = np.int32(request.n_read)
        if scored:
            return read_and_score_piece(*model, cache, tokens, targets, start)
        return decode.read_piece(*model, cache, tokens, start), None
