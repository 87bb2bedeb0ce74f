"""The web application: its paths, who may ask, and errors in OpenAI's form throughout."""

from __future__ import annotations

import http
import time
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from minimind_jax.serving.answer import Answer
from minimind_jax.serving.chat_answer import ChatAnswer
from minimind_jax.serving.completion_answer import CompletionAnswer
from minimind_jax.serving.endpoint import Endpoint, json_response
from minimind_jax.serving.errors import ApiError
from minimind_jax.serving.metrics import Metrics
from minimind_jax.serving.middleware import Authenticated, Counted, CrossOrigin, HostChecked
from minimind_jax.serving.models import ServedModel, find_model
from minimind_jax.serving.page import Page, page_routes
from minimind_jax.serving.requests import ChatRequest, CompletionRequest, parse_body
from minimind_jax.serving.settings import Settings
from minimind_jax.serving.static import SecurityHeaders


def create_app(models: Sequence[ServedModel], settings: Settings, page: Page | None = None) -> ASGIApp:
    """An ASGI application that answers with the models' engines, which the caller closes after it.

    Args:
      models: the first one answers requests that name none. May be empty where the page has runs to show.
      page: what the web page has besides the models.
    """
    metrics = Metrics(models)
    routes = [
        *_api_routes(models, settings, metrics),
        *_watching_routes(models, metrics),
        *page_routes(models, settings, page or Page()),
    ]
    middleware = [Middleware(Counted, metrics=metrics)]
    if settings.allowed_hosts:
        middleware.append(Middleware(HostChecked, hosts=settings.allowed_hosts))
    if settings.cors_origins:
        middleware.append(Middleware(CrossOrigin, origins=settings.cors_origins))
    if settings.api_key:
        middleware.append(Middleware(Authenticated, api_key=settings.api_key))
    handlers = {ApiError: _on_api_error, HTTPException: _on_http_error, Exception: _on_failure}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)  # type: ignore[arg-type]
    # Around the whole, as Starlette sends what `_on_failure` makes past its middleware.
    return SecurityHeaders(app)


def _api_routes(models: Sequence[ServedModel], settings: Settings, metrics: Metrics) -> list[Route]:
    created = int(time.time())

    def find(name: str | None) -> ServedModel:
        return find_model(models, name, settings.any_name)

    def chat(body: bytes) -> Answer:
        request = parse_body(body, ChatRequest)
        return ChatAnswer(request, find(request.model), settings)

    def completion(body: bytes) -> Answer:
        request = parse_body(body, CompletionRequest)
        return CompletionAnswer(request, find(request.model), settings)

    def card(name: str) -> dict[str, Any]:
        length = {"max_model_len": find(name).engine.max_context}
        return {"id": name, "object": "model", "created": created, "owned_by": "minimind_jax", **length}

    async def all_models(_: Request) -> Response:
        return json_response({"object": "list", "data": [card(name) for model in models for name in model.names]})

    async def one_model(request: Request) -> Response:
        return json_response(card(request.path_params["name"]))

    return [
        Route("/v1/chat/completions", Endpoint(settings, metrics, chat), methods=["POST"]),
        Route("/v1/completions", Endpoint(settings, metrics, completion), methods=["POST"]),
        Route("/v1/models", all_models),
        Route("/v1/models/{name:path}", one_model),
    ]


def _watching_routes(models: Sequence[ServedModel], metrics: Metrics) -> list[Route]:
    async def health(_: Request) -> Response:
        dead = [model.name for model in models if not model.engine.is_alive]
        if dead:
            which = "the engine" if len(models) == 1 else f"the engine of {' and '.join(map(repr, dead))}"
            raise ApiError(503, f"{which} has ended: restart the server", code="engine_error")
        names = [model.name for model in models]
        return json_response({"status": "ok", "model": next(iter(names), None), "models": names})

    async def metrics_text(_: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return [Route("/health", health), Route("/metrics", metrics_text)]


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
