"""Runs the web application: the address, warming up, signals."""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FrameType

import uvicorn

from minimind_jax.errors import UserError
from minimind_jax.inference.engine import Engine
from minimind_jax.inference.options import Options
from minimind_jax.inference.request import Piece
from minimind_jax.serving.app import create_app
from minimind_jax.serving.models import ServedModel
from minimind_jax.serving.page import Page
from minimind_jax.serving.settings import Settings

GRACE_SECONDS = 8  # for answers under way after SIGTERM; container runtimes kill after 10
_KEEP_ALIVE_SECONDS = 30


def exit_on_sigterm() -> None:
    """SIGTERM ends the process as a return from `main` does, whatever it is at: with 0."""

    def leave(_: int, __: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet; port 0 = any free one. Raises UserError if it cannot."""
    if not 0 <= port <= 65535:
        raise UserError(f"--port={port} must be from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as e:
        raise UserError(f"--host={host} is no address of this machine: {e.strerror}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as e:
        listener.close()
        raise UserError(f"cannot listen on {host}, port {port}: {e.strerror}; try another --port") from None
    return listener


def warm_up(engine: Engine) -> None:
    """Compiles the smallest programs, so that the first request does not wait for them."""
    pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    engine.submit([engine.tokenizer.bos_id] * 2, Options(max_new_tokens=1, ignore_eos=True), pieces.put)
    while not (piece := pieces.get()).finish_reason:
        pass
    if piece.error:
        raise UserError(f"the model does not run: {piece.error}")


def serve(
    models: Sequence[ServedModel],
    settings: Settings,
    page: Page,
    listener: socket.socket,
    log: Callable[[str], None],
) -> None:
    """Answers until SIGTERM or SIGINT, and then finishes what is under way, for GRACE_SECONDS at most.

    On the loopback address and without a key, or where `settings.allowed_hosts` has names, what comes under another
    host name than those and the machine's own is refused.
    """
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    is_loopback = ipaddress.ip_address(host.split("%")[0]).is_loopback
    if not is_loopback and not settings.api_key:
        what = "use the model" + ("s" if len(models) > 1 else "") if models else "read the runs"
        log(f"warning: other machines can reach this server, and it has no --api-key: anybody may {what}")
    if settings.allowed_hosts or (is_loopback and not settings.api_key):
        own = ("localhost", "127.0.0.1", "[::1]", shown)
        settings = replace(settings, allowed_hosts=(*own, *settings.allowed_hosts))
    for model in models:
        warm_up(model.engine)
    config = uvicorn.Config(
        create_app(models, settings, page),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    url = f"http://{shown}:{port}/"
    names = ", ".join(model.name for model in models)
    what = f"{names} listens on {url}: a page to chat; {url}v1 is the API" if models else f"runs listens on {url}runs"
    server = _Server(config, lambda: log(f"{what} (Ctrl-C ends)"))
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn passes on the signal that has ended it
        try:
            server.run(sockets=[listener])
        finally:
            log("stopped")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_listening()
