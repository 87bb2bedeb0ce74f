"""The web page's paths: its files, what it is told about the server, the demo tools, and training runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from minimind_jax import __version__
from minimind_jax.chat import chat_template
from minimind_jax.errors import UserError
from minimind_jax.serving import demo_tools
from minimind_jax.serving.endpoint import CLIENT_LEFT, ClientLeftError, json_response, read_body
from minimind_jax.serving.errors import ApiError, bad_request
from minimind_jax.serving.models import ServedModel
from minimind_jax.serving.requests import OptionObject, parse_body
from minimind_jax.serving.settings import Settings
from minimind_jax.serving.static import StaticFiles

_MAX_TOOL_BODY = 2**16  # bytes


class Runs(Protocol):
    """Training runs to read."""

    def list(self) -> list[dict[str, Any]]: ...

    def read(self, id: str, after: int) -> dict[str, Any]:
        """Raises KeyError or UserError if there is no such run."""


@dataclass(frozen=True)
class Page:
    """What the web page has besides the models."""

    suggestions: Mapping[str, Sequence[str]] = field(default_factory=dict)  # language -> questions
    runs: Runs | None = None


class _ToolCall(OptionObject):
    arguments: str = "{}"  # JSON


def page_routes(models: Sequence[ServedModel], settings: Settings, page: Page) -> list[Route]:
    files = StaticFiles()

    async def index(request: Request) -> Response:
        return files.answer(request, "index.html") if models else RedirectResponse("/runs")

    async def web_file(request: Request) -> Response:
        return files.answer(request, request.path_params["name"])

    async def about(_: Request) -> Response:
        return json_response(
            {
                "models": [_about(model) for model in models],
                "defaults": {
                    "temperature": settings.temperature,
                    "top_p": settings.top_p,
                    "max_tokens": settings.max_tokens,
                },
                "tools": demo_tools.TOOLS,
                "suggestions": {language: list(page.suggestions.get(language, ())) for language in ("zh", "en")},
                "runs": page.runs is not None,
                "version": __version__,
            }
        )

    routes = [
        Route("/", index),
        Route("/web/{name:path}", web_file),
        Route("/api/page", about),
        Route("/api/tools/{name}", _call_tool, methods=["POST"]),
    ]
    return routes if page.runs is None else [*routes, *_runs_routes(page.runs, files)]


def _about(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "max_context": model.engine.max_context,
        "thinking": chat_template(model.engine.tokenizer).thinking,
        "step": model.step,
        "parameters": model.n_params,
    }


async def _call_tool(request: Request) -> Response:
    name = request.path_params["name"]
    if not _is_same_origin(request):
        raise ApiError(403, "the demo tools are for this server's own page only", code="cross_origin")
    names = [tool["function"]["name"] for tool in demo_tools.TOOLS]
    if name not in names:
        raise ApiError(404, f"there is no tool {name[:100]!r}: there are {', '.join(names)}", param="name")
    try:
        call = parse_body(await read_body(request.receive, _MAX_TOOL_BODY), _ToolCall)
    except ClientLeftError:
        return Response(status_code=CLIENT_LEFT)
    return json_response({"result": await asyncio.to_thread(demo_tools.call, name, call.arguments)})


def _is_same_origin(request: Request) -> bool:
    """By what browsers say of a request; what says nothing is no page of this server."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin = urlsplit(request.headers.get("origin", ""))
    return bool(origin.netloc) and origin.netloc == request.headers.get("host")


def _runs_routes(runs: Runs, files: StaticFiles) -> list[Route]:
    async def runs_page(request: Request) -> Response:
        return files.answer(request, "runs.html")

    async def all_runs(_: Request) -> Response:
        return json_response({"runs": await asyncio.to_thread(runs.list)})

    async def one_run(request: Request) -> Response:
        after = request.query_params.get("after", "-1")
        if not re.fullmatch("-?[0-9]{1,18}", after):
            raise bad_request(f"`after` is {after[:50]!r}: give a step", "after")
        try:
            return json_response(await asyncio.to_thread(runs.read, request.path_params["id"], int(after)))
        except KeyError:
            raise HTTPException(404) from None
        except UserError as e:
            raise ApiError(404, str(e), param="id") from None

    return [Route("/runs", runs_page), Route("/api/runs", all_runs), Route("/api/runs/{id:path}", one_run)]
