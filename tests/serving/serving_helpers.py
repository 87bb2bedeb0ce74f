"""Tiny models behind a real web server, and an engine that answers by a script."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import uvicorn

from minimind_jax.config import ModelConfig
from minimind_jax.errors import UserError
from minimind_jax.inference.constraint import Grammars
from minimind_jax.inference.engine import Engine, Statistics
from minimind_jax.inference.request import Piece, Token
from minimind_jax.model import abstract_params
from minimind_jax.serving import Page, ServedModel, Settings, bind, create_app
from minimind_jax.tokenizer import load_tokenizer

CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, vocab_size=6400, max_seq_len=512)
TOKENIZER = load_tokenizer()
N_PARAMS = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(abstract_params(CONFIG)))
SETTINGS = Settings(max_tokens=16, max_body=100_000, timeout=120.0)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def tiny_params(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), abstract_params(CONFIG))


def tiny_engine(params: Any = None, **options: Any) -> Engine:
    return Engine(CONFIG, params or tiny_params(), TOKENIZER, **options)


def application(models: Any, settings: Settings = SETTINGS, page: Page | None = None) -> Any:
    """The application.

    Args:
      models: an engine, which is called tiny; several by their names; or a list of ServedModel.
    """
    if not isinstance(models, list):
        engines = models if isinstance(models, Mapping) else {"tiny": models}
        models = [ServedModel(engine, (name,), step=10, n_params=N_PARAMS) for name, engine in engines.items()]
    return create_app(models, settings, page)


@contextlib.contextmanager
def served(models: Any, settings: Settings = SETTINGS, page: Page | None = None) -> Iterator[int]:
    """`application` on a free port of this machine, in a thread; the port."""
    listener = bind("127.0.0.1", 0)
    app = application(models, settings, page)
    config = uvicorn.Config(app, loop="asyncio", http="h11", lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def ask(port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    """Status, headers and body (as JSON where it is) of one raw request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, headers or {})
    response = connection.getresponse()
    content = response.read()
    with contextlib.suppress(ValueError):
        content = json.loads(content)
    connection.close()
    return SimpleNamespace(status=response.status, headers=response.headers, body=content)


def question(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


class ScriptedEngine:
    """Looks like an engine; writes `text` in pieces of `size` characters, each with one token, and then ends."""

    config, tokenizer, max_context = CONFIG, TOKENIZER, CONFIG.max_seq_len
    grammars = Grammars(TOKENIZER, CONFIG.vocab_size)

    def __init__(self, text: str, size: int = 3, finish_reason: str = "stop", pause: float = 0.0) -> None:
        self.text, self.size, self.finish_reason, self.pause = text, size, finish_reason, pause
        self.statistics = Statistics()
        self.prompts: list[str] = []
        self.options: list[Any] = []
        self.n_running = self.n_waiting = 0
        self.is_alive = True

    def submit(self, prompt: Any, options: Any, on_piece: Any) -> Any:
        if len(prompt) >= self.max_context:
            raise UserError("too long")
        self.prompts.append(TOKENIZER.decode(prompt, skip_special_tokens=False))
        self.options.append(options)
        request = SimpleNamespace(submitted=time.monotonic(), cancelled=False)
        request.cancel = lambda: setattr(request, "cancelled", True)
        self.n_running += 1
        threading.Thread(target=self._write, args=(request, on_piece)).start()
        return request

    def _write(self, request: Any, on_piece: Any) -> None:
        for start in range(0, len(self.text), self.size):
            if request.cancelled:
                break
            on_piece(Piece(self.text[start : start + self.size], (Token(65, -0.5, ()),)))
            time.sleep(self.pause)
        self.n_running -= 1
        on_piece(Piece("", (), "cancelled" if request.cancelled else self.finish_reason))
