"""The life of one POST request: read, checked, generated, answered or streamed; ended by errors, time and departure."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from minimind_jax.errors import UserError
from minimind_jax.serving.answer import Answer
from minimind_jax.serving.errors import ApiError, from_user_error
from minimind_jax.serving.generation import Generation
from minimind_jax.serving.metrics import Metrics
from minimind_jax.serving.settings import Settings

logger = logging.getLogger("minimind_jax.serving")

CLIENT_LEFT = 499  # as nginx logs it; nobody gets to see it
_LAST_WORDS_SECONDS = 5.0  # to tell a client of an error that ends its stream
_DISCARDED_BODIES = 16  # of `max_body`, that are read of a body which is too large before the answer
_EVENT_STREAM = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold the stream back
}


class ClientLeftError(Exception):
    """The connection is closed: nobody waits for the answer."""


class Endpoint:
    """An ASGI application for one path.

    Args:
      prepare: makes an answer of a request's body; runs in a thread, as long texts take a while. May raise ApiError
        and UserError.
    """

    def __init__(self, settings: Settings, metrics: Metrics, prepare: Callable[[bytes], Answer]) -> None:
        self._settings, self._metrics, self._prepare = settings, metrics, prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def tracked_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(self._settings.timeout):
                body = await read_body(receive, self._settings.max_body)
                await _unless_disconnected(receive, self._answer(body, tracked_send))
            return
        except ClientLeftError:
            scope["outcome"] = CLIENT_LEFT
            return
        except ApiError as e:
            error = e
        except TimeoutError:
            message = f"the answer took longer than the server's limit of {self._settings.timeout:g} seconds"
            error = ApiError(504, message, code="timeout")
        except asyncio.CancelledError:  # by the web server, which gives up on requests when it shuts down
            error = ApiError(503, "the server is shutting down", code="shutting_down")
        except Exception:
            logger.exception("a request failed")
            error = ApiError(500, "the server failed on this request: its log says why", code="internal_error")
        scope["outcome"] = error.status
        try:
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                if started:
                    await send({"type": "http.response.body", "body": _event(error.body)})
                else:
                    await json_response(error.body, error.status, error.headers)(scope, receive, send)
        except TimeoutError:
            logger.warning("a client took no more of its stream, which ends by: %s", error.message)

    async def _answer(self, body: bytes, send: Send) -> None:
        try:
            answer = await asyncio.to_thread(self._prepare, body)
        except UserError as e:
            raise from_user_error(e) from None
        metrics = self._metrics.of(answer.model)
        with Generation(answer.model.engine, metrics, answer.sequences) as generation:
            metrics.prompt_tokens.inc(answer.n_prompt_tokens)
            if answer.stream:
                await _stream(answer, generation, send)
                return
            async for index, piece in generation.pieces():
                answer.push(index, piece)
        response = json_response(answer.whole())
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body})


async def read_body(receive: Receive, limit: int) -> bytes:
    """A request's body.

    Raises:
      ApiError: 413, it has more than `limit` bytes.
      ClientLeftError: it ends before its end.
    """
    body, size = bytearray(), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            body += chunk
        # A client that is still sending might never see an answer: what it sends is read for a while.
        if not message.get("more_body") or size > _DISCARDED_BODIES * limit:
            break
    if size > limit:
        raise ApiError(413, f"the body has more than {limit} bytes, this server's limit", code="body_too_large")
    return bytes(body)


def json_response(body: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_json(body), status, headers, media_type="application/json")


async def _stream(answer: Answer, generation: Generation, send: Send) -> None:
    headers = [(name.encode(), value.encode()) for name, value in _EVENT_STREAM.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send_events(*events: Mapping[str, Any]) -> None:
        if events:
            await send({"type": "http.response.body", "body": b"".join(map(_event, events)), "more_body": True})

    await send_events(*answer.first_chunks())
    async for index, piece in generation.pieces():
        await send_events(*answer.push(index, piece))
    await send_events(*answer.last_chunks())
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _unless_disconnected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`; when the client leaves it is cancelled. Raises what it raises, and ClientLeftError."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeftError
        task.result()
    finally:
        for future in (task, left):
            future.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + _json(value) + b"\n\n"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
