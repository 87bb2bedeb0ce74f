"""From the engine's thread to the event loop: the pieces of all sequences of one request."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Sequence

from minimind_jax.errors import UserError
from minimind_jax.inference.engine import Engine
from minimind_jax.inference.options import Options
from minimind_jax.inference.request import Piece, QueueFullError, Request
from minimind_jax.serving.errors import ApiError, from_user_error
from minimind_jax.serving.metrics import ModelMetrics

logger = logging.getLogger("minimind_jax.serving")
RETRY_AFTER = "1"  # seconds


class Generation:
    """Sequences that run together; as a context manager it frees their rows however it is left.

    Args:
      sequences: prompt and options of each.

    Raises (on entry):
      ApiError: 400 a prompt that the engine refuses, 429 too many wait, 503 the engine is closed. Then none runs.
    """

    def __init__(self, engine: Engine, metrics: ModelMetrics, sequences: Sequence[tuple[list[int], Options]]) -> None:
        self._engine, self._metrics, self._sequences = engine, metrics, sequences
        self._pieces: asyncio.Queue[tuple[int, Piece, float]] = asyncio.Queue()
        self._requests: list[Request] = []

    def __enter__(self) -> Generation:
        loop = asyncio.get_running_loop()
        try:
            for index, (prompt, options) in enumerate(self._sequences):
                hand_over = functools.partial(self._hand_over, loop, index)
                self._requests.append(self._engine.submit(prompt, options, hand_over))
        except BaseException as e:
            self.__exit__()
            if isinstance(e, UserError):
                raise from_user_error(e) from None
            if isinstance(e, QueueFullError):
                message = "too many requests are waiting: try again later"
                raise ApiError(429, message, code="queue_full", headers={"Retry-After": RETRY_AFTER}) from None
            if isinstance(e, RuntimeError):
                raise ApiError(503, "the server is shutting down", code="shutting_down") from None
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for request in self._requests:
            request.cancel()  # no matter to one that has ended

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(index of the sequence, piece) as they come, until the last piece of each sequence.

        Raises:
          ApiError: 500 the engine failed, 503 it was closed.
        """
        last_seen = [request.submitted for request in self._requests]
        is_first = [True] * len(self._requests)
        n_running = len(self._requests)
        while n_running:
            index, piece, now = await self._pieces.get()
            if piece.finish_reason == "error":
                logger.error("the engine failed: %s", piece.error)
                raise ApiError(500, "the model failed on this request: the server's log says why", code="engine_error")
            if piece.finish_reason == "cancelled":
                raise ApiError(503, "the server is shutting down", code="shutting_down")
            if piece.tokens:
                histogram = self._metrics.first_token if is_first[index] else self._metrics.inter_token
                histogram.observe(now - last_seen[index])
                last_seen[index], is_first[index] = now, False
                self._metrics.new_tokens.inc(len(piece.tokens))
            n_running -= bool(piece.finish_reason)
            yield index, piece

    def _hand_over(self, loop: asyncio.AbstractEventLoop, index: int, piece: Piece) -> None:
        """In the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody reads this any more
            loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece, time.monotonic()))
