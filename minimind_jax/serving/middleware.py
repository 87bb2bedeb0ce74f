"""What stands before every path: counting, who may ask, from which pages and by which host names."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minimind_jax.serving.endpoint import json_response
from minimind_jax.serving.errors import ApiError
from minimind_jax.serving.metrics import Metrics

_OWN_PAGE = "/api/"  # for the server's own page
_CLOSED = ("/v1/", _OWN_PAGE)  # not without the key


class Counted:
    """Counts answers by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            self._metrics.count_request(scope["path"], scope.get("outcome", status))


class HostChecked:
    """Refuses requests to other host names (421).

    A page of any site can have its name resolved to the loopback address, and is then of one origin with this server
    (DNS rebinding); the browser still sends the site's name.

    Args:
      hosts: names and addresses without port, IPv6 in brackets.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = header(scope, b"host")
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name.lower() not in self._hosts:
                message = f"this server is not known as {name[:100]!r}: start it with --allow-host NAME if it is"
                await _refuse(ApiError(421, message, code="unknown_host"))(scope, receive, send)
                return
        await self._app(scope, receive, send)


class CrossOrigin:
    """Lets pages of `origins` ("*" = all) read answers, but those that are for the server's own page."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app = app
        self._open = CORSMiddleware(app, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "http" and not scope["path"].startswith(_OWN_PAGE)
        await (self._open if is_open else self._app)(scope, receive, send)


class Authenticated:
    """Asks for `Authorization: Bearer KEY` under /v1 and /api."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app, self._expected = app, f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_CLOSED):
            given = header(scope, b"authorization").encode("latin-1")
            if not hmac.compare_digest(given, self._expected):  # takes as long wherever they differ
                message = "this server needs its API key: send the header `Authorization: Bearer KEY`"
                error = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
                await _refuse(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def header(scope: Scope, name: bytes) -> str:
    """The first one of this name (lower case); "" if there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"").decode("latin-1")


def _refuse(error: ApiError) -> ASGIApp:
    return json_response(error.body, error.status, error.headers)
