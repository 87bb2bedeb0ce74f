"""The web page's files, and what browsers are told about every answer of this server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WEB = Path(__file__).parent / "web"
# What the page may load and where it may be shown: nothing but this server's own files, in no frame.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_PLAIN = "text/plain; charset=utf-8"  # licences and the like


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


class StaticFiles:
    """The files under a directory, read once.

    A request's path is looked up among theirs and never reaches the file system: none leads out of the directory.
    """

    def __init__(self, root: Path = WEB) -> None:
        self._files = {
            path.relative_to(root).as_posix(): _read(path)
            for path in root.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }

    def answer(self, request: Request, name: str) -> Response:
        """The file `name`, or 304 where the browser has it. Raises HTTPException (404) if there is none."""
        file = self._files.get(name)
        if file is None:
            raise HTTPException(404)
        headers = {"cache-control": "no-cache", "etag": file.etag}  # may be kept, but is asked for each time
        if _is_known(file.etag, request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)


class SecurityHeaders:
    """Adds them to every answer, errors too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._headers]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _MEDIA_TYPES.get(path.suffix, _PLAIN), f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _is_known(etag: str, if_none_match: str) -> bool:
    known = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in known or "*" in known
