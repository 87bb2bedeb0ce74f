"""The web application: its paths, who may ask, and errors in OpenAI's form throughout."""

from __future__ import annotations

import hmac
import http
import time
from collections.abc import Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minimind_jax.inference.engine import Engine
from minimind_jax.serving.answer import Answer
from minimind_jax.serving.chat_answer import ChatAnswer
from minimind_jax.serving.completion_answer import CompletionAnswer
from minimind_jax.serving.endpoint import Endpoint, json_response
from minimind_jax.serving.errors import ApiError
from minimind_jax.serving.metrics import Metrics
from minimind_jax.serving.requests import ChatRequest, CompletionRequest, GenerationRequest, parse_body
from minimind_jax.serving.settings import Settings
from minimind_jax.serving.static import SecurityHeaders, StaticFiles


def create_app(engine: Engine, settings: Settings) -> ASGIApp:
    """An ASGI application that answers with `engine`, which the caller closes after it."""
    files = StaticFiles()
    metrics = Metrics(engine)
    created = int(time.time())

    def card(name: str) -> dict[str, Any]:
        length = {"max_model_len": engine.max_context}
        return {"id": name, "object": "model", "created": created, "owned_by": "minimind_jax", **length}

    def chat(body: bytes) -> Answer:
        request = parse_body(body, ChatRequest)
        _check_model(request, settings)
        return ChatAnswer(request, engine, settings)

    def completion(body: bytes) -> Answer:
        request = parse_body(body, CompletionRequest)
        _check_model(request, settings)
        return CompletionAnswer(request, engine, settings)

    async def models(_: Request) -> Response:
        return json_response({"object": "list", "data": [card(name) for name in settings.names]})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        _require_model(name, settings)
        return json_response(card(name))

    async def health(_: Request) -> Response:
        if not engine.is_alive:
            raise ApiError(503, "the engine has ended: restart the server", code="engine_error")
        return json_response({"status": "ok", "model": settings.name})

    async def metrics_text(_: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def page(request: Request) -> Response:
        return files.answer(request, "index.html")

    async def web_file(request: Request) -> Response:
        return files.answer(request, request.path_params["name"])

    routes = [
        Route("/v1/chat/completions", Endpoint(engine, settings, metrics, chat), methods=["POST"]),
        Route("/v1/completions", Endpoint(engine, settings, metrics, completion), methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health", health),
        Route("/metrics", metrics_text),
        Route("/", page),
        Route("/web/{name:path}", web_file),
    ]
    middleware = [Middleware(_Counted, metrics=metrics)]
    if settings.cors_origins:
        methods = ["GET", "POST"]
        middleware.append(
            Middleware(CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=methods, allow_headers=["*"])
        )
    if settings.api_key:
        middleware.append(Middleware(_Authenticated, api_key=settings.api_key))
    handlers = {ApiError: _on_api_error, HTTPException: _on_http_error, Exception: _on_failure}
    # Around the whole, as Starlette sends what `_on_failure` makes past its middleware.
    return SecurityHeaders(Starlette(routes=routes, middleware=middleware, exception_handlers=handlers))  # type: ignore[arg-type]


def _check_model(request: GenerationRequest, settings: Settings) -> None:
    if request.model:
        _require_model(request.model, settings)


def _require_model(name: str, settings: Settings) -> None:
    if name not in settings.names and not settings.any_name:
        names = " and ".join(map(repr, settings.names))
        message = f"there is no model {name[:100]!r} here: this server has {names}"
        raise ApiError(404, message, param="model", code="model_not_found")


class _Counted:
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


class _Authenticated:
    """Asks for `Authorization: Bearer KEY` under /v1."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app, self._expected = app, f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(given, self._expected):  # takes as long wherever they differ
                message = "this server needs its API key: send the header `Authorization: Bearer KEY`"
                error = ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
                await json_response(error.body, error.status, error.headers)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _on_api_error(_: Request, error: ApiError) -> Response:
    return json_response(error.body, error.status, error.headers)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    """What the router raises: no such path, no such method."""
    headers: Mapping[str, str] = error.headers or {}
    message = f"{request.method} {request.url.path[:200]}: {http.HTTPStatus(error.status_code).phrase.lower()}"
    if error.status_code == 405 and "Allow" in headers:
        message += f", use {headers['Allow']}"
    return json_response(ApiError(error.status_code, message).body, error.status_code, headers)


async def _on_failure(_: Request, __: Exception) -> Response:
    error = ApiError(500, "the server failed on this request: its log says why", code="internal_error")
    return json_response(error.body, error.status)
