"""Generation with a static key/value cache, compiled: whole batches, or requests that come and go."""

from minimind_jax.inference.engine import Engine
from minimind_jax.inference.generate import generate, generate_text
from minimind_jax.inference.options import Options
from minimind_jax.inference.request import Piece, QueueFullError, Request, Token

__all__ = [
    "Engine",
    "Options",
    "Piece",
    "QueueFullError",
    "Request",
    "Token",
    "generate",
    "generate_text",
]
